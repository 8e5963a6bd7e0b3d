//! From a relay to a way of our own: both sides tell each other where they may be reached, and try it at the same time.
//!
//! ```text
//! session by a relay ─► Candidates ─► peer: Candidates back, checks begin ─► our checks begin ─► one is answered: switch
//!                                                                          └► none: again after a while, if there is data
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::path::observed::Mapping;
use crate::proto::path::{self, checks};
use crate::proto::timer::Instant;
use crate::proto::wire::control::{CANDIDATES_MAX, Control};
use crate::proto::wire::inner::IcmpError;
use crate::proto::wire::relay::Hop;

use super::{Node, Timer};

/// Waits before candidates are exchanged again, while the session goes through a relay.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// And from then on, while there is data.
const AGAIN_LATER: Duration = Duration::from_secs(60);

impl Node {
    /// Where we may be reached: what others see of us, and our own addresses.
    fn own_candidates(&self, now: Instant) -> Vec<SocketAddr> {
        let seen = [true, false].into_iter().filter_map(|v4| self.observed.endpoint(now, v4)).map(|(e, _)| e);
        let mut candidates: Vec<_> = seen.collect();
        for endpoint in &self.endpoints {
            if !candidates.contains(endpoint) {
                candidates.push(*endpoint);
            }
        }
        candidates.truncate(CANDIDATES_MAX);
        candidates
    }

    /// True when our NAT gives every destination another port.
    pub(super) fn maps_dependently(&self, now: Instant) -> bool {
        self.observed.mapping(now, true, |ip| self.is_own(ip)) == Mapping::Dependent
    }

    /// Looks for a way without a relay, from the beginning.
    pub(super) fn look_for_direct(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.upgrades = 0;
        self.offer_candidates(now, id);
    }

    /// Tells the peer where we may be reached, and plans to do so again.
    pub(super) fn offer_candidates(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if !peer.path.is_relayed() || peer.current.is_none() {
            return self.timers.disarm(&Timer::Upgrade(id));
        }
        let (tries, data) = (peer.upgrades, peer.data_packets());
        let used = std::mem::replace(&mut peer.upgraded_at_data, data) != data || !peer.staged.is_empty();
        peer.upgrades += 1;
        let wait = AGAIN.get(tries as usize).copied().unwrap_or(AGAIN_LATER);
        self.timers.arm(Timer::Upgrade(id), now + wait);
        if tries as usize <= AGAIN.len() || used {
            self.send_candidates(now, id, false);
        }
        if tries as usize >= AGAIN.len() {
            self.give_up_waiting(now, id);
        }
    }

    /// What waits for a way that carries data has waited long enough.
    fn give_up_waiting(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let staged = match peer.path.current() {
            Some(_) => peer.staged.take(),
            None => return,
        };
        for packet in &staged {
            self.refuse(IcmpError::AddressUnreachable, packet);
        }
        let _ = now;
    }

    fn send_candidates(&mut self, now: Instant, id: NodeId, answer: bool) {
        let (endpoints, dependent) = (self.own_candidates(now), self.maps_dependently(now));
        self.send_control(now, id, &[Control::Candidates { answer, dependent, endpoints }]);
    }

    /// The peer says where it may be reached.
    pub(super) fn handle_candidates(
        &mut self,
        now: Instant,
        id: NodeId,
        answer: bool,
        dependent: bool,
        endpoints: Vec<SocketAddr>,
    ) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if !peer.requests.take(now) {
            return self.drop(crate::proto::datapath::DropReason::RateLimited);
        }
        let possible = endpoints.into_iter().filter(|endpoint| path::is_admissible(endpoint, &self.local));
        peer.path.checks.begin(now, possible.take(checks::TARGETS_MAX));
        peer.maps_dependently = dependent;
        if !answer {
            self.send_candidates(now, id, true);
        }
        self.check(now, id);
    }

    /// A packet of the peer came straight from `endpoint`, while ours go through a relay (a triggered check, RFC 8445
    /// §7.3.1.4).
    pub(super) fn check_endpoint(&mut self, now: Instant, id: NodeId, endpoint: SocketAddr) {
        if !path::is_possible(&endpoint) {
            return;
        }
        if let Some(peer) = self.peers.of_mut(&id).filter(|peer| peer.path.is_relayed()) {
            peer.path.checks.add(now, endpoint);
            self.check(now, id);
        }
    }

    /// Sends the checks that are due and notes when the next one is.
    pub(super) fn check(&mut self, now: Instant, id: NodeId) {
        loop {
            let Some(peer) = self.peers.of_mut(&id) else { return };
            let Some((endpoint, nonce)) = peer.path.checks.poll_transmit(now, &mut self.rng) else { break };
            self.send_control_by(now, id, Hop::Direct(endpoint), &[Control::Ping { nonce }]);
        }
        match self.peers.of(&id).and_then(|peer| peer.path.checks.poll_timeout()) {
            Some(at) => self.timers.arm(Timer::Checks(id), at),
            None => self.timers.disarm(&Timer::Checks(id)),
        }
    }

    /// A check was answered: the endpoint works, there and back.
    pub(super) fn handle_checked(&mut self, now: Instant, id: NodeId, endpoint: SocketAddr, rtt: Duration) {
        let Some(peer) = self.peers.of_mut(&id).filter(|peer| peer.path.is_relayed()) else { return };
        let hop = Hop::Direct(endpoint);
        peer.path.switch(hop);
        peer.path.checks.stop();
        peer.pmtu.handle_hop(hop);
        (peer.rtt, peer.challenge) = (Some(rtt), None);
        self.dirty = true;
        self.timers.disarm(&Timer::Checks(id));
        self.timers.disarm(&Timer::Upgrade(id));
        self.watch(now, id);
        self.report_up(now, id);
        self.release_staged(now, id);
        self.expect_traffic(now, id, false);
    }
}
