//! Relays: those that others reach us by, the channels through them, and what we carry ourselves.
//!
//! ```text
//! behind a NAT    Allocate ─► [`RELAYS_WANTED`] nodes that serve the DHT ─► in our record; pinged so that the NAT lets
//!                 their packets in
//! to reach a peer its record names relays ─► Bind with the initiation inside ─► Invite at the peer ─► response
//! as a relay      allocations and channels of `relay::Relay`; the data path does the carrying
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::datapath::DropReason;
use crate::proto::dht::Mode;
use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::relay::ALLOCATION_LIFE;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{CARRIED_LEN_MAX, Contact, Control, Service};
use crate::proto::wire::record::{CAPABILITY_DHT_SERVER, NodeRecord, RECORD_RELAYS_MAX};
use crate::proto::wire::relay::{Hop, Slot};
use crate::proto::wire::{Family, family};

use super::channels::Channel;
use super::history::Reason;
use super::hopping::lasting;
use super::ways::is_in_use;
use super::{Node, Timer};

/// Relays that a node behind a NAT keeps.
pub const RELAYS_WANTED: usize = 2;
/// Nodes that are relays of ours, were asked or have refused lately.
const ALLOCATIONS_MAX: usize = 8;
/// Mappings of a NAT live for 30 s and more (RFC 4787 §4.3 asks for 2 min); this often the relays are pinged.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// Relays that a handshake is sent through at once.
const THROUGH_MAX: usize = 2;
/// Channels that are tried at once when a way fails.
const RACED_MAX: usize = 4;
/// Wait for the answer to an allocate, and how often it is sent.
const ALLOCATE_PATIENCE: Duration = Duration::from_secs(1);
/// See [`ALLOCATE_PATIENCE`].
const ALLOCATES_MAX: u8 = 3;
/// Who refused, or did not answer, is not asked again for this long.
const REFUSED_FOR: Duration = Duration::from_secs(120);
/// How soon more relays are looked for when there are too few.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// And for relays that carry data, while there are enough that do not.
const LOOK_FOR_DATA: Duration = Duration::from_secs(60);
/// Channels that are renewed with a relay that was away.
const RENEWED_MAX: usize = 64;
/// Who owes us an answer for this long is no relay.
const SILENT: Duration = Duration::from_secs(1);

/// A relay of ours, or one that was asked or has refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    asked: Instant,
    pinged: Instant,
    /// An allocate has not been answered yet.
    awaited: bool,
    state: AllocationState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AllocationState {
    /// So often, without an answer so far.
    Asked(u8),
    Granted(Service),
    Refused,
}

impl Allocation {
    const fn service(&self) -> Option<Service> {
        match self.state {
            AllocationState::Granted(service) => Some(service),
            AllocationState::Asked(_) | AllocationState::Refused => None,
        }
    }
}

impl Node {
    /// True when nobody on the internet reaches us unasked, as far as is known.
    pub(super) fn is_mapped(&self, now: Instant) -> bool {
        let networks = self.local.iter().map(|network| network.ip);
        let own: Vec<_> = networks.chain(self.endpoints.iter().map(|endpoint| endpoint.ip())).collect();
        self.observed.is_mapped(now, &own, |v4| self.reach_verdict(v4))
    }

    /// True for addresses of this machine.
    pub(super) fn is_own(&self, ip: IpAddr) -> bool {
        self.local.iter().any(|network| network.ip == ip) || self.endpoints.iter().any(|e| e.ip() == ip)
    }

    /// Somebody saw us at an endpoint. By a port that hops, its kernel may have shown it another port than ours.
    pub(super) fn handle_observed(
        &mut self,
        now: Instant,
        wall: WallTime,
        (id, source): (NodeId, Hop),
        seen: SocketAddr,
    ) {
        let Hop::Direct(observer) = source else { return };
        if self.peers.of(&id).is_some_and(|peer| lasting(peer, observer, false) != observer) {
            return;
        }
        self.observed.vote(now, observer, seen);
        self.hurry_reach(now);
        self.judge_place(now, wall);
    }

