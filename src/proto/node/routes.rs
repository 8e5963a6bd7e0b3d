//! Routes: channels of ours that lead through several relays, and our part in those of others.
//!
//! ```text
//! origin ── Bind(b, c) ──► a ── Bind(c) ──► b ── Bind() ──► c ── Invite(a, b, c) ──► peer
//!        ◄── Bound ────────┘ ◄── Bound ─────┘ ◄── Bound ────┘        each lowers the service to what it carries itself
//! ```
//!
//! For a relay on the way a route is a channel between two of its neighbours, which the data path switches like any other.
//! Each end can renew it, and each is told the names of all relays.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::relay::End;
use crate::proto::route::{ROUTES_MAX, Route, is_route};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Control, Service};
use crate::proto::wire::relay::{HOPS_MAX, Hop, Slot};
use crate::proto::wire::routing::{ROUTED_LEN_MAX, Routing};

use super::history::Reason;
use super::relays::KEEPALIVE;
use super::{Node, Timer};

/// Routes to one peer that are opened at once: one to use and one to fall back on.
const OPENED_MAX: usize = 2;
/// Routes that a neighbour which is no relay of ours may have opened to us.
const INVITED_MAX: usize = 64;
/// A route by which the peer has not answered for this long is given up.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// Without an answer for this long, a route that opens is tried at once.
const SUSPECT: Duration = Duration::from_millis(400);

/// What a neighbour asks for with a [`Routing::Bind`].
pub(super) struct Wanted {
    pub(super) slot: Slot,
    pub(super) origin: NodeId,
    pub(super) peer: NodeId,
    pub(super) service: Service,
    pub(super) next: Vec<NodeId>,
    pub(super) passed: Vec<NodeId>,
}

impl Node {
    /// Our channels to a peer that are routes: those by which it has answered first, then those that we asked for.
    fn open_routes(&self, peer: NodeId) -> Vec<(Slot, Vec<NodeId>)> {
        let routes = self.channels.to(&peer).filter(|(_, channel)| channel.beyond.is_some());
        let mut routes: Vec<_> = routes.collect();
        routes
            .sort_by_key(|(_, channel)| std::cmp::Reverse((channel.answered, channel.asked, channel.bound)));
        routes.iter().map(|(slot, _)| (*slot, self.via(Hop::Relayed(*slot)))).collect()
    }

    /// True when a setup packet for the peer may have to go by a route.
    pub(super) fn has_routes(&self, now: Instant, peer: NodeId) -> bool {
        !self.routes.known(now, &peer).is_empty() || !self.open_routes(peer).is_empty()
    }

    /// Opens the routes to a peer that are known, renews those that are open, and has a datagram carried through them.
    pub(super) fn routes_to(&mut self, now: Instant, peer: NodeId, datagram: &[u8]) -> Vec<Hop> {
        if datagram.len() > ROUTED_LEN_MAX {
            return Vec::new();
        }
        self.forget_unanswered(now, peer);
        let mut routes = self.open_routes(peer);
        let ours =
            |slot: &Slot| self.channels.get(slot).is_some_and(|channel| channel.asked || channel.answered);
        let mut opened = routes.iter().filter(|(slot, _)| ours(slot)).count();
        let others = self.routes.known(now, &peer).into_iter().map(|route| route.relays);
        for relays in others.collect::<Vec<_>>() {
            if opened < OPENED_MAX && routes.iter().all(|(_, open)| *open != relays) {
                opened += 1;
                routes.insert(0, (self.free_slot(), relays));
            }
        }
        routes.truncate(ROUTES_MAX);
        routes
            .into_iter()
            .filter_map(|(slot, relays)| self.bind_route(now, slot, relays, peer, datagram))
            .collect()
    }

    /// Asks the first relay of a route for a channel, or to renew it.
    fn bind_route(
        &mut self,
        now: Instant,
        slot: Slot,
        mut relays: Vec<NodeId>,
        peer: NodeId,
        datagram: &[u8],
    ) -> Option<Hop> {
        let next = relays.split_off(1);
        let [relay] = relays[..] else { return None };
        let (origin, datagram) = (self.node_id(), datagram.to_vec());
        let (service, passed) = (Service::Data, Vec::new());
        let bind = Routing::Bind { slot, origin, peer, service, next: next.clone(), passed, datagram };
        if self.reaches(&relay).is_none() || !self.send_control(now, relay, &[Control::Routing(bind)]) {
            self.lose_route(now, peer, relay, &next);
            self.dirty |= self.channels.remove(&slot).is_some();
            return None;
        }
        if !self.channels.contains(&slot) {
            self.open_channel(now, slot, (relay, Some(next)), peer, Service::Signals);
        }
        self.channels.note_bound(now, &slot);
        Some(Hop::Relayed(slot))
    }

