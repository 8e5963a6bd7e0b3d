//! The gate before expensive work: how often a source may make us do curve operations.
//!
//! ```text
//!                      ┌ not loaded, source within its rate ─────────────────────▶ Admit
//! packet, mac1 is good ┤                        ┌ within the rate of the proven ─▶ Admit
//!                      └ else: mac2 proves source ─ yes ─┴ above it ─────────────▶ Refuse
//!                                               └ no ────────────────────────────▶ Reply (cookie)
//! ```
//!
//! A cookie is a keyed hash of the source's address *and* port (WireGuard paper §5.4.7), so the gate keeps nothing for
//! whoever has not shown that it receives there. A source is an IPv4 address or an IPv6 /56, what one customer gets; or a
//! channel through a relay.
//! A full rate is not a refusal: whoever spoofs a source only makes its owner prove itself. A reply is never longer
//! than the packet that it answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Rng, draw, draw_len, draw_secret};
use crate::proto::limit::TokenBucket;
use crate::proto::timer::Instant;
use crate::proto::wire::SETUP_LEN_MAX;
use crate::proto::wire::cookie::{self, COOKIE_PADDING_LEN_MIN, COOKIE_REPLY_LEN_MIN};
use crate::proto::wire::envelope::{Envelope, Kind, MAC_LEN, RecipientKey};
use crate::proto::wire::relay::{Hop, Slot};

/// No cookie is accepted at a greater age (WireGuard paper §5.4.7).
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// Packets a second that a source may send without a cookie; as many may come at once.
pub const UNPROVEN_PER_S: u32 = 50;
/// Packets a second that a source may send with a cookie (WireGuard's `ratelimiter.h`).
pub const PROVEN_PER_S: u32 = 20;
/// Packets that may come at once with a cookie (WireGuard's `ratelimiter.h`).
pub const PROVEN_BURST: u32 = 5;
/// Sources remembered in each of the two tables.
pub const SOURCES_MAX: usize = 4096;

/// A secret gives way to the next one at half of its life, so every cookie is good for 60 to 120 seconds.
const SECRET_TURN: Duration = Duration::from_secs(60);
/// A full table is searched for sources to forget at most this often.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// Random bytes that a cookie reply may have beyond the least.
const REPLY_PADDING_SPREAD: usize = 64;

/// What to do with a setup packet whose mac1 is good.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Do the expensive work.
    Admit,
    /// Send this cookie reply to the source and forget the packet.
    Reply(Vec<u8>),
    /// Forget the packet.
    Refuse,
}

/// The gate of one UDP port.
pub struct Gate {
    secret: Secret,
    previous: Option<Secret>,
    unproven: Sources,
    proven: Sources,
}

struct Secret {
    key: Zeroizing<[u8; 32]>,
    born: Instant,
}

impl Gate {
    /// A gate that has seen nobody.
    pub fn new(rng: &mut Rng, now: Instant) -> Self {
        Self {
            secret: Secret { key: draw_secret(rng), born: now },
            previous: None,
            unproven: Sources::new(UNPROVEN_PER_S, UNPROVEN_PER_S, now),
            proven: Sources::new(PROVEN_PER_S, PROVEN_BURST, now),
        }
    }

    /// Decides about a packet from `source`. `loaded` is true while we are short of CPU for setup packets.
    pub fn admit(
        &mut self,
        now: Instant,
        source: Hop,
        envelope: &Envelope<'_>,
        own_key: &RecipientKey,
        loaded: bool,
        rng: &mut Rng,
    ) -> Admission {
        let prefix = prefix(source);
        if !loaded && self.unproven.take(now, prefix) {
            return Admission::Admit;
        }
        self.turn_secrets(now, rng);
        if self.is_proven(source, envelope) {
            return if self.proven.take(now, prefix) { Admission::Admit } else { Admission::Refuse };
        }
        cookie_reply(&self.secret.cookie(source), envelope, own_key, rng)
    }

    /// Sources remembered that sent without a cookie.
    pub fn sources(&self) -> usize {
        self.unproven.buckets.len()
    }