    /// Takes us for reachable, or not, as far as is known by now.
    pub(super) fn judge_place(&mut self, now: Instant, wall: WallTime) {
        let mapped = self.is_mapped(now) || self.is_streamed();
        if mapped == self.mapped {
            return self.refresh_record(now, wall);
        }
        self.mapped = mapped;
        if self.dht_auto {
            self.dht.set_mode(if mapped { Mode::Client } else { Mode::Server });
        }
        self.timers.arm(Timer::Relays, now);
        self.renew_record(now, wall);
    }

    /// The contacts of our relays, for our record.
    pub(super) fn relay_contacts(&self) -> Vec<Contact> {
        let mut granted: Vec<_> =
            self.allocations.iter().filter(|(_, allocation)| allocation.service().is_some()).collect();
        granted.sort_by_key(|(_, allocation)| std::cmp::Reverse(allocation.service()));
        let contact = |(id, _): (&NodeId, &Allocation)| {
            let peer = self.peers.of(id)?;
            Some(Contact { node_id: *id, x25519: peer.x25519?, endpoint: self.contact_endpoint(peer)? })
        };
        granted.into_iter().filter_map(contact).take(RECORD_RELAYS_MAX).collect()
    }

    /// Our relays and what they do for us.
    pub(super) fn relays(&self) -> impl Iterator<Item = (NodeId, Service)> {
        self.allocations.iter().filter_map(|(id, allocation)| Some((*id, allocation.service()?)))
    }

    /// True for nodes whose session is kept although nothing is sent.
    pub(super) fn is_relay_of_ours(&self, id: &NodeId) -> bool {
        self.allocations.get(id).is_some_and(|allocation| allocation.service().is_some())
    }

    /// Keeps the relays that we have, and looks for more if there are too few.
    pub(super) fn tend_relays(&mut self, now: Instant, wall: WallTime) {
        let before = self.relay_contacts();
        if !self.mapped || self.stopping {
            self.allocations.clear();
            if !before.is_empty() && !self.stopping {
                self.renew_record(now, wall);
            }
            return;
        }
        let has_session = |id: &NodeId| self.peers.of(id).is_some_and(|peer| peer.current.is_some());
        let gone: Vec<_> = self.allocations.keys().filter(|id| !has_session(id)).copied().collect();
        for id in gone {
            self.allocations.remove(&id);
        }
        for (id, allocation) in self.allocations.clone() {
            let AllocationState::Asked(times) = allocation.state else { continue };
            if now.saturating_since(allocation.asked) < ALLOCATE_PATIENCE {
                continue;
            }
            if times < ALLOCATES_MAX {
                self.allocate(now, id, AllocationState::Asked(times + 1));
            } else {
                self.allocations.insert(id, Allocation { state: AllocationState::Refused, ..allocation });
            }
        }
        self.allocations.retain(|_, allocation| {
            allocation.state != AllocationState::Refused
                || now.saturating_since(allocation.asked) < REFUSED_FOR
        });
        self.release_surplus(now);
        self.keep_relays(now);
        let possible = self.possible_relays(now);
        let mut wanted = RELAYS_WANTED.saturating_sub(self.relays_enough());
        if self.relays().count() >= RELAYS_WANTED {
            // There are enough; that they carry no data is no reason to ask everybody again and again.
            let looked = self.looked_for_data.is_some_and(|at| now.saturating_since(at) < LOOK_FOR_DATA);
            if wanted > 0 && !looked && !possible.is_empty() {
                self.looked_for_data = Some(now);
            } else {
                wanted = 0;
            }
        }
        let more = possible.iter().take(wanted.min(ALLOCATIONS_MAX.saturating_sub(self.allocations.len())));
        for id in more {
            self.allocate(now, *id, AllocationState::Asked(1));
        }
        self.refresh_record(now, wall);
        let asked = |allocation: &Allocation| matches!(allocation.state, AllocationState::Asked(_));
        let wait = match () {
            () if self.allocations.values().any(asked) => ALLOCATE_PATIENCE,
            () if self.relays().count() < RELAYS_WANTED => LOOK_AGAIN,
            () => KEEPALIVE,
        };
        self.timers.arm(Timer::Relays, now + wait);
    }

