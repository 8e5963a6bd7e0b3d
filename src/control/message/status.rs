//! What a node says of itself and its peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::is_false;
use crate::control::text;
use crate::proto::identity::{MeshAddress, NodeId};

/// Everything about the running node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Own node ID.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Own mesh address.
    #[serde(with = "text::address")]
    pub address: MeshAddress,
    /// What the daemon is doing.
    pub state: NodeState,
    /// The network interface.
    pub interface: InterfaceStatus,
    /// UDP addresses listened on.
    pub listen: Vec<SocketAddr>,
    /// Own addresses as peers see them.
    pub endpoints: Vec<SocketAddr>,
    /// The DHT in short.
    pub dht: DhtSummary,
    /// What is between this node and the internet.
    pub nat: NatStatus,
    /// TCP where UDP does not get through.
    pub streams: StreamsStatus,
    /// How packets are carried.
    pub data: DataStatus,
    /// What is wrong, worst first; empty when all is well.
    pub health: Vec<Health>,
    /// Every peer, in order of node ID.
    pub peers: Vec<PeerStatus>,
    /// Packets dropped that belong to no peer, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// What is between this node and the internet, and whom it carries packets for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// Where others see this node, when that is no address of its own.
    pub mapped: Option<SocketAddr>,
    /// This node is seen at an address of its own, but a firewall lets in only what was asked for.
    #[serde(default)]
    pub firewalled: bool,
    /// The NAT gives every destination another port.
    pub mapping_varies: bool,
    /// By way of whom this node is reached.
    pub relays: Vec<RelayStatus>,
    /// Nodes that are reached by way of this one.
    pub relayed_for: u64,
    /// Pairs of nodes that this one carries packets for.
    pub channels: u64,
    /// A port that the router maps to this node.
    #[serde(default)]
    pub port_mapping: Option<PortMappingStatus>,
}

/// A port that the router maps to this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingStatus {
    /// How it was got: `pcp` or `nat-pmp`.
    pub protocol: String,
    /// Where others may send.
    pub endpoint: SocketAddr,
    /// Others are told: they see this node at that address.
    pub told: bool,
}

/// TCP where UDP does not get through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamsStatus {
    /// For how many seconds no UDP has got through; `null` while it does.
    pub udp_blocked_s: Option<f64>,
    /// Streams that this node has opened.
    pub opened: Vec<StreamStatus>,
    /// TCP addresses where it takes streams.
    pub listen: Vec<SocketAddr>,
    /// Streams that others have opened to it.
    pub taken: u64,
    /// What happened since the start: connections, refusals, drops.
    pub counters: BTreeMap<String, u64>,
}

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStatus {
    /// To which node.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Its TCP address.
    pub endpoint: SocketAddr,
    /// Inside of TLS.
    pub tls: bool,
}

/// A relay of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Which node.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// It carries data, not only what is needed to find another way.
    pub data: bool,
}

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodeState {
    /// Not all parts work yet.
    Starting,
    /// All parts work.
    Running,
    /// The interface was taken down on request.
    Down,
    /// Ending.
    Stopping,
}

/// The network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Whether the link is up.
    pub up: bool,
    /// Bytes of the largest inner packet.
    pub mtu: u16,
}

/// How packets are carried: what is in force, not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataStatus {
    /// What kernel and daemon leave to each other on the interface: `tcp-udp`, `tcp` or `none`.
    pub tun_offload: String,
    /// Packets that the kernel refused all the same, so that they were cut here.
    pub tun_refused: u64,
    /// Whether the kernel cuts trains of datagrams: `trains` or `none`.
    pub udp_offload: String,
    /// Whether superframes are sent to peers that take them, and taken.
    pub superframes: bool,
    /// Ciphers that peers are offered, the preferred one first.
    pub ciphers: Vec<String>,
}

/// The DHT in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtSummary {
    /// How this node takes part.
    pub mode: DhtRole,
    /// Nodes in the routing table.
    pub contacts: u64,
    /// Nodes in the whole network; `null` while there is nothing to judge by.
    pub network_size_estimate: Option<u64>,
}

/// How a node takes part in the DHT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DhtRole {
    /// Holds records and answers lookups.
    Server,
    /// Only asks.
    Client,
}

/// [`Health::code`] of a machine that is on no network: what its peers do not answer says nothing of them.
pub const NO_NETWORK: &str = "no-network";

