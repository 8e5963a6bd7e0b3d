//! The search for a route to a peer that is not reached any more, and our part in the searches of others.
//!
//! ```text
//! session silent, handshake unanswered ─► rings of seeks to neighbours ─► sought ─► a channel by the route (`routes`)
//! seek of a neighbour ─► a sign of life of its target ─► sought
//!                    ├─► a sign of life of a relay of that, which the question or our record of it names ─► passed on to it:
//!                    │   it may have lost the target
//!                    └─► passed on to neighbours, if we would carry data between them
//! ```

use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::route::{ASKED_MAX, Answer, PASSED_MAX, chosen};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Control, Service};
use crate::proto::wire::routing::Routing;

use super::peers::{Peer, last_heard};
use super::{Node, Timer};

/// A peer that owes us an answer for this long is looked for by way of others.
pub(super) const SEEK_AFTER: Duration = Duration::from_millis(900);
/// Packets that wait this long for a way that carries data have one looked for by way of others.
const SEEK_FOR_DATA_AFTER: Duration = Duration::from_millis(400);
/// Attempts of a handshake before its peer is looked for by way of others.
pub(super) const ATTEMPTS_BEFORE_SEEK: u32 = 2;
/// A neighbour that was heard within this time is there.
const FRESH: Duration = Duration::from_secs(2);
/// A node that was asked for a sign of life is not asked again for this long.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// A neighbour that was not heard for this long is asked after the others.
const QUIET: Duration = Duration::from_secs(30);
/// Who owes us an answer for this long is no neighbour.
const SILENT: Duration = Duration::from_millis(500);
/// With fewer neighbours than this, some that we know are connected.
const NEIGHBOURS_WANTED: usize = 4;
/// Seeks that a neighbour may send us a second, and at once.
pub(super) const SEEKS_PER_S: u32 = 8;
/// See [`SEEKS_PER_S`].
pub(super) const SEEKS_BURST: u32 = 32;
/// Handshakes a second that seeks of others bring about, and at once.
pub(super) const REACH_OUTS_PER_S: u32 = 4;
/// See [`REACH_OUTS_PER_S`].
pub(super) const REACH_OUTS_BURST: u32 = 16;

impl Node {
    /// True while something waits for a peer and nothing comes from it.
    pub(super) fn is_missed(&self, now: Instant, peer: &Peer) -> bool {
        match &peer.current {
            None => peer.effort.is_some() && peer.is_awaited(),
            Some(_) => {
                let silent = peer.last_proof().is_some_and(|at| now.saturating_since(at) >= SEEK_AFTER);
                // It answers, but by no way that carries data.
                let waits =
                    peer.staged.since().is_some_and(|at| now.saturating_since(at) >= SEEK_FOR_DATA_AFTER);
                waits || peer.awaits_answer() && silent && peer.data_packets() > 0 && !peer.is_abandoned()
            }
        }
    }

    /// Looks for a route to a peer that is missed.
    pub(super) fn seek(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let missed = self.peers.of(&id).is_some_and(|peer| self.is_missed(now, peer));
        if missed && !self.stopping && self.routes.begin(now, id) {
            self.seek_ring(now, wall, id);
        }
    }

    /// The next ring of a search, or its end.
    pub(super) fn seek_ring(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        if self.peers.of(&id).is_none_or(|peer| !self.is_missed(now, peer)) {
            self.routes.end(now, id);
        }
        if let Some(ring) = self.routes.poll_ring(now, id, &mut self.rng) {
            let record = self.peers.of(&id).and_then(|peer| peer.record.as_ref());
            let contacts = record.into_iter().flat_map(|record| &record.content().relays);
            let relays: Vec<_> = contacts.map(|contact| contact.node_id).collect();
            let neighbours = self.neighbours(now, &[id]);
            if neighbours.len() < NEIGHBOURS_WANTED {
                self.meet_known(now, wall);
            }
            let neighbours = chosen(now, &neighbours, &id, ASKED_MAX);
            self.routes.asked(&id, &neighbours);
            let seek = Routing::Seek { nonce: ring.nonce, ttl: ring.ttl, target: id, relays };
            for neighbour in neighbours {
                // Who does not answer that either is left out of the next ring.
                let nonce = self.rng.next_u64();
                self.send_control(now, neighbour, &[Control::Routing(seek.clone()), Control::Ping { nonce }]);
            }
        }
        match self.routes.poll_timeout(&id) {
            Some(at) => self.timers.arm(Timer::Seek(id), at.max(now)),
            None => self.timers.disarm(&Timer::Seek(id)),
        }
    }

    /// Peers that a question can go to, in a random order, those heard lately first; and when each last knew a route.
    fn neighbours(&mut self, now: Instant, except: &[NodeId]) -> Vec<(NodeId, Option<Instant>)> {
        let mut neighbours: Vec<_> = Vec::new();
        for peer in self.peers.iter() {
            let Some(session) = &peer.current else { continue };
            let since = |at: Instant| now.saturating_since(at);
            let silent = peer.awaits_answer() && peer.last_proof().is_some_and(|at| since(at) >= SILENT);
            let direct = peer.path.endpoint().is_some() && peer.challenge.is_none();
            if direct && !silent && !except.contains(&peer.id) {
                let quiet = since(last_heard(session)) >= QUIET;
                neighbours.push((quiet, self.rng.next_u32(), peer.id, peer.has_sought));
            }
        }
        neighbours.sort_unstable();
        neighbours.into_iter().map(|(.., id, has_sought)| (id, has_sought)).collect()
    }

