//! Port hopping: the UDP ports at which a node is reached beside its own, another one every ten minutes.
//!
//! ```text
//! key   BLAKE3 derive_key("auramesh v1 hopping", node ID ‖ network secret)
//! port  BLAKE3 keyed(key, epoch u64), first two bytes, put into PORTS;  epoch = Unix time / 600 s
//! ```
//!
//! Who blocks a port has to do so again every ten minutes, and for a network with a secret does not know which
//! comes next. Clocks differ: the ports of the epochs before and after are open, too.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::timer::WallTime;
use crate::proto::wire::envelope::NetworkSecret;

/// Ports are drawn from here: above those of well-known services. A service of the machine that listens there all the same
/// gets no new flows while its port is open.
pub const PORTS: RangeInclusive<u16> = 16_384..=65_535;
/// How long a port is the current one.
pub const EPOCH: Duration = Duration::from_secs(600);

const KEY_CONTEXT: &str = "auramesh v1 hopping";

/// What the ports of a node follow from.
#[derive(Clone, Debug)]
pub struct Hopping {
    key: [u8; 32],
}

impl Hopping {
    /// Those of `node`, for the members of a network.
    pub fn new(node: &NodeId, network: &NetworkSecret) -> Self {
        let mut material = [0; 64];
        material[..32].copy_from_slice(node.as_bytes());
        material[32..].copy_from_slice(&network.0);
        Self { key: blake3::derive_key(KEY_CONTEXT, &material) }
    }

    /// The port to try now.
    pub fn port(&self, wall: WallTime) -> u16 {
        self.of_epoch(epoch(wall))
    }

    /// The ports that are open now: the current one first.
    pub fn open(&self, wall: WallTime) -> [u16; 3] {
        let now = epoch(wall);
        [now, now.saturating_sub(1), now + 1].map(|epoch| self.of_epoch(epoch))
    }

    fn of_epoch(&self, epoch: u64) -> u16 {
        let [high, low, ..] = *blake3::keyed_hash(&self.key, &epoch.to_be_bytes()).as_bytes();
        let span = PORTS.end() - PORTS.start();
        PORTS.start()
            + (u32::from(u16::from_be_bytes([high, low])) * u32::from(span) / u32::from(u16::MAX)) as u16
    }
}

/// From now until other ports are open.
pub fn until_next(wall: WallTime) -> Duration {
    let epoch_ms = EPOCH.as_millis() as u64;
    Duration::from_millis(epoch_ms - wall.as_unix_ms() % epoch_ms)
}

fn epoch(wall: WallTime) -> u64 {
    wall.as_unix_s() / EPOCH.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([7; 32]);

    fn at(s: u64) -> WallTime {
        WallTime::from_unix_ms(s * 1000)
    }

    fn open_network() -> Hopping {
        Hopping::new(&NODE, &NetworkSecret::default())
    }

    #[test]
    fn a_clock_that_is_ten_minutes_off_finds_an_open_port() {
        let hopping = open_network();
        for s in (1_800_000_000..1_800_010_000).step_by(97) {
            let open = hopping.open(at(s));
            for other in [s - 600, s - 300, s, s + 300, s + 600] {
                assert!(open.contains(&hopping.port(at(other))), "{s} {other}");
            }
            assert_eq!(open[0], hopping.port(at(s)));
        }
    }

    #[test]
    fn ports_change_when_they_are_said_to() {
        let hopping = open_network();
        let now = at(1_800_000_123);
        assert_eq!(until_next(now), Duration::from_secs(477));
        assert_eq!(hopping.port(at(1_800_000_599)), hopping.port(now));
        assert_ne!(hopping.port(at(1_800_000_600)), hopping.port(now));
        assert_eq!(until_next(at(1_800_000_600)), EPOCH);
    }

    #[test]
    fn ports_fill_their_range_and_differ_by_node_and_secret() {
        let hopping = open_network();
        let ports: Vec<_> = (0..5000).map(|epoch| hopping.of_epoch(epoch)).collect();
        assert!(ports.iter().all(|port| PORTS.contains(port)));
        let (low, high) = (ports.iter().min().unwrap(), ports.iter().max().unwrap());
        assert!(*low < 16_500 && *high > 65_400, "{low} {high}");
        let now = at(1_800_000_000);
        let others = [(NodeId([8; 32]), [0; 32]), (NODE, [1; 32])];
        for (node, secret) in others {
            assert_ne!(Hopping::new(&node, &NetworkSecret(secret)).port(now), hopping.port(now));
        }
    }
}
