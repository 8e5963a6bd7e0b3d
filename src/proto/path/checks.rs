//! Connectivity checks (RFC 8445 §7): a ping on every way on which a peer may be reached, from both sides at the same time.
//!
//! ```text
//! candidates of the peer ─► target ── ping, ping, … ── answered ─► the endpoint works in both directions
//! ping from elsewhere ────────┘ (triggered check, §7.3.1.4)    └── [`CHECKS_PER_TARGET`] without an answer ─► given up
//! ```
//!
//! Each ping opens the way back through our own NAT, so what matters is that both sides send within the same moments; what
//! comes too early is lost without harm. The pings are messages of the session: whoever answers is the peer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::Rng;

use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

/// Ways tried at once.
pub const TARGETS_MAX: usize = 8;
/// Pings to one endpoint that does not answer, counted from its first: dense at first, as the other side starts half a
/// round trip later, then in two rounds more.
const CHECKS_MS: [u64; 10] = [0, 50, 150, 300, 1000, 1100, 1300, 3000, 3100, 3300];
/// Pings to one IP address that has not answered, within [`UNANSWERED_FOR`]: whoever names the addresses may mean
/// somebody else's.
pub const UNANSWERED_MAX: u32 = 20;
/// See [`UNANSWERED_MAX`].
pub const UNANSWERED_FOR: Duration = Duration::from_secs(60);
/// Pings to an IP address after which it gets [`CHECKS_SHORT`] of them each time that it is tried: so there is something
/// left of [`UNANSWERED_MAX`] whenever a way may have become open again.
const CHECKS_FULL: u32 = CHECKS_MS.len() as u32;
/// The pings that an address gets after its first `CHECKS_FULL`.
pub const CHECKS_SHORT: usize = 2;
/// IP addresses remembered that have not answered; no others are tried meanwhile.
pub const ADDRESSES_MAX: usize = 2 * TARGETS_MAX;
/// Pings to one endpoint that does not answer.
pub const CHECKS_PER_TARGET: usize = CHECKS_MS.len();
/// Pings whose answer is still welcome.
const SENT_MAX: usize = 2 * TARGETS_MAX * CHECKS_PER_TARGET;

#[derive(Clone, Copy, Debug)]
struct Target {
    hop: Hop,
    since: Instant,
    sent: usize,
    /// Pings that it gets.
    most: usize,
}

impl Target {
    fn due(&self) -> Option<Instant> {
        let next = CHECKS_MS.get(self.sent).filter(|_| self.sent < self.most);
        next.map(|ms| self.since + Duration::from_millis(*ms))
    }
}

/// The checks towards one peer.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    targets: Vec<Target>,
    sent: BTreeMap<u64, (Hop, Instant)>,
    /// Pings to addresses that have not answered, and when they are forgotten.
    unanswered: BTreeMap<IpAddr, (u32, Instant)>,
}

impl Checks {
    /// Tries these ways from now on, in place of those before.
    pub fn begin(&mut self, now: Instant, hops: impl IntoIterator<Item = Hop>) {
        self.targets.clear();
        for hop in hops {
            self.add(now, hop);
        }
    }

    /// Tries one more way, unless it is being tried or there are too many.
    pub fn add(&mut self, now: Instant, hop: Hop) {
        self.targets.retain(|target| target.due().is_some());
        if self.targets.len() < TARGETS_MAX && self.targets.iter().all(|target| target.hop != hop) {
            let tried =
                |ip| self.unanswered.get(&ip).is_some_and(|(n, until)| now < *until && *n >= CHECKS_FULL);
            let short = hop.direct().is_some_and(|endpoint| tried(endpoint.ip()));
            let most = if short { CHECKS_SHORT } else { CHECKS_MS.len() };
            self.targets.push(Target { hop, since: now, sent: 0, most });
        }
    }