    /// Opens sessions with nodes that have answered before.
    fn meet_known(&mut self, now: Instant, wall: WallTime) {
        let has_session = |id: &NodeId| self.peers.of(id).is_some_and(|peer| peer.current.is_some());
        let known = self.dht.known().filter(|contact| !has_session(&contact.node_id));
        for contact in known.take(NEIGHBOURS_WANTED).collect::<Vec<_>>() {
            if path::is_admissible(&contact.endpoint, &self.local) && self.learn_contact(now, &contact) {
                self.connect_directly(now, wall, contact.node_id);
            }
        }
    }

    /// A neighbour looks for somebody.
    pub(super) fn handle_seek(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: NodeId,
        (nonce, ttl): (u64, u8),
        target: NodeId,
        relays: &[NodeId],
    ) {
        let Some(peer) = self.peers.of_mut(&from) else { return };
        if peer.path.is_relayed() || peer.challenge.is_some() || !peer.seeks.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        let own = self.node_id();
        if target == own || target == from || !self.routes.handle_seek(now, from, nonce, target) {
            return self.drop(DropReason::Relay);
        }
        let question = (nonce, target);
        self.look_for(now, wall, question, target);
        // Who asks may have an old record of the target.
        let held = self.dht.record(now, &target);
        let held = held.iter().flat_map(|record| &record.content().relays).map(|relay| relay.node_id);
        let named = relays.iter().copied().chain(held.filter(|relay| !relays.contains(relay)));
        for relay in named.filter(|relay| ![own, from, target].contains(relay)).collect::<Vec<_>>() {
            self.look_for(now, wall, question, relay);
        }
        if ttl > 1 {
            let except: Vec<_> = relays.iter().copied().chain([from, target]).collect();
            let mut neighbours = self.neighbours(now, &except);
            neighbours.retain(|(next, _)| self.relay.service_between(&from, next) == Service::Data);
            for next in chosen(now, &neighbours, &target, PASSED_MAX) {
                if !self.routes.pass(now, nonce, target, next, false) {
                    break;
                }
                let seek = Routing::Seek { nonce, ttl: ttl - 1, target, relays: relays.to_vec() };
                self.send_control(now, next, &[Control::Routing(seek)]);
            }
        }
    }

    /// Goes on with a question as soon as `node`, its target or a relay of that, has shown that it is there. Only whoever
    /// has answered us before is asked or connected: an endpoint that nobody has proven may be anybody's.
    fn look_for(&mut self, now: Instant, wall: WallTime, question: (u64, NodeId), node: NodeId) {
        let peer = self.peers.of(&node);
        let session = peer.and_then(|peer| peer.current.as_ref());
        if let Some((peer, session)) = peer.zip(session) {
            if peer.path.endpoint().is_none() || peer.challenge.is_some() {
                return;
            }
            let fresh = now.saturating_since(last_heard(session)) < FRESH && !peer.awaits_answer();
            let asked = peer.probe.is_some_and(|probe| now.saturating_since(probe.sent) < ASK_AGAIN);
            let abandoned = peer.is_abandoned();
            self.routes.wait_for(question, node);
            if fresh {
                self.sighted(now, node);
            } else if !asked {
                self.probe(now, node);
            }
            // It may be there again and have forgotten the session; a few such handshakes for others are enough.
            if abandoned && self.reach_outs.take(now) {
                self.shake_hands_by(now, wall, node, true);
            }
            return;
        }
        let contact = self.dht.contact(node);
        let proven = contact.is_some()
            || peer.is_some_and(|peer| peer.path.endpoint().is_some() && peer.challenge.is_none());
        if !proven || !self.reach_outs.take(now) {
            return;
        }
        if contact.is_none_or(|contact| self.learn_contact(now, &contact)) {
            self.routes.wait_for(question, node);
            self.connect_directly(now, wall, node);
        }
    }

    /// A node has shown that it is there: whoever looks for it by way of us is told, and whoever looks for somebody behind it
    /// is looked for there.
    pub(super) fn sighted(&mut self, now: Instant, node: NodeId) {
        if !self.routes.awaits(&node) || self.reaches(&node).is_none() {
            return;
        }
        for (to, nonce, target) in self.routes.handle_seen(now, node) {
            if target == node {
                let (service, hops) = (self.relay.service_between(&to, &node), Vec::new());
                self.send_control(now, to, &[Control::Routing(Routing::Sought { nonce, service, hops })]);
            } else if self.routes.pass(now, nonce, target, node, true) {
                let seek = Routing::Seek { nonce, ttl: 1, target, relays: Vec::new() };
                self.send_control(now, node, &[Control::Routing(seek)]);
            }
        }
    }

    /// A neighbour reaches somebody that we, or another neighbour, asked for.
    pub(super) fn handle_sought(
        &mut self,
        now: Instant,
        from: NodeId,
        (nonce, service): (u64, Service),
        hops: Vec<NodeId>,
    ) {
        let answer = self.routes.handle_sought(now, from, nonce, service, hops);
        if let Some(peer) = self.peers.of_mut(&from).filter(|_| answer != Answer::Refused) {
            peer.has_sought = Some(now);
        }
        match answer {
            Answer::Found(target, route) => self.take_route(now, target, &route),
            Answer::Back { to, nonce, hops } => {
                let service = service.min(self.relay.service_between(&to, &from));
                self.send_control(now, to, &[Control::Routing(Routing::Sought { nonce, service, hops })]);
            }
            Answer::Refused => self.drop(DropReason::Relay),
        }
    }
}
