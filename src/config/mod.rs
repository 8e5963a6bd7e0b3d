//! The configuration: one file, four environment variables and the flags, merged into one [`Config`].
//!
//! ```text
//! flag  >  environment  >  file  >  default           every value knows which of them it came from
//! ```
//!
//! Each value is checked where it is read, so that a mistake in the file is reported with its line; what only shows
//! when values meet (two nodes at one endpoint) is checked once after the merge. A configuration is taken whole or
//! not at all: [`Config::reload`] leaves the running one alone when the new one is wrong.
//!
//! What is deliberately not here: the flags themselves (`bin/azora-meshing-daemon/args.rs`), and defaults of
//! protocol constants, which are not settings.

use std::path::{Path, PathBuf};

mod check;
mod file;
mod merge;
mod secret;
mod value;

pub use check::Conflict;
pub use merge::{Given, Origin, Overrides, SECRET_SHOWN, Setting};
pub use value::{
    AllowRule, Bootstrap, Cipher, DhtMode, Inbound, InvalidValue, LogLevel, Protocol, Secret, TunOffload,
    UdpOffload,
};
pub use value::{SECRET_BYTES_MAX, SECRET_BYTES_MIN};
pub use value::{
    file_path, listen_address, metrics_address, mtu, socket_path, state_dir, stream_address, tun_name,
    workers,
};

use std::net::SocketAddr;

use clap::builder::Resettable;

use crate::proto::identity::NodeId;
use crate::proto::relay::STRANGER_BITS_PER_S;

/// Where the file is looked for when neither flag nor environment names one.
pub const DEFAULT_FILE: &str = "/etc/azora/azora.toml";
/// Default state directory.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/azora";
/// Default control socket.
pub const DEFAULT_SOCKET: &str = "/run/azora/azora.sock";
/// Default name of the network interface.
pub const DEFAULT_TUN_NAME: &str = "azora0";
/// Default UDP port towards the underlay.
pub const DEFAULT_PORT: u16 = 5747;
/// TCP ports at which configured nodes are tried: that of HTTPS, and the one that the node has for UDP.
pub const DEFAULT_STREAM_PORTS: [u16; 2] = [443, DEFAULT_PORT];
/// Most ports in `net.stream_ports`.
pub const STREAM_PORTS_MAX: usize = crate::proto::node::STREAM_PORTS_MAX;
/// UDP port of LAN discovery; no listen address may take it.
pub const LAN_DISCOVERY_PORT: u16 = 5748;
/// Smallest MTU in bytes: what IPv6 demands of every link (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// Largest MTU in bytes: 1500 of Ethernet less IPv6 (40), UDP (8), session header and tag (32).
pub const MTU_MAX: u16 = 1420;
/// Largest configuration file in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Largest number of listen addresses.
pub const LISTEN_MAX: usize = 16;
/// Largest number of configured bootstrap nodes.
pub const BOOTSTRAP_MAX: usize = 256;
/// Largest number of configured firewall rules.
pub const ALLOW_MAX: usize = 256;
/// Largest number of workers.
pub const WORKERS_MAX: usize = crate::engine::WORKERS_MAX;
/// Longest interface name in bytes (`IFNAMSIZ` less the terminating zero).
pub const TUN_NAME_BYTES_MAX: usize = 15;
/// Most nodes in `relay.peers`.
pub const RELAY_PEERS_MAX: usize = 256;
/// Longest socket path in bytes (`sun_path` less the terminating zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest path of the state directory in bytes (`PATH_MAX` less room for file names).
pub const STATE_DIR_BYTES_MAX: usize = 3840;

/// The commented example: every key with its default.
pub const EXAMPLE: &str = include_str!("../../packaging/azora.toml");

/// The effective configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// State directory, socket, log.
    pub node: Node,
    /// The network interface.
    pub tun: Tun,
    /// The underlay.
    pub net: Net,
    /// The DHT.
    pub dht: Dht,
    /// How packets are carried.
    pub data: Data,
    /// Who may open flows to this node.
    pub policy: Policy,
    /// Whose packets this node carries.
    pub relay: Relay,
    /// Prometheus metrics.
    pub metrics: Metrics,
    provenance: merge::Provenance,
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Directory of the identity and the known peers.
    pub state_dir: PathBuf,
    /// Path of the control socket.
    pub socket: PathBuf,
    /// What is logged.
    pub log: LogLevel,
}

/// `[tun]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tun {
    /// Interface name, 1 to [`TUN_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Bytes of the largest inner packet, [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
}

/// `[net]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// UDP addresses to listen on, 1 to [`LISTEN_MAX`]; port 0 means any free one.
    pub listen: Vec<SocketAddr>,
    /// Nodes to start from, at most [`BOOTSTRAP_MAX`].
    pub bootstrap: Vec<Bootstrap>,
    /// Whether nodes on the LAN are looked for.
    pub lan_discovery: bool,
    /// Whether the router is asked for a port that leads to this node.
    pub port_mapping: bool,
    /// Whether UDP is taken at ports that change every ten minutes, too.
    pub port_hopping: bool,
    /// TCP addresses where streams are taken, at most [`LISTEN_MAX`].
    pub stream_listen: Vec<SocketAddr>,
    /// TCP ports at which configured nodes are tried when UDP does not get through, at most [`STREAM_PORTS_MAX`]; none: no
    /// streams are opened.
    pub stream_ports: Vec<u16>,
    /// Whether streams are tried inside of TLS first, and without when that fails; or the other way round.
    pub stream_tls: bool,
    /// Certificate for streams, PEM; one is made when there is none.
    pub stream_cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub stream_key: Option<PathBuf>,
    /// What the nodes of the network know and nobody else; none: the open network.
    pub secret: Option<Secret>,
    /// The file that it is read from.
    pub secret_file: Option<PathBuf>,
}

