//! Carrying other nodes' packets: who may be reached by way of us, and how much we carry for whom.
//!
//! ```text
//! client ── Allocate ──► relay          "others may reach me by way of you", renewed while it lasts
//! peer ──── Bind ──────► relay ── Invite ──► client       a channel: a slot on each side
//! peer ◄─── slot a ───── relay ──── slot b ──► client     packets, by `datapath`; quotas for each direction
//! origin ─ a ─ relay ─ b ─ relay ─ c ─ peer               a route: a channel at each relay, to the next node with which
//!                                                         it holds a session
//! ```
//!
//! The terms are those of TURN (RFC 8656): an allocation is what a client has at its relay, a channel leads to one peer.
//! Other than there, both ends are nodes with a session with us, so no packet ever goes to an address that a stranger
//! names, and none to a node that did not ask for it. Closed by default: what strangers get is enough to find a way of
//! their own ([`Service::Signals`]); data is carried for our own peers, and for strangers when the owner says so.
//!
//! Deliberately left out: sessions, messages and where nodes are, which are `node`'s, and the forwarding itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand_core::Rng;

use super::identity::NodeId;
use super::limit::SharedBucket;
use super::timer::Instant;
use super::wire::control::Service;
use super::wire::relay::Slot;

/// How long an allocation lasts unless it is renewed (RFC 8656 §3.2: 10 minutes).
pub const ALLOCATION_LIFE: Duration = Duration::from_secs(600);
/// How long a channel lasts that carries nothing (RFC 8656 §12: 10 minutes).
pub const CHANNEL_LIFE: Duration = Duration::from_secs(600);
/// A part of a route that carried nothing for this long does not keep sessions up.
const ROUTE_USED: Duration = Duration::from_secs(60);
/// Parts of routes that lead from a stranger to one other node.
pub const ROUTES_PER_PAIR_MAX: usize = 16;
/// A part of a route whose far end has sent nothing for this long is not wanted there.
pub const WANTED_WITHIN: Duration = Duration::from_secs(10);
/// Allocations of strangers at once.
pub const STRANGERS_MAX: usize = 256;
/// Allocations of strangers in one /24 of IPv4 or /48 of IPv6.
pub const STRANGERS_PER_PREFIX_MAX: usize = 16;
/// Channels at once.
pub const CHANNELS_MAX: usize = 4096;
/// Channels that one stranger opened.
pub const CHANNELS_PER_NODE_MAX: usize = 64;
/// Channels that strangers opened to one client.
pub const CHANNELS_PER_CLIENT_MAX: usize = 256;
/// Bytes a second in each direction of a channel for signals, and what may come at once: some handshakes, candidates
/// and pings.
pub const SIGNALS_BYTES_PER_S: u64 = 4 * 1024;
/// See [`SIGNALS_BYTES_PER_S`].
pub const SIGNALS_BURST_BYTES: u64 = 32 * 1024;
/// Bytes that a channel for data may carry at once beyond its rate.
pub const DATA_BURST_BYTES: u64 = 1024 * 1024;
/// Bits a second in each direction of a stranger's channel unless the owner says otherwise.
pub const STRANGER_BITS_PER_S: u64 = 2_000_000;

/// What the owner allows.
#[derive(Clone, Debug)]
pub struct Config {
    /// Carry data for strangers too.
    pub strangers: bool,
    /// Bits a second in each direction of a stranger's channel for data.
    pub stranger_bits_per_s: u64,
    /// Our own peers whatever else becomes of them: data is carried for them, without a limit.
    pub own: BTreeSet<NodeId>,
}

impl Default for Config {
    fn default() -> Self {
        Self { strangers: false, stranger_bits_per_s: STRANGER_BITS_PER_S, own: BTreeSet::new() }
    }
}

/// One end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Who is there.
    pub node: NodeId,
    /// How the node and we name the channel.
    pub slot: Slot,
}

/// A way between two nodes.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Who opened it, and to whom.
    pub ends: [End; 2],
    /// What it is good for.
    pub service: Service,
    /// What it may carry from each end.
    pub quotas: [Arc<SharedBucket>; 2],
    /// The nodes between which it is part of a route; one of them may be an end.
    pub route: Option<(NodeId, NodeId)>,
    opened: Instant,
    /// A bind went to the other end and was not answered yet.
    asked: bool,
    renewed: Instant,
    until: Instant,
}

impl Channel {
    /// When it ends because nothing came from its far end: whoever is there has not asked for it.
    fn wanted_until(&self) -> Option<Instant> {
        let unwanted = self.route.is_some() && self.quotas[1].full_at() == Instant::default();
        unwanted.then(|| self.opened + WANTED_WITHIN)
    }

