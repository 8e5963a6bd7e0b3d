//! Where one peer can be reached: candidates to try, and the endpoint it was last heard from.
//!
//! A candidate is an endpoint worth trying (RFC 8445 §2): from the peer's own record, from a contact that somebody
//! handed out, from an announcement or from the configuration. The endpoint in use is only ever set by packets that
//! authenticated: a peer roams by being heard from somewhere else (WireGuard paper §2.1). Punching, relays and the
//! choice between several working paths come on top of this. How long a datagram may be on the path is found by `pmtu`.

pub mod pmtu;

use std::net::{IpAddr, SocketAddr};

use crate::proto::identity::in_mesh;

/// Most candidates kept for one peer.
pub const CANDIDATES_MAX: usize = 8;
/// Endpoints that one handshake attempt is sent to.
pub const TARGETS_MAX: usize = 3;

/// A network that this machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Our address in it.
    pub ip: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_len: u8,
}

impl LocalNetwork {
    fn contains(&self, ip: IpAddr) -> bool {
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

/// True for addresses that mean the same host everywhere (IANA special-purpose registries).
fn is_global(ip: IpAddr) -> bool {
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

/// One peer's endpoints.
#[derive(Clone, Debug, Default)]
pub struct Path {
    /// Heard from there last, by a packet that authenticated.
    current: Option<SocketAddr>,
    /// Most promising first.
    candidates: Vec<SocketAddr>,
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

    /// A packet from `endpoint` authenticated and was the newest. True when the peer has moved.
    pub fn handle_heard(&mut self, endpoint: SocketAddr) -> bool {
        let moved = self.current != Some(endpoint);
        self.current = Some(endpoint);
        if moved {
            self.learn(endpoint);
        }
        moved
    }

    /// The endpoint in use.
    pub const fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// Every endpoint worth trying, best first.
    pub fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// Where attempt number `attempt` (from 0) of a handshake is sent: the endpoint in use, then the candidates in
    /// turn, [`TARGETS_MAX`] at a time.
    pub fn targets(&self, attempt: u32) -> Vec<SocketAddr> {
        let mut targets: Vec<_> = self.current.into_iter().collect();
        let n = self.candidates.len();
        let start = (attempt as usize).saturating_mul(TARGETS_MAX - 1) % n.max(1);
        for i in 0..n {
            let candidate = self.candidates[(start + i) % n];
            if targets.len() < TARGETS_MAX && !targets.contains(&candidate) {
                targets.push(candidate);
            }
        }
        targets
    }
}

#[cfg(test)]
mod tests;
