//! Where one peer can be reached: candidates to try, and the way in use.
//!
//! A candidate is an endpoint worth trying (RFC 8445 §2): from the peer's own record, from a contact that somebody
//! handed out, from an announcement, from the configuration or from the peer itself. The way in use is set by packets that
//! authenticated: a peer roams by being heard from somewhere else (WireGuard paper §2.1); from a relay to an endpoint we
//! change only when a check was answered from there.
//!
//! | file | what it does |
//! | --- | --- |
//! | `checks` | punching: which endpoints to try, when, and what was answered |
//! | `hopping` | ports beside the ordinary one, where that is blocked |
//! | `choice` | how good each way is, and which one to use |
//! | `observed` | where others see us, and what kind of NAT that tells |
//! | `pmtu` | how long a datagram may be |
//! | `spray` | punching where one side has to guess a port |
//! | `reach` | whether others reach us unasked |
//! | `udp` | whether UDP gets through at all |

pub mod checks;
pub mod choice;
pub mod hopping;
pub mod observed;
pub mod pmtu;
pub mod reach;
pub mod spray;
pub mod udp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::identity::in_mesh;
use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

use checks::Checks;
use choice::Choice;

/// Most candidates kept for one peer.
pub const CANDIDATES_MAX: usize = 8;
/// Endpoints that one handshake attempt is sent to.
pub const TARGETS_MAX: usize = 3;

/// Attempts of a handshake without an answer before a port that hops is tried, too.
pub const ATTEMPTS_BEFORE_HOP: u32 = 2;

/// A network that this machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Our address in it.
    pub ip: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_len: u8,
}

impl LocalNetwork {
    /// True for addresses of the network.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix_len.min(32));
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix_len.min(128));
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// True when a stranger's word is enough to send packets to `endpoint`: a unicast address of the public internet, or
/// a private one on a network that we are on ourselves; never an address of our own, of the mesh, or a low port.
pub fn is_admissible(endpoint: &SocketAddr, local: &[LocalNetwork]) -> bool {
    if !is_possible(endpoint) || endpoint.port() < 1024 && endpoint.port() != 443 {
        return false;
    }
    let ip = endpoint.ip();
    if ip.is_loopback() || local.iter().any(|network| network.ip == ip) {
        return false;
    }
    is_global(ip) || local.iter().any(|network| network.contains(ip))
}

/// True when `endpoint` can be sent to at all. What the owner configures needs no more than this.
pub fn is_possible(endpoint: &SocketAddr) -> bool {
    let ip = endpoint.ip();
    if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip != ip.to_canonical() {
        return false;
    }
    match ip {
        IpAddr::V4(ip) => !ip.is_broadcast(),
        // A tunnel inside of its own tunnel.
        IpAddr::V6(ip) => !in_mesh(&ip),
    }
}

/// True for addresses of one link.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// True for addresses that mean the same host everywhere (IANA special-purpose registries).
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let benchmark = a == 198 && (b == 18 || b == 19);
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || shared
                || benchmark
                || a == 0
                || a >= 240)
        }
        IpAddr::V6(ip) => {
            // 2000::/3 only: NAT64 (64:ff9b::/96) would be a way to any IPv4 address, a private one too.
            ip.segments()[0] & 0xe000 == 0x2000
        }
    }
}

/// What became of a packet that came by another way than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// By the way in use.
    InUse,
    /// The peer has moved: the way in use is another one now.
    Moved,
    /// The peer sends by this way, ours stays; perhaps it is worth a check.
    Elsewhere,
}

/// A packet is read within this time after the data path has told where it came from.
const READ_WITHIN: Duration = Duration::from_millis(50);

/// One peer's ways.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// Where we send.
    current: Option<Hop>,
    /// How the newest packet came that authenticated, questions about ways and their answers apart.
    heard: Option<Hop>,
    /// And those before, when they came by another way, and since when they do not.
    heard_before: Option<(Hop, Instant)>,
    /// Most promising first.
    candidates: Vec<SocketAddr>,
    /// The endpoint by the port that is open just now, of a peer whose ports hop.
    hop: Option<SocketAddr>,
    /// Endpoints that are being tried.
    pub checks: Checks,
    /// What is known of the ways.
    pub choice: Choice,
}

impl Path {
    /// Adds a candidate in front of the others.
    pub fn learn(&mut self, endpoint: SocketAddr) {
        self.candidates.retain(|known| *known != endpoint);
        self.candidates.insert(0, endpoint);
        self.candidates.truncate(CANDIDATES_MAX);
    }

    /// Adds candidates behind the others, in their order.
    pub fn learn_more(&mut self, endpoints: impl IntoIterator<Item = SocketAddr>) {
        for endpoint in endpoints {
            if self.candidates.len() < CANDIDATES_MAX && !self.candidates.contains(&endpoint) {
                self.candidates.push(endpoint);
            }
        }
    }

