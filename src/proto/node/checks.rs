//! From a relay to a way of our own: both sides tell each other where they may be reached, and try it at the same time.
//!
//! ```text
//! session by a relay ─► Candidates ─► peer: Candidates back, checks begin ─► our checks begin ─► one is answered: switch
//!                                                                          └► none: again after a while, if there is data
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::datapath::DropReason;
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::path::observed::Mapping;
use crate::proto::path::{self, checks};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{CANDIDATES_MAX, Control};
use crate::proto::wire::inner::IcmpError;
use crate::proto::wire::relay::Hop;

use super::history::Reason;
use super::{Node, Timer};

/// Waits before candidates are exchanged again, while the session goes through a relay.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// And from then on, while there is data: a way that is open again is found within a minute.
const AGAIN_LATER: Duration = Duration::from_secs(50);
/// And after an address that was not tried because it did not answer may be tried again.
const EXHAUSTED_GAP: Duration = Duration::from_millis(100);
/// Time between two exchanges of candidates that a peer may start.
const CANDIDATES_GAP: Duration = Duration::from_millis(500);
/// How long a packet waits for a way that carries data.
const WAIT_FOR_WAY: Duration = Duration::from_secs(5);
/// Least time between two races.
const RACE_GAP: Duration = Duration::from_secs(1);
/// Relays among the ways that are tried at once.
const RELAYED_MAX: usize = 3;
/// Checks a second that go to endpoints, towards all peers, and how many at once.
pub(super) const CHECKS_PER_S: u32 = 200;
pub(super) const CHECKS_BURST: u32 = 800;

