//! Publishing what the data path reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::proto::datapath::{Receiver, Route, Snapshot};
use crate::proto::identity::MeshAddress;
use crate::proto::policy::Rules;
use crate::proto::wire::envelope::RecipientKey;

use super::Node;
use super::peers::Peer;

impl Snapshot {
    /// A snapshot without any peer.
    pub fn empty(own: MeshAddress, own_key: RecipientKey, rules: Arc<Rules>) -> Self {
        let (routes, receivers, awaiting) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { own, own_key, routes, receivers, rules, awaiting }
    }

    fn add(&mut self, peer: &Peer, mtu: usize) {
        if let (Some(session), Some(endpoint)) = (&peer.current, peer.path.current()) {
            self.routes
                .insert(peer.address, Arc::new(Route::new(session.clone(), endpoint, mtu, peer.watched)));
        }
        for session in peer.sessions() {
            // The first packet of an unconfirmed session is news wherever it comes from, and the second if the
            // first report got lost.
            let unconfirmed = peer.next.as_ref().is_some_and(|n| n.local_index() == session.local_index());
            let endpoint = peer.path.current().filter(|_| !unconfirmed);
            let receiver = Receiver::new(session.clone(), peer.address, endpoint, peer.echo.clone());
            self.receivers.insert(session.local_index(), Arc::new(receiver));
        }
        if let Some(pending) = peer.effort.as_ref().and_then(|effort| effort.pending.as_ref()) {
            self.awaiting.extend(&pending.targets);
        }
    }
}

impl Node {
    /// Builds the snapshot anew from the table of peers.
    pub(super) fn publish(&mut self) {
        let mut snapshot = Snapshot::empty(self.address(), self.own_key.clone(), self.rules.clone());
        for peer in self.peers.iter() {
            snapshot.add(peer, self.mtu);
        }
        self.snapshot = Arc::new(snapshot);
        self.dirty = false;
    }
}