    /// When it last carried something or was renewed.
    fn last_used(&self) -> Instant {
        let carried = self.quotas.iter().map(|quota| quota.full_at()).max().unwrap_or_default();
        carried.max(self.renewed)
    }
}

#[derive(Clone, Copy, Debug)]
struct Allocation {
    prefix: (bool, u64),
    until: Instant,
}

/// The channels and allocations that we grant.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    /// Our own peers that the configuration of the relay does not name.
    added: BTreeSet<NodeId>,
    allocations: BTreeMap<NodeId, Allocation>,
    /// By the slot of the end that opened it.
    channels: BTreeMap<Slot, Channel>,
    /// Who has an end at a slot: the slot of the end that opened the channel.
    slots: BTreeMap<Slot, Slot>,
    /// Slots of the ends that a node has.
    ends: BTreeMap<NodeId, BTreeSet<Slot>>,
    /// Slots that came or went since the last snapshot.
    touched: BTreeSet<Slot>,
}

impl Relay {
    /// A relay that carries nothing yet.
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            added: BTreeSet::new(),
            allocations: BTreeMap::new(),
            channels: BTreeMap::new(),
            slots: BTreeMap::new(),
            ends: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// What the owner allows.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Makes a node one of our own peers, or a stranger again unless the configuration names it; what stands keeps its
    /// service.
    pub fn set_own(&mut self, node: NodeId, own: bool) {
        if own {
            self.added.insert(node);
        } else {
            self.added.remove(&node);
        }
    }

    /// What a node may have carried, with others or alone.
    fn service_of(&self, node: &NodeId) -> Service {
        if self.config.strangers || !self.is_stranger(node) { Service::Data } else { Service::Signals }
    }

    /// What the packets that pass between two nodes may be.
    pub fn service_between(&self, a: &NodeId, b: &NodeId) -> Service {
        self.service_of(a).max(self.service_of(b))
    }

    /// A node at `ip` asks to be reachable by way of us; what it gets, for [`ALLOCATION_LIFE`].
    pub fn allocate(&mut self, now: Instant, client: NodeId, ip: IpAddr) -> Service {
        let prefix = prefix(ip);
        let others = || self.allocations.iter().filter(|(id, _)| **id != client && self.is_stranger(id));
        let neighbours = others().filter(|(_, allocation)| allocation.prefix == prefix).count();
        let full = others().count() >= STRANGERS_MAX || neighbours >= STRANGERS_PER_PREFIX_MAX;
        if full && self.is_stranger(&client) {
            return Service::None;
        }
        self.allocations.insert(client, Allocation { prefix, until: now + ALLOCATION_LIFE });
        self.service_of(&client)
    }

    /// `from` asks for a channel that it names `slot`, to a node with an allocation; asking again, from either end, renews
    /// it. Returns the
    /// other end and the service; `None` when there is no allocation or no room.
    pub fn bind(
        &mut self,
        now: Instant,
        from: NodeId,
        slot: Slot,
        to: NodeId,
        rng: &mut impl Rng,
    ) -> Option<(End, Service)> {
        if self.slots.contains_key(&slot) {
            return self.renew(now, from, slot, to);
        }
        if !self.allocations.contains_key(&to) {
            return None;
        }
        self.open(now, End { node: from, slot }, to, None, rng)
    }

    /// The same for a part of the route between `ends`, to the next node on it; that we hold a session with it is
    /// enough.
    pub fn bind_route(
        &mut self,
        now: Instant,
        near: End,
        to: NodeId,
        ends: (NodeId, NodeId),
        rng: &mut impl Rng,
    ) -> Option<(End, Service)> {
        if self.slots.contains_key(&near.slot) {
            return self.renew(now, near.node, near.slot, to);
        }
        self.open(now, near, to, Some(ends), rng)
    }

    fn renew(&mut self, now: Instant, from: NodeId, slot: Slot, to: NodeId) -> Option<(End, Service)> {
        let channel = self.channels.get_mut(self.slots.get(&slot)?)?;
        let far = far_end(channel, End { node: from, slot }).filter(|far| far.node == to)?;
        (channel.renewed, channel.until, channel.asked) = (now, now + CHANNEL_LIFE, true);
        Some((far, channel.service))
    }