/// `[dht]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dht {
    /// Whether this node serves the DHT.
    pub mode: DhtMode,
}

/// `[data]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Most work that the kernel and the daemon leave to each other on the interface.
    pub tun_offload: TunOffload,
    /// Whether the kernel cuts and joins trains of datagrams.
    pub udp_offload: UdpOffload,
    /// Whether large packets travel as superframes to peers that take them.
    pub superframes: bool,
    /// Which cipher sessions use.
    pub cipher: Cipher,
    /// Pairs of threads that carry packets, at most [`WORKERS_MAX`]; 0 is one for every two cores.
    pub workers: usize,
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What happens to flows that others open.
    pub inbound: Inbound,
    /// Exceptions from [`Inbound::Deny`], at most [`ALLOW_MAX`].
    pub allow: Vec<AllowRule>,
    /// Whether the nftables rule against LAN neighbours is installed.
    pub lan_guard: bool,
}

/// `[relay]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Whether data of strangers is carried; what they need to find a way of their own always is.
    pub enabled: bool,
    /// Nodes whose data is carried in any case, beside the configured contacts; at most [`RELAY_PEERS_MAX`].
    pub peers: Vec<NodeId>,
    /// What strangers get.
    pub limits: RelayLimits,
}

/// What a relay carries for strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// Kilobits a second, in each direction of a pair of nodes.
    pub kbit_s: u32,
}

/// `[metrics]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where Prometheus text is served; `None` is off.
    pub listen: Option<SocketAddr>,
}

impl Default for Node {
    fn default() -> Self {
        Self { state_dir: DEFAULT_STATE_DIR.into(), socket: DEFAULT_SOCKET.into(), log: LogLevel::Info }
    }
}

impl Default for Tun {
    fn default() -> Self {
        Self { name: DEFAULT_TUN_NAME.into(), mtu: MTU_MAX }
    }
}

impl Default for Net {
    fn default() -> Self {
        let any: [std::net::IpAddr; 2] =
            [std::net::Ipv6Addr::UNSPECIFIED.into(), std::net::Ipv4Addr::UNSPECIFIED.into()];
        Self {
            listen: any.iter().map(|ip| SocketAddr::new(*ip, DEFAULT_PORT)).collect(),
            bootstrap: Vec::new(),
            lan_discovery: true,
            port_mapping: true,
            port_hopping: false,
            stream_listen: Vec::new(),
            stream_ports: DEFAULT_STREAM_PORTS.to_vec(),
            stream_tls: true,
            stream_cert: None,
            stream_key: None,
            secret: None,
            secret_file: None,
        }
    }
}

impl Default for Dht {
    fn default() -> Self {
        Self { mode: DhtMode::Auto }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            tun_offload: TunOffload::Auto,
            udp_offload: UdpOffload::Auto,
            superframes: true,
            cipher: Cipher::Auto,
            workers: 0,
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        let kbit_s = u32::try_from(STRANGER_BITS_PER_S / 1000).unwrap_or(u32::MAX);
        Self { enabled: false, peers: Vec::new(), limits: RelayLimits { kbit_s } }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { inbound: Inbound::Deny, allow: Vec::new(), lan_guard: true }
    }
}

impl Config {
    /// Reads the file that `overrides` names (or the default one, which may be missing) and merges both.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key or a wrong value, or values contradict each other.
    pub fn load(overrides: &Overrides) -> Result<Self, Error> {
        let (path, required) = match &overrides.file {
            Some(given) => (given.value.as_path(), true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        let file = file::read(path, required)?;
        let found = file.is_some().then(|| path.to_path_buf());
        let mut config = merge::merge(overrides, found, file.unwrap_or_default())?;
        if let Some(file) = &config.net.secret_file {
            config.net.secret = Some(secret::read(file)?);
        }
        Ok(config)
    }

    /// The configuration that `text` alone gives; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        merge::merge(&Overrides::default(), Some(path.to_path_buf()), file::parse(text, path)?)
    }

    /// Reads everything again, with the same flags and environment, as SIGHUP asks.
    ///
    /// # Errors
    /// As [`Config::load`]; the running configuration is untouched then.
    pub fn reload(&self) -> Result<Self, Error> {
        Self::load(&self.provenance.overrides)
    }

    /// The file that was read, if there was one.
    pub fn file(&self) -> Option<&Path> {
        self.provenance.file.as_deref()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than [`FILE_BYTES_MAX`].
    #[error("the configuration {} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML, an unknown key, or a wrong value.
    #[error("{}:{line}:{column}: {message} (in `{excerpt}`)", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// The line itself, at most 80 characters.
        excerpt: String,
    },
    /// The file with the network's secret.
    #[error("net.secret_file {}: {cause}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Values that are right alone and wrong together.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

impl Error {
    /// What to try next, one line.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "name a file that exists, or make one: `azora config init FILE` writes a commented example"
            }
            Self::Secret { .. } => {
                "make it a file of 16 to 256 bytes that only the daemon's user reads: chmod 600"
            }
            Self::Read { .. } => "make it a readable file, or name another with --config",
            Self::TooLarge { .. } | Self::Line { .. } | Self::Conflict(_) => {
                "correct it; `azora config init FILE` writes a commented example"
            }
        }
    }
}

/// An empty environment variable says nothing, as if it were not set.
pub fn without_empty_variables(command: clap::Command) -> clap::Command {
    #[expect(clippy::disallowed_methods, reason = "only of the variables that the flags name")]
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|flag| match flag.get_env() {
            Some(name) if is_empty(name) => flag.env(Resettable::Reset),
            _ => flag,
        })
        .mut_subcommands(without_empty_variables)
}

#[cfg(test)]
mod tests;