    /// A route was found: it is opened, if there are not enough that do as much.
    pub(super) fn take_route(&mut self, now: Instant, peer: NodeId, route: &Route) {
        self.forget_unanswered(now, peer);
        let Some(known) = self.peers.of(&peer).filter(|known| self.is_missed(now, known)) else { return };
        let open = self.open_routes(peer);
        if open.iter().any(|(_, relays)| *relays == route.relays) {
            return;
        }
        // The handshake under way goes there as it is; what is too long for a route is followed by a shorter one.
        let pending = known.effort.as_ref().and_then(|effort| effort.pending.as_ref());
        let packet = pending.map(|pending| pending.packet.clone()).filter(|_| known.current.is_none());
        let packet = packet.filter(|packet| packet.len() <= ROUTED_LEN_MAX).unwrap_or_default();
        let ours = |slot: &Slot| self.channels.get(slot).is_some_and(|channel| channel.asked);
        let current = known.path.current();
        let unused: Vec<_> =
            open.into_iter().filter(|(slot, _)| current != Some(Hop::Relayed(*slot)) && ours(slot)).collect();
        if unused.len() >= OPENED_MAX {
            let weaker = unused.iter().find(|(slot, _)| !self.carries_data(Hop::Relayed(*slot)));
            let Some((slot, _)) = weaker.filter(|_| route.service == Service::Data) else { return };
            self.channels.remove(slot);
        }
        let slot = self.free_slot();
        let hop = self.bind_route(now, slot, route.relays.clone(), peer, &packet);
        let effort = self.peers.of_mut(&peer).and_then(|peer| peer.effort.as_mut());
        if let Some(pending) =
            effort.and_then(|effort| effort.pending.as_mut()).filter(|_| !packet.is_empty())
        {
            pending.targets.extend(hop);
            self.dirty = true;
        }
    }

