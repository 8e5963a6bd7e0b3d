//! Channels of ours: the ways through a relay, or through several, that a peer and we know by a slot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rand_core::Rng as _;

use crate::proto::datapath::{DropReason, Via};
use crate::proto::identity::NodeId;
use crate::proto::timer::Instant;
use crate::proto::wire::control::Service;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::relay::{HOPS_MAX, Header, Hop, RELAY_OVERHEAD, Slot, seal};

use super::Node;

/// Channels to us and from us at once.
pub(super) const SLOTS_MAX: usize = 2048;

/// A channel of ours.
#[derive(Clone)]
pub(super) struct Channel {
    /// The relay, and the peer at the other end: both as long as the channel lives.
    pub(super) relay: NodeId,
    pub(super) peer: NodeId,
    pub(super) service: Service,
    /// Of a route: its relays behind the first one, nearest first.
    pub(super) beyond: Option<Vec<NodeId>>,
    /// We asked for it; else the relay has offered it.
    pub(super) asked: bool,
    /// Something came by it that the peer sent.
    pub(super) answered: bool,
    pub(super) opened: Instant,
    key: RecipientKey,
    pub(super) bound: Instant,
}

/// Where a channel leads now.
#[derive(Debug)]
pub(super) struct ChannelWay {
    pub(super) peer: NodeId,
    pub(super) endpoint: SocketAddr,
    pub(super) via: Via,
    pub(super) service: Service,
}

impl ChannelWay {
    /// True if the data path need not be told anything else.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.peer, self.endpoint, self.service) == (other.peer, other.endpoint, other.service)
    }
}

/// All channels of ours, by slot, by the peer they lead to and by their first relay.
#[derive(Default)]
pub(super) struct Channels {
    by_slot: BTreeMap<Slot, Channel>,
    by_peer: BTreeMap<NodeId, BTreeSet<Slot>>,
    by_relay: BTreeMap<NodeId, BTreeSet<Slot>>,
    /// Came, went or carry something else since [`Self::take_touched`].
    touched: BTreeSet<Slot>,
}

impl Channels {
    pub(super) fn get(&self, slot: &Slot) -> Option<&Channel> {
        self.by_slot.get(slot)
    }

    pub(super) fn contains(&self, slot: &Slot) -> bool {
        self.by_slot.contains_key(slot)
    }

    pub(super) fn len(&self) -> usize {
        self.by_slot.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Channel)> {
        self.by_slot.iter().map(|(slot, channel)| (*slot, channel))
    }

    /// Those that lead to a peer.
    pub(super) fn to(&self, peer: &NodeId) -> impl Iterator<Item = (Slot, &Channel)> {
        self.of(self.by_peer.get(peer))
    }

    /// Those of which a node is the first relay.
    pub(super) fn through(&self, relay: &NodeId) -> impl Iterator<Item = (Slot, &Channel)> {
        self.of(self.by_relay.get(relay))
    }

    fn of(&self, slots: Option<&BTreeSet<Slot>>) -> impl Iterator<Item = (Slot, &Channel)> {
        slots.into_iter().flatten().filter_map(|slot| Some((*slot, self.by_slot.get(slot)?)))
    }

    /// The first relays of all.
    pub(super) fn relays(&self) -> impl Iterator<Item = &NodeId> {
        self.by_relay.keys()
    }

    fn insert(&mut self, slot: Slot, channel: Channel) {
        self.remove(&slot);
        self.touched.insert(slot);
        self.by_peer.entry(channel.peer).or_default().insert(slot);
        self.by_relay.entry(channel.relay).or_default().insert(slot);
        self.by_slot.insert(slot, channel);
    }

    pub(super) fn remove(&mut self, slot: &Slot) -> Option<Channel> {
        let channel = self.by_slot.remove(slot)?;
        self.touched.insert(*slot);
        for (index, id) in [(&mut self.by_peer, channel.peer), (&mut self.by_relay, channel.relay)] {
            if let Some(slots) = index.get_mut(&id) {
                slots.remove(slot);
                if slots.is_empty() {
                    index.remove(&id);
                }
            }
        }
        Some(channel)
    }

    /// The relay says what a channel is good for; what it was good for.
    pub(super) fn set_service(&mut self, slot: &Slot, service: Service) -> Option<Service> {
        let channel = self.by_slot.get_mut(slot)?;
        self.touched.insert(*slot);
        Some(std::mem::replace(&mut channel.service, service))
    }

