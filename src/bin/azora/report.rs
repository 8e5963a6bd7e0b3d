//! `azora report`: what a person who helps needs, and nothing that harms when pasted in public.
//!
//! Nothing here reads a secret key. What tells where or who a node is gets replaced in the finished text, wherever it
//! stands, the same by the same, so that the report still shows what belongs together:
//!
//! ```text
//! IP address          192.0.2.N, 2001:db8::N      for documentation (RFC 5737, RFC 3849)
//! link-local address  fe80::N
//! node ID             node-N
//! mesh address        600::N                      of node-N
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use auramesh::control::exit::Exit;
use auramesh::control::message::{DhtStatus, FirewallRule, Status};
use auramesh::proto::identity::{NODE_ID_TEXT_LEN, NodeId, in_mesh};
use serde::Serialize;

use crate::args::Format;
use crate::config::{SettingLine, load, settings_text};
use crate::output::{Fault, Outcome, print};
use crate::socket::Socket;

/// Addresses that get a number of their own; later ones share the last.
const ADDRESSES_MAX: usize = 254;
/// Nodes that get a number of their own, which four digits of an address hold; later ones share the last.
const NODES_MAX: usize = 9999;

const REPLACED: &str = "replaced, the same by the same: IP addresses (192.0.2.N, 2001:db8::N, link-local ones fe80::N), \
    node IDs (node-N) and mesh addresses (600::N is that of node-N); as they are: ports, loopback addresses, file paths, \
    names of interfaces, versions; secret keys are not in it";
const NOT_REPLACED: &str =
    "addresses and node IDs are as they are (--with-addresses); secret keys are not in it";

#[derive(Serialize)]
struct Report {
    redaction: &'static str,
    version: &'static str,
    platform: Platform,
    config: Section<Vec<SettingLine>>,
    daemon: Section<Daemon>,
}

/// A part of the report, or why it is missing.
#[derive(Serialize)]
#[serde(untagged)]
enum Section<T> {
    Present(T),
    Missing { error: String },
}

impl<T> From<Result<T, Fault>> for Section<T> {
    fn from(result: Result<T, Fault>) -> Self {
        match result {
            Ok(value) => Self::Present(value),
            Err(Fault::Failed { message, .. }) => Self::Missing { error: message },
            Err(Fault::Unread) => Self::Missing { error: String::new() },
        }
    }
}

#[derive(Serialize)]
struct Platform {
    system: &'static str,
    architecture: &'static str,
    kernel: String,
    distribution: String,
}

#[derive(Serialize)]
struct Daemon {
    status: Status,
    dht: DhtStatus,
    firewall: Vec<FirewallRule>,
}

pub(crate) async fn run(
    socket: &Socket,
    file: Option<PathBuf>,
    with_addresses: bool,
    format: Format,
) -> Outcome {
    let config = load(file);
    let settings = config.as_ref().map(settings_text).unwrap_or_default();
    let lines = config.map(|config| config.settings().iter().map(SettingLine::from).collect());
    let report = Report {
        redaction: if with_addresses { NOT_REPLACED } else { REPLACED },
        version: env!("CARGO_PKG_VERSION"),
        platform: platform(),
        config: lines.into(),
        daemon: daemon(socket).await.into(),
    };
    let mut text = if format.json { json(&report)? } else { human(&report, &settings)? };
    if !with_addresses {
        // Not in the line that says how.
        let (head, body) = text.split_at(text.find(REPLACED).map_or(0, |start| start + REPLACED.len()));
        text = head.to_owned() + &Redaction::default().apply(body);
    }
    print(&text)?;
    Ok(Exit::Ok)
}

async fn daemon(socket: &Socket) -> Result<Daemon, Fault> {
    let mut client = socket.connect().await?;
    Ok(Daemon {
        status: client.status().await?,
        dht: client.dht_status().await?,
        firewall: client.firewall_list().await?,
    })
}