    /// Relays without data are of use only while there are too few with.
    fn release_surplus(&mut self, now: Instant) {
        // Who was only asked may carry no data either.
        let carrying = self.relays().filter(|(_, service)| *service == Service::Data).count();
        let wanted = RELAYS_WANTED.saturating_sub(carrying);
        let signals = |allocation: &&mut Allocation| allocation.service() == Some(Service::Signals);
        for allocation in self.allocations.values_mut().filter(signals).skip(wanted) {
            *allocation = Allocation { asked: now, state: AllocationState::Refused, ..*allocation };
        }
    }

    /// Renews allocations, and keeps the NAT open for what comes from relays.
    fn keep_relays(&mut self, now: Instant) {
        let granted = self.allocations.iter().filter(|(_, allocation)| allocation.service().is_some());
        for (id, allocation) in granted.map(|(id, allocation)| (*id, *allocation)).collect::<Vec<_>>() {
            if now.saturating_since(allocation.pinged) < KEEPALIVE {
                continue;
            }
            if now.saturating_since(allocation.asked) >= ALLOCATION_LIFE / 2 {
                self.allocate(now, id, allocation.state);
            } else {
                self.probe(now, id);
                self.allocations.insert(id, Allocation { pinged: now, ..allocation });
            }
        }
        let others = self.channels.relays();
        let others = others.filter(|id| !self.is_relay_of_ours(id) && self.carries_for_us(now, id));
        for id in others.copied().collect::<Vec<_>>() {
            self.probe(now, id);
        }
    }

    /// True while packets of ours go through a node, or would if the way in use failed.
    pub(super) fn carries_for_us(&self, now: Instant, id: &NodeId) -> bool {
        self.channels.through(id).any(|(slot, channel)| {
            let (hop, peer) = (Some(Hop::Relayed(slot)), self.peers.of(&channel.peer));
            peer.filter(|peer| peer.current.is_some()).is_some_and(|peer| {
                let current = peer.path.current();
                current == hop || is_in_use(now, peer) && peer.path.choice.standby(now, current) == hop
            })
        })
    }

    /// Somebody new may become a relay, if one is wanted.
    pub(super) fn hurry_relays(&mut self, now: Instant) {
        if self.mapped && self.relays().count() < RELAYS_WANTED && self.allocations.len() < ALLOCATIONS_MAX {
            self.timers.arm(Timer::Relays, now);
        }
    }

    /// A node does not answer any more: if it was a relay of ours, another one has to be found.
    pub(super) fn lose_relay(&mut self, now: Instant, id: NodeId) {
        if let Some(allocation) = self.allocations.get_mut(&id) {
            *allocation =
                Allocation { asked: now, pinged: now, awaited: false, state: AllocationState::Refused };
            self.timers.arm(Timer::Relays, now);
        }
    }

    /// Relays that carry data, or may yet. Those that do not are kept as long as there are no others.
    fn relays_enough(&self) -> usize {
        let counts = |allocation: &&Allocation| match allocation.state {
            AllocationState::Granted(service) => service == Service::Data,
            AllocationState::Asked(_) => true,
            AllocationState::Refused => false,
        };
        self.allocations.values().filter(counts).count()
    }

    /// Asks for an allocation; one that we have is kept as it is until the answer comes.
    fn allocate(&mut self, now: Instant, id: NodeId, state: AllocationState) {
        if self.send_control(now, id, &[Control::Allocate]) {
            let granted = self.allocations.get(&id).filter(|allocation| allocation.service().is_some());
            let asked = granted.map_or(now, |allocation| allocation.asked);
            self.allocations.insert(id, Allocation { asked, pinged: now, awaited: true, state });
        }
    }

