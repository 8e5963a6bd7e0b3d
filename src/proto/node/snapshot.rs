//! Publishing what the data path reads.
//!
//! A snapshot is made anew whenever anything changed, of parts that are kept for each peer until the peer itself
//! changed: with a thousand peers, a handshake of one costs the others a reference count.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::proto::datapath::{Receiver, Route, Snapshot};
use crate::proto::identity::MeshAddress;
use crate::proto::policy::Rules;
use crate::proto::session::transport::Session;
use crate::proto::wire::envelope::RecipientKey;

use super::Node;
use super::peers::Peer;

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
    endpoint: Option<SocketAddr>,
    watched: bool,
    notices: u64,
    mtu: usize,
    datagram_len: usize,
    cuts: bool,
}

impl State {
    fn of(peer: &Peer, mtu: usize) -> Self {
        let sessions = [&peer.current, &peer.previous, &peer.next].map(|session| {
            session.as_ref().map(|s: &Session| (s.local_index(), s.sending_epoch(), s.receiving_epoch()))
        });
        let endpoint = peer.path.current();
        let (watched, notices, datagram_len) = (peer.watched, peer.notices, peer.pmtu.datagram_len());
        let cuts = peer.losses.cuts();
        Self { sessions, endpoint, watched, notices, mtu, datagram_len, cuts }
    }
}

impl Part {
    /// The largest datagram that the data path was told of.
    pub(super) const fn datagram_len(&self) -> usize {
        self.state.datagram_len
    }

    fn new(peer: &Peer, mtu: usize) -> Self {
        let endpoint = peer.path.current();
        let route = peer.current.as_ref().zip(endpoint).map(|(session, endpoint)| {
            let datagram_len = peer.pmtu.datagram_len();
            let route = Route::new(session.clone(), endpoint, datagram_len, peer.watched);
            Arc::new(route.with_cuts(peer.losses.cuts()))
        });
        let receiver = |session: &Session| {
            // The first packet of an unconfirmed session is news wherever it comes from, and the second if the
            // first report got lost.
            let unconfirmed = peer.next.as_ref().is_some_and(|n| n.local_index() == session.local_index());
            let endpoint = endpoint.filter(|_| !unconfirmed);
            Arc::new(Receiver::new(session.clone(), peer.address, endpoint, peer.echo.clone()))
        };
        Self { state: State::of(peer, mtu), route, receivers: peer.sessions().map(receiver).collect() }
    }
}

impl Snapshot {
    /// A snapshot without any peer.
    pub fn empty(own: MeshAddress, own_key: RecipientKey, rules: Arc<Rules>) -> Self {
        let (routes, receivers, awaiting) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { own, own_key, routes, receivers, rules, awaiting }
    }

    fn add(&mut self, peer: &mut Peer, mtu: usize) {
        if let Some(pending) = peer.effort.as_ref().and_then(|effort| effort.pending.as_ref()) {
            self.awaiting.extend(&pending.targets);
        }
        if peer.sessions().next().is_none() {
            peer.part = None;
            return;
        }
        let kept = peer.part.take().filter(|part| part.state == State::of(peer, mtu));
        let part = kept.unwrap_or_else(|| Part::new(peer, mtu));
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
        for peer in self.peers.iter_mut() {
            snapshot.add(peer, self.mtu);
        }
        self.snapshot = Arc::new(snapshot);
        self.dirty = false;
    }
}
