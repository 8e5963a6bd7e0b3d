//! The ways to a peer in use: asked now and then, so that the best one is used and another one is ready when it fails.
//!
//! ```text
//! data ─► every [`KEEPALIVE`]: the way in use, the one heard on, the standby     each NAT on them stays open
//!      └► every [`SURVEY_GAP`]: all of them, relays too                          a standby is found
//! links changed, slept ─► all of them at once; one that answers takes the place of one that does not
//! ```
//!
//! Nothing is asked on the ways to a peer without data.

use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::Control;
use crate::proto::wire::relay::Hop;

use super::history::Reason;
use super::peers::Peer;
use super::relays::KEEPALIVE;
use super::{Node, Timer};

/// A peer without data for this long is not in use.
const IN_USE_FOR: Duration = Duration::from_secs(30);
/// Time between two questions on all ways.
const SURVEY_GAP: Duration = Duration::from_secs(60);
/// Time between two looks while a few answers decide something, and how many such looks there are in a row.
const QUICK_LOOK: Duration = Duration::from_millis(500);
const QUICK_LOOKS_MAX: u32 = 12;
/// Least time between two comparisons, and in round trips: the other side's questions must not lead to ours for ever.
const COMPARE_GAP: Duration = Duration::from_millis(200);
const COMPARE_RTTS: u32 = 2;
/// A peer that was heard on another way that we know is compared after this time, if it still is: a question about that
/// way is none of its packets, which is seen only when it has been read.
const COMPARE_AFTER: Duration = Duration::from_millis(10);
/// A way that answered within this time is not doubted because the peer asks on another one. Who looks at all its ways asks
/// on those that it does not use, and so does who hears nothing by the one in use.
const NOT_DOUBTED_FOR: Duration = Duration::from_secs(2);

/// True while there is data to or from a peer.
pub(super) fn is_in_use(now: Instant, peer: &Peer) -> bool {
    peer.current.is_some() && peer.active_at.is_some_and(|at| now.saturating_since(at) < IN_USE_FOR)
}

impl Node {
    /// Data goes to a peer or comes from it.
    pub(super) fn note_active(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.active_at = Some(now);
        let due = peer.looked_at.is_none_or(|at| now.saturating_since(at) >= KEEPALIVE);
        let timer = Timer::Ways(id);
        if due && self.timers.deadline(&timer).is_none() {
            self.timers.arm(timer, now + QUICK_LOOK);
        }
        self.note_heard(now, id);
        self.tell_reached(id);
    }

    /// Asks on the ways to a peer in use.
    pub(super) fn look_at_ways(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of(&id).filter(|peer| is_in_use(now, peer)) else { return };
        let current = peer.path.current();
        let others = [peer.path.heard(), peer.path.choice.standby(now, current)];
        let survey = peer.surveyed_at.is_none_or(|at| now.saturating_since(at) >= SURVEY_GAP);
        if peer.may_be_probed() && !peer.racing {
            let mut hops: Vec<_> = current.into_iter().collect();
            let more = if survey { self.ways_to(now, wall, id) } else { Vec::new() };
            for hop in others.into_iter().flatten().chain(more) {
                if !hops.contains(&hop) {
                    hops.push(hop);
                }
            }
            for hop in hops {
                self.ask(now, id, hop);
            }
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.looked_at = Some(now);
        if survey {
            peer.surveyed_at = Some(now);
        }
        let quick = peer.path.choice.is_undecided(now, current) && peer.quick_looks < QUICK_LOOKS_MAX;
        // Who answers the first survey is known at the next look.
        let quick = quick || survey && peer.quick_looks == 0;
        peer.quick_looks = if quick { peer.quick_looks + 1 } else { 0 };
        if quick {
            self.timers.arm(Timer::Ways(id), now + QUICK_LOOK);
        }
    }

    /// One question on one way.
    pub(super) fn ask(&mut self, now: Instant, id: NodeId, hop: Hop) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(nonce) = peer.path.checks.ask(now, hop, &mut self.rng) else { return };
        peer.path.choice.note_asked(now, hop);
        self.send_control_by(now, id, hop, &[Control::Ping { nonce }]);
        let through = self.relay_of(hop);
        // The session with a relay that is only held ready is kept by nothing else.
        if let Some(relay) = through.filter(|relay| !self.is_relay_of_ours(relay)) {
            self.watch(now, relay);
        }
    }

