//! How a user names another node.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text;
use crate::proto::identity::{MeshAddress, NodeId, ParseNodeIdError};

/// The suffix of names that are node IDs.
pub const NAME_SUFFIX: &str = ".azora";

/// Another node: its ID, its address, `NODEID.azora` or `NODEID@IP:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// By node ID.
    Node(NodeId),
    /// By mesh address; the DHT knows whose it is.
    Address(MeshAddress),
    /// By node ID, at this endpoint.
    At(NodeId, SocketAddr),
}

/// Why a text names no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTargetError {
    /// An address outside `0600::/8`.
    #[error(
        "{0} is not a mesh address, those are in 600::/8: `azora ip` on the other node tells its own; of a node at that UDP \
         address name the ID, too: NODEID@{at}", at = bracketed(.0)
    )]
    OutsideMesh(IpAddr),
    /// What follows `@` is not `IP:PORT`.
    #[error("`{0}` is not IP:PORT (IPv6 in brackets: [::]:5747; names are not resolved)")]
    Endpoint(String),
    /// An endpoint without the ID.
    #[error(transparent)]
    NodeIdMissing(#[from] ParseNodeIdError),
    /// None of the forms.
    #[error(
        "`{text}` is no node ID, mesh address, NODEID.azora or NODEID@IP:PORT (other names are not resolved): {source}"
    )]
    NodeId {
        /// What was given.
        text: String,
        /// Why it is no node ID.
        source: ParseNodeIdError,
    },
}

/// `IP:PORT` of some address.
fn bracketed(ip: &IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:PORT"),
        IpAddr::V6(ip) => format!("[{ip}]:PORT"),
    }
}

impl Target {
    /// The mesh address meant.
    pub fn address(&self) -> MeshAddress {
        match self {
            Self::Node(id) | Self::At(id, _) => id.address(),
            Self::Address(address) => *address,
        }
    }

    /// The node ID, unless only the address is known.
    pub const fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Node(id) | Self::At(id, _) => Some(*id),
            Self::Address(_) => None,
        }
    }

    /// The endpoint, if one is given.
    pub const fn endpoint(&self) -> Option<SocketAddr> {
        match self {
            Self::At(_, endpoint) => Some(*endpoint),
            Self::Node(_) | Self::Address(_) => None,
        }
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let address = match ip {
                IpAddr::V6(ip) => MeshAddress::from_ipv6(ip),
                IpAddr::V4(_) => None,
            };
            return address.map(Self::Address).ok_or(ParseTargetError::OutsideMesh(ip));
        }
        let node_id = |id: &str| {
            id.parse().map_err(|source| {
                let is_endpoint = matches!(source, ParseNodeIdError::Missing(_));
                if is_endpoint {
                    source.into()
                } else {
                    ParseTargetError::NodeId { text: text.into(), source }
                }
            })
        };
        match text.split_once('@') {
            Some((id, endpoint)) => {
                let id = node_id(id)?;
                let endpoint = endpoint.parse().map_err(|_| ParseTargetError::Endpoint(endpoint.into()))?;
                Ok(Self::At(id, endpoint))
            }
            None => node_id(text.strip_suffix(NAME_SUFFIX).unwrap_or(text)).map(Self::Node),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::At(id, endpoint) => write!(f, "{id}@{endpoint}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}