    /// A session with a node is new. A relay of ours may have been started anew, and know nothing of us; whoever was lost
    /// or has refused may be asked again.
    pub(super) fn renew_at_relay(&mut self, now: Instant, id: NodeId) {
        if self.allocations.get(&id).is_some_and(|allocation| allocation.state == AllocationState::Refused) {
            self.allocations.remove(&id);
        }
        if let Some(allocation) =
            self.allocations.get(&id).filter(|allocation| allocation.service().is_some())
        {
            self.allocate(now, id, allocation.state);
        }
        let used = |(slot, channel): (Slot, &Channel)| {
            let peer = self.peers.of(&channel.peer)?;
            (peer.path.current() == Some(Hop::Relayed(slot))).then_some(channel.peer)
        };
        let peers: Vec<_> = self.channels.through(&id).filter_map(used).take(RENEWED_MAX).collect();
        for peer in peers {
            self.bind(now, id, peer, &[]);
        }
    }

    /// Nodes that could be asked, nearest first: they serve the DHT, and are where the internet can reach them.
    pub(super) fn possible_relays(&self, now: Instant) -> Vec<NodeId> {
        let is_silent = |peer: &super::peers::Peer| {
            peer.awaits_answer()
                && peer.last_proof().is_some_and(|proof| now.saturating_since(proof) >= SILENT)
        };
        let is_public = |endpoint: SocketAddr| {
            self.streams.is_dialled(&endpoint)
                || path::is_global(endpoint.ip())
                    && !self.local.iter().any(|network| network.contains(endpoint.ip()))
        };
        let possible = self.peers.iter().filter(|peer| {
            let serves =
                peer.record.as_ref().is_some_and(|r| r.content().capabilities & CAPABILITY_DHT_SERVER != 0);
            serves
                && peer.may_be_probed()
                && !is_silent(peer)
                && peer.path.endpoint().is_some_and(is_public)
                && !self.allocations.contains_key(&peer.id)
        });
        let mut possible: Vec<_> =
            possible.map(|peer| (peer.rtt.unwrap_or(Duration::MAX), peer.id)).collect();
        possible.sort_unstable();
        possible.into_iter().map(|(_, id)| id).collect()
    }

    /// A node that we asked answers. Who carries no data is taken only while we have too few.
    pub(super) fn handle_allocated(&mut self, now: Instant, wall: WallTime, id: NodeId, service: Service) {
        let relays = self.relays().filter(|(other, _)| *other != id).count();
        let Some(allocation) = self.allocations.get_mut(&id).filter(|allocation| allocation.awaited) else {
            return;
        };
        let state = match (allocation.state, service) {
            (_, Service::None) => AllocationState::Refused,
            (AllocationState::Asked(_), Service::Signals) if relays >= RELAYS_WANTED => {
                AllocationState::Refused
            }
            (_, granted @ (Service::Signals | Service::Data)) => AllocationState::Granted(granted),
        };
        let before = allocation.state;
        *allocation = Allocation { asked: now, pinged: now, awaited: false, state };
        if before != state {
            self.timers.arm(Timer::Relays, now);
            self.refresh_record(now, wall);
        }
    }

    /// Sends a setup packet for a peer through the relays that its record names; the ways it took. Those that we have no
    /// session with are connected first.
    pub(super) fn send_through_relays(
        &mut self,
        now: Instant,
        wall: WallTime,
        id: NodeId,
        datagram: &[u8],
    ) -> Vec<Hop> {
        let record = self.peers.of(&id).and_then(|peer| peer.record.as_ref());
        let own = self.node_id();
        let relays: Vec<_> = record
            .map(|record| {
                record.content().relays.iter().filter(|relay| relay.node_id != own).copied().collect()
            })
            .unwrap_or_default();
        let mut hops = Vec::new();
        for relay in relays.iter().take(THROUGH_MAX) {
            if !path::is_admissible(&relay.endpoint, &self.local) || !self.learn_contact(now, relay) {
                continue;
            }
            if self.peers.of(&relay.node_id).is_some_and(|peer| peer.current.is_some()) {
                hops.extend(self.bind(now, relay.node_id, id, datagram));
            } else {
                self.connect_directly(now, wall, relay.node_id);
            }
        }
        hops.extend(self.routes_to(now, id, datagram));
        hops
    }

