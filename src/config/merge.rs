//! Flags over environment over file over defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::file::ConfigFile;
use super::value::{Bootstrap, Cipher, DhtMode, Inbound, LogLevel, TunOffload, UdpOffload};
use super::{Config, Error, check};

/// Where a value came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    #[default]
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// A flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// A value that was given, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// [`Origin::Flag`] or [`Origin::Environment`].
    pub origin: Origin,
}

impl<T> Given<T> {
    /// A value from a flag.
    pub const fn flag(value: T) -> Self {
        Self { value, origin: Origin::Flag }
    }

    /// A value from the environment.
    pub const fn environment(value: T) -> Self {
        Self { value, origin: Origin::Environment }
    }
}

/// What flags and environment say. A list replaces the one of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The file to read; it must exist then.
    pub file: Option<Given<PathBuf>>,
    /// `node.state_dir`.
    pub state_dir: Option<Given<PathBuf>>,
    /// `node.socket`.
    pub socket: Option<Given<PathBuf>>,
    /// `node.log`.
    pub log: Option<Given<LogLevel>>,
    /// `tun.name`.
    pub tun_name: Option<Given<String>>,
    /// `net.listen`.
    pub listen: Option<Given<Vec<SocketAddr>>>,
    /// `net.bootstrap`.
    pub bootstrap: Option<Given<Vec<Bootstrap>>>,
    /// `net.lan_discovery`.
    pub lan_discovery: Option<Given<bool>>,
    /// `net.stream_listen`.
    pub stream_listen: Option<Given<Vec<SocketAddr>>>,
    /// `net.secret_file`.
    pub secret_file: Option<Given<PathBuf>>,
    /// `dht.mode`.
    pub dht_mode: Option<Given<DhtMode>>,
    /// `data.tun_offload`.
    pub tun_offload: Option<Given<TunOffload>>,
    /// `data.udp_offload`.
    pub udp_offload: Option<Given<UdpOffload>>,
    /// `data.superframes`.
    pub superframes: Option<Given<bool>>,
    /// `data.cipher`.
    pub cipher: Option<Given<Cipher>>,
    /// `data.workers`.
    pub workers: Option<Given<usize>>,
    /// `policy.inbound`.
    pub inbound: Option<Given<Inbound>>,
    /// `metrics.listen`.
    pub metrics: Option<Given<SocketAddr>>,
}

/// One effective value, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `table.key`.
    pub key: &'static str,
    /// The value as TOML.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// How a configuration came about.
#[derive(Clone, Debug, Default)]
pub(super) struct Provenance {
    pub(super) file: Option<PathBuf>,
    pub(super) overrides: Overrides,
    origins: BTreeMap<&'static str, Origin>,
}

impl Provenance {
    /// The strongest of the three values; notes where it came from.
    fn pick<T>(&mut self, key: &'static str, given: Option<Given<T>>, file: Option<T>, default: T) -> T {
        let (value, origin) = match (given, file) {
            (Some(given), _) => (given.value, given.origin),
            (None, Some(value)) => (value, Origin::File),
            (None, None) => (default, Origin::Default),
        };
        self.origins.insert(key, origin);
        value
    }
}

/// Merges and checks.
pub(super) fn merge(given: &Overrides, path: Option<PathBuf>, file: ConfigFile) -> Result<Config, Error> {
    let Config {
        mut node,
        mut tun,
        mut net,
        mut dht,
        mut data,
        mut policy,
        mut relay,
        mut metrics,
        mut provenance,
    } = Config::default();
    let from = &mut provenance;
    let set = given.clone();
    node.state_dir = from.pick("node.state_dir", set.state_dir, file.node.state_dir, node.state_dir);
    node.socket = from.pick("node.socket", set.socket, file.node.socket, node.socket);
    node.log = from.pick("node.log", set.log, file.node.log, node.log);
    tun.name = from.pick("tun.name", set.tun_name, file.tun.name, tun.name);
    tun.mtu = from.pick("tun.mtu", None, file.tun.mtu, tun.mtu);
    let listen = file.net.listen.map(|addresses| addresses.into_iter().map(|address| address.0).collect());
    net.listen = from.pick("net.listen", set.listen, listen, net.listen);
    net.bootstrap = from.pick("net.bootstrap", set.bootstrap, file.net.bootstrap, net.bootstrap);
    net.lan_discovery =
        from.pick("net.lan_discovery", set.lan_discovery, file.net.lan_discovery, net.lan_discovery);
    net.port_mapping = from.pick("net.port_mapping", None, file.net.port_mapping, net.port_mapping);
    net.port_hopping = from.pick("net.port_hopping", None, file.net.port_hopping, net.port_hopping);
    let listen = file.net.stream_listen.map(|list| list.into_iter().map(|address| address.0).collect());
    net.stream_listen = from.pick("net.stream_listen", set.stream_listen, listen, net.stream_listen);
    net.stream_ports = from.pick("net.stream_ports", None, file.net.stream_ports, net.stream_ports);
    net.stream_tls = from.pick("net.stream_tls", None, file.net.stream_tls, net.stream_tls);
    net.stream_cert = from.pick("net.stream_cert", None, file.net.stream_cert, net.stream_cert);
    net.stream_key = from.pick("net.stream_key", None, file.net.stream_key, net.stream_key);
    net.secret = from.pick("net.secret", None, file.net.secret, net.secret);
    let secret_file = set.secret_file.map(|given| Given { value: Some(given.value), origin: given.origin });
    net.secret_file = from.pick("net.secret_file", secret_file, file.net.secret_file, net.secret_file);
    dht.mode = from.pick("dht.mode", set.dht_mode, file.dht.mode, dht.mode);
    data.tun_offload =
        from.pick("data.tun_offload", set.tun_offload, file.data.tun_offload, data.tun_offload);
    data.udp_offload =
        from.pick("data.udp_offload", set.udp_offload, file.data.udp_offload, data.udp_offload);
    data.superframes =
        from.pick("data.superframes", set.superframes, file.data.superframes, data.superframes);
    data.cipher = from.pick("data.cipher", set.cipher, file.data.cipher, data.cipher);
    data.workers = from.pick("data.workers", set.workers, file.data.workers, data.workers);
    policy.inbound = from.pick("policy.inbound", set.inbound, file.policy.inbound, policy.inbound);
    policy.allow = from.pick("policy.allow", None, file.policy.allow, policy.allow);
    policy.lan_guard = from.pick("policy.lan_guard", None, file.policy.lan_guard, policy.lan_guard);
    relay.enabled = from.pick("relay.enabled", None, file.relay.enabled, relay.enabled);
    relay.peers = from.pick("relay.peers", None, file.relay.peers, relay.peers);
    relay.limits = from.pick("relay.limits", None, file.relay.limits, relay.limits);
    let address = set.metrics.map(|given| Given { value: Some(given.value), origin: given.origin });
    metrics.listen = from.pick("metrics.listen", address, file.metrics.listen, metrics.listen);
    provenance.file = path;
    provenance.overrides = given.clone();
    let config = Config { node, tun, net, dht, data, policy, relay, metrics, provenance };
    check::check(&config)?;
    Ok(config)
}

