//! Port hopping ([`hopping`]): a peer that does not answer at its ordinary port is tried at the one that is open just now,
//! when its record says that its ports hop, or the owner has named it to us.

use std::net::SocketAddr;

use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::path::hopping::Hopping;
use crate::proto::timer::WallTime;

use super::Node;
use super::peers::Peer;

impl Node {
    /// Our own ports hop: others are told.
    pub fn set_hops(&mut self, hops: bool) {
        self.hops = hops;
    }

    /// Ports of ours that are open beside the ordinary one.
    pub fn own_hopping(&self) -> Hopping {
        Hopping::new(&self.node_id(), &self.session_config.network)
    }

    /// Notes at which port a peer can be tried now.
    pub(super) fn refresh_hop(&mut self, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of(&id) else { return };
        let host = match &peer.record {
            Some(record) if record.hops() => {
                let ip = peer.path.endpoint().map(|endpoint| endpoint.ip());
                let has_version = |endpoint: &SocketAddr| {
                    self.endpoints.iter().any(|own| own.is_ipv4() == endpoint.is_ipv4())
                };
                let usable = |endpoint: &&SocketAddr| {
                    path::is_admissible(endpoint, &self.local) && has_version(endpoint)
                };
                let mut said = record.content().endpoints.iter().filter(usable);
                said.clone().find(|endpoint| Some(endpoint.ip()) == ip).or_else(|| said.next())
            }
            Some(_) => None,
            // Nobody has told us; that it is tried at such a port is what its owner wants, or ours.
            None => peer.path.candidates().first().filter(|_| self.bootstrap.contains_key(&id)),
        };
        let hop = host.map(|host| {
            SocketAddr::new(host.ip(), Hopping::new(&id, &self.session_config.network).port(wall))
        });
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.path.set_hop(hop);
        }
    }
}

/// The endpoint of a peer that lasts: a port that hops is another one soon. Where our own hop (`ours`), the kernel shows
/// us another port of a peer than the one that it has, if it has reached us by two of ours.
pub(super) fn lasting(peer: &Peer, endpoint: SocketAddr, ours: bool) -> SocketAddr {
    let Some(record) = peer.record.as_ref().filter(|record| ours || record.hops()) else { return endpoint };
    let said = &record.content().endpoints;
    let same_host = said.iter().find(|said| said.ip() == endpoint.ip());
    same_host.filter(|_| !said.contains(&endpoint)).copied().unwrap_or(endpoint)
}
