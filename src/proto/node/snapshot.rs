//! Publishing what the data path reads.
//!
//! A snapshot is made of the one before whenever anything changed, by looking at the peers that somebody had a hand on
//! since: with a thousand peers, a handshake of one costs the others nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::proto::datapath::{Carried, Receiver, Route, Shards, Snapshot};
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::policy::Rules;
use crate::proto::session::transport::Session;
use crate::proto::wire::control::Service;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::relay::{Hop, Slot};

use super::Node;
use super::peers::Peer;
use super::relays::ChannelWay;

type Ways = BTreeMap<Slot, ChannelWay>;

/// What the snapshot was made of.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// What each peer's part was made of.
    parts: BTreeMap<NodeId, Part>,
    /// Where initiations are under way to.
    awaiting: BTreeMap<NodeId, Vec<Hop>>,
    /// Where channels led.
    ways: Vec<(Slot, SocketAddr, Service)>,
}

/// A peer's part of the snapshot.
#[derive(Debug)]
struct Part {
    address: MeshAddress,
    state: State,
}

/// All that a peer's part of the snapshot depends on.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// Index, sending and receiving epoch of the current, the previous and the next session.
    sessions: [Option<(u32, u32, u32)>; 3],
    /// How its packets come.
    heard: Option<Hop>,
    /// Where ours go: an endpoint, and the channel through the relay there; none while there is no way for data.
    way: Option<(SocketAddr, Option<Slot>)>,
    watched: bool,
    notices: u64,
    mtu: usize,
    datagram_len: usize,
    cuts: bool,
}

impl State {
    fn of(peer: &Peer, mtu: usize, ways: &Ways) -> Self {
        let sessions = [&peer.current, &peer.previous, &peer.next].map(|session| {
            session.as_ref().map(|s: &Session| (s.local_index(), s.sending_epoch(), s.receiving_epoch()))
        });
        let way = peer.path.current().and_then(|hop| match hop {
            Hop::Direct(endpoint) => Some((endpoint, None)),
            Hop::Relayed(slot) => {
                let way = ways.get(&slot).filter(|way| way.service == Service::Data);
                way.map(|way| (way.endpoint, Some(slot)))
            }
        });
        let (watched, notices, datagram_len) = (peer.watched, peer.notices, peer.pmtu.datagram_len());
        let cuts = peer.losses.cuts();
        Self { sessions, heard: peer.path.heard(), way, watched, notices, mtu, datagram_len, cuts }
    }
}

/// Our route to the peer, if there is a way for data.
fn route(peer: &Peer, state: &State, ways: &Ways) -> Option<Arc<Route>> {
    let (session, (endpoint, slot)) = peer.current.as_ref().zip(state.way)?;
    let via = slot.and_then(|slot| ways.get(&slot)).map(|way| way.via.clone());
    let route = Route::new(session.clone(), endpoint, state.datagram_len, state.watched);
    Some(Arc::new(route.with_cuts(state.cuts).with_via(via)))
}

/// The peer's sessions that may receive.
fn receivers(peer: &Peer, state: &State) -> impl Iterator<Item = Arc<Receiver>> {
    peer.sessions().map(|session| {
        // The first packet of an unconfirmed session is news wherever it comes from, and the second if the first
        // report got lost.
        let unconfirmed = peer.next.as_ref().is_some_and(|n| n.local_index() == session.local_index());
        let heard = state.heard.filter(|_| !unconfirmed);
        Arc::new(Receiver::new(session.clone(), peer.address, heard, peer.echo.clone()))
    })
}

impl Snapshot {
    /// A snapshot without any peer.
    pub fn empty(own: MeshAddress, own_key: RecipientKey, rules: Arc<Rules>) -> Self {
        let (routes, receivers, slots) = (Shards::default(), Shards::default(), Shards::default());
        Self { own, own_key, routes, receivers, slots, rules, awaiting: BTreeSet::new() }
    }

    /// Takes away what a peer's part held.
    fn remove(&mut self, part: &Part) {
        self.routes.remove(&part.address);
        for (index, ..) in part.state.sessions.iter().flatten() {
            self.receivers.remove(index);
        }
    }
}

impl Node {
    /// Makes the next snapshot.
    pub(super) fn publish(&mut self) {
        let before = self.snapshot.clone();
        let mut snapshot = Snapshot {
            routes: before.routes.clone(),
            receivers: before.receivers.clone(),
            slots: before.slots.clone(),
            ..Snapshot::empty(before.own, before.own_key.clone(), self.rules.clone())
        };
        let ways = self.channel_ways();
        self.publish_ways(&ways, &mut snapshot);
        let touched = self.peers.take_touched();
        for slot in self.relay.take_touched(&touched) {
            match self.forward(slot, before.slots.get(&slot)) {
                Some(carried) => drop(snapshot.slots.insert(slot, carried)),
                None if ways.contains_key(&slot) => {}
                None => drop(snapshot.slots.remove(&slot)),
            }
        }
        for id in touched {
            self.publish_peer(id, &ways, &mut snapshot);
        }
        snapshot.awaiting = self.published.awaiting.values().flatten().copied().collect();
        self.snapshot = Arc::new(snapshot);
        self.dirty = false;
    }

    /// Where our own channels lead.
    fn publish_ways(&mut self, ways: &Ways, snapshot: &mut Snapshot) {
        let lead: Vec<_> = ways.iter().map(|(slot, way)| (*slot, way.endpoint, way.service)).collect();
        if self.published.ways == lead {
            return;
        }
        // Any peer's way may be one of them.
        self.peers.touch_all();
        for (slot, ..) in std::mem::replace(&mut self.published.ways, lead) {
            snapshot.slots.remove(&slot);
        }
        for (slot, way) in ways {
            snapshot.slots.insert(*slot, Arc::new(Carried::Ours(way.endpoint)));
        }
    }

    fn publish_peer(&mut self, id: NodeId, ways: &Ways, snapshot: &mut Snapshot) {
        let peer = self.peers.of(&id);
        match peer.map(Peer::asked_at).filter(|asked| !asked.is_empty()) {
            Some(asked) => drop(self.published.awaiting.insert(id, asked)),
            None => drop(self.published.awaiting.remove(&id)),
        }
        let peer = peer.filter(|peer| peer.sessions().next().is_some());
        let state = peer.map(|peer| State::of(peer, self.mtu, ways));
        if self.published.parts.get(&id).map(|part| &part.state) == state.as_ref() {
            return;
        }
        if let Some(part) = self.published.parts.remove(&id) {
            snapshot.remove(&part);
        }
        let Some((peer, state)) = peer.zip(state) else { return };
        if let Some(route) = route(peer, &state, ways) {
            snapshot.routes.insert(peer.address, route);
        }
        for receiver in receivers(peer, &state) {
            snapshot.receivers.insert(receiver.session.local_index(), receiver);
        }
        self.published.parts.insert(id, Part { address: peer.address, state });
    }
}