/// Something wrong, and its fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Stable word for programs, as `no-contacts`.
    pub code: String,
    /// For people.
    pub text: String,
    /// What to do about it.
    pub fix: String,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Node ID.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Mesh address.
    #[serde(with = "text::address")]
    pub address: MeshAddress,
    /// Local name.
    pub name: Option<String>,
    /// How much was seen of it.
    pub state: PeerState,
    /// The path in use.
    pub path: PathStatus,
    /// The best other path that answered lately, if there is one.
    pub standby: Vec<PathStatus>,
    /// Round trip in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Share of lost packets, 0 to 1.
    pub loss: Option<f64>,
    /// Bytes of the largest inner packet on this path.
    pub mtu: u16,
    /// As `aes-256-gcm`; `null` without a session.
    pub cipher: Option<String>,
    /// Age of the session in seconds.
    pub session_age_s: Option<f64>,
    /// Seconds since it was last heard from in any session; `None` when it never was.
    pub last_rx_s: Option<f64>,
    /// What its silence means; absent for a peer that answers, or that was never asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// Seconds since something was sent to it that it has not answered; absent while nothing waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered_s: Option<f64>,
    /// Bytes received from it since it is known, encrypted as they came.
    pub rx_bytes: u64,
    /// Bytes sent to it since it is known, encrypted as they left.
    pub tx_bytes: u64,
    /// Packets of this peer dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// The last changes of the path, newest first.
    #[serde(default)]
    pub history: Vec<PathChange>,
    /// Why packets go through a relay; `null` when they do not.
    #[serde(default)]
    pub why_relayed: Option<Cause>,
}

/// What the silence of a peer means, as far as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Silence {
    /// What was sent to it has not been answered.
    NoAnswer,
    /// The same, but it was heard from meanwhile: what is sent to it does not come there.
    Deaf,
    /// It said that it stops.
    Stopped,
    /// The session ended because nobody used it.
    Idle,
    /// Said by a newer daemon.
    #[serde(other)]
    Other,
}

/// Why something is as it is, and what would change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// For people.
    pub text: String,
    /// What to do about it.
    pub fix: String,
}

/// One change of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathChange {
    /// Seconds since.
    pub ago_s: f64,
    /// The path before.
    pub from: PathStatus,
    /// The path since.
    pub to: PathStatus,
    /// Why, for people: `check answered`, `silent for 0.4 s`, `relay refused`.
    pub why: String,
}

/// How much was seen of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// A record only.
    Known,
    /// A session.
    Authenticated,
    /// Data in the last 30 s.
    Flowing,
}

/// How packets reach a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Which kind.
    pub kind: PathKind,
    /// UDP address packets go to.
    pub endpoint: Option<SocketAddr>,
    /// Nodes in between.
    #[serde(with = "text::list")]
    pub via: Vec<NodeId>,
    /// Packets go there by TCP, because UDP does not get through; `endpoint` is a TCP address then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tcp: bool,
    /// Whoever is in between carries only what two nodes need to meet, no packets of programs. Told of `path` and
    /// `standby`, not of paths of the past.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_data: bool,
}

impl PathStatus {
    /// No path.
    pub const NONE: Self =
        Self { kind: PathKind::None, endpoint: None, via: Vec::new(), tcp: false, no_data: false };

    /// By way of relays, the first of them at an endpoint.
    pub const fn relayed(endpoint: SocketAddr, via: Vec<NodeId>) -> Self {
        Self { kind: PathKind::through(via.len()), endpoint: Some(endpoint), via, tcp: false, no_data: false }
    }

    /// Straight to an endpoint.
    pub const fn direct(endpoint: SocketAddr) -> Self {
        Self { kind: PathKind::Direct, endpoint: Some(endpoint), via: Vec::new(), tcp: false, no_data: false }
    }
}

/// Kinds of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// Straight to the peer's endpoint.
    Direct,
    /// Carried by one other node.
    Relay,
    /// Carried by several.
    Route,
    /// Not reachable now.
    None,
}

impl PathKind {
    /// The kind of a path through so many other nodes.
    pub const fn through(relays: usize) -> Self {
        match relays {
            0 => Self::Direct,
            1 => Self::Relay,
            _ => Self::Route,
        }
    }
}

/// The DHT in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtStatus {
    /// How this node takes part.
    pub mode: DhtRole,
    /// Nodes in the routing table.
    pub contacts: u64,
    /// Nodes in the whole network; `null` while there is nothing to judge by.
    pub network_size_estimate: Option<u64>,
    /// Buckets that are not empty, nearest first.
    pub buckets: Vec<Bucket>,
    /// Standard error of the estimate in percent; `null` while it was counted, or there is none.
    pub network_size_error_percent: Option<u32>,
    /// Records held for others.
    pub records_stored: u64,
    /// What they cost in bytes.
    pub records_bytes: u64,
    /// Nodes that took our own record when it was last placed.
    pub record_holders: u64,
    /// What was not taken in.
    pub refused: DhtRefused,
}

/// What the DHT did not take in, since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhtRefused {
    /// Nodes, because there are enough of their network in the table.
    pub crowded: u64,
    /// Records that are malformed, badly signed, out of date or of another node.
    pub records_invalid: u64,
    /// Records for which there was no room.
    pub records_full: u64,
    /// Answers to nothing that was asked.
    pub unsolicited: u64,
    /// Lookups, because too many were running.
    pub lookups: u64,
}

/// One k-bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its contacts are 2^(n-1) to 2^n away.
    pub distance_bits: u32,
    /// Contacts in it.
    pub contacts: u32,
    /// Replacements in reserve.
    pub replacements: u32,
}