    fn turn_secrets(&mut self, now: Instant, rng: &mut Rng) {
        if now.saturating_since(self.secret.born) >= SECRET_TURN {
            let next = Secret { key: draw_secret(rng), born: now };
            self.previous = Some(std::mem::replace(&mut self.secret, next));
        }
        self.previous.take_if(|secret| now.saturating_since(secret.born) >= COOKIE_LIFETIME);
    }

    fn is_proven(&self, source: Hop, envelope: &Envelope<'_>) -> bool {
        [Some(&self.secret), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .any(|secret| envelope.proves(&secret.cookie(source)))
    }
}

impl Secret {
    fn cookie(&self, source: Hop) -> [u8; MAC_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        match source {
            Hop::Direct(endpoint) => {
                let ip = match endpoint.ip().to_canonical() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                hasher.update(&ip.octets()).update(&endpoint.port().to_be_bytes())
            }
            Hop::Relayed(slot) => hasher.update(&slot.0.to_be_bytes()),
        };
        let hash = hasher.finalize();
        std::array::from_fn(|i| hash.as_bytes()[i])
    }
}

fn cookie_reply(
    cookie: &[u8; MAC_LEN],
    envelope: &Envelope<'_>,
    own_key: &RecipientKey,
    rng: &mut Rng,
) -> Admission {
    if envelope.packet_len() < COOKIE_REPLY_LEN_MIN {
        return Admission::Refuse;
    }
    let len_max = envelope.packet_len().min(COOKIE_REPLY_LEN_MIN + REPLY_PADDING_SPREAD);
    let len = draw_len(rng, COOKIE_REPLY_LEN_MIN, len_max);
    let padding: [u8; COOKIE_PADDING_LEN_MIN + REPLY_PADDING_SPREAD] = draw(rng);
    let padding_len = COOKIE_PADDING_LEN_MIN + len - COOKIE_REPLY_LEN_MIN;
    let mut packet = cookie::emit(cookie, &padding[..padding_len]);
    own_key.for_cookie_reply(&envelope.mac1()).close(Kind::CookieReply, None, draw(rng), &mut packet);
    Admission::Reply(packet)
}

/// The cookie, if the packet is the reply to one that [`RecipientKey::for_cookie_reply`] made this key for.
pub fn read_cookie(key: &RecipientKey, packet: &[u8]) -> Option<[u8; MAC_LEN]> {
    let mut copy = [0; SETUP_LEN_MAX];
    let copy = copy.get_mut(..packet.len())?;
    copy.copy_from_slice(packet);
    let envelope = key.open(copy).ok()?;
    (envelope.kind == Kind::CookieReply).then(|| cookie::parse(envelope.body()).ok())?
}

/// Who shares a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    /// The first 56 bits.
    V6(u64),
    /// A channel through a relay: nobody's address is behind it that could be somebody else's.
    Slot(Slot),
}

fn prefix(source: Hop) -> Source {
    match source {
        Hop::Direct(endpoint) => match endpoint.ip().to_canonical() {
            IpAddr::V4(ip) => Source::V4(ip.to_bits()),
            IpAddr::V6(ip) => Source::V6((ip.to_bits() >> 72) as u64),
        },
        Hop::Relayed(slot) => Source::Slot(slot),
    }
}

/// A token bucket for each source, in bounded memory.
struct Sources {
    rate_per_s: u32,
    burst: u32,
    buckets: BTreeMap<Source, TokenBucket>,
    swept: Instant,
}

impl Sources {
    const fn new(rate_per_s: u32, burst: u32, now: Instant) -> Self {
        Self { rate_per_s, burst, buckets: BTreeMap::new(), swept: now }
    }

    /// Takes a token of the source; false when it has none, or when the table is full of others.
    fn take(&mut self, now: Instant, prefix: Source) -> bool {
        if let Some(bucket) = self.buckets.get_mut(&prefix) {
            return bucket.take(now);
        }
        if self.buckets.len() >= SOURCES_MAX {
            self.sweep(now);
        }
        if self.buckets.len() >= SOURCES_MAX {
            return false;
        }
        self.buckets.entry(prefix).or_insert(TokenBucket::new(self.rate_per_s, self.burst, now)).take(now)
    }

    /// Forgets sources whose buckets are full again: nothing is lost with them.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_since(self.swept) >= SWEEP_EVERY {
            self.swept = now;
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
    }
}