    fn open(
        &mut self,
        now: Instant,
        near: End,
        to: NodeId,
        route: Option<(NodeId, NodeId)>,
        rng: &mut impl Rng,
    ) -> Option<(End, Service)> {
        let (from, slot) = (near.node, near.slot);
        if from == to {
            return None;
        }
        // A pair needs no two: who lost the slot gets another.
        let same_pair = |c: &&Channel| (c.ends[0].node, c.ends[1].node, c.route) == (from, to, route);
        if let Some(old) = self.channels.values().find(same_pair).map(|channel| channel.ends[0].slot) {
            self.end(old);
        }
        if route.is_some() {
            self.make_room_between(&from, &to);
        }
        if !self.make_room(&from, &to) {
            return None;
        }
        let far = End { node: to, slot: self.free_slot(rng) };
        let service = self.service_between(&from, &to);
        // That a peer of ours is at the other end of a route is no reason to carry everything that strangers send to it.
        let own = |sender: &NodeId| match route {
            Some(_) => !self.is_stranger(sender),
            None => !self.is_stranger(&from) || !self.is_stranger(&to),
        };
        let quota = |sender: &NodeId| {
            Arc::new(match (service, own(sender)) {
                (Service::Data, true) => SharedBucket::new(u64::MAX, u64::MAX),
                (Service::Data, false) => {
                    SharedBucket::new((self.config.stranger_bits_per_s / 8).max(1), DATA_BURST_BYTES)
                }
                (Service::Signals | Service::None, _) => {
                    SharedBucket::new(SIGNALS_BYTES_PER_S, SIGNALS_BURST_BYTES)
                }
            })
        };
        let (ends, quotas) = ([near, far], [quota(&from), quota(&to)]);
        let (opened, asked, renewed, until) = (now, true, now, now + CHANNEL_LIFE);
        let channel = Channel { ends, service, quotas, route, opened, asked, renewed, until };
        self.channels.insert(slot, channel);
        for end in ends {
            self.slots.insert(end.slot, slot);
            self.ends.entry(end.node).or_default().insert(end.slot);
            self.touched.insert(end.slot);
        }
        Some((far, service))
    }

    /// Strangers have no more than [`ROUTES_PER_PAIR_MAX`] parts of routes from one node to the next, each with a quota of
    /// its own: the one that was not used for longest gives way.
    fn make_room_between(&mut self, from: &NodeId, to: &NodeId) {
        let is_its = |c: &&Channel| c.route.is_some() && (c.ends[0].node, c.ends[1].node) == (*from, *to);
        let same: Vec<_> = self.channels.values().filter(is_its).collect();
        if same.len() >= ROUTES_PER_PAIR_MAX && self.is_stranger(from) {
            let oldest = same.into_iter().min_by_key(|channel| channel.last_used());
            if let Some(slot) = oldest.map(|channel| channel.ends[0].slot) {
                self.end(slot);
            }
        }
    }

    /// The other end of the channel, if a bind went from there to `near` and was not answered yet.
    pub fn answer(&mut self, near: End) -> Option<(End, Service)> {
        let across = self.across(near)?;
        let channel = self.channels.get_mut(self.slots.get(&near.slot)?)?;
        (channel.route.is_some() && std::mem::take(&mut channel.asked)).then_some(across)
    }

    /// The other end of the channel that a node and we name `near.slot`, and what we carry on it.
    pub fn across(&self, near: End) -> Option<(End, Service)> {
        let channel = self.channels.get(self.slots.get(&near.slot)?)?;
        Some((far_end(channel, near)?, channel.service))
    }

    /// Ends the channel that a node and we name so.
    pub fn close(&mut self, near: End) {
        if self.across(near).is_some()
            && let Some(opener) = self.slots.get(&near.slot).copied()
        {
            self.end(opener);
        }
    }

    /// Nodes at the ends of those parts of routes that carried something lately.
    pub fn route_ends(&self, now: Instant) -> impl Iterator<Item = NodeId> {
        let used = move |channel: &&Channel| {
            channel.route.is_some() && now.saturating_since(channel.last_used()) < ROUTE_USED
        };
        self.channels.values().filter(used).flat_map(|channel| channel.ends.map(|end| end.node))
    }

    /// Sees to it that one more channel may be opened: strangers open no more than their share, have no more than theirs
    /// lead to one client, and leave a quarter of all to our own peers.
    fn make_room(&mut self, from: &NodeId, to: &NodeId) -> bool {
        let stranger = self.is_stranger(from);
        let opened = self.channels.values().filter(|channel| channel.ends[0].node == *from).count();
        let limit = if stranger { CHANNELS_MAX / 4 * 3 } else { CHANNELS_MAX };
        if self.channels.len() >= limit || stranger && opened >= CHANNELS_PER_NODE_MAX {
            return false;
        }
        // Of those that strangers opened to one client, the one that was not used for longest gives way.
        let leads = |c: &&Channel| c.ends[1].node == *to && self.is_stranger(&c.ends[0].node);
        if stranger && self.channels.values().filter(leads).count() >= CHANNELS_PER_CLIENT_MAX {
            let oldest = self.channels.values().filter(leads).min_by_key(|channel| channel.last_used());
            if let Some(slot) = oldest.map(|channel| channel.ends[0].slot) {
                self.end(slot);
            }
        }
        true
    }

