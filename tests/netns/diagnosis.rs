//! What a node says of the network around it, and of the ways to others, is true behind every kind of NAT.

use std::time::Duration;

use serde_json::Value;

use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, eventually};
use crate::portmap::unmapped;
use crate::relays::{backbone, joined, kind};

/// From a start until as many contacts are known as a verdict needs.
const KNOWN: Duration = Duration::from_secs(15);

/// The verdict on one thing, and what was seen.
pub(crate) fn verdict(report: &Value, name: &str) -> (String, String) {
    let all = report["checks"].as_array().unwrap();
    let check = all.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"));
    let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
    assert!(check["verdict"] != "unknown" || check["fix"].is_string(), "nothing to do about {check}");
    (text("verdict"), text("detail"))
}

/// UDP, IPv4, IPv6 and MappingVariesByDestIP.
fn verdicts(node: &Node) -> [String; 4] {
    let report = node.json(&["netcheck"]);
    ["UDP", "IPv4", "IPv6", "MappingVariesByDestIP"].map(|name| verdict(&report, name).0)
}

fn become_right(node: &Node, what: &str, expected: [&str; 4]) {
    let mut last = Vec::new();
    let right = || {
        last = verdicts(node).to_vec();
        (last == expected).then_some(())
    };
    eventually(KNOWN, &format!("{what}: {expected:?}"), right);
}

#[test]
fn netcheck_is_right_behind_every_kind_of_nat() {
    let lab = Lab::new();
    let public = backbone(&lab, 3);
    let beside = lab.public(Underlay::V4).knows(&public[0]).started();
    become_right(&beside, "no NAT", ["yes", "yes", "no", "no"]);
    let kinds = [
        (Nat::FullCone, "no"),
        (Nat::PortRestricted, "no"),
        (Nat::PlainConntrack, "no"),
        (Nat::Symmetric, "yes"),
    ];
    for (nat, varies) in kinds {
        let router = lab.router(nat);
        let node = unmapped(router.node()).knows(&public[0]).started();
        become_right(&node, &format!("{nat:?}"), ["yes", "yes", "no", varies]);
        let report = node.json(&["netcheck"]);
        let (_, detail) = verdict(&report, "IPv4");
        assert!(detail.contains(&format!("seen at {}:", router.ip)), "{detail}");
        let seen = report["global_v4"].as_str().unwrap();
        assert!(seen.starts_with(&router.ip.to_string()), "{seen}");
        println!("{nat:?}\n{}", node.azora(&["netcheck"]).out);
    }
    let router = lab.router(Nat::UdpBlocked);
    let mut node = unmapped(router.node()).knows(&public[0]);
    node.launch();
    eventually(KNOWN, "the daemon answers", || node.socket().exists().then_some(()));
    become_right(&node, "UDP blocked", ["no", "no", "no", "unknown"]);
    println!("UDP blocked\n{}", node.azora(&["netcheck"]).out);
}

#[test]
fn netcheck_says_what_it_cannot_know_and_sees_ipv6_through_a_firewall() {
    let lab = Lab::new();
    let first = lab.public(Underlay::V6).started();
    let router = lab.router(Nat::Ipv6Firewall);
    let node = router.node().knows(&first).started();
    become_right(&node, "an IPv6 firewall", ["yes", "no", "yes", "no"]);
    let (_, detail) = verdict(&node.json(&["netcheck"]), "IPv6");
    assert!(detail.contains("an address of this machine"), "{detail}");

    let alone = lab.public(Underlay::V4).started();
    assert_eq!(verdicts(&alone), ["unknown", "unknown", "no", "unknown"]);
    let behind = lab.router(Nat::Symmetric);
    let node = unmapped(behind.node()).knows(&alone).started();
    become_right(&node, "one contact", ["yes", "yes", "no", "unknown"]);
}

#[test]
fn a_ping_waits_for_a_direct_path_or_says_why_there_is_none() {
    let lab = Lab::new();
    let public = backbone(&lab, 3);
    let place = |nat, n: usize| joined(lab.router(nat).node().knows(&public[n]).started(), 2);
    let (easy, other) = (place(Nat::PortRestricted, 0), place(Nat::PortRestricted, 1));
    let ran = easy.azora(&["ping", &other.id, "--until-direct", "--interval", "0.1"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("direct after "), "{}", ran.out);
    let history = easy.peer(&other).unwrap()["history"].clone();
    assert_eq!(history[0]["to"]["kind"], "direct", "{history}");

    let (hard, harder) = (place(Nat::Symmetric, 1), place(Nat::Symmetric, 2));
    let ran = hard.azora(&["ping", &harder.id, "-c", "12", "--until-direct", "--interval", "0.3"]);
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.out.contains("both sides are behind symmetric NATs"), "{}", ran.out);
    assert!(ran.out.contains("forward UDP port 5747"), "{}", ran.out);
    assert_eq!(kind(&hard, &harder), "relay");
    let why = hard.peer(&harder).unwrap()["why_relayed"]["text"].clone();
    assert!(why.as_str().is_some_and(|why| why.starts_with("both sides")), "{why}");

    let report = hard.json(&["probe", &harder.id]);
    let stage = |name: &str| {
        let stages = report["stages"].as_array().unwrap();
        let stage = stages.iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("{report}"));
        stage["detail"].as_str().unwrap().to_owned()
    };
    for words in ["relay ", "this node is behind a symmetric NAT", "the other one is behind a symmetric NAT"]
    {
        assert!(stage("candidates").contains(words), "{words}: {}", stage("candidates"));
    }
    for words in ["through the relay", "both sides are behind symmetric NATs", "forward UDP port 5747"] {
        assert!(stage("handshake").contains(words), "{words}: {}", stage("handshake"));
    }
}
