//! Single values: their text form and what each may be. Flags and file share these parsers.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

use zeroize::Zeroizing;

use super::{
    DEFAULT_PORT, LAN_DISCOVERY_PORT, MTU_MAX, MTU_MIN, SOCKET_PATH_BYTES_MAX, STATE_DIR_BYTES_MAX,
    TUN_NAME_BYTES_MAX, WORKERS_MAX,
};
use crate::proto::identity::{NodeId, ParseNodeIdError, in_mesh};
use crate::proto::wire::envelope::NetworkSecret;

/// Shortest secret of a network in bytes.
pub const SECRET_BYTES_MIN: usize = 16;
/// Longest secret of a network in bytes.
pub const SECRET_BYTES_MAX: usize = 256;

const SECRET_CONTEXT: &str = "auramesh v1 network secret";

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidValue {
    /// None of the words that are allowed.
    #[error("`{given}` is none of {}", allowed.join(", "))]
    Word {
        /// What was given.
        given: String,
        /// What may stand there.
        allowed: &'static [&'static str],
    },
    /// Outside [`MTU_MIN`] to [`MTU_MAX`].
    #[error("mtu {0} is outside {MTU_MIN} to {MTU_MAX}")]
    Mtu(i64),
    /// More than [`WORKERS_MAX`], or negative.
    #[error("workers {0} is outside 0 (one for every two cores) to {WORKERS_MAX}")]
    Workers(i64),
    /// No rate, or negative.
    #[error("kbit_s {0} is outside 1 to {max}", max = u32::MAX)]
    Rate(i64),
    /// No interface can have this name.
    #[error(
        "`{0}` is no interface name: 1 to {TUN_NAME_BYTES_MAX} bytes of a-z, A-Z, 0-9, `_`, `-`, `.`, and not lo"
    )]
    TunName(String),
    /// The mode without an interface does not exist yet.
    #[error("userspace-networking is not available yet: name an interface such as azora0")]
    Userspace,
    /// Not `IP:PORT`.
    #[error("`{0}` is not IP:PORT (IPv6 in brackets: [::]:5747; names are not resolved)")]
    Address(String),
    /// An address alone.
    #[error("{0} is an address without a port: write {example}", example = SocketAddr::new(*.0, DEFAULT_PORT))]
    PortMissing(IpAddr),
    /// An IPv6 address and a port that cannot be told apart.
    #[error(
        "`{text}` lacks brackets: write {example}, or [{text}]:{DEFAULT_PORT} if all of it is the address"
    )]
    Brackets {
        /// What was given.
        text: String,
        /// The same, if the last group is the port.
        example: SocketAddr,
    },
    /// An address, and after it something else than a port.
    #[error("`{0}` is no port: a number up to 65535")]
    Port(String),
    /// An address that nothing can be reached at or bound to here.
    #[error("{0} cannot be used: {1}")]
    Unusable(SocketAddr, &'static str),
    /// Not `NODEID@IP:PORT`.
    #[error("`{0}` is not NODEID@IP:PORT: a node's ID, `@`, and the IP address and UDP port where it is")]
    Bootstrap(String),
    /// A node ID alone.
    #[error("this ID lacks the place: write {0}@IP:PORT, with the IP address and UDP port where the node is")]
    EndpointMissing(NodeId),
    /// No node ID before `@`, or nothing but the endpoint.
    #[error(transparent)]
    NodeId(#[from] ParseNodeIdError),
    /// A path that is empty or too long.
    #[error("a {what} has 1 to {max} bytes, this has {len}")]
    PathLength {
        /// Which path.
        what: &'static str,
        /// Bytes allowed.
        max: usize,
        /// Bytes given.
        len: usize,
    },
    /// A rule that names a port for a protocol without ports.
    #[error("a port needs a protocol, tcp or udp: -p tcp, or proto = \"tcp\"")]
    PortWithoutProtocol,
    /// Not the words of a rule.
    #[error("`{0}` is no rule: in allow [-p tcp|udp|icmp] [--port N] [--peer NODEID]")]
    Rule(String),
    /// A secret that can be guessed, or is no text.
    #[error(
        "a secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, this has {0}: `openssl rand -hex 32` makes one"
    )]
    Secret(usize),
    /// Port 0 where streams are tried.
    #[error("port 0 is no port")]
    NoPort,
    /// Port 0 in a rule.
    #[error("port 0 is no port; leave `port` out to match all")]
    PortZero,
}