    /// A session with a node stands: the handshakes that were to go through it need not wait any longer.
    pub(super) fn retry_through(&mut self, now: Instant, relay: NodeId) {
        let waits = |peer: &super::peers::Peer| {
            let pending = peer.effort.as_ref()?.pending.as_ref()?;
            let names = |contact: &Contact| contact.node_id == relay;
            let named = peer.record.as_ref()?.content().relays.iter().any(names);
            let sent = pending.targets.iter().any(|hop| self.relay_of(*hop) == Some(relay));
            (named && !sent).then(|| (peer.id, pending.packet.clone()))
        };
        for (id, packet) in self.peers.iter().filter_map(waits).collect::<Vec<_>>() {
            let hop = self.bind(now, relay, id, &packet);
            let effort = self.peers.of_mut(&id).and_then(|peer| peer.effort.as_mut());
            if let Some(pending) = effort.and_then(|effort| effort.pending.as_mut()) {
                pending.targets.extend(hop);
                self.dirty = true;
            }
        }
        let races = |peer: &&super::peers::Peer| {
            let names = |contact: &Contact| contact.node_id == relay;
            let waits =
                peer.racing || peer.path.is_relayed() && (!peer.staged.is_empty() || peer.spray.is_some());
            let named = peer.record.as_ref().is_some_and(|record| record.content().relays.iter().any(names));
            waits && (named || self.channels.to(&peer.id).any(|(_, channel)| channel.relay == relay))
        };
        for id in self.peers.iter().filter(races).map(|peer| peer.id).collect::<Vec<_>>() {
            if let (Some(hop), Some(peer)) = (self.bind(now, relay, id, &[]), self.peers.of_mut(&id)) {
                peer.path.checks.add(now, hop);
                self.check(now, id);
            }
        }
    }

    /// Opens a channel to a peer, or renews it, and has a datagram carried.
    fn bind(&mut self, now: Instant, relay: NodeId, peer: NodeId, datagram: &[u8]) -> Option<Hop> {
        if datagram.len() > CARRIED_LEN_MAX {
            return None;
        }
        let is_it = |c: &Channel| c.relay == relay && c.beyond.is_none();
        let known = self.channels.to(&peer).find(|(_, channel)| is_it(channel)).map(|(slot, _)| slot);
        let slot = known.unwrap_or_else(|| self.free_slot());
        let message = Control::Bind { slot, peer, datagram: datagram.to_vec() };
        if !self.send_control(now, relay, &[message]) {
            return None;
        }
        if known.is_none() {
            self.open_channel(now, slot, (relay, None), peer, Service::Signals);
        }
        self.channels.note_bound(now, &slot);
        Some(Hop::Relayed(slot))
    }

    /// The channels to a peer, renewed, and new ones through the relays that its record names; those that we have no
    /// session with are connected, and join in when they answer.
    pub(super) fn channels_to(&mut self, now: Instant, wall: WallTime, peer: NodeId) -> Vec<Hop> {
        let open = self.channels.to(&peer).filter(|(_, channel)| channel.beyond.is_none());
        let mut relays: Vec<_> = open.map(|(_, channel)| channel.relay).collect();
        let record = self.peers.of(&peer).and_then(|peer| peer.record.as_ref());
        let named: Vec<_> = record.into_iter().flat_map(|record| record.content().relays.clone()).collect();
        relays.extend(named.iter().map(|contact| contact.node_id));
        relays.sort_unstable();
        relays.dedup();
        relays.retain(|relay| *relay != self.node_id());
        relays.truncate(RACED_MAX);
        for contact in named {
            if path::is_admissible(&contact.endpoint, &self.local) && self.learn_contact(now, &contact) {
                self.connect_directly(now, wall, contact.node_id);
            }
        }
        let hops: Vec<_> = relays.into_iter().filter_map(|relay| self.bind(now, relay, peer, &[])).collect();
        hops.into_iter().chain(self.routes_to(now, peer, &[])).collect()
    }

