//! `azora report`: what a person who helps needs, and nothing that harms when pasted in public.
//!
//! Nothing here reads a key. IP addresses outside the mesh are replaced in the finished text, wherever they stand,
//! by addresses for documentation (RFC 5737, RFC 3849): the same one for the same address, so that the report still
//! shows which endpoints belong together.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use auramesh::control::exit::Exit;
use auramesh::control::message::{DhtStatus, FirewallRule, Status};
use auramesh::proto::identity::in_mesh;
use serde::Serialize;

use crate::args::Format;
use crate::config::{SettingLine, load, settings_text};
use crate::output::{Fault, Outcome, print};
use crate::socket::Socket;

/// Addresses that get a number of their own; later ones share the last.
const ADDRESSES_MAX: usize = 254;

#[derive(Serialize)]
struct Report {
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
        version: env!("CARGO_PKG_VERSION"),
        platform: platform(),
        config: lines.into(),
        daemon: daemon(socket).await.into(),
    };
    let mut text = if format.json { json(&report)? } else { human(&report, &settings)? };
    if !with_addresses {
        text = Redaction::default().apply(&text);
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
        "# azora report\nazora {}, {system} {architecture}, kernel {kernel}, {distribution}\n\
         ## configuration that a daemon started now would use\n{missing}{settings}{daemon}",
        report.version
    ))
}

/// Replaces addresses, the same one always by the same.
#[derive(Default)]
pub(crate) struct Redaction(BTreeMap<IpAddr, usize>);

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

    /// `IP`, `IP:PORT`, `[IP]:PORT`, possibly with a zone, a prefix length, or punctuation behind.
    fn word(&mut self, word: &str) -> String {
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
        let public = match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || in_mesh(&ip),
        };
        if public {
            return ip;
        }
        let next = (self.0.len() + 1).min(ADDRESSES_MAX);
        let number = *self.0.entry(ip).or_insert(next);
        match ip {
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, number as u8).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16).into(),
        }
    }
}

/// Characters of addresses in text. `%` and `/` end one: what follows them is no address.
fn is_address_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '[' | ']')
}
