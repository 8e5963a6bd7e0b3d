//! What came of looking for something: pings, lookups, probes, checks of the network, traces.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Cause, PathKind, is_false};
use crate::control::target::Target;
use crate::control::text;
use crate::proto::identity::{MeshAddress, NodeId};

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
    /// Whether a valid record was found; with `unheard` it is this node's own copy.
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
    /// The walk in the order of asking.
    pub steps: Vec<LookupStep>,
    /// Why nobody answered, and what to do; absent when somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unheard: Option<Cause>,
}

/// One question of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookupStep {
    /// Who was asked.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// Hops from our own table: 1 for a node that we knew.
    pub round: u32,
    /// How many leading bits its position shares with the target's.
    pub shared_bits: u32,
    /// How long the answer took, in milliseconds; `null` when none came.
    pub answered_ms: Option<f64>,
    /// Whether it showed a valid record.
    pub held: bool,
    /// Nodes that it named.
    pub contacts: u32,
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