    /// The peer was heard on another way than the one in use, and may have both; or nothing comes by ours. Both are asked,
    /// at once or soon.
    pub(super) fn compare(&mut self, now: Instant, id: NodeId, hop: Hop) {
        let possible = hop.direct().is_none_or(|endpoint| path::is_possible(&endpoint));
        let Some(peer) = self.peers.of(&id) else { return };
        if !possible || peer.path.current().is_none_or(|current| current == hop) {
            return;
        }
        let gap = COMPARE_GAP.max(COMPARE_RTTS * peer.rtt.unwrap_or_default());
        let at = peer.compared_at.map_or(now, |at| now.max(at + gap));
        if !self.knows_both(now, peer, hop) {
            self.compare_at(now, id, at, hop);
        } else if is_in_use(now, peer) {
            self.compare_at(now, id, at.max(now + COMPARE_AFTER), hop);
        }
    }

    fn compare_at(&mut self, now: Instant, id: NodeId, at: Instant, hop: Hop) {
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.compare_at = Some((at, hop));
        }
        self.check(now, id);
    }

    /// True when the way in use and another one are both known to work.
    pub(super) fn knows_both(&self, now: Instant, peer: &Peer, hop: Hop) -> bool {
        let ways = [peer.path.current(), Some(hop)];
        ways.iter().flatten().all(|way| peer.path.choice.is_known(now, *way))
    }

    /// True when a question by another way says nothing new: both are known to work, the one in use just now.
    pub(super) fn is_settled(&self, now: Instant, peer: &Peer, hop: Hop) -> bool {
        let answered = |way| peer.path.choice.has_answered_within(now, way, NOT_DOUBTED_FOR);
        self.knows_both(now, peer, hop) && peer.path.current().is_some_and(answered)
    }

    /// Asks on the two ways that are to be compared.
    pub(super) fn compare_if_due(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some((_, hop)) = peer.compare_at.take_if(|(at, _)| *at <= now) else { return };
        let Some(current) = peer.path.current().filter(|current| *current != hop) else { return };
        let Some(peer) = self.peers.of(&id) else { return };
        if self.is_settled(now, peer, hop) && peer.path.heard() != Some(hop) {
            return;
        }
        // A few answers in a row decide which is better.
        let (timer, at) = (Timer::Ways(id), now + QUICK_LOOK);
        if self.timers.deadline(&timer).is_none_or(|planned| planned > at) {
            self.timers.arm(timer, at);
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.compared_at = Some(now);
        // A race goes on with one more: whoever is first wins it.
        peer.path.checks.add(now, hop);
        if !peer.racing {
            peer.path.checks.add(now, current);
        }
    }

    /// Where we are has changed, or we slept: all ways to the peers in use are tried, and others learn where we are.
    pub(super) fn ask_everywhere(&mut self, now: Instant, wall: WallTime) {
        for id in self.recent_peers() {
            if !self.peers.of(&id).is_some_and(|peer| is_in_use(now, peer) && !peer.racing) {
                self.probe(now, id);
                continue;
            }
            let hops = self.ways_to(now, wall, id);
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.path.checks.begin(now, hops);
                self.check(now, id);
            }
        }
    }

    /// Leaves a way that does not answer for one that does.
    pub(super) fn fall_back(&mut self, now: Instant, id: NodeId) {
        let channels = &self.channels;
        let Some(peer) = self.peers.of_mut(&id).filter(|peer| !peer.racing) else { return };
        let Some(current) = peer.path.current() else { return };
        let usable = |hop| channels.carries_data(hop);
        if let Some(hop) = peer.path.choice.fallback(now, current, usable) {
            let silent = Reason::Silent(peer.path.choice.waits_for(now, current));
            peer.path.choice.forget(current);
            self.take_way(now, id, hop, silent, true);
        }
    }
}
