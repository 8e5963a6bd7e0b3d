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
        let most = [true, false].into_iter().filter_map(|v4| self.observed.endpoint(now, v4)).map(|(e, _)| e);
        let latest = [true, false].into_iter().filter_map(|v4| self.observed.latest(now, v4));
        let mut candidates: Vec<SocketAddr> = Vec::new();
        for endpoint in most.chain(latest).chain(self.endpoints.iter().copied()) {
            if !candidates.contains(&endpoint) {
                candidates.push(endpoint);
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
        let hops = possible.map(Hop::Direct).take(checks::TARGETS_MAX);
        peer.path.checks.begin(now, hops);
        peer.maps_dependently = dependent;
        if !answer {
            self.send_candidates(now, id, true);
        }
        self.check(now, id);
    }

    /// Tries a way that the peer was heard on, or that has become open (a triggered check, RFC 8445 §7.3.1.4).
    pub(super) fn check_hop(&mut self, now: Instant, id: NodeId, hop: Hop) {
        let better = self
            .peers
            .of(&id)
            .and_then(|peer| peer.path.current())
            .map(|current| self.rank(hop) > self.rank(current));
        if better != Some(true) || hop.direct().is_some_and(|endpoint| !path::is_possible(&endpoint)) {
            return;
        }
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.path.checks.add(now, hop);
            self.check(now, id);
        }
    }

    /// How good a way is, as far as its kind tells.
    fn rank(&self, hop: Hop) -> u8 {
        match hop {
            Hop::Direct(_) => 2,
            Hop::Relayed(_) if self.carries_data(hop) => 1,
            Hop::Relayed(_) => 0,
        }
    }

    /// What was sent has not been answered for a while. All ways to the peer are tried at the same time, the one in use
    /// too; the first to be answered is the one to use.
    pub(super) fn race(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(current) = peer.path.current().filter(|_| !std::mem::replace(&mut peer.racing, true)) else {
            return;
        };
        let others = self.channels_to(now, id);
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let candidates = peer.path.candidates().iter().map(|endpoint| Hop::Direct(*endpoint));
        let hops: Vec<_> = std::iter::once(current).chain(others).chain(candidates).collect();
        peer.path.checks.begin(now, hops);
        self.check(now, id);
    }

    /// Sends the checks that are due and notes when the next one is.
    pub(super) fn check(&mut self, now: Instant, id: NodeId) {
        loop {
            let Some(peer) = self.peers.of_mut(&id) else { return };
            let Some((hop, nonce)) = peer.path.checks.poll_transmit(now, &mut self.rng) else { break };
            self.send_control_by(now, id, hop, &[Control::Ping { nonce }]);
        }
        match self.peers.of(&id).and_then(|peer| peer.path.checks.poll_timeout()) {
            Some(at) => self.timers.arm(Timer::Checks(id), at),
            None => {
                if let Some(peer) = self.peers.of_mut(&id) {
                    peer.racing = false;
                }
                self.timers.disarm(&Timer::Checks(id));
            }
        }
    }

    /// A check was answered: the way works, there and back.
    pub(super) fn handle_checked(&mut self, now: Instant, id: NodeId, hop: Hop, rtt: Duration) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let (current, raced) = (peer.path.current(), std::mem::replace(&mut peer.racing, false));
        if raced {
            peer.path.checks.stop();
        }
        let better = current.is_none_or(|current| self.rank(hop) > self.rank(current));
        if current == Some(hop) || !raced && !better {
            return;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.path.switch(hop);
        peer.pmtu.handle_hop(hop);
        (peer.rtt, peer.challenge) = (Some(rtt), None);
        self.dirty = true;
        self.watch(now, id);
        self.report_up(now, id);
        self.release_staged(now, id);
        self.expect_traffic(now, id, false);
        if hop.direct().is_some() {
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.path.checks.stop();
            }
            self.timers.disarm(&Timer::Checks(id));
            self.timers.disarm(&Timer::Upgrade(id));
        } else if raced {
            self.look_for_direct(now, id);
        }
    }
}
