//! What the node can say of itself. Never more than was seen.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::datapath::DropReason;
use crate::proto::dht;
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::policy::Refused;
use crate::proto::timer::Instant;
use crate::proto::wire::control::Service;
use crate::proto::wire::session::OVERHEAD;

use super::Node;
use super::dispatch::Refusal;
use super::history::{Change, Relayed, Silence, Way};
use super::peers::{Peer, last_heard};
use super::streams::StreamStatus;

/// Data within this time makes a peer *flowing*.
const FLOWING: Duration = Duration::from_secs(30);
/// Who was asked for so long was asked in vain: a handshake that loses its first packets takes less.
const IN_VAIN: Duration = Duration::from_secs(5);
/// What does not authenticate says something of a peer for this long.
const UNAUTHENTIC_LIFE: Duration = Duration::from_secs(60);

/// How far we are with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// A record only, or a session that nothing comes by any more, however often the peer was asked.
    Known,
    /// A session.
    Authenticated,
    /// Data in the last 30 s.
    Flowing,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its name.
    pub node_id: NodeId,
    /// Its address.
    pub address: MeshAddress,
    /// How far we are.
    pub state: PeerState,
    /// Where packets go, when there is a session and the peer answers.
    pub endpoint: Option<SocketAddr>,
    /// They go there by a stream: the endpoint is one of TCP.
    pub by_stream: bool,
    /// The relay there, when the peer is behind it; and whether it carries data.
    pub via: Option<(NodeId, bool)>,
    /// More relays behind that one, nearest first.
    pub beyond: Vec<NodeId>,
    /// The best other way that answered lately, and whether it carries data.
    pub standby: Option<(Way, bool)>,
    /// Endpoints worth trying.
    pub candidates: Vec<SocketAddr>,
    /// Last measured round trip.
    pub rtt: Option<Duration>,
    /// Part of our datagrams that got lost lately, in thousandths; known only while there are many.
    pub loss_per_mille: Option<u64>,
    /// Largest inner packet that goes in one datagram, in bytes.
    pub mtu: usize,
    /// Name of the session's cipher.
    pub cipher: Option<&'static str>,
    /// Age of the session.
    pub session_age: Option<Duration>,
    /// Time since it last showed that it holds the keys of a session, also of one that has ended.
    pub last_heard: Option<Duration>,
    /// What its silence means; `None` for one that answers, or that was never asked.
    pub silence: Option<Silence>,
    /// A packet filter of this machine refused what was last to go there, packets with data apart.
    pub filtered: bool,
    /// This machine has no route to any of its endpoints.
    pub routeless: bool,
    /// For how long packets have waited for a way that carries them.
    pub packets_wait: Option<Duration>,
    /// Where something that does not authenticate came from lately, while the peer was asked there in vain.
    pub unauthentic: Option<SocketAddr>,
    /// Bytes received in all sessions, overhead included.
    pub bytes_received: u64,
    /// Bytes sent in all sessions, overhead included.
    pub bytes_sent: u64,
    /// Replayed packets dropped in the session.
    pub replays: u64,
    /// A handshake is under way.
    pub connecting: bool,
    /// It was configured by the owner.
    pub configured: bool,
    /// The last changes of the way to it, newest first.
    pub history: Vec<Change>,
    /// Relays that it names.
    pub relays: Vec<NodeId>,
    /// Why it is reached through a relay, if it is.
    pub relayed: Option<Relayed>,
    /// Its NAT gives every destination another port, as it says.
    pub maps_dependently: bool,
    /// What it was not let in to lately, the last first.
    pub refused: Vec<Refused>,
}

impl PeerStatus {
    /// True while nothing says that it would not answer: there is a session, or the last one ended because nobody used it.
    pub fn may_answer(&self) -> bool {
        let asked_lately =
            || self.last_heard.is_some() && self.unanswered().is_some_and(|wait| wait < IN_VAIN);
        self.state != PeerState::Known || self.silence == Some(Silence::Idle) || asked_lately()
    }

    /// For how long what was sent to it has not been answered; `None` when nothing waits.
    pub fn unanswered(&self) -> Option<Duration> {
        self.silence.and_then(Silence::unanswered)
    }
}

/// The node as a whole.
#[derive(Clone, Debug)]
pub struct Status {
    /// Peers with a session first, then those known, in order of their IDs.
    pub peers: Vec<PeerStatus>,
    /// The DHT.
    pub dht: dht::Status,
    /// Where we can be reached, as our record says.
    pub endpoints: Vec<SocketAddr>,
    /// We are on a network, not only on a link.
    pub has_network: bool,
    /// Contacts that the owner configured.
    pub configured: usize,
    /// Datagrams that did not authenticate.
    pub unauthenticated: u64,
    /// Datagrams that a packet filter of this machine has refused to send.
    pub filtered: u64,
    /// Where another machine with our key was heard on the LAN lately.
    pub twin: Option<IpAddr>,
    /// A NAT is in between us and the internet, as others see us there.
    pub mapped: Option<SocketAddr>,
    /// We are seen at an address of our own, and reached there only when we have asked: a firewall is in between.
    pub firewalled: bool,
    /// That NAT gives every destination another port.
    pub maps_dependently: bool,
    /// A port that the router maps to us, and whether others are told of it.
    pub port_mapping: Option<(SocketAddr, bool)>,
    /// By way of whom we are reached, and whether they carry data.
    pub relays: Vec<(NodeId, bool)>,
    /// Nodes that are reached by way of us.
    pub relayed: Vec<NodeId>,
    /// Channels that we carry.
    pub channels: usize,
    /// Streams, and whether UDP gets through.
    pub streams: StreamStatus,
}