/// An enum whose variants are words in files and flags.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every word, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// The word for this variant.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => Err(InvalidValue::Word { given: other.into(), allowed: Self::WORDS }),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

words! {
    /// What is logged: this level and everything more severe.
    LogLevel {
        /// Only what stops the daemon or a part of it.
        Error = "error",
        /// What a user should look at.
        Warn = "warn",
        /// What a user would notice.
        Info = "info",
        /// Addresses and decisions.
        Debug = "debug",
        /// Single packets.
        Trace = "trace",
    }
}

words! {
    /// Whether this node serves the DHT to others.
    DhtMode {
        /// Decided by reachability.
        Auto = "auto",
        /// Holds records and answers lookups.
        Server = "server",
        /// Only asks.
        Client = "client",
    }
}

words! {
    /// What happens to a flow that another node opens.
    Inbound {
        /// Dropped unless a rule allows it.
        Deny = "deny",
        /// Let through.
        Allow = "allow",
    }
}

words! {
    /// Protocols that a firewall rule can name.
    Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
        /// ICMPv6.
        Icmp = "icmp",
    }
}

words! {
    /// Most work that the kernel and the daemon leave to each other on the interface.
    TunOffload {
        /// As much as the kernel can.
        Auto = "auto",
        /// Large TCP packets and partial checksums.
        Tcp = "tcp",
        /// Nothing: whole packets with complete checksums.
        None = "none",
    }
}

words! {
    /// Whether the kernel cuts and joins trains of datagrams.
    UdpOffload {
        /// If it can.
        Auto = "auto",
        /// Never: single datagrams.
        None = "none",
    }
}

words! {
    /// Which cipher sessions use.
    Cipher {
        /// AES-256-GCM between two nodes whose CPUs have instructions for it, else ChaCha20-Poly1305.
        Auto = "auto",
        /// AES-256-GCM with every peer that prefers it too.
        Aes256Gcm = "aes-256-gcm",
        /// ChaCha20-Poly1305 with every peer.
        ChaCha20Poly1305 = "chacha20-poly1305",
    }
}

/// A node and where it was last known to be: `NODEID@IP:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bootstrap {
    /// Whose key must answer there.
    pub node_id: NodeId,
    /// UDP address.
    pub endpoint: SocketAddr,
}

impl FromStr for Bootstrap {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let Some((id, endpoint)) = text.split_once('@') else {
            return Err(match text.parse() {
                Ok(id) => InvalidValue::EndpointMissing(id),
                Err(missing @ ParseNodeIdError::Missing(_)) => missing.into(),
                Err(_) => InvalidValue::Bootstrap(text.into()),
            });
        };
        Ok(Self { node_id: id.parse()?, endpoint: reachable(socket_address(endpoint)?)? })
    }
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node_id, self.endpoint)
    }
}

impl<'de> Deserialize<'de> for Bootstrap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What the nodes of a network know and nobody else. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// What packets and handshakes are mixed with.
    pub fn network(&self) -> NetworkSecret {
        NetworkSecret(blake3::derive_key(SECRET_CONTEXT, self.0.as_bytes()))
    }
}

impl FromStr for Secret {
    type Err = InvalidValue;