    /// We asked for a channel, or to renew it.
    pub(super) fn note_bound(&mut self, now: Instant, slot: &Slot) {
        if let Some(channel) = self.by_slot.get_mut(slot) {
            (channel.asked, channel.bound) = (true, now);
        }
    }

    /// The peer itself was heard by a way, or has answered there.
    pub(super) fn note_answered(&mut self, hop: Hop) {
        if let Some(channel) = hop.slot().and_then(|slot| self.by_slot.get_mut(&slot)) {
            channel.answered = true;
        }
    }

    /// True when data may be sent this way.
    pub(super) fn carries_data(&self, hop: Hop) -> bool {
        hop.slot().is_none_or(|slot| self.get(&slot).is_some_and(|c| c.service == Service::Data))
    }

    pub(super) fn take_touched(&mut self) -> BTreeSet<Slot> {
        std::mem::take(&mut self.touched)
    }
}

impl Node {
    pub(super) fn free_slot(&mut self) -> Slot {
        loop {
            let slot = Slot(self.rng.next_u64());
            if !self.channels.contains(&slot) && self.relay.is_free(slot) {
                return slot;
            }
        }
    }

    /// A channel by way of a relay, and of those beyond it if it is part of a route.
    pub(super) fn open_channel(
        &mut self,
        now: Instant,
        slot: Slot,
        (relay, beyond): (NodeId, Option<Vec<NodeId>>),
        peer: NodeId,
        service: Service,
    ) {
        if self.channels.len() >= SLOTS_MAX {
            let used = |slot: Slot, channel: &Channel| {
                let peer = self.peers.of(&channel.peer);
                peer.is_some_and(|peer| peer.path.current() == Some(Hop::Relayed(slot)))
            };
            let unused = self.channels.iter().filter(|(slot, channel)| !used(*slot, channel));
            let Some((oldest, _)) = unused.min_by_key(|(_, channel)| channel.bound) else {
                return self.drop(DropReason::QueueFull);
            };
            self.channels.remove(&oldest);
        }
        let key = RecipientKey::new(&relay, &self.session_config.network);
        let (asked, answered, opened, bound) = (false, false, now, now);
        let channel = Channel { relay, peer, service, beyond, asked, answered, opened, key, bound };
        self.channels.insert(slot, channel);
        self.dirty = true;
        self.keep_carriers_from(now);
    }

    /// Puts the header of a channel around a datagram; `None` when the relay is not to be reached.
    pub(super) fn relayed(&self, slot: Slot, datagram: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let channel = self.channels.get(&slot)?;
        let endpoint = self.peers.of(&channel.relay)?.path.endpoint()?;
        let mut packet = vec![0; RELAY_OVERHEAD];
        packet.extend(datagram);
        seal(&channel.key, Header { hop_limit: HOPS_MAX, slot }, &mut packet).ok()?;
        Some((endpoint, packet))
    }

    /// True when data may be sent this way.
    pub(super) fn carries_data(&self, hop: Hop) -> bool {
        self.channels.carries_data(hop)
    }

    /// Where datagrams go that take this way.
    pub(super) fn endpoint_of(&self, hop: Hop) -> Option<SocketAddr> {
        match hop {
            Hop::Direct(endpoint) => Some(endpoint),
            Hop::Relayed(_) => self.peers.of(&self.relay_of(hop)?)?.path.endpoint(),
        }
    }

    /// All relays of a way, the nearest first.
    pub(super) fn via(&self, hop: Hop) -> Vec<NodeId> {
        let channel = hop.slot().and_then(|slot| self.channels.get(&slot));
        let relays = |channel: &Channel| {
            let beyond = channel.beyond.iter().flatten().copied();
            std::iter::once(channel.relay).chain(beyond).collect()
        };
        channel.map(relays).unwrap_or_default()
    }

    /// The relays of a way behind the first one.
    pub(super) fn beyond(&self, hop: Hop) -> Vec<NodeId> {
        self.via(hop).into_iter().skip(1).collect()
    }

    /// The relay that a way leads through.
    pub(super) fn relay_of(&self, hop: Hop) -> Option<NodeId> {
        hop.slot().and_then(|slot| self.channels.get(&slot)).map(|channel| channel.relay)
    }

    /// Where a channel leads now; `None` while its relay is not to be reached.
    pub(super) fn channel_way(&self, slot: Slot) -> Option<ChannelWay> {
        let channel = self.channels.get(&slot)?;
        let endpoint = self.peers.of(&channel.relay)?.path.endpoint()?;
        let via = Via { slot, key: channel.key.clone() };
        Some(ChannelWay { peer: channel.peer, endpoint, via, service: channel.service })
    }
}
