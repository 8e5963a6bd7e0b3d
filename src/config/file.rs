//! The TOML file: its keys, and errors with their line.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

use super::value::{
    self, AllowRule, Bootstrap, Cipher, DhtMode, Inbound, InvalidValue, LogLevel, Protocol, Secret,
    TunOffload, UdpOffload,
};
use super::{Error, FILE_BYTES_MAX, RelayLimits};
use crate::proto::identity::NodeId;

/// Longest excerpt of a wrong line, in characters.
const EXCERPT_CHARS_MAX: usize = 80;

/// What a file can say; `None` where it is silent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    pub(super) node: NodeTable,
    pub(super) tun: TunTable,
    pub(super) net: NetTable,
    pub(super) dht: DhtTable,
    pub(super) data: DataTable,
    pub(super) policy: PolicyTable,
    pub(super) relay: RelayTable,
    pub(super) metrics: MetricsTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeTable {
    #[serde(deserialize_with = "state_dir")]
    pub(super) state_dir: Option<PathBuf>,
    #[serde(deserialize_with = "socket_path")]
    pub(super) socket: Option<PathBuf>,
    pub(super) log: Option<LogLevel>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TunTable {
    #[serde(deserialize_with = "tun_name")]
    pub(super) name: Option<String>,
    #[serde(deserialize_with = "mtu")]
    pub(super) mtu: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NetTable {
    pub(super) listen: Option<Vec<ListenAddress>>,
    pub(super) bootstrap: Option<Vec<Bootstrap>>,
    pub(super) lan_discovery: Option<bool>,
    pub(super) port_mapping: Option<bool>,
    pub(super) port_hopping: Option<bool>,
    pub(super) stream_listen: Option<Vec<StreamAddress>>,
    #[serde(deserialize_with = "ports")]
    pub(super) stream_ports: Option<Vec<u16>>,
    pub(super) stream_tls: Option<bool>,
    #[serde(deserialize_with = "file_path")]
    pub(super) stream_cert: Option<Option<PathBuf>>,
    #[serde(deserialize_with = "file_path")]
    pub(super) stream_key: Option<Option<PathBuf>>,
    #[serde(deserialize_with = "secret")]
    pub(super) secret: Option<Option<Secret>>,
    #[serde(deserialize_with = "file_path")]
    pub(super) secret_file: Option<Option<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DhtTable {
    pub(super) mode: Option<DhtMode>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DataTable {
    pub(super) tun_offload: Option<TunOffload>,
    pub(super) udp_offload: Option<UdpOffload>,
    pub(super) superframes: Option<bool>,
    pub(super) cipher: Option<Cipher>,
    #[serde(deserialize_with = "workers")]
    pub(super) workers: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PolicyTable {
    pub(super) inbound: Option<Inbound>,
    pub(super) allow: Option<Vec<AllowRule>>,
    pub(super) lan_guard: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RelayTable {
    pub(super) enabled: Option<bool>,
    #[serde(deserialize_with = "node_ids")]
    pub(super) peers: Option<Vec<NodeId>>,
    pub(super) limits: Option<RelayLimits>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetricsTable {
    #[serde(deserialize_with = "metrics_address")]
    pub(super) listen: Option<Option<SocketAddr>>,
}

/// A listen address, checked while its line is known.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ListenAddress(pub(super) SocketAddr);

impl TryFrom<String> for ListenAddress {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        value::listen_address(&text).map(Self)
    }
}

/// A TCP address for streams, checked while its line is known.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct StreamAddress(pub(super) SocketAddr);

impl TryFrom<String> for StreamAddress {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        value::stream_address(&text).map(Self)
    }
}

impl<'de> Deserialize<'de> for AllowRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            peer: Option<String>,
            proto: Option<Protocol>,
            port: Option<u16>,
        }
        let Fields { peer, proto, port } = Fields::deserialize(deserializer)?;
        let peer: Option<NodeId> = peer.map(|id| id.parse()).transpose().map_err(de::Error::custom)?;
        Self::new(peer, proto, port).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for RelayLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            kbit_s: i64,
        }
        let Fields { kbit_s } = Fields::deserialize(deserializer)?;
        value::kbit_s(kbit_s).map(|kbit_s| Self { kbit_s }).map_err(de::Error::custom)
    }
}

fn node_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<NodeId>>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let ids: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    ids.map(Some).map_err(de::Error::custom)
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u16>>, D::Error> {
    let ports = Vec::<u16>::deserialize(deserializer)?;
    if ports.contains(&0) { Err(de::Error::custom(InvalidValue::NoPort)) } else { Ok(Some(ports)) }
}

/// The empty text is no secret.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Secret>>, D::Error> {
    checked(deserializer, |text| if text.is_empty() { Ok(None) } else { text.parse().map(Some) })
}

/// The empty text is no file.
fn file_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<PathBuf>>, D::Error> {
    checked(deserializer, |text| if text.is_empty() { Ok(None) } else { value::file_path(text).map(Some) })
}

fn checked<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, InvalidValue>,
) -> Result<Option<T>, D::Error> {
    parse(&String::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn state_dir<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    checked(deserializer, value::state_dir)
}

fn socket_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    checked(deserializer, value::socket_path)
}

fn tun_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    checked(deserializer, value::tun_name)
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    value::mtu(i64::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    value::workers(i64::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

/// The empty text switches metrics off.
fn metrics_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<SocketAddr>>, D::Error> {
    checked(deserializer, |text| match text {
        "" => Ok(None),
        text => value::metrics_address(text).map(Some),
    })
}

/// Reads and parses the file; `None` when it does not exist and need not.
pub(super) fn read(path: &Path, required: bool) -> Result<Option<ConfigFile>, Error> {
    let failed = |source| Error::Read { path: path.into(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: path.into() });
    }
    parse(&text, path).map(Some)
}

/// What the parser says, and what it says to people who write such files.
const WORDS: [(&str, &str); 10] = [
    ("invalid type:", "wrong kind of value:"),
    ("integer `", "number `"),
    ("` as i128", "`"),
    ("floating point `", "number `"),
    ("string \"", "text \""),
    ("expected a string", "expected a text in quotes"),
    ("expected a sequence", "expected a list in brackets: [ … ]"),
    ("expected i64", "expected a whole number"),
    ("expected u16", "expected a whole number from 1 to 65535"),
    ("expected a boolean", "expected true or false"),
];

/// One line in words for people.
fn in_words(message: &str) -> String {
    let line = message.lines().collect::<Vec<_>>().join("; ");
    // What our structs are called tells nobody anything.
    let line = match line.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table: {{ KEY = VALUE, … }}"),
        None => line,
    };
    WORDS.iter().fold(line, |line, (theirs, ours)| line.replace(theirs, ours))
}

/// The key, where a secret follows it.
fn secret_key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    key.contains("secret").then(|| key.trim())
}

/// The beginning of a line, unless a secret stands in it.
fn excerpt(line: &str) -> String {
    match secret_key(line) {
        Some(key) => format!("{key} = …"),
        None => line.chars().take(EXCERPT_CHARS_MAX).collect(),
    }
}

/// Parses the text of a file.
pub(super) fn parse(text: &str, path: &Path) -> Result<ConfigFile, Error> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        let message = match secret_key(line) {
            // It repeats the value.
            Some(_) if error.message().starts_with("invalid type") => "expected a text in quotes".into(),
            _ => in_words(error.message()),
        };
        Error::Line {
            path: path.into(),
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            message,
            excerpt: excerpt(line),
        }
    })
}