    fn end(&mut self, opener: Slot) {
        if let Some(channel) = self.channels.remove(&opener) {
            for end in channel.ends {
                self.slots.remove(&end.slot);
                self.touched.insert(end.slot);
                if let Some(slots) = self.ends.get_mut(&end.node) {
                    slots.remove(&end.slot);
                    if slots.is_empty() {
                        self.ends.remove(&end.node);
                    }
                }
            }
        }
    }

    /// Counts a datagram of `bytes` that `from` has carried to `slot`'s other end by a message.
    pub fn charge(&self, now: Instant, slot: Slot, bytes: u64) -> bool {
        let channel = self.slots.get(&slot).and_then(|opener| self.channels.get(opener));
        channel.is_some_and(|channel| {
            let end = usize::from(channel.ends[0].slot != slot);
            channel.quotas[end].take(now, bytes)
        })
    }

    /// True when a slot is not in use with us.
    pub fn is_free(&self, slot: Slot) -> bool {
        !self.slots.contains_key(&slot)
    }

    fn free_slot(&self, rng: &mut impl Rng) -> Slot {
        loop {
            let slot = Slot(rng.next_u64());
            if self.is_free(slot) {
                return slot;
            }
        }
    }

    fn is_stranger(&self, node: &NodeId) -> bool {
        !self.config.own.contains(node) && !self.added.contains(node)
    }

    /// All channels, in order of their slots.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.channels.values()
    }

    /// Nodes that others reach by way of us.
    pub fn clients(&self) -> impl Iterator<Item = &NodeId> {
        self.allocations.keys()
    }

    /// Ends what is not used any more. True when a channel ended.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.allocations.retain(|_, allocation| now < allocation.until);
        for channel in self.channels.values_mut() {
            channel.until = channel.until.max(channel.last_used() + CHANNEL_LIFE).min(now + CHANNEL_LIFE);
        }
        let is_over =
            |channel: &&Channel| now >= channel.until || channel.wanted_until().is_some_and(|at| now >= at);
        let over: Vec<_> =
            self.channels.values().filter(is_over).map(|channel| channel.ends[0].slot).collect();
        over.iter().for_each(|slot| self.end(*slot));
        !over.is_empty()
    }

    /// What a node and we name so: the ends, that one first, and what it may have carried.
    pub fn channel(&self, slot: Slot) -> Option<([End; 2], &Arc<SharedBucket>)> {
        let Channel { ends: [a, b], quotas: [of_a, of_b], .. } = self.channels.get(self.slots.get(&slot)?)?;
        Some(if a.slot == slot { ([*a, *b], of_a) } else { ([*b, *a], of_b) })
    }

    /// How many slots came or went since [`Self::take_touched`].
    pub fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Slots that came or went since the last call, and those of all channels that have an end at one of `nodes`.
    pub fn take_touched(&mut self, nodes: &BTreeSet<NodeId>) -> BTreeSet<Slot> {
        let mut slots = std::mem::take(&mut self.touched);
        for slot in nodes.iter().filter_map(|node| self.ends.get(node)).flatten() {
            let ends = self.channel(*slot).map(|(ends, _)| ends);
            slots.extend(ends.into_iter().flatten().map(|end| end.slot));
        }
        slots
    }

    /// When [`Relay::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let allocations = self.allocations.values().map(|allocation| allocation.until);
        let channels = self.channels.values();
        let channels = channels.map(|c| c.wanted_until().map_or(c.until, |wanted| wanted.min(c.until)));
        allocations.chain(channels).min()
    }
}

/// The end of a channel that is not `near`, if `near` is one.
fn far_end(channel: &Channel, near: End) -> Option<End> {
    let [a, b] = channel.ends;
    match () {
        () if a == near => Some(b),
        () if b == near => Some(a),
        () => None,
    }
}

/// The IPv4 /24 or IPv6 /48 of an address, apart by their families.
pub fn prefix(ip: IpAddr) -> (bool, u64) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (false, u64::from(ip.to_bits() >> 8)),
        IpAddr::V6(ip) => (true, (ip.to_bits() >> 80) as u64),
    }
}

#[cfg(test)]
mod tests;