    /// White space around it does not count: a file ends with a newline.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let text = text.trim();
        match text.len() {
            SECRET_BYTES_MIN..=SECRET_BYTES_MAX => Ok(Self(Zeroizing::new(text.into()))),
            len => Err(InvalidValue::Secret(len)),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One inbound exception; a missing field matches anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowRule {
    /// The only node it holds for.
    pub peer: Option<NodeId>,
    /// The only protocol it holds for.
    pub proto: Option<Protocol>,
    /// The only destination port it holds for, 1 to 65535; needs TCP or UDP.
    pub port: Option<u16>,
}

impl AllowRule {
    /// A rule, if the fields fit together.
    ///
    /// # Errors
    /// A port of 0, or one without TCP or UDP.
    pub fn new(
        peer: Option<NodeId>,
        proto: Option<Protocol>,
        port: Option<u16>,
    ) -> Result<Self, InvalidValue> {
        match (port, proto) {
            (Some(0), _) => Err(InvalidValue::PortZero),
            (Some(_), None | Some(Protocol::Icmp)) => Err(InvalidValue::PortWithoutProtocol),
            _ => Ok(Self { peer, proto, port }),
        }
    }

    /// True when it lets everybody connect to every port.
    pub const fn is_open(&self) -> bool {
        matches!(
            self,
            Self { peer: None, port: None, proto: None | Some(Protocol::Tcp) | Some(Protocol::Udp) }
        )
    }
}

impl fmt::Display for AllowRule {
    /// As the arguments of `azora firewall add`: `in allow -p tcp --port 22 --peer NODEID`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("in allow")?;
        if let Some(proto) = self.proto {
            write!(f, " -p {proto}")?;
        }
        if let Some(port) = self.port {
            write!(f, " --port {port}")?;
        }
        if let Some(peer) = self.peer {
            write!(f, " --peer {peer}")?;
        }
        Ok(())
    }
}

impl FromStr for AllowRule {
    type Err = InvalidValue;

    /// Reads what `Display` writes, the fields in any order.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let refused = || InvalidValue::Rule(text.into());
        let mut words = text.strip_prefix("in allow").ok_or_else(refused)?.split_whitespace();
        let (mut peer, mut proto, mut port) = (None, None, None);
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(refused)?;
            let repeated = match flag {
                "-p" => proto.replace(value.parse()?).is_some(),
                "--port" => port.replace(value.parse().map_err(|_| refused())?).is_some(),
                "--peer" => peer.replace(value.parse()?).is_some(),
                _ => true,
            };
            if repeated {
                return Err(refused());
            }
        }
        Self::new(peer, proto, port)
    }
}

/// An MTU between [`MTU_MIN`] and [`MTU_MAX`].
///
/// # Errors
/// Outside that range.
pub fn mtu(value: i64) -> Result<u16, InvalidValue> {
    u16::try_from(value).ok().filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu)).ok_or(InvalidValue::Mtu(value))
}

/// A number of workers, at most [`WORKERS_MAX`]; 0 is one for every two cores.
///
/// # Errors
/// Outside that range.
pub fn workers(value: i64) -> Result<usize, InvalidValue> {
    usize::try_from(value).ok().filter(|workers| *workers <= WORKERS_MAX).ok_or(InvalidValue::Workers(value))
}

/// A rate in kilobits a second, at least 1.
///
/// # Errors
/// Outside that range.
pub(super) fn kbit_s(value: i64) -> Result<u32, InvalidValue> {
    u32::try_from(value).ok().filter(|rate| *rate > 0).ok_or(InvalidValue::Rate(value))
}

/// A name that the kernel takes for an interface.
///
/// # Errors
/// Any other text, and `userspace-networking`, which does not exist yet.
pub fn tun_name(text: &str) -> Result<String, InvalidValue> {
    if text == "userspace-networking" {
        return Err(InvalidValue::Userspace);
    }
    let fits = (1..=TUN_NAME_BYTES_MAX).contains(&text.len()) && !matches!(text, "." | ".." | "lo");
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if fits && plain && !text.starts_with('-') {
        Ok(text.into())
    } else {
        Err(InvalidValue::TunName(text.into()))
    }
}

/// A UDP address to listen on.
///
/// # Errors
/// Not `IP:PORT`, multicast, inside the mesh, IPv4-mapped, or the port of LAN discovery.
pub fn listen_address(text: &str) -> Result<SocketAddr, InvalidValue> {
    let address = outside(socket_address(text)?)?;
    if address.port() == LAN_DISCOVERY_PORT {
        return Err(InvalidValue::Unusable(address, "that port is for LAN discovery"));
    }
    Ok(address)
}

