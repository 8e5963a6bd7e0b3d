//! Somebody blocks the port that a node listens on, and others find it by the ports that hop.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::lab::nat::Nat;
use crate::lab::node::{Node, PORT};
use crate::lab::pinger::Pinger;
use crate::lab::{Lab, Underlay, eventually};

/// From the blockade until a flow goes on.
const GOES_ON: Duration = Duration::from_secs(3);
/// From the start of a node whose only contact does not answer at its port until it is reached.
const FOUND: Duration = Duration::from_secs(30);
const TABLE: &str = "inet azora_azora0_ports";

/// Takes UDP at ports that hop, or says that it does not.
fn hopping(node: Node, hops: bool) -> Node {
    let file = node.dir.join("azora.toml");
    std::fs::write(&file, format!("[net]\nport_hopping = {hops}\n")).unwrap();
    node.with(&["--config", file.to_str().unwrap()])
}

/// Nothing gets through to the port that the node listens on, and nothing from it.
fn block(node: &Node) {
    let chains = [("to", "prerouting priority -350", "dport"), ("from", "postrouting priority 300", "sport")];
    for (name, hook, port) in chains {
        node.must(&format!(
            "nft add table inet censor && nft add chain inet censor {name} '{{ type filter hook {hook}; }}'"
        ));
        node.must(&format!("nft add rule inet censor {name} udp {port} {PORT} counter drop"));
    }
}

fn endpoint(from: &Node, to: &Node) -> Option<SocketAddr> {
    from.peer(to)?["path"]["endpoint"].as_str()?.parse().ok()
}

/// A flow that was there goes on by a port that hops, and who comes anew finds one.
#[test]
fn a_node_whose_port_is_blocked_is_reached_by_ports_that_hop() {
    let lab = Lab::new();
    for underlay in [Underlay::V4, Underlay::V6] {
        let mut server = hopping(lab.public(underlay), true).started();
        let home = lab.router(if underlay == Underlay::V4 { Nat::PortRestricted } else { Nat::Ipv6Firewall });
        let client = home.node().knows(&server).started();
        client.reaches(&server, Duration::from_secs(5));
        assert_eq!(endpoint(&client, &server).unwrap().port(), PORT, "not before it is needed");
        let ping = Pinger::start(&client, server.address, "0.02");
        ping.first_after(Instant::now(), Duration::from_secs(5), "a reply");

        block(&server);
        let blocked = Instant::now();
        // What was on its way may still come.
        let gap = ping.first_after(blocked + Duration::from_millis(100), GOES_ON, "the flow goes on");
        let (hopped, _) = eventually(GOES_ON, "by another port", || {
            endpoint(&client, &server).filter(|endpoint| endpoint.port() != PORT)
        });
        println!("{underlay:?}: goes on after {gap:.1?} by {hopped}");
        assert_eq!(hopped.ip(), server.ip);
        let mut late = home.node().knows(&server);
        late.launch();
        late.wait_ready();
        let first = late.reaches(&server, FOUND);
        println!("{underlay:?}: a node that comes later reaches it after {first:.1?}");
        // What is told to others and kept for later is the port that lasts.
        let hopped = endpoint(&late, &server).unwrap();
        assert_eq!((late.stop(), hopped.port() == PORT), (0, false));
        let kept = std::fs::read_to_string(late.state_dir().join("peers")).unwrap();
        assert!(
            kept.contains(&server.endpoint().to_string()) && !kept.contains(&hopped.to_string()),
            "{kept}"
        );
        assert!(server.must("nft list tables").contains(TABLE));
        assert_eq!(server.stop(), 0);
        assert!(!server.must("nft list tables").contains(TABLE), "it is left behind");
    }
}

#[test]
fn a_node_whose_ports_do_not_hop_is_left_alone_at_others() {
    let lab = Lab::new();
    let server = hopping(lab.public(Underlay::V4), false);
    // Of a daemon that was killed.
    server.must(&format!("nft add table {TABLE}"));
    let server = server.started();
    let client = lab.router(Nat::PortRestricted).node().knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    assert!(!server.must("nft list tables").contains(TABLE));
    server.must("nft add table inet seen && nft add chain inet seen c '{ type filter hook prerouting priority -350; }'");
    server.must(&format!("nft add rule inet seen c udp dport != {PORT} counter drop"));
    block(&server);
    for _ in 0..3 {
        assert!(client.ping(server.address, 3).is_none());
    }
    let counted = server.must("nft list table inet seen");
    assert!(counted.contains("packets 0 "), "its neighbours' ports are knocked at: {counted}");
}