impl Node {
    /// A picture of the node at `now`.
    pub fn status(&self, now: Instant) -> Status {
        let mut peers: Vec<_> = self.peers.iter().map(|peer| self.peer_status(peer, now)).collect();
        peers.sort_by_key(|peer| peer.state == PeerState::Known);
        let (relayed, channels) = self.carrying();
        let seen = [true, false].map(|v4| self.observed.endpoint(now, v4).map(|(seen, _)| seen));
        let seen: Vec<_> = seen.into_iter().flatten().collect();
        Status {
            peers,
            dht: self.dht.status(),
            endpoints: self.endpoints.clone(),
            has_network: !self.local.is_empty(),
            configured: self.bootstrap.len(),
            unauthenticated: self.shared.drops.of(DropReason::Unauthenticated),
            filtered: self.shared.drops.of(DropReason::Filtered),
            mapped: seen.iter().copied().find(|seen| self.mapped && !self.is_own(seen.ip())),
            firewalled: self.mapped && seen.iter().any(|seen| self.is_own(seen.ip())),
            maps_dependently: self.maps_dependently(now),
            port_mapping: self.port_mapping.map(|mapping| (mapping, self.usable_mapping(now).is_some())),
            relays: self.relays().map(|(id, service)| (id, service == Service::Data)).collect(),
            relayed,
            channels,
            streams: self.streams.status(now),
            twin: self.twin(now),
        }
    }

    fn peer_status(&self, peer: &Peer, now: Instant) -> PeerStatus {
        let session = peer.current.as_ref();
        let age = |at: Instant| now.saturating_since(at);
        let heard = session.map(|s| age(last_heard(s)));
        let data = peer.data_packets() > 0;
        let state = match (session, heard) {
            (None, _) => PeerState::Known,
            _ if peer.is_gone().is_some() => PeerState::Known,
            (Some(_), Some(heard)) if data && heard < FLOWING => PeerState::Flowing,
            (Some(_), _) => PeerState::Authenticated,
        };
        let hop = peer.path.current();
        let endpoint = hop.filter(|_| state != PeerState::Known).and_then(|hop| self.endpoint_of(hop));
        let shown = endpoint.map(|endpoint| self.streams.shown(endpoint));
        let (bytes_received, bytes_sent) = peer.bytes();
        PeerStatus {
            node_id: peer.id,
            address: peer.address,
            state,
            endpoint: shown.map(|(endpoint, _)| endpoint),
            by_stream: shown.is_some_and(|(_, by_stream)| by_stream),
            via: session.and(hop).and_then(|hop| Some((self.relay_of(hop)?, self.carries_data(hop)))),
            beyond: session.and(hop).map(|hop| self.beyond(hop)).unwrap_or_default(),
            // Of a channel that has gone there is nothing left to tell, and nothing to send by.
            standby: session
                .and_then(|_| peer.path.choice.standby(now, hop))
                .map(|hop| (self.way(hop), self.carries_data(hop)))
                .filter(|(way, _)| way.endpoint.is_some()),
            candidates: peer.path.candidates().iter().map(|e| self.streams.shown(*e).0).collect(),
            rtt: peer.rtt,
            loss_per_mille: session.and(peer.losses.per_mille(now)),
            mtu: peer.pmtu.datagram_len() - OVERHEAD,
            cipher: session.map(|s| s.suite().name()),
            session_age: session.map(|s| age(s.established())),
            last_heard: peer.last_heard().map(age),
            silence: peer.silence(now),
            filtered: endpoint
                .map_or_else(|| peer.path.candidates().to_vec(), |endpoint| vec![endpoint])
                .iter()
                .any(|at| self.refused.get(at) == Some(&Refusal::Filter)),
            routeless: endpoint.is_none() && !peer.path.candidates().is_empty() && {
                let mut tried = peer.path.candidates().iter();
                tried.all(|at| self.refused.get(at) == Some(&Refusal::NoRoute))
            },
            unauthentic: peer
                .unauthentic
                .filter(|(_, at)| session.is_none() && age(*at) < UNAUTHENTIC_LIFE)
                .map(|(endpoint, _)| endpoint),
            packets_wait: peer.staged.since().map(age),
            bytes_received,
            bytes_sent,
            replays: session.map_or(0, |s| s.replays()),
            connecting: peer.effort.is_some(),
            configured: self.bootstrap.contains_key(&peer.id),
            history: peer.history.newest().collect(),
            relays: peer.record.iter().flat_map(|r| &r.content().relays).map(|relay| relay.node_id).collect(),
            relayed: self.why_relayed(now, peer),
            maps_dependently: peer.maps_dependently,
            refused: peer.account.refusals.list(),
        }
    }
}