    /// The way to a peer fails, and its relays may have been started anew since they were last heard: then they do not
    /// know us, and a handshake now saves the wait for an answer that does not come.
    pub(super) fn refresh_relays(&mut self, now: Instant, wall: WallTime, peer: NodeId) {
        let leads = self.channels.to(&peer).map(|(_, channel)| channel.relay);
        let record = self.peers.of(&peer).and_then(|peer| peer.record.as_ref());
        let named = record.into_iter().flat_map(|record| record.content().relays.iter().map(|c| c.node_id));
        let relays: BTreeSet<_> = leads.chain(named).take(RACED_MAX).collect();
        for relay in relays {
            let proof = self.peers.of(&relay).and_then(|relay| relay.last_proof());
            if proof.is_some_and(|proof| now.saturating_since(proof) >= SILENT) {
                self.shake_hands_by(now, wall, relay, true);
            }
        }
    }

    /// True when there is another way to a peer if the one in use fails.
    pub(super) fn has_standby(&self, now: Instant, peer: &super::peers::Peer) -> bool {
        let checked = peer.path.choice.standby(now, peer.path.current()).is_some();
        let named = |record: &NodeRecord| record.hops() || !record.content().relays.is_empty();
        let named = peer.record.as_ref().is_some_and(named);
        checked || named || self.channels.to(&peer.id).next().is_some()
    }

    /// The relay says what a channel that we asked for is good for.
    pub(super) fn handle_bound(
        &mut self,
        now: Instant,
        wall: WallTime,
        relay: NodeId,
        slot: Slot,
        service: Service,
    ) {
        let Some(channel) = self.channels.get(&slot).filter(|channel| channel.relay == relay) else {
            return self.handle_bound_beyond(now, relay, slot, service);
        };
        if !channel.asked {
            return self.drop(DropReason::Relay);
        }
        let (peer, routed) = (channel.peer, channel.beyond.is_some());
        if service == Service::None {
            if let Some(Channel { beyond: Some(beyond), .. }) = self.channels.remove(&slot) {
                self.lose_route(now, peer, relay, &beyond);
            }
            self.dirty = true;
            if self.peers.of(&peer).is_some_and(|peer| peer.path.current() == Some(Hop::Relayed(slot))) {
                self.shake_hands(now, wall, peer);
                self.race(now, wall, peer, Reason::Refused);
            }
        } else if self.channels.set_service(&slot, service) != Some(service) {
            self.dirty = true;
            self.release_staged(now, peer);
            self.check_hop(now, peer, Hop::Relayed(slot));
        }
        if routed && service != Service::None {
            self.try_route(now, wall, peer, Hop::Relayed(slot));
        }
    }

    /// A relay that we asked for an allocation has opened a channel to us for somebody.
    pub(super) fn handle_invite(
        &mut self,
        now: Instant,
        wall: WallTime,
        relay: NodeId,
        invite: (Slot, NodeId, Service),
        datagram: &mut [u8],
    ) {
        let (slot, peer, service) = invite;
        let known = self.channels.get(&slot).map(|channel| channel.relay == relay && channel.peer == peer);
        let free = known.is_none() && self.relay.is_free(slot) && service != Service::None;
        if !self.is_relay_of_ours(&relay) || known != Some(true) && !free {
            return self.drop(DropReason::Relay);
        }
        if self.peers.of_mut(&relay).is_some_and(|relay| !relay.requests.take(now)) {
            return self.drop(DropReason::RateLimited);
        }
        if free {
            self.open_channel(now, slot, (relay, None), peer, service);
            self.check_hop(now, peer, Hop::Relayed(slot));
        }
        self.handle_carried(now, wall, slot, datagram);
    }

    /// What came with an invite is as if it had come by the channel itself.
    pub(super) fn handle_carried(&mut self, now: Instant, wall: WallTime, slot: Slot, datagram: &mut [u8]) {
        if family(datagram) == Some(Family::Setup) && self.own_key.open(datagram).is_ok() {
            self.handle_setup(now, wall, Hop::Relayed(slot), datagram, false);
        }
    }
}
