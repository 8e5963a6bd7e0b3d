//! `azora peers`.

use auramesh::control::exit::Exit;
use auramesh::control::message::{
    Cause, Health, NO_NETWORK, PathKind, PathStatus, PeerState, PeerStatus, Silence,
};

use crate::args::{Format, PeersCommand};
use crate::output::{Fault, Outcome, age, bytes, milliseconds, or_dash, print, short, show, table};
use crate::socket::Socket;

/// Said by a node that knows nobody.
pub(crate) const NO_PEERS: &str = "no peers yet; `azora peers add NODEID@IP:PORT` adds one";

/// From how many seconds on it is told that a peer does not answer.
const SILENT_S: f64 = 3.0;

pub(crate) async fn run(socket: &Socket, format: Format, command: Option<PeersCommand>) -> Outcome {
    if format.json && command.is_some() {
        return Err(Fault::new(Exit::Usage, "--json is for the list of peers", "leave it out"));
    }
    let mut client = socket.connect().await?;
    match command {
        None => {
            let status = client.status().await?;
            show(&status.peers, format.json, |peers| {
                if peers.is_empty() {
                    return socket.hint(&format!("{NO_PEERS}\n"));
                }
                let nowhere = no_network(&status.health);
                let nowhere = nowhere.map(|health| format!("{}; try: {}\n\n", health.text, health.fix));
                socket.hint(&nowhere.unwrap_or_default()) + &peer_table(peers, &status.health)
            })
        }
        Some(PeersCommand::Add { peer }) => {
            client.peers_add(peer.node_id, peer.endpoint).await?;
            let (address, id) = (peer.node_id.address(), short(&peer.node_id));
            let next = format!("azora probe {peer} tells whether it answers there");
            print(&socket.hint(&format!("added {address} ({id}) at {}; {next}\n", peer.endpoint)))?;
            Ok(Exit::Ok)
        }
        Some(PeersCommand::Remove { node_id }) => {
            client.peers_remove(node_id).await?;
            print(&format!("removed {} ({})\n", node_id.address(), short(&node_id)))?;
            Ok(Exit::Ok)
        }
    }
}

/// One line for each peer. Where this machine is on no network, `health` says so, and none of them is to blame.
pub(crate) fn peer_table(peers: &[PeerStatus], health: &[Health]) -> String {
    let is_cut_off = no_network(health).is_some();
    let head = ["STATE", "ADDRESS", "PATH", "RTT", "RX", "TX", "LAST RX", "NODE ID"].map(String::from);
    let rows = peers.iter().map(|peer| {
        [
            state(peer.state).into(),
            peer.address.to_string(),
            path(&peer.path) + &quiet(peer, is_cut_off),
            or_dash(peer.rtt_ms, milliseconds),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            or_dash(peer.last_rx_s, age),
            peer.node_id.to_string(),
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Why peers are reached through relays, and the last changes of the paths to all.
pub(crate) fn path_changes(peers: &[PeerStatus]) -> String {
    let relayed = peers.iter().filter_map(|peer| Some((peer, peer.why_relayed.as_ref()?)));
    let mut text: String = relayed
        .map(|(peer, Cause { text, fix })| {
            format!("\n{} is reached through a relay: {text}\n  try: {fix}\n", short(&peer.node_id))
        })
        .collect();
    let head = ["CHANGED", "NODE ID", "FROM", "TO", "WHY"].map(String::from);
    let rows = peers.iter().flat_map(|peer| {
        peer.history.iter().map(|change| {
            let id = short(&peer.node_id);
            [age(change.ago_s) + " ago", id, path(&change.from), path(&change.to), change.why.clone()]
        })
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    if rows.len() > 1 {
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}

fn no_network(health: &[Health]) -> Option<&Health> {
    health.iter().find(|problem| problem.code == NO_NETWORK)
}

/// True for a peer that owes an answer for longer than a lost packet takes.
pub(crate) fn owes_answer(peer: &PeerStatus) -> bool {
    peer.unanswered_s.is_some_and(|silence| silence >= SILENT_S)
}

/// What follows the path of a peer that is silent; `is_cut_off`: this machine is on no network.
fn quiet(peer: &PeerStatus, is_cut_off: bool) -> String {
    if is_cut_off && owes_answer(peer) {
        return " (no network here)".into();
    }
    let heard = match peer.silence {
        Some(Silence::Stopped) => return " (stopped)".into(),
        Some(Silence::Idle) => return " (idle)".into(),
        Some(Silence::Deaf) => "heard, but ",
        _ => "",
    };
    let silence = peer.unanswered_s.filter(|_| owes_answer(peer));
    silence.map(|silence| format!(" ({heard}no answer for {})", age(silence))).unwrap_or_default()
}

const fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Known => "known",
        PeerState::Authenticated => "authenticated",
        PeerState::Flowing => "flowing",
    }
}

fn path(path: &PathStatus) -> String {
    let via = path.via.iter().map(|node_id| format!(" via {}", short(node_id)));
    let endpoint = path.endpoint.map(|endpoint| format!(" {endpoint}")).unwrap_or_default();
    let tcp = if path.tcp { " tcp" } else { "" };
    format!("{}{tcp}{endpoint}{}{}", path_kind(path.kind), via.collect::<String>(), no_data(path.no_data))
}

/// What follows a path that programs cannot use.
pub(crate) const fn no_data(no_data: bool) -> &'static str {
    if no_data { " (no data)" } else { "" }
}

pub(crate) const fn path_kind(kind: PathKind) -> &'static str {
    match kind {
        PathKind::Direct => "direct",
        PathKind::Relay => "relay",
        PathKind::Route => "route",
        PathKind::None => "none",
    }
}
