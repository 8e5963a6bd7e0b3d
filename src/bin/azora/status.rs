//! `azora status`: first what is wrong and what to do, then the rest.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use auramesh::control::counted;
use auramesh::control::exit::Exit;
use auramesh::control::message::{
    DataStatus, DhtRole, NodeState, PathKind, PeerState, Status, StreamsStatus,
};
use auramesh::proto::datapath::DropReason;

use crate::args::{Check, Format};
use crate::interface;
use crate::output::{Fault, Outcome, joined, print, short, show as show_value, table};
use crate::peers::{NO_PEERS, no_data, owes_answer, path_changes, peer_table};
use crate::socket::Socket;

pub(crate) async fn show(socket: &Socket, peers: bool, drops: bool, format: Format) -> Outcome {
    let status = socket.connect().await?.status().await?;
    show_value(&status, format.json, |status| {
        let mut text = summary(status);
        if peers && !status.peers.is_empty() {
            text.push('\n');
            text.push_str(&peer_table(&status.peers, &status.health));
            text.push_str(&path_changes(&status.peers));
        }
        if drops {
            text.push('\n');
            text.push_str(&drop_table(&status.drops));
        }
        socket.hint(&text)
    })
}

/// One line, exit 0 or 1, whatever the reason.
pub(crate) async fn check(socket: &Socket, check: Check) -> Outcome {
    let verdict = match check {
        Check::Live => live(socket).await,
        Check::Ready => ready(socket).await,
    };
    let (word, reason) = match check {
        Check::Live => ("live", verdict),
        Check::Ready => ("ready", verdict),
    };
    match reason {
        Ok(()) => print(&format!("{word}\n")).map(|()| Exit::Ok),
        Err(reason) => print(&format!("not {word}: {reason}\n")).map(|()| Exit::Failed),
    }
}

async fn live(socket: &Socket) -> Result<(), String> {
    let mut client = socket.connect().await.map_err(cause)?;
    client.own().await.map(|_| ()).map_err(|error| error.to_string())
}

async fn ready(socket: &Socket) -> Result<(), String> {
    let readiness = interface::current(socket).await.map_err(cause)?;
    if readiness.ready { Ok(()) } else { Err(joined(&readiness.missing)) }
}

fn cause(fault: Fault) -> String {
    match fault {
        Fault::Failed { message, .. } => message,
        Fault::Unread => String::new(),
    }
}

/// The view for people.
fn summary(status: &Status) -> String {
    let mut text = String::new();
    let state = state(status.state);
    match status.health.as_slice() {
        [] => {
            let silent =
                status.peers.iter().filter(|peer| peer.path.kind != PathKind::None && owes_answer(peer));
            let rest = match (silent.count() as u64, status.state) {
                (0, NodeState::Running) => "all is well".into(),
                (0, _) => "nothing else is wrong".into(),
                (1, _) => "nothing is wrong here, but a peer does not answer (azora peers)".into(),
                (n, _) => format!("nothing is wrong here, but {n} peers do not answer (azora peers)"),
            };
            let next = match &status.peers[..] {
                [] if status.dht.contacts == 0 => format!("; {NO_PEERS}"),
                [] => String::new(),
                peers if peers.iter().all(|peer| peer.last_rx_s.is_none()) => {
                    "; no peer has answered yet".into()
                }
                _ => String::new(),
            };
            let _ = writeln!(text, "{state}, {rest}{next}");
        }
        [worst, rest @ ..] => {
            let _ = writeln!(text, "{state}, but {}; try: {}", worst.text, worst.fix);
            for health in rest {
                let _ = writeln!(text, "  also {}; try: {}", health.text, health.fix);
            }
        }
    }
    let interface = &status.interface;
    let link = if interface.up { "up" } else { "down" };
    let size =
        status.dht.network_size_estimate.map(|n| format!(", about {} in the network", counted(n, "node")));
    let flowing = status.peers.iter().filter(|peer| peer.state == PeerState::Flowing).count();
    let relayed = match status.peers.iter().filter(|peer| peer.why_relayed.is_some()).count() as u64 {
        0 => String::new(),
        n => format!(", {n} through a relay (azora status --peers says why)"),
    };
    text.push_str(&table(&[
        row("node id", status.node_id),
        row("address", status.address),
        row("interface", format!("{} {link}, mtu {}", interface.name, interface.mtu)),
        row("listen", joined(&status.listen)),
        row("endpoints", joined(&status.endpoints)),
        row(
            "dht",
            format!(
                "{}, {}{}",
                role(status.dht.mode),
                counted(status.dht.contacts, "contact"),
                size.unwrap_or_default()
            ),
        ),
        row("nat", nat(status)),
        row("tcp", streams(&status.streams)),
        row("data", data(&status.data)),
        row("peers", format!("{}, {flowing} with data in the last 30 s{relayed}", status.peers.len())),
        row("drops", drops(&status.drops)),
        row("version", &status.version),
    ]));
    text
}