/// A TCP address to take streams at.
///
/// # Errors
/// Not `IP:PORT`, multicast, inside the mesh, or IPv4-mapped.
pub fn stream_address(text: &str) -> Result<SocketAddr, InvalidValue> {
    outside(socket_address(text)?)
}

/// The path of a file.
///
/// # Errors
/// Empty or longer than [`STATE_DIR_BYTES_MAX`].
pub fn file_path(text: &str) -> Result<PathBuf, InvalidValue> {
    path("file path", text, STATE_DIR_BYTES_MAX)
}

/// A TCP address to serve metrics at.
///
/// # Errors
/// Not `IP:PORT`, or multicast.
pub fn metrics_address(text: &str) -> Result<SocketAddr, InvalidValue> {
    let address = socket_address(text)?;
    if address.ip().is_multicast() {
        return Err(InvalidValue::Unusable(address, "it is multicast"));
    }
    Ok(address)
}

/// The path of the control socket.
///
/// # Errors
/// Empty or longer than [`SOCKET_PATH_BYTES_MAX`].
pub fn socket_path(text: &str) -> Result<PathBuf, InvalidValue> {
    path("socket path", text, SOCKET_PATH_BYTES_MAX)
}

/// The path of the state directory.
///
/// # Errors
/// Empty or longer than [`STATE_DIR_BYTES_MAX`].
pub fn state_dir(text: &str) -> Result<PathBuf, InvalidValue> {
    path("state directory", text, STATE_DIR_BYTES_MAX)
}

fn path(what: &'static str, text: &str, max: usize) -> Result<PathBuf, InvalidValue> {
    let len = text.len();
    if (1..=max).contains(&len) { Ok(text.into()) } else { Err(InvalidValue::PathLength { what, max, len }) }
}

/// `IP:PORT`, with IPv6 in brackets.
///
/// # Errors
/// Anything else, and which part of it is missing or wrong.
fn socket_address(text: &str) -> Result<SocketAddr, InvalidValue> {
    let ip = |text: &str| {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        inner.unwrap_or(text).parse::<IpAddr>().ok()
    };
    // `2001:db8::1:5747`: most likely the last group is meant as the port.
    let unbracketed = |text: &str| {
        let (before, port) = text.rsplit_once(':').filter(|_| !text.starts_with('['))?;
        Some(SocketAddr::new(before.parse::<Ipv6Addr>().ok()?.into(), port.parse().ok()?))
    };
    text.parse().map_err(|_| match (ip(text), text.rsplit_once(':')) {
        _ if let Some(example) = unbracketed(text) => InvalidValue::Brackets { text: text.into(), example },
        (Some(ip), _) => InvalidValue::PortMissing(ip),
        (None, Some((before, port))) if ip(before).is_some() => InvalidValue::Port(port.into()),
        (None, _) => InvalidValue::Address(text.into()),
    })
}

/// Refuses what no endpoint of the underlay can be.
fn outside(address: SocketAddr) -> Result<SocketAddr, InvalidValue> {
    let reason = match address.ip() {
        ip if ip.is_multicast() => "it is multicast",
        IpAddr::V4(ip) if ip.is_broadcast() => "it is broadcast",
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => "write the IPv4 address itself",
        IpAddr::V6(ip) if in_mesh(&ip) => "it is a mesh address, and the mesh does not run inside itself",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(address),
    };
    Err(InvalidValue::Unusable(address, reason))
}

/// As [`outside`], for an address that packets are sent to.
fn reachable(address: SocketAddr) -> Result<SocketAddr, InvalidValue> {
    if address.port() == 0 {
        return Err(InvalidValue::Unusable(address, "port 0 is no port"));
    }
    if address.ip().is_unspecified() {
        return Err(InvalidValue::Unusable(address, "it is the unspecified address"));
    }
    if let SocketAddr::V6(v6) = address
        && v6.ip().is_unicast_link_local()
        && v6.scope_id() == 0
    {
        let reason =
            "it is an address of a link, and lacks which: [fe80::1%2]:5747, the number as in ip link";
        return Err(InvalidValue::Unusable(address, reason));
    }
    outside(address)
}
