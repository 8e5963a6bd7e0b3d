//! The underlay: what happens to a datagram on its way. All chance comes from the world's generator.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

/// What the underlay does to datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// Shortest way between two machines.
    pub(crate) delay_min: Duration,
    /// The longest is longer by this; every pair has its own, the same in both directions.
    pub(crate) delay_spread: Duration,
    /// What a single datagram may take longer, so that some overtake others.
    pub(crate) jitter: Duration,
    /// MTU of the narrowest link in bytes: longer packets vanish without a word.
    pub(crate) mtu: usize,
    /// MTU of every machine's own link in bytes: longer packets are refused.
    pub(crate) interface_mtu: usize,
    /// Part of the datagrams that get lost, 0 to 1.
    pub(crate) loss: f64,
    /// Part of the datagrams that arrive twice.
    pub(crate) duplicated: f64,
    /// Part of the datagrams that come late, by [`LATE`].
    pub(crate) late: f64,
}

/// What a late datagram takes longer.
pub(crate) const LATE: Duration = Duration::from_millis(400);

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_millis(2),
            delay_spread: Duration::from_millis(48),
            jitter: Duration::from_millis(3),
            mtu: 1500,
            interface_mtu: 1500,
            loss: 0.0,
            duplicated: 0.001,
            late: 0.001,
        }
    }
}

impl Conditions {
    /// The same, but with a part of the datagrams lost.
    pub(crate) const fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }
}

/// Bytes of the IP packet around a datagram.
pub(crate) const fn packet_len(to: SocketAddr, datagram_len: usize) -> usize {
    8 + if to.is_ipv4() { 20 } else { 40 } + datagram_len
}

/// The underlay.
pub(crate) struct Network {
    /// What it does to datagrams now.
    pub(crate) conditions: Conditions,
    rng: ChaCha8Rng,
    salt: u64,
}

impl Network {
    pub(crate) const fn new(conditions: Conditions, rng: ChaCha8Rng, salt: u64) -> Self {
        Self { conditions, rng, salt }
    }

    /// When the copies of a datagram arrive, counted from now; none when it is lost.
    pub(crate) fn carry(&mut self, from: SocketAddr, to: SocketAddr, len: usize) -> Vec<Duration> {
        if packet_len(to, len) > self.conditions.mtu || self.chance(self.conditions.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.chance(self.conditions.duplicated));
        (0..copies).map(|_| self.delay(from, to)).collect()
    }

    fn delay(&mut self, from: SocketAddr, to: SocketAddr) -> Duration {
        let conditions = self.conditions;
        let late = if self.chance(conditions.late) { LATE } else { Duration::ZERO };
        let way = conditions.delay_spread.mul_f64(self.distance(from, to));
        conditions.delay_min + way + conditions.jitter.mul_f64(self.unit()) + late
    }

    /// Between 0 and 1, the same for a pair of machines in both directions.
    fn distance(&self, a: SocketAddr, b: SocketAddr) -> f64 {
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.salt.to_be_bytes());
        for end in [low, high] {
            match end.ip() {
                IpAddr::V4(ip) => hasher.update(&ip.octets()),
                IpAddr::V6(ip) => hasher.update(&ip.octets()),
            };
            hasher.update(&end.port().to_be_bytes());
        }
        let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
        f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX)
    }

    fn chance(&mut self, part: f64) -> bool {
        self.unit() < part
    }

    fn unit(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}