fn platform() -> Platform {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    Platform {
        system: std::env::consts::OS,
        architecture: std::env::consts::ARCH,
        kernel: kernel.trim().into(),
        distribution: name.trim_matches('"').into(),
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, Fault> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => Ok(text + "\n"),
        Err(error) => Err(Fault::failed(format!("the report has no JSON form: {error}"), "")),
    }
}

fn human(report: &Report, settings: &str) -> Result<String, Fault> {
    let Platform { system, architecture, kernel, distribution } = &report.platform;
    let missing = match &report.config {
        Section::Present(_) => String::new(),
        Section::Missing { error } => format!("{error}\n"),
    };
    let daemon = match &report.daemon {
        Section::Present(Daemon { status, dht, firewall }) => {
            format!("## status\n{}## dht\n{}## firewall\n{}", json(status)?, json(dht)?, json(firewall)?)
        }
        Section::Missing { error } => format!("## daemon\n{error}\n"),
    };
    Ok(format!(
        "# azora report\n{}\nazora {}, {system} {architecture}, kernel {kernel}, {distribution}\n\
         ## configuration that a daemon started now would use\n{missing}{settings}{daemon}",
        report.redaction, report.version
    ))
}

/// Characters in a row that may be part of a node ID; no word of ours is as long.
const ID_PART_LEN: usize = 24;

/// Replaces addresses and node IDs, the same always by the same.
#[derive(Default)]
pub(crate) struct Redaction {
    addresses: BTreeMap<IpAddr, usize>,
    /// By mesh address, which follows from the node ID.
    nodes: BTreeMap<Ipv6Addr, usize>,
}

impl Redaction {
    pub(crate) fn apply(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_address_char) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c| !is_address_char(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            out.push_str(before);
            out.push_str(&self.word(word));
            rest = after;
        }
        out + rest
    }

    /// `IP`, `IP:PORT`, `[IP]:PORT`, possibly with a zone, a prefix length, or punctuation behind; a node ID, possibly
    /// with a suffix.
    fn word(&mut self, word: &str) -> String {
        if let Some((Ok(id), tail)) =
            word.split_at_checked(NODE_ID_TEXT_LEN).map(|(head, tail)| (head.parse::<NodeId>(), tail))
        {
            return format!("node-{}{tail}", self.node(id.address().ipv6()));
        }
        // Mistyped, or cut off by whoever quotes it.
        if word.len() >= ID_PART_LEN && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7')) {
            return "node-?".into();
        }
        let core = word.trim_end_matches(['.', ':', ',', ']']);
        for candidate in [word, core] {
            let tail = &word[candidate.len()..];
            if let Ok(address) = candidate.parse::<SocketAddr>() {
                return SocketAddr::new(self.stand_in(address.ip()), address.port()).to_string() + tail;
            }
            let bare = candidate.trim_start_matches('[').trim_end_matches(']');
            if let Ok(ip) = bare.parse::<IpAddr>() {
                return candidate.replace(bare, &self.stand_in(ip).to_string()) + tail;
            }
        }
        word.into()
    }

    fn stand_in(&mut self, ip: IpAddr) -> IpAddr {
        if ip.is_loopback() || ip.is_unspecified() {
            return ip;
        }
        if let IpAddr::V6(ip) = ip
            && in_mesh(&ip)
        {
            let digits = u16::from_str_radix(&self.node(ip).to_string(), 16).unwrap_or(u16::MAX);
            return Ipv6Addr::new(0x600, 0, 0, 0, 0, 0, 0, digits).into();
        }
        let next = (self.addresses.len() + 1).min(ADDRESSES_MAX);
        let number = *self.addresses.entry(ip).or_insert(next);
        match ip {
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, number as u8).into(),
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number as u16).into()
            }
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16).into(),
        }
    }

    /// The number of the node with this address.
    fn node(&mut self, address: Ipv6Addr) -> usize {
        let next = (self.nodes.len() + 1).min(NODES_MAX);
        *self.nodes.entry(address).or_insert(next)
    }
}

/// Characters of addresses in text. `%` and `/` end one: what follows them is no address.
fn is_address_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '[' | ']')
}
