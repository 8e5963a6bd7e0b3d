//! Requests and answers. Their JSON is a public interface: fields are added, never renamed or removed.

mod report;
mod status;

pub use report::{
    LookupReport, LookupStep, NetcheckEntry, NetcheckReport, NetcheckVerdict, PingLoss, PingOutcome,
    PingReply, ProbeReport, ProbeStage, RelayCheck, TraceHop, TraceReport,
};
pub use status::{
    Bucket, Cause, DataStatus, DhtRefused, DhtRole, DhtStatus, DhtSummary, Health, InterfaceStatus,
    NO_NETWORK, NatStatus, NodeState, PathChange, PathKind, PathStatus, PeerState, PeerStatus,
    PortMappingStatus, RelayStatus, Silence, Status, StreamStatus, StreamsStatus,
};

use std::fmt;
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
    /// [`Vec<RefusedFlow>`], the last refused first.
    FirewallTrace,
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
            | Self::FirewallTrace
            | Self::Wait { .. } => false,
        }
    }

    /// Whether this names a place in the underlay, which is kept and sent to; whoever may only read may not ask for that either.
    pub fn names_place(&self) -> bool {
        if let Self::Ping { target, .. } | Self::Probe { target } | Self::Trace { target } = self {
            return target.endpoint().is_some();
        }
        false
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
            | Self::FirewallTrace
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

/// What a peer tried in vain to reach on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedFlow {
    /// Who.
    #[serde(with = "text")]
    pub peer: NodeId,
    /// "tcp", "udp", or the number of another protocol (IANA).
    pub proto: String,
    /// Our port, of TCP and UDP.
    pub port: Option<u16>,
    /// Packets.
    pub times: u64,
    /// Time since the last of them.
    pub ago_s: u64,
    /// What would let it in.
    pub fix: String,
}

impl fmt::Display for RefusedFlow {
    /// What it was: "tcp port 22 from …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{} port {port} from {}", self.proto, self.peer),
            None => write!(f, "protocol {} from {}", self.proto, self.peer),
        }
    }
}

/// Whether the node is ready: interface up, and peers known or none configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether it is.
    pub ready: bool,
    /// What is missing, for people; empty when ready.
    pub missing: Vec<String>,
}
