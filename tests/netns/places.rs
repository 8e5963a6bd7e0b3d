//! Daemons where two routers are in a row, where one is before both, and behind firewalls: they reach each other, and the
//! tests say by which path.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, eventually};
use crate::relays::{backbone, backbone_on, fetches, joined, kind, open, serves};

/// From the first ping to the straight way.
const DIRECT: Duration = Duration::from_secs(5);

fn started(node: Node, knows: &Node) -> Node {
    joined(node.with(&["--inbound", "allow"]).knows(knows).started(), 2)
}

/// Kernel pings and a TCP flow from one node to another that serves a file; by which path, which is `expected`.
fn connected(what: &str, from: &Node, to: &Node, expected: &str) {
    // The record that says who relays is spread within seconds.
    let (first, _) = eventually(Duration::from_secs(10), what, || from.ping(to.address, 3));
    if expected == "direct" {
        eventually(DIRECT, what, || (kind(from, to) == "direct" && kind(to, from) == "direct").then_some(()));
    }
    eventually(Duration::from_secs(10), "a page", || fetches(from, to).then_some(()));
    let paths = [kind(from, to), kind(to, from)];
    println!("{what}: first reply {first:.1} ms, then {paths:?} at {}", endpoint(from, to));
    assert!(paths.iter().all(|path| path == expected || expected == "any"), "{what}: {paths:?}");
}

fn endpoint(from: &Node, to: &Node) -> SocketAddr {
    from.peer(to).unwrap()["path"]["endpoint"].as_str().unwrap().parse().unwrap()
}

#[test]
fn nodes_behind_two_routers_in_a_row_are_reached_directly() {
    let lab = Lab::new();
    let public = backbone(&lab, 3);
    let far = started(lab.router(Nat::PortRestricted).node(), &public[0]);
    let _server = serves(&far);
    for (carrier, home, expected) in [
        (Nat::FullCone, Nat::PortRestricted, "direct"),
        (Nat::PortRestricted, Nat::FullCone, "direct"),
        // The hardest of the two counts.
        (Nat::Symmetric, Nat::FullCone, "any"),
    ] {
        let near = started(lab.router(carrier).router(home).node(), &public[1]);
        connected(&format!("{home:?} behind {carrier:?}"), &near, &far, expected);
        let _server = serves(&near);
        connected(&format!("to {home:?} behind {carrier:?}"), &far, &near, expected);
    }
}

#[test]
fn two_nodes_behind_one_router_take_the_way_inside() {
    let lab = Lab::new();
    let public = backbone(&lab, 2);
    for nat in [Nat::Hairpin, Nat::PortRestricted, Nat::Symmetric] {
        let router = lab.router(nat);
        let [one, other] = [0, 1].map(|n| started(router.node(), &public[n]));
        let _server = serves(&other);
        connected(&format!("both behind one {nat:?}"), &one, &other, "direct");
        eventually(DIRECT, "the way inside", || {
            (endpoint(&one, &other).ip() == other.ip && endpoint(&other, &one).ip() == one.ip).then_some(())
        });
    }
}

#[test]
fn neighbours_of_one_carrier_meet_at_it_if_it_turns_packets_around() {
    let lab = Lab::new();
    let public = backbone(&lab, 2);
    for (carrier, expected) in [(Nat::Hairpin, "direct"), (Nat::PortRestricted, "relay")] {
        let router = lab.router(carrier);
        let homes = [0, 1].map(|_| router.router(Nat::FullCone));
        let [one, other] = [0, 1].map(|n: usize| started(homes[n].node(), &public[n]));
        let _server = serves(&other);
        connected(&format!("two homes behind one {carrier:?}"), &one, &other, expected);
    }
}

#[test]
fn nodes_behind_ipv6_firewalls_open_them_for_each_other() {
    let lab = Lab::new();
    let public = backbone_on(&lab, 3, Underlay::V6);
    let [one, other] = [0, 1].map(|n: usize| started(lab.router(Nat::Ipv6Firewall).node(), &public[n]));
    let open = lab.public(Underlay::V6).with(&["--inbound", "allow"]).knows(&public[2]).started();
    let _servers = [serves(&one), serves(&other), serves(&open)];
    connected("both behind IPv6 firewalls", &one, &other, "direct");
    connected("from an open place to a firewall", &open, &one, "direct");
    connected("from a firewall to an open place", &other, &open, "direct");
    assert_eq!(open.status()["nat"]["relays"].as_array().unwrap().len(), 0, "it is reached");
}

/// Nobody tells such a node that it is not reached: it is seen at a global address of its own.
#[test]
fn a_node_with_translated_ipv4_and_firewalled_ipv6_knows_that_nobody_reaches_it() {
    let lab = Lab::new();
    let mut public: Vec<Node> = Vec::new();
    for _ in 0..3 {
        let mut node = open(lab.public(Underlay::V4));
        node.plug_in(&lab, Underlay::V6);
        let node = match public.first() {
            Some(first) => node.knows(first),
            None => node,
        };
        public.push(node.started());
    }
    let [home, firewall] = [Nat::PortRestricted, Nat::Ipv6Firewall].map(|nat| lab.router(nat));
    let mut node = home.node().with(&["--inbound", "allow"]).knows(&public[0]);
    node.plug_in(&firewall, Underlay::V6);
    let node = joined(node.started(), 2);
    assert_eq!(node.status()["dht"]["mode"], "client");
    let far = started(lab.router(Nat::PortRestricted).node(), &public[1]);
    let _server = serves(&node);
    connected("to IPv4 NAT and IPv6 firewall", &far, &node, "direct");
    for node in &public {
        assert_eq!(node.status()["dht"]["mode"], "server");
    }
}
