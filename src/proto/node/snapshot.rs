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
use super::channels::ChannelWay;
use super::peers::Peer;

type Ways = BTreeMap<Slot, ChannelWay>;

/// What the snapshot was made of.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// What each peer's part was made of.
    parts: BTreeMap<NodeId, Part>,
    /// Where initiations are under way to.
    awaiting: BTreeMap<NodeId, Vec<Hop>>,
    /// Where channels led.
    ways: Ways,
    /// Where each peer was, and where what we carry for it went.
    places: BTreeMap<NodeId, Place>,
}

/// The endpoint of a peer, and the same if it is known to receive there.
type Place = [Option<SocketAddr>; 2];

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
        Arc::new(Receiver::new(session.clone(), peer.address, heard, peer.account.clone()))
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
        let mut snapshot = Snapshot { rules: self.rules.clone(), ..Snapshot::clone(&before) };
        let mut touched = self.peers.take_touched();
        let moved = self.publish_places(&touched);
        self.publish_ways(&moved, &mut touched, &mut snapshot);
        for slot in self.relay.take_touched(&moved) {
            match self.forward(slot, before.slots.get(&slot)) {
                Some(carried) => drop(snapshot.slots.insert(slot, carried)),
                None if self.published.ways.contains_key(&slot) => {}
                None => drop(snapshot.slots.remove(&slot)),
            }
        }
        for id in touched {
            self.publish_peer(id, &mut snapshot);
        }
        self.snapshot = Arc::new(snapshot);
        self.dirty = false;
    }

    /// Those of `touched` that are not where they were.
    fn publish_places(&mut self, touched: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let place = |id: &NodeId| [self.peers.of(id).and_then(|peer| peer.path.endpoint()), self.reaches(id)];
        let places: Vec<_> = touched.iter().map(|id| (*id, place(id))).collect();
        let known = &mut self.published.places;
        let mut has_moved = |id, place| {
            let before = if place == [None; 2] { known.remove(&id) } else { known.insert(id, place) };
            before.unwrap_or_default() != place
        };
        places.into_iter().filter_map(|(id, place)| has_moved(id, place).then_some(id)).collect()
    }

    /// Where our own channels lead, as far as that has changed; `touched` grows by the peers at their ends, whose way it
    /// may be.
    fn publish_ways(
        &mut self,
        moved: &BTreeSet<NodeId>,
        touched: &mut BTreeSet<NodeId>,
        snapshot: &mut Snapshot,
    ) {
        let mut slots = self.channels.take_touched();
        for relay in moved {
            slots.extend(self.channels.through(relay).map(|(slot, _)| slot));
        }
        for slot in slots {
            let (old, new) = (self.published.ways.remove(&slot), self.channel_way(slot));
            let is_same = old.as_ref().zip(new.as_ref()).is_some_and(|(old, new)| old.is_same(new));
            if !is_same {
                touched.extend(old.iter().chain(&new).map(|way| way.peer));
                match &new {
                    Some(way) => drop(snapshot.slots.insert(slot, Arc::new(Carried::Ours(way.endpoint)))),
                    None => drop(snapshot.slots.remove(&slot)),
                }
            }
            self.published.ways.extend(new.map(|way| (slot, way)));
        }
    }

    fn publish_peer(&mut self, id: NodeId, snapshot: &mut Snapshot) {
        let Published { parts, awaiting, ways, .. } = &mut self.published;
        let peer = self.peers.of(&id);
        let asked = peer.map(Peer::asked_at).filter(|asked| !asked.is_empty());
        let asked_before = match &asked {
            Some(asked) => awaiting.insert(id, asked.clone()),
            None => awaiting.remove(&id),
        };
        if asked != asked_before {
            snapshot.awaiting = awaiting.values().flatten().copied().collect();
        }
        let peer = peer.filter(|peer| peer.sessions().next().is_some());
        let state = peer.map(|peer| State::of(peer, self.mtu, ways));
        if parts.get(&id).map(|part| &part.state) == state.as_ref() {
            return;
        }
        if let Some(part) = parts.remove(&id) {
            snapshot.remove(&part);
        }
        let Some((peer, state)) = peer.zip(state) else { return };
        if let Some(route) = route(peer, &state, ways) {
            snapshot.routes.insert(peer.address, route);
        }
        for receiver in receivers(peer, &state) {
            snapshot.receivers.insert(receiver.session.local_index(), receiver);
        }
        parts.insert(id, Part { address: peer.address, state });
    }
}
