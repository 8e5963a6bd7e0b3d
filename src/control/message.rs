//! Requests and answers. Their JSON is a public interface: fields are added, never renamed or removed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::target::Target;
use super::{ANSWER_SLACK, ANSWER_TIMEOUT, PING_TIMEOUT_MAX, SEARCH_TIMEOUT, WAIT_TIMEOUT_MAX, text};
use crate::proto::identity::{MeshAddress, NodeId};

/// What a client asks for. Each variant names its answer; [`super::client::Client`] has one method for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// [`OwnNode`].
    Own,
    /// [`Status`].
    Status,
    /// [`Done`]: brings the interface up.
    Up,
    /// [`Done`]: takes the interface down.
    Down,
    /// [`Vec<PeerStatus>`].
    Peers,
    /// [`Done`]: adds a peer until the daemon ends.
    PeersAdd {
        /// Whose key must answer there.
        #[serde(with = "text")]
        node_id: NodeId,
        /// UDP address.
        endpoint: SocketAddr,
    },
    /// [`Done`]: forgets a peer and ends its session.
    PeersRemove {
        /// Which.
        #[serde(with = "text")]
        node_id: NodeId,
    },
    /// [`PingOutcome`].
    Ping {
        /// Whom.
        target: Target,
        /// How long to wait for the reply, at most [`PING_TIMEOUT_MAX`].
        timeout_ms: u64,
        /// Comes back in the answer.
        seq: u64,
        /// Look for a direct path first, when there is none.
        #[serde(default, skip_serializing_if = "is_false")]
        seek_direct: bool,
    },
    /// [`LookupReport`].
    DhtLookup {
        /// Whom.
        target: Target,
    },
    /// [`DhtStatus`].
    DhtStatus,
    /// [`ProbeReport`].
    Probe {
        /// Whom.
        target: Target,
    },
    /// [`NetcheckReport`].
    Netcheck,
    /// [`TraceReport`].
    Trace {
        /// Whom.
        target: Target,
    },
    /// [`Vec<FirewallRule>`], in order of `index`.
    FirewallList,
    /// [`FirewallRule`]: the rule as added, with its index.
    FirewallAdd(FirewallMatch),
    /// [`Done`].
    FirewallRemove {
        /// As listed.
        index: u32,
    },
    /// [`Readiness`], as soon as the node is ready or the time is over.
    Wait {
        /// At most [`WAIT_TIMEOUT_MAX`]; 0 answers at once.
        timeout_ms: u64,
    },
}

impl Request {
    /// Whether this changes anything, so that only root and the daemon's user may ask for it.
    pub const fn changes(&self) -> bool {
        match self {
            Self::Up
            | Self::Down
            | Self::PeersAdd { .. }
            | Self::PeersRemove { .. }
            | Self::FirewallAdd(_)
            | Self::FirewallRemove { .. } => true,
            Self::Own
            | Self::Status
            | Self::Peers
            | Self::Ping { .. }
            | Self::DhtLookup { .. }
            | Self::DhtStatus
            | Self::Probe { .. }
            | Self::Netcheck
            | Self::Trace { .. }
            | Self::FirewallList
            | Self::Wait { .. } => false,
        }
    }

    /// How long the answer may take; `None` when the request names a time beyond its limit.
    pub fn deadline(&self) -> Option<Duration> {
        let within = |ms: u64, max: Duration| {
            let asked = Duration::from_millis(ms);
            (asked <= max).then(|| asked + ANSWER_SLACK)
        };
        match self {
            Self::Ping { timeout_ms, .. } => within(*timeout_ms, PING_TIMEOUT_MAX),
            Self::Wait { timeout_ms } => within(*timeout_ms, WAIT_TIMEOUT_MAX),
            Self::DhtLookup { .. } | Self::Probe { .. } | Self::Netcheck | Self::Trace { .. } => {
                Some(SEARCH_TIMEOUT)
            }
            Self::Own
            | Self::Status
            | Self::Up
            | Self::Down
            | Self::Peers
            | Self::PeersAdd { .. }
            | Self::PeersRemove { .. }
            | Self::DhtStatus
            | Self::FirewallList
            | Self::FirewallAdd(_)
            | Self::FirewallRemove { .. } => Some(ANSWER_TIMEOUT),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// What an answer line holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Response<T> {
    Ok(T),
    Error(Failure),
}

/// Why a request failed, and what to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The cause, one line.
    pub message: String,
    /// The next thing to try, one line.
    pub next_step: String,
}

impl Failure {
    /// A failure with its cause and the next thing to try.
    pub fn new(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { message: message.into(), next_step: next_step.into() }
    }
}

/// The answer to a change that worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// The daemon's own node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNode {
    /// Node ID.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Mesh address.
    #[serde(with = "text::address")]
    pub address: MeshAddress,
}

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
    /// Seconds since the last authenticated packet.
    pub last_rx_s: Option<f64>,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
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