impl Node {
    /// Where we may be reached: a port that the router maps, what others see of us, and our own addresses.
    fn own_candidates(&self, now: Instant) -> Vec<SocketAddr> {
        let most = [true, false].into_iter().filter_map(|v4| self.observed.endpoint(now, v4)).map(|(e, _)| e);
        let latest = [true, false].into_iter().filter_map(|v4| self.observed.latest(now, v4));
        let mut candidates: Vec<SocketAddr> = Vec::new();
        for endpoint in self
            .usable_mapping(now)
            .into_iter()
            .chain(most)
            .chain(latest)
            .chain(self.endpoints.iter().copied())
        {
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

    /// Looks for a way without a relay because the owner asks for one, unless one is being looked for.
    pub fn seek_direct(&mut self, now: Instant, address: MeshAddress) {
        let Some(id) = self.peers.at_address(&address) else { return };
        let Some(peer) = self.peers.of(&id).filter(|peer| peer.path.is_relayed()) else { return };
        if !peer.path.checks.is_trying_directly() {
            self.look_for_direct(now, id);
        }
    }

    /// Tells the peer where we may be reached, and plans to do so again.
    pub(super) fn offer_candidates(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.path.current().is_none() {
            self.refuse_staged(id);
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if !peer.path.is_relayed() || peer.current.is_none() {
            return self.timers.disarm(&Timer::Upgrade(id));
        }
        let (tries, data) = (peer.upgrades as usize, peer.data_packets());
        let used = std::mem::replace(&mut peer.upgraded_at_data, data) != data || !peer.staged.is_empty();
        peer.upgrades += 1;
        let wait = AGAIN.get(tries).copied().unwrap_or(AGAIN_LATER);
        let exhausted = peer.path.checks.exhausted_until(now).filter(|_| tries >= AGAIN.len());
        let at = exhausted.map_or(now + wait, |until| until + EXHAUSTED_GAP);
        // What waits does not wait longer because the relay has changed meanwhile.
        let patience = peer.staged.since().map(|since| since + WAIT_FOR_WAY);
        let impatient = patience.is_some_and(|until| until <= now);
        self.timers
            .arm(Timer::Upgrade(id), patience.filter(|_| !impatient).map_or(at, |until| until.min(at)));
        if tries <= AGAIN.len() || used {
            self.send_candidates(now, id, false);
        }
        if tries >= AGAIN.len() || impatient {
            self.refuse_staged(id);
        }
    }

    /// A packet waits for a way that carries data: one is looked for soon, and the packet does not wait long.
    pub(super) fn hurry_upgrade(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        // A relay that carries data is used as soon as it says so.
        if let Some(peer) = self.peers.of_mut(&id).filter(|peer| now >= peer.race_after) {
            peer.race_after = now + RACE_GAP;
            self.channels_to(now, wall, id);
        }
        self.seek(now, wall, id);
        let (timer, at) = (Timer::Upgrade(id), now + WAIT_FOR_WAY);
        if self.timers.deadline(&timer).is_none_or(|planned| planned > at) {
            self.timers.arm(timer, at);
        }
    }

    /// What waits for a session, or for a way that carries data, has waited long enough.
    pub(super) fn refuse_staged(&mut self, id: NodeId) {
        let staged = self.peers.of_mut(&id).map(|peer| peer.staged.take()).unwrap_or_default();
        for packet in &staged {
            self.refuse(IcmpError::AddressUnreachable, packet);
        }
    }

    fn send_candidates(&mut self, now: Instant, id: NodeId, answer: bool) {
        let (endpoints, dependent) = (self.own_candidates(now), self.maps_dependently(now));
        self.send_control(now, id, &[Control::Candidates { answer, dependent, endpoints }]);
    }

    /// The peer says where it may be reached.
    pub(super) fn handle_candidates(
        &mut self,
        now: Instant,
        wall: WallTime,
        id: NodeId,
        answer: bool,
        dependent: bool,
        endpoints: Vec<SocketAddr>,
    ) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let too_soon = peer.candidates_at.is_some_and(|at| now.saturating_since(at) < CANDIDATES_GAP);
        if peer.challenge.is_some() || too_soon && !answer || !peer.requests.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        peer.candidates_at = Some(now);
        let possible =
            endpoints.iter().copied().filter(|endpoint| path::is_admissible(endpoint, &self.local));
        // Beside what is being tried already: a race goes on.
        possible
            .take(checks::TARGETS_MAX)
            .for_each(|endpoint| peer.path.checks.add(now, Hop::Direct(endpoint)));
        peer.maps_dependently = dependent;
        if !answer {
            self.send_candidates(now, id, true);
        }
        self.check(now, id);
        self.plan_spray(now, wall, id, &endpoints);
    }

    /// Tries a way that the peer was heard on, or that has become open (a triggered check, RFC 8445 §7.3.1.4).
    pub(super) fn check_hop(&mut self, now: Instant, id: NodeId, hop: Hop) {
        let Some(path) = self.peers.of(&id).map(|peer| &peer.path) else { return };
        let better = path.current().is_some_and(|current| self.rank(hop) > self.rank(current));
        // What was measured and works is judged by its score: when it is asked again is not the peer's to say.
        if path.choice.is_measured(hop) && path.choice.is_known(now, hop) {
            return;
        }
        // Somebody else's address may be in the header of the packet that it comes from.
        let admissible = hop.direct().is_none_or(|endpoint| {
            path::is_admissible(&endpoint, &self.local) || self.streams.contains(&endpoint)
        });
        if !better || !admissible {
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
            Hop::Direct(endpoint) if self.streams.contains(&endpoint) => 3,
            // Nothing comes this way just now.
            Hop::Direct(endpoint) if self.streams.is_blocked() && self.is_outside(endpoint) => 0,
            Hop::Direct(_) => 4,
            Hop::Relayed(_) if self.carries_data(hop) && self.beyond(hop).is_empty() => 2,
            Hop::Relayed(_) if self.carries_data(hop) => 1,
            Hop::Relayed(_) => 0,
        }
    }

    /// What was sent has not been answered for a while. All ways to the peer are tried at the same time, the one in use
    /// too; the first to be answered is the one to use.
    pub(super) fn race(&mut self, now: Instant, wall: WallTime, id: NodeId, reason: Reason) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.racing || now < peer.race_after || peer.current.is_none() {
            return;
        }
        if peer.path.current().is_none() {
            return;
        }
        (peer.racing, peer.race_reason, peer.race_after) = (true, reason, now + RACE_GAP);
        self.refresh_relays(now, wall, id);
        let hops = self.ways_to(now, wall, id);
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.path.checks.begin(now, hops);
        self.check(now, id);
    }

    /// All ways to a peer, the one in use and the one to use in its place first.
    pub(super) fn ways_to(&mut self, now: Instant, wall: WallTime, id: NodeId) -> Vec<Hop> {
        let relayed = self.channels_to(now, wall, id);
        self.refresh_hop(wall, id);
        let Some(peer) = self.peers.of(&id) else { return Vec::new() };
        let current = peer.path.current();
        let standby = peer.path.choice.standby(now, current);
        let hop = peer.path.hop().filter(|_| peer.racing);
        let candidates = peer.path.candidates().iter().copied().map(Hop::Direct);
        let relayed = relayed.into_iter().take(RELAYED_MAX);
        let mut hops: Vec<_> = current.into_iter().chain(standby).collect();
        for hop in hop.map(Hop::Direct).into_iter().chain(relayed).chain(candidates) {
            if !hops.contains(&hop) {
                hops.push(hop);
            }
        }
        hops
    }

    /// The peer asks on another way than ours: perhaps because nothing comes by ours. We could not tell from what we hear.
    pub(super) fn doubt_way(&mut self, now: Instant, wall: WallTime, id: NodeId, source: Hop) {
        let Some(peer) = self.peers.of(&id) else { return };
        let elsewhere = peer.path.current().is_some_and(|current| current != source);
        if elsewhere && self.carries_data(source) {
            self.compare(now, id, source);
        } else if elsewhere && !self.is_settled(now, peer, source) && self.has_standby(now, peer) {
            self.race(now, wall, id, Reason::Left);
        }
    }

    /// Sends the checks that are due and notes when the next one is.
    pub(super) fn check(&mut self, now: Instant, id: NodeId) {
        self.compare_if_due(now, id);
        loop {
            let Some(peer) = self.peers.of_mut(&id) else { return };
            let Some((hop, nonce)) = peer.path.checks.poll_transmit(now, &mut self.rng) else { break };
            peer.path.choice.note_asked(now, hop);
            if hop.slot().is_some() || self.checks.take(now) {
                peer.trials.handle_check(hop);
                // What is tried may lead nowhere, which says nothing of the path in use.
                if let Some(session) = peer.current.as_ref().filter(|_| peer.path.current() != Some(hop)) {
                    peer.losses.excuse(session.local_index());
                }
                self.send_control_by(now, id, hop, &[Control::Ping { nonce }]);
            } else {
                self.drop(DropReason::RateLimited);
            }
        }
        self.fall_back(now, id);
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let next = peer.path.checks.poll_timeout();
        peer.racing &= next.is_some();
        match next.into_iter().chain(peer.compare_at.map(|(at, _)| at)).min() {
            Some(at) => self.timers.arm(Timer::Checks(id), at),
            None => self.timers.disarm(&Timer::Checks(id)),
        }
    }

    /// A check was answered: the way works, there and back.
    pub(super) fn handle_checked(&mut self, now: Instant, id: NodeId, hop: Hop, rtt: Duration) {
        self.channels.note_answered(hop);
        // A mapping that opened for us alone is not in the record, and neither is a port that hops.
        let record = self.peers.of(&id).and_then(|peer| peer.record.as_ref());
        let said = |endpoint: &SocketAddr| record.is_some_and(|r| r.content().endpoints.contains(endpoint));
        if let Some(endpoint) = hop.direct().filter(said) {
            self.dht.handle_also_at(now, id, endpoint);
        }
        let channels = &self.channels;
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let (current, raced) = (peer.path.current(), peer.racing);
        let usable = |hop| channels.carries_data(hop);
        let chosen = peer.path.choice.handle_answer(now, current, hop, rtt, usable);
        let judged = peer.path.choice.is_measured(hop)
            && current.is_some_and(|current| peer.path.choice.is_measured(current) && usable(current));
        let Some(peer) = self.peers.of(&id) else { return };
        let worse = current.is_some_and(|current| {
            self.rank(hop) < self.rank(current) && self.rank(hop) == 0 && peer.path.checks.is_trying(current)
        });
        let judged = judged && !current.is_some_and(|current| self.is_by_stream(current));
        let better = current.is_none_or(|current| self.rank(hop) > self.rank(current) && !judged);
        if raced && worse {
            // What carries no data wins only when nothing else is left.
            return;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if std::mem::take(&mut peer.racing) {
            peer.path.checks.stop();
        }
        if current == Some(hop) {
            if raced {
                // The way was only slow: not so soon again.
                peer.race_after = now + RACE_GAP;
            }
        } else if raced || better {
            if let Some(failed) = current.filter(|_| raced) {
                peer.path.choice.forget(failed);
            }
            let reason = if raced { peer.race_reason } else { Reason::Checked };
            self.take_way(now, id, hop, reason, raced);
        } else if let Some(chosen) = chosen {
            self.take_way(now, id, chosen, Reason::Better, false);
        }
    }

    /// Sends to a peer by another way from now on; `failed`: because the one before does not answer.
    pub(super) fn take_way(&mut self, now: Instant, id: NodeId, hop: Hop, reason: Reason, failed: bool) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.pardon_current(hop);
        peer.rtt = peer.path.choice.rtt(hop).or(peer.rtt);
        peer.challenge = None;
        self.switch_way(now, id, hop, reason);
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
            self.note_direct(now, id, hop);
        } else if failed {
            self.look_for_direct(now, id);
        }
    }
}
