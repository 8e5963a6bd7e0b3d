//! Prometheus text.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::control::message::{PeerState, Status};
use crate::control::metrics::Render;

use super::answers::Answers;

/// What the metrics listener serves.
pub(super) fn render(answers: Arc<Answers>) -> Render {
    Arc::new(move || {
        let answers = answers.clone();
        Box::pin(async move { answers.status().await.map(|status| text(&status)).unwrap_or_default() })
    })
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP azora_{name} {help}\n# TYPE azora_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "azora_{name}{labels} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];
    let in_state = |state| status.peers.iter().filter(|peer| peer.state == state).count() as f64;
    let states = [
        ("known", PeerState::Known),
        ("authenticated", PeerState::Authenticated),
        ("flowing", PeerState::Flowing),
    ];
    let peers = states.map(|(name, state)| (format!("{{state=\"{name}\"}}"), in_state(state)));
    let drops: Vec<_> =
        status.drops.iter().map(|(reason, n)| (format!("{{reason=\"{reason}\"}}"), *n as f64)).collect();
    let bytes =
        |of: fn(&crate::control::message::PeerStatus) -> u64| status.peers.iter().map(of).sum::<u64>() as f64;
    let info = [(format!("{{version=\"{}\",node_id=\"{}\"}}", status.version, status.node_id), 1.0)];
    metric("build_info", "gauge", "Version and node ID.", &info);
    metric(
        "interface_up",
        "gauge",
        "1 when the interface is up.",
        &one(f64::from(u8::from(status.interface.up))),
    );
    metric("peers", "gauge", "Peers by state.", &peers);
    metric(
        "sessions_received_bytes",
        "gauge",
        "Bytes received in the present sessions.",
        &one(bytes(|p| p.rx_bytes)),
    );
    metric(
        "sessions_sent_bytes",
        "gauge",
        "Bytes sent in the present sessions.",
        &one(bytes(|p| p.tx_bytes)),
    );
    metric("dht_contacts", "gauge", "Nodes in the routing table.", &one(status.dht.contacts as f64));
    metric("health_problems", "gauge", "Entries of health in status.", &one(status.health.len() as f64));
    let streams = &status.streams;
    let blocked = f64::from(u8::from(streams.udp_blocked_s.is_some()));
    metric("udp_blocked", "gauge", "1 while no UDP gets through.", &one(blocked));
    let open = [("opened", streams.opened.len() as u64), ("taken", streams.taken)];
    let open = open.map(|(by, n)| (format!("{{direction=\"{by}\"}}"), n as f64));
    metric("streams", "gauge", "Streams (WebSocket over TCP) at present.", &open);
    let events: Vec<_> =
        streams.counters.iter().map(|(what, n)| (format!("{{what=\"{what}\"}}"), *n as f64)).collect();
    metric("streams_total", "counter", "What happened to streams.", &events);
    metric("drops_total", "counter", "Packets dropped, by reason.", &drops);
    out
}