/// What came of one ping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PingOutcome {
    /// The target answered.
    Reply(PingReply),
    /// It did not.
    Lost(PingLoss),
}

/// An answered ping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PingReply {
    /// As in the request.
    pub seq: u64,
    /// Who answered.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// By which kind of path.
    pub path: PathKind,
    /// From which UDP address.
    pub endpoint: Option<SocketAddr>,
    /// It is a TCP address, because UDP does not get through.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tcp: bool,
    /// Why it came through a relay, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_relayed: Option<Cause>,
    /// Nodes in between.
    #[serde(with = "text::list", default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<NodeId>,
    /// Whoever is in between carries only what two nodes need to meet, no packets of programs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_data: bool,
}

/// A ping without answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingLoss {
    /// As in the request.
    pub seq: u64,
    /// Why, as far as known: `no record found`, `no answer to the handshake`, `no reply in 1000 ms`.
    pub lost: String,
    /// What to do, where the cause is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// One walk through the DHT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookupReport {
    /// What was looked for.
    pub target: Target,
    /// Whether a valid record was found.
    pub found: bool,
    /// Whose it is.
    #[serde(with = "text::option")]
    pub node_id: Option<NodeId>,
    /// UDP addresses in the record.
    pub endpoints: Vec<SocketAddr>,
    /// Rounds of the walk.
    pub rounds: u32,
    /// Requests sent.
    pub rpcs: u32,
    /// Duration in milliseconds.
    pub elapsed_ms: f64,
    /// Nodes that held the record.
    #[serde(with = "text::list")]
    pub holders: Vec<NodeId>,
    /// Seconds since the record was signed.
    pub record_age_s: Option<f64>,
    /// Its sequence number.
    pub record_seq: Option<u64>,
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
    /// Records held for others.
    pub records_stored: u64,
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

/// How far a connection gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Whom.
    pub target: Target,
    /// Stages in order, up to the first that failed: key, dht, candidates, handshake, mtu, rtt.
    pub stages: Vec<ProbeStage>,
}

/// One stage of a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeStage {
    /// Its name.
    pub name: String,
    /// Whether it worked.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// What to do when it failed.
    pub fix: Option<String>,
    /// Duration in milliseconds.
    pub elapsed_ms: f64,
}

/// What network the machine is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetcheckReport {
    /// Where contacts see this node by IPv4.
    pub global_v4: Option<SocketAddr>,
    /// Where contacts see this node by IPv6.
    pub global_v6: Option<SocketAddr>,
    /// The verdicts: UDP, IPv4, IPv6, MappingVariesByDestIP, PortMapping, Relays, MTU.
    pub checks: Vec<NetcheckEntry>,
    /// Relays of this node.
    pub relays: Vec<RelayCheck>,
    /// Bytes of the largest inner packet that reaches a peer in one datagram.
    pub mtu: Option<u16>,
}

/// One verdict on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetcheckEntry {
    /// What was checked.
    pub name: String,
    /// How it is.
    pub verdict: NetcheckVerdict,
    /// What was seen.
    pub detail: String,
    /// What to do, when something is to be done.
    pub fix: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetcheckVerdict {
    /// It is so.
    Yes,
    /// It is not.
    No,
    /// Evidence is missing.
    Unknown,
}

/// A relay, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayCheck {
    /// Which node.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// It carries data.
    pub data: bool,
    /// Round trip in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// The present path to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceReport {
    /// Whom.
    pub target: Target,
    /// Who answered.
    #[serde(with = "text::option")]
    pub node_id: Option<NodeId>,
    /// The relays in their order, then the target; empty when that does not answer.
    pub hops: Vec<TraceHop>,
    /// Why there is no path, as far as known.
    pub lost: Option<String>,
    /// What to do, where the cause is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// One node on a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceHop {
    /// Node ID.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Mesh address.
    #[serde(with = "text::address")]
    pub address: MeshAddress,
    /// UDP address; known only of the first one.
    pub endpoint: Option<SocketAddr>,
    /// It carries packets for others.
    pub relay: bool,
    /// Round trip from here and back in milliseconds; `null` when it did not answer.
    pub rtt_ms: Option<f64>,
}

/// What a firewall rule lets in; a missing field matches anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallMatch {
    /// The only protocol.
    pub proto: Option<FirewallProtocol>,
    /// The only destination port; needs TCP or UDP.
    pub port: Option<u16>,
    /// The only peer.
    #[serde(default, with = "text::option")]
    pub peer: Option<NodeId>,
}

/// A firewall rule in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule {
    /// Stable while the daemon runs; what `remove` takes.
    pub index: u32,
    /// What it lets in.
    #[serde(flatten)]
    pub matches: FirewallMatch,
}

/// Protocols of firewall rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMPv6.
    Icmp,
}

/// Whether the node is ready: interface up, and peers known or none configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether it is.
    pub ready: bool,
    /// What is missing, for people; empty when ready.
    pub missing: Vec<String>,
}
