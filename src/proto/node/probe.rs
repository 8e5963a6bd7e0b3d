//! Tries an endpoint that the owner names, beside the way in use.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::identity::MeshAddress;
use crate::proto::path;
use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

use super::Node;

/// An endpoint that is being tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    endpoint: SocketAddr,
    answered: Option<Duration>,
}

impl Trial {
    /// A check was answered.
    pub(super) fn handle_answer(&mut self, hop: Hop, rtt: Duration) {
        if hop == Hop::Direct(self.endpoint) {
            self.answered.get_or_insert(rtt);
        }
    }
}

impl Node {
    /// Sends checks to an endpoint of a peer, as long as the session stands; false without one.
    pub fn try_endpoint(&mut self, now: Instant, address: MeshAddress, endpoint: SocketAddr) -> bool {
        let Some(id) = self.peers.at_address(&address).filter(|_| path::is_possible(&endpoint)) else {
            return false;
        };
        let Some(peer) = self.peers.of_mut(&id).filter(|peer| peer.current.is_some()) else { return false };
        peer.trial = Some(Trial { endpoint, answered: None });
        peer.path.checks.add(now, Hop::Direct(endpoint));
        self.check(now, id);
        true
    }

    /// How long the endpoint that was tried last took to answer, if it has.
    pub fn tried(&self, address: &MeshAddress) -> Option<Duration> {
        let id = self.peers.at_address(address)?;
        self.peers.of(&id)?.trial?.answered
    }
}