    /// The peer was heard at this way, which was not open before: tries it anew. `endpoint` is one at which the peer is
    /// known to be, so that it may be pinged as often as one that has answered.
    pub fn retry(&mut self, now: Instant, endpoint: SocketAddr) {
        self.unanswered.remove(&endpoint.ip());
        let hop = Hop::Direct(endpoint);
        self.targets.retain(|target| target.hop != hop);
        if self.targets.len() >= TARGETS_MAX {
            self.targets.remove(0);
        }
        self.add(now, hop);
    }

    /// Tries nothing any more; late answers still count.
    pub fn stop(&mut self) {
        self.targets.clear();
    }

    /// True while this way is being tried.
    pub fn is_trying(&self, hop: Hop) -> bool {
        self.targets.iter().any(|target| target.hop == hop && target.due().is_some())
    }

    /// True while endpoints are being tried.
    pub fn is_trying_directly(&self) -> bool {
        self.targets.iter().any(|target| target.hop.direct().is_some() && target.due().is_some())
    }

    /// True when this way is being tried, or was lately.
    pub fn has_tried(&self, hop: Hop) -> bool {
        self.is_trying(hop) || self.sent.values().any(|(sent, _)| *sent == hop)
    }

    /// The next ping to send: where to, and its nonce.
    pub fn poll_transmit(&mut self, now: Instant, rng: &mut impl Rng) -> Option<(Hop, u64)> {
        let target = loop {
            let at = self.targets.iter().position(|target| target.due().is_some_and(|due| due <= now))?;
            if self.may_ping(now, self.targets[at].hop) {
                break &mut self.targets[at];
            }
            self.targets.remove(at);
        };
        target.sent += 1;
        let hop = target.hop;
        Some((hop, self.note_sent(now, hop, rng)))
    }

    fn note_sent(&mut self, now: Instant, hop: Hop, rng: &mut impl Rng) -> u64 {
        let nonce = rng.next_u64();
        if self.sent.len() == SENT_MAX {
            let oldest = self.sent.iter().min_by_key(|(_, (_, at))| *at).map(|(nonce, _)| *nonce);
            oldest.and_then(|nonce| self.sent.remove(&nonce));
        }
        self.sent.insert(nonce, (hop, now));
        nonce
    }

    /// One ping by a way, whether it is being tried or not: its nonce, unless the address has had its share.
    pub fn ask(&mut self, now: Instant, hop: Hop, rng: &mut impl Rng) -> Option<u64> {
        self.may_ping(now, hop).then(|| self.note_sent(now, hop, rng))
    }

    /// A ping was answered: the way that works, and how long it took.
    pub fn handle_answer(&mut self, now: Instant, nonce: u64) -> Option<(Hop, Duration)> {
        let (hop, at) = self.sent.remove(&nonce)?;
        hop.direct().and_then(|endpoint| self.unanswered.remove(&endpoint.ip()));
        self.targets.retain(|target| target.hop != hop);
        Some((hop, now.saturating_since(at)))
    }

    /// Forgets that an address has not answered: there is reason to believe that it does now.
    pub fn pardon(&mut self, ip: IpAddr) {
        self.unanswered.remove(&ip);
    }

    /// Counts a ping; false when the address has had its share. A relay gets what it agreed to.
    fn may_ping(&mut self, now: Instant, hop: Hop) -> bool {
        let Some(ip) = hop.direct().map(|endpoint| endpoint.ip()) else { return true };
        self.unanswered.retain(|_, (_, until)| now < *until);
        if self.unanswered.len() >= ADDRESSES_MAX && !self.unanswered.contains_key(&ip) {
            return false;
        }
        let (pings, _) = self.unanswered.entry(ip).or_insert((0, now + UNANSWERED_FOR));
        *pings += 1;
        *pings <= UNANSWERED_MAX
    }

    /// When an address that has had its share of pings gets some again.
    pub fn exhausted_until(&self, now: Instant) -> Option<Instant> {
        let exhausted = |(pings, until): &&(u32, Instant)| *pings >= UNANSWERED_MAX && now < *until;
        self.unanswered.values().filter(exhausted).map(|(_, until)| *until).max()
    }

    /// When to call [`Checks::poll_transmit`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.targets.iter().filter_map(Target::due).min()
    }
}