    /// A packet that came by `hop` authenticated and was the newest. Each side chooses its own way: only from one endpoint
    /// to another that we did not know does the peer take us along (WireGuard paper §2.1). An endpoint of the other
    /// family is no move: the peer has both.
    pub fn handle_heard(&mut self, now: Instant, hop: Hop) -> Heard {
        self.note_heard(now, hop);
        match (self.current, hop) {
            (Some(current), hop) if current == hop => Heard::InUse,
            (Some(Hop::Direct(current)), Hop::Direct(new))
                if self.choice.is_known(now, hop) || current.is_ipv4() != new.is_ipv4() =>
            {
                Heard::Elsewhere
            }
            (None, hop) | (Some(Hop::Direct(_)), hop @ Hop::Direct(_)) => {
                self.switch(hop);
                Heard::Moved
            }
            (Some(Hop::Direct(_)), Hop::Relayed(_)) | (Some(Hop::Relayed(_)), _) => Heard::Elsewhere,
        }
    }

    /// The same for a way that we do not follow the peer to, unless there is none: it needs a check first.
    pub fn handle_heard_elsewhere(&mut self, now: Instant, hop: Hop) -> Heard {
        if self.current.is_none() {
            return self.handle_heard(now, hop);
        }
        self.note_heard(now, hop);
        if self.current == Some(hop) { Heard::InUse } else { Heard::Elsewhere }
    }

    fn note_heard(&mut self, now: Instant, hop: Hop) {
        if let Some(before) = self.heard.replace(hop).filter(|before| *before != hop) {
            self.heard_before = Some((before, now));
        }
    }

    /// What was heard by `hop` was a question about that way, or the answer to one: where the peer's packets come is as
    /// before. True when that changes something; not for a way that we do not know, where the peer may have moved to.
    pub fn handle_question(&mut self, now: Instant, hop: Hop) -> bool {
        let Some((before, at)) = self.heard_before.filter(|_| self.heard == Some(hop)) else { return false };
        // Later, data has come by this way too.
        if now.saturating_since(at) >= READ_WITHIN {
            return false;
        }
        let known = [before, hop].into_iter().all(|way| self.choice.is_known(now, way));
        if known {
            (self.heard, self.heard_before) = (Some(before), None);
        }
        known
    }

    /// An endpoint exists no more.
    pub fn lose(&mut self, endpoint: SocketAddr) {
        self.candidates.retain(|known| *known != endpoint);
        self.current.take_if(|current| *current == Hop::Direct(endpoint));
        self.choice.forget(Hop::Direct(endpoint));
    }

    /// Sends by `hop` from now on.
    pub fn switch(&mut self, hop: Hop) {
        if self.current != Some(hop)
            && let Hop::Direct(endpoint) = hop
            && self.hop != Some(endpoint)
        {
            self.learn(endpoint);
        }
        self.current = Some(hop);
    }

    /// The way in use.
    pub const fn current(&self) -> Option<Hop> {
        self.current
    }

    /// The endpoint in use, when no relay is in between.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.current.and_then(|hop| hop.direct())
    }

    /// True while packets go through a relay.
    pub const fn is_relayed(&self) -> bool {
        matches!(self.current, Some(Hop::Relayed(_)))
    }

    /// How the peer's packets come.
    pub const fn heard(&self) -> Option<Hop> {
        self.heard
    }

    /// Every endpoint worth trying, best first.
    pub fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// The endpoint to try when the ordinary ones do not answer.
    pub const fn hop(&self) -> Option<SocketAddr> {
        self.hop
    }

    /// Sets that endpoint, or that there is none.
    pub const fn set_hop(&mut self, hop: Option<SocketAddr>) {
        self.hop = hop;
    }

    /// Where attempt number `attempt` (from 0) of a handshake is sent: the way in use, then the candidates in turn,
    /// [`TARGETS_MAX`] at a time, and from [`ATTEMPTS_BEFORE_HOP`] on the port that is open just now.
    pub fn targets(&self, attempt: u32) -> Vec<Hop> {
        let mut targets: Vec<_> = self.current.into_iter().collect();
        let n = self.candidates.len();
        let start = (attempt as usize).saturating_mul(TARGETS_MAX - 1) % n.max(1);
        for i in 0..n {
            let candidate = Hop::Direct(self.candidates[(start + i) % n]);
            if targets.len() < TARGETS_MAX && !targets.contains(&candidate) {
                targets.push(candidate);
            }
        }
        let hop = self.hop.filter(|_| attempt >= ATTEMPTS_BEFORE_HOP).map(Hop::Direct);
        targets.extend(hop.filter(|hop| !targets.contains(hop)));
        targets
    }
}

#[cfg(test)]
mod tests;