impl Config {
    /// Every key with its effective value and origin, in the order of the file. Holds no secret.
    pub fn settings(&self) -> Vec<Setting> {
        let Self { node, tun, net, dht, data, policy, relay, metrics, provenance } = self;
        let allow = policy.allow.iter().map(|rule| {
            let peer = rule.peer.map(|peer| format!("peer = \"{peer}\""));
            let proto = rule.proto.map(|proto| format!("proto = \"{proto}\""));
            let port = rule.port.map(|port| format!("port = {port}"));
            let fields: Vec<_> = [peer, proto, port].into_iter().flatten().collect();
            format!("{{ {} }}", fields.join(", "))
        });
        let values = [
            ("node.state_dir", quoted(node.state_dir.display())),
            ("node.socket", quoted(node.socket.display())),
            ("node.log", quoted(node.log)),
            ("tun.name", quoted(&tun.name)),
            ("tun.mtu", tun.mtu.to_string()),
            ("net.listen", list(net.listen.iter().map(quoted))),
            ("net.bootstrap", list(net.bootstrap.iter().map(quoted))),
            ("net.lan_discovery", net.lan_discovery.to_string()),
            ("net.port_mapping", net.port_mapping.to_string()),
            ("net.port_hopping", net.port_hopping.to_string()),
            ("net.stream_listen", list(net.stream_listen.iter().map(quoted))),
            ("net.stream_ports", list(net.stream_ports.iter().map(u16::to_string))),
            ("net.stream_tls", net.stream_tls.to_string()),
            ("net.stream_cert", path(net.stream_cert.as_deref())),
            ("net.stream_key", path(net.stream_key.as_deref())),
            ("net.secret", quoted(net.secret.as_ref().map_or("", |_| SECRET_SHOWN))),
            ("net.secret_file", path(net.secret_file.as_deref())),
            ("dht.mode", quoted(dht.mode)),
            ("data.tun_offload", quoted(data.tun_offload)),
            ("data.udp_offload", quoted(data.udp_offload)),
            ("data.superframes", data.superframes.to_string()),
            ("data.cipher", quoted(data.cipher)),
            ("data.workers", data.workers.to_string()),
            ("policy.inbound", quoted(policy.inbound)),
            ("policy.allow", list(allow)),
            ("policy.lan_guard", policy.lan_guard.to_string()),
            ("relay.enabled", relay.enabled.to_string()),
            ("relay.peers", list(relay.peers.iter().map(quoted))),
            ("relay.limits", format!("{{ kbit_s = {} }}", relay.limits.kbit_s)),
            ("metrics.listen", quoted(metrics.listen.map(|a| a.to_string()).unwrap_or_default())),
        ];
        let origin = |key| provenance.origins.get(key).copied().unwrap_or_default();
        values.into_iter().map(|(key, value)| Setting { key, value, origin: origin(key) }).collect()
    }
}

impl Config {
    /// The keys whose values are others in `fresh`, in the order of the file.
    pub fn changed(&self, fresh: &Self) -> Vec<&'static str> {
        let secret = self.net.secret != fresh.net.secret;
        // Of a secret the settings tell only that there is one.
        let shown = |setting: &Setting| match setting.key {
            "net.secret" => secret && fresh.net.secret_file.is_none(),
            "net.secret_file" => secret && fresh.net.secret_file.is_some(),
            _ => false,
        };
        let pairs = self.settings().into_iter().zip(fresh.settings());
        let other = pairs.filter(|(old, new)| old.value != new.value || shown(new));
        other.map(|(old, _)| old.key).collect()
    }
}

/// What is shown in place of a secret.
pub const SECRET_SHOWN: &str = "(set, not shown)";

fn path(path: Option<&Path>) -> String {
    quoted(path.map(Path::display).map(|path| path.to_string()).unwrap_or_default())
}

/// A TOML basic string.
fn quoted(value: impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn list(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(", "))
}
