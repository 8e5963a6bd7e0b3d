//! Publishing what the data path reads.
//!
//! A snapshot is made anew whenever anything changed, of parts that are kept for each peer until the peer itself
//! changed: with a thousand peers, a handshake of one costs the others a reference count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::proto::datapath::{Receiver, Route, Snapshot};
use crate::proto::identity::MeshAddress;
use crate::proto::policy::Rules;
use crate::proto::session::transport::Session;
use crate::proto::wire::control::Service;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::relay::{Hop, Slot};

use super::Node;
use super::peers::Peer;
use super::relays::ChannelWay;

type Ways = BTreeMap<Slot, ChannelWay>;

/// A peer's part of the snapshot.
#[derive(Debug)]
pub(super) struct Part {
    state: State,
    route: Option<Arc<Route>>,
    receivers: Vec<Arc<Receiver>>,
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

impl Part {
    /// The largest datagram that the data path was told of.
    pub(super) const fn datagram_len(&self) -> usize {
        self.state.datagram_len
    }

    fn new(peer: &Peer, state: State, ways: &Ways) -> Self {
        let route = peer.current.as_ref().zip(state.way).map(|(session, (endpoint, slot))| {
            let via = slot.and_then(|slot| ways.get(&slot)).map(|way| way.via.clone());
            let route = Route::new(session.clone(), endpoint, peer.pmtu.datagram_len(), peer.watched);
            Arc::new(route.with_cuts(peer.losses.cuts()).with_via(via))
        });
        let receiver = |session: &Session| {
            // The first packet of an unconfirmed session is news wherever it comes from, and the second if the
            // first report got lost.
            let unconfirmed = peer.next.as_ref().is_some_and(|n| n.local_index() == session.local_index());
            let heard = state.heard.filter(|_| !unconfirmed);
            Arc::new(Receiver::new(session.clone(), peer.address, heard, peer.echo.clone()))
        };
        let receivers = peer.sessions().map(receiver).collect();
        Self { state, route, receivers }
    }
}

impl Snapshot {
    /// A snapshot without any peer.
    pub fn empty(own: MeshAddress, own_key: RecipientKey, rules: Arc<Rules>) -> Self {
        let (routes, receivers, slots) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { own, own_key, routes, receivers, slots, rules, awaiting: BTreeSet::new() }
    }

    fn add(&mut self, peer: &mut Peer, mtu: usize, ways: &Ways) {
        if let Some(pending) = peer.effort.as_ref().and_then(|effort| effort.pending.as_ref()) {
            self.awaiting.extend(&pending.targets);
        }
        if peer.sessions().next().is_none() {
            peer.part = None;
            return;
        }
        let state = State::of(peer, mtu, ways);
        let part = match peer.part.take() {
            Some(part) if part.state == state => part,
            _ => Part::new(peer, state, ways),
        };
        self.routes.extend(part.route.iter().map(|route| (peer.address, route.clone())));
        self.receivers.extend(part.receivers.iter().map(|r| (r.session.local_index(), r.clone())));
        peer.part = Some(part);
    }
}

impl Node {
    /// Builds the snapshot anew from the table of peers.
    pub(super) fn publish(&mut self) {
        let mut snapshot = Snapshot::empty(self.address(), self.own_key.clone(), self.rules.clone());
        snapshot.routes.reserve(self.snapshot.routes.len() + 1);
        snapshot.receivers.reserve(self.snapshot.receivers.len() + 1);
        let ways = self.channel_ways();
        self.carried(&ways, &self.snapshot, &mut snapshot);
        for peer in self.peers.iter_mut() {
            snapshot.add(peer, self.mtu, &ways);
        }
        self.snapshot = Arc::new(snapshot);
        self.dirty = false;
    }
}