fn drops(drops: &BTreeMap<String, u64>) -> String {
    let refused = drops.get("policy").is_some_and(|n| *n > 0);
    let meaning = if refused { " (policy: not let in; azora firewall trace shows what)" } else { "" };
    format!("{}{meaning}", counters(drops))
}

/// Every reason that occurred, and what it means.
fn drop_table(drops: &BTreeMap<String, u64>) -> String {
    let rows = DropReason::ALL.iter().filter_map(|reason| {
        let count = drops.get(reason.name()).filter(|count| **count > 0)?;
        Some([reason.name().into(), count.to_string(), reason.meaning().into()])
    });
    let head = ["DROPPED", "PACKETS", "MEANING"].map(String::from);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    if rows.len() > 1 { table(&rows) } else { "nothing was dropped\n".into() }
}

fn nat(status: &Status) -> String {
    let nat = &status.nat;
    let met = status.peers.iter().any(|peer| peer.state != PeerState::Known);
    let mapped = match nat.mapped {
        None if !met => "unknown, since no peer sees this node".into(),
        None if nat.firewalled => "none, but a firewall lets in only what was asked for".into(),
        None => "none seen".into(),
        Some(endpoint) if nat.mapping_varies => {
            format!("seen at {endpoint}, another port for each destination")
        }
        Some(endpoint) => format!("seen at {endpoint}"),
    };
    let relays = nat.relays.iter().map(|relay| format!("{}{}", short(&relay.node_id), no_data(!relay.data)));
    let relays = match nat.relays.as_slice() {
        [] => String::new(),
        _ => format!(", reached through {}", joined(relays)),
    };
    let port = nat.port_mapping.as_ref().map(|mapping| {
        let told = if mapping.told { "" } else { " (of no use: nobody sees this node there)" };
        format!(", {} maps {}{told}", mapping.protocol, mapping.endpoint)
    });
    let port = port.unwrap_or_default();
    let carried = match nat.relayed_for {
        0 => String::new(),
        n => format!(", relay of {}, {} open", counted(n, "node"), counted(nat.channels, "channel")),
    };
    format!("{mapped}{port}{relays}{carried}")
}

fn streams(streams: &StreamsStatus) -> String {
    let blocked = streams.udp_blocked_s.map(|since| format!("no UDP gets through since {since} s"));
    let opened = (!streams.opened.is_empty()).then(|| {
        let to = joined(streams.opened.iter().map(|stream| stream.endpoint));
        format!("{} to others ({to})", counted(streams.opened.len() as u64, "stream"))
    });
    let taken = (!streams.listen.is_empty())
        .then(|| format!("{} taken at {}", counted(streams.taken, "stream"), joined(&streams.listen)));
    let said: Vec<_> = [blocked, opened, taken].into_iter().flatten().collect();
    if said.is_empty() { "no stream in use, none taken".into() } else { said.join(", ") }
}

fn data(data: &DataStatus) -> String {
    let superframes = if data.superframes { "superframes" } else { "no superframes" };
    let refused = match data.tun_refused {
        0 => String::new(),
        n => format!(" ({} refused)", counted(n, "packet")),
    };
    let (tun, udp) = (&data.tun_offload, &data.udp_offload);
    format!("tun {tun}{refused}, udp {udp}, {superframes}, {}", data.ciphers.join(" or "))
}

fn row(name: &str, value: impl ToString) -> [String; 2] {
    [name.into(), value.to_string()]
}

const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Starting => "starting",
        NodeState::Running => "running",
        NodeState::Down => "interface down (`azora up` brings it back)",
        NodeState::Stopping => "stopping",
        _ => "in a state that this azora does not know",
    }
}

pub(crate) const fn role(role: DhtRole) -> &'static str {
    match role {
        DhtRole::Server => "server",
        DhtRole::Client => "client",
    }
}

/// Counters that are not zero.
fn counters(counters: &BTreeMap<String, u64>) -> String {
    let seen =
        counters.iter().filter(|(_, count)| **count > 0).map(|(reason, count)| format!("{reason} {count}"));
    let text = joined(seen);
    if text == "-" { "none".into() } else { text }
}