    /// Routes by which the peer has not answered are none.
    fn forget_unanswered(&mut self, now: Instant, peer: NodeId) {
        let current = self.peers.of(&peer).and_then(|peer| peer.path.current());
        let routes = self.channels.to(&peer).filter(|(_, channel)| channel.beyond.is_some());
        let unanswered = routes.filter(|(slot, channel)| {
            let young = now.saturating_since(channel.opened) < ANSWERED_WITHIN;
            !channel.answered && !young && current != Some(Hop::Relayed(*slot))
        });
        for slot in unanswered.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.dirty |= self.channels.remove(&slot).is_some();
        }
    }

    /// A route stands: a peer that is silent is asked there at once.
    pub(super) fn try_route(&mut self, now: Instant, wall: WallTime, id: NodeId, hop: Hop) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let silence = peer.last_proof().map(|at| now.saturating_since(at)).unwrap_or_default();
        if peer.path.current() != Some(hop) && (peer.racing || peer.awaits_answer() && silence >= SUSPECT) {
            // With all others, and the one in use before them: who offers a route gains nothing by it.
            self.race(now, wall, id, Reason::Silent(silence));
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.path.checks.add(now, hop);
                self.check(now, id);
            }
        }
    }

    /// A route of ours does not work.
    pub(super) fn lose_route(&mut self, now: Instant, peer: NodeId, relay: NodeId, beyond: &[NodeId]) {
        let relays: Vec<_> = std::iter::once(relay).chain(beyond.iter().copied()).collect();
        self.routes.forget(now, &peer, &relays);
        if let Some(first) = self.peers.of_mut(&relay) {
            first.has_sought = None;
        }
    }

    /// A neighbour asks us to be a relay of a route.
    pub(super) fn handle_route_bind(
        &mut self,
        now: Instant,
        from: NodeId,
        wanted: Wanted,
        mut datagram: Vec<u8>,
    ) {
        let Some(neighbour) = self.peers.of_mut(&from) else { return };
        if neighbour.path.is_relayed() || neighbour.challenge.is_some() || !neighbour.requests.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        let Wanted { slot, origin, peer, service, next, mut passed } = wanted;
        let comes_from = passed.last().copied().unwrap_or(origin);
        let to = next.first().copied().unwrap_or(peer);
        passed.push(self.node_id());
        let relays: Vec<_> = passed.iter().chain(&next).copied().collect();
        let possible = comes_from == from
            && relays.len() <= usize::from(HOPS_MAX)
            && is_route(&relays, &[origin, peer])
            && !self.channels.contains(&slot)
            && self.reaches(&to).is_some();
        let near = End { node: from, slot };
        let bound = if possible {
            self.relay.bind_route(now, near, to, (origin, peer), &mut self.rng)
        } else {
            self.relay.close(near);
            self.drop(DropReason::Relay);
            None
        };
        self.dirty = true;
        let Some((far, carried)) = bound else {
            self.send_control(now, from, &[Control::Bound { slot, service: Service::None }]);
            return;
        };
        if !self.relay.charge(now, slot, datagram.len() as u64) {
            self.drop(DropReason::Relay);
            datagram.clear();
        }
        let (slot_there, service) = (far.slot, service.min(carried));
        let message = if next.is_empty() {
            self.send_control(now, from, &[Control::Bound { slot, service: carried }]);
            Routing::Invite { slot: slot_there, peer: origin, service, passed, datagram }
        } else {
            let next = next[1..].to_vec();
            Routing::Bind { slot: slot_there, origin, peer, service, next, passed, datagram }
        };
        self.send_control(now, to, &[Control::Routing(message)]);
        self.arm_relay(now);
        self.keep_carriers_from(now);
    }

    /// The next relay of a route says what the rest of it carries.
    pub(super) fn handle_bound_beyond(&mut self, now: Instant, from: NodeId, slot: Slot, service: Service) {
        let near = End { node: from, slot };
        let within_rate = self.peers.of_mut(&from).is_some_and(|peer| peer.requests.take(now));
        let Some((far, carried)) = self.relay.answer(near).filter(|_| within_rate) else {
            return self.drop(DropReason::Relay);
        };
        if service == Service::None {
            self.relay.close(near);
            self.dirty = true;
        }
        let service = service.min(carried);
        self.send_control(now, far.node, &[Control::Bound { slot: far.slot, service }]);
    }

    /// A neighbour has opened a route to us for somebody.
    pub(super) fn handle_route_invite(
        &mut self,
        now: Instant,
        wall: WallTime,
        relay: NodeId,
        (slot, peer, service): (Slot, NodeId, Service),
        passed: &[NodeId],
        datagram: &mut [u8],
    ) {
        let known = self.channels.get(&slot).map(|channel| channel.relay == relay && channel.peer == peer);
        let free = known.is_none() && self.relay.is_free(slot) && service != Service::None;
        let routes = || self.channels.through(&relay).filter(|(_, channel)| channel.beyond.is_some());
        let possible = passed.last() == Some(&relay)
            && is_route(passed, &[self.node_id(), peer])
            && self.reaches(&relay).is_some()
            && (known == Some(true) || free && routes().count() < INVITED_MAX);
        if !possible {
            return self.drop(DropReason::Relay);
        }
        if self.peers.of_mut(&relay).is_some_and(|relay| !relay.requests.take(now)) {
            return self.drop(DropReason::RateLimited);
        }
        if free {
            let beyond = passed.iter().rev().skip(1).copied().collect();
            self.open_channel(now, slot, (relay, Some(beyond)), peer, service);
            self.check_hop(now, peer, Hop::Relayed(slot));
            self.try_route(now, wall, peer, Hop::Relayed(slot));
        }
        self.handle_carried(now, wall, slot, datagram);
    }

    /// Sees to it that sessions which carry something do not end for want of packets of their own.
    pub(super) fn keep_carriers_from(&mut self, now: Instant) {
        if self.timers.deadline(&Timer::Carriers).is_none() {
            self.timers.arm(Timer::Carriers, now + KEEPALIVE);
        }
    }

    /// Pings the relays that carry for us, and on routes of others the relays before and behind us.
    pub(super) fn keep_carriers(&mut self, now: Instant) {
        let mut carriers: BTreeSet<_> = self.relay.route_ends(now).collect();
        for (slot, channel) in self.channels.iter() {
            let current = self.peers.of(&channel.peer).filter(|peer| peer.current.is_some());
            if current.is_some_and(|peer| peer.path.current() == Some(Hop::Relayed(slot))) {
                carriers.insert(channel.relay);
            }
        }
        for carrier in &carriers {
            self.probe(now, *carrier);
        }
        if !carriers.is_empty() {
            self.timers.arm(Timer::Carriers, now + KEEPALIVE);
        }
    }
}
