//! Networks with a secret: who has another one, or none, is not there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::lab::capture::{Capture, datagram};
use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, eventually};

fn with_secret(node: Node, secret: &str) -> Node {
    let file = node.dir.join("secret");
    fs::write(&file, format!("{secret}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    node.with(&["--secret-file", file.to_str().unwrap()])
}

#[test]
fn nodes_with_different_secrets_never_answer_each_other() {
    const SECRET: &str = "correct horse battery staple";
    let lab = Lab::new();
    let first = with_secret(lab.node(Underlay::V4), SECRET).logging("debug").started();
    let same = with_secret(lab.node(Underlay::V4), SECRET).knows(&first).started();
    same.reaches(&first, Duration::from_secs(5));

    // The port of the first.
    let capture = Capture::start(&lab.lan(), "p1");
    let mut others = [
        with_secret(lab.node(Underlay::V4), "correct horse battery stable").knows(&first),
        lab.node(Underlay::V4).knows(&first),
    ];
    for other in &mut others {
        other.launch();
        eventually(Duration::from_secs(15), "the node says that nobody answers", || {
            let status = other.azora(&["status", "--json"]).out;
            status.contains("bootstrap-unreachable").then_some(())
        });
        assert_eq!(other.ping(first.address, 1), None);
    }
    let frames = capture.stop();
    let octets = |node: &Node| match node.ip {
        std::net::IpAddr::V4(ip) => ip.octets(),
        std::net::IpAddr::V6(_) => panic!("an IPv4 lab"),
    };
    for other in &others {
        let between = |from: &Node, to: &Node| {
            let is = |frame: &&Vec<u8>| {
                datagram(frame).is_some_and(|d| d.source == octets(from)) && frame[30..34] == octets(to)
            };
            frames.iter().filter(is).count()
        };
        let (asked, answered) = (between(other, &first), between(&first, other));
        println!("{asked} datagrams asked, {answered} answered");
        assert!(asked > 3 && answered == 0);
    }
    // Something comes from there now, which only nodes with another secret have to say.
    for other in &others {
        assert_eq!(first.azora(&["peers", "add", &other.contact()]).code, 0);
    }
    for other in &others {
        eventually(Duration::from_secs(40), "the node says what may be the matter", || {
            let status = other.status();
            let health =
                status["health"].as_array()?.iter().find(|entry| entry["code"] == "bootstrap-unreachable")?;
            (health["text"].as_str()?.contains("network secret")
                && health["fix"].as_str()?.contains("secret_file"))
            .then_some(())
        });
    }
    for said in [first.log(), first.azora(&["report"]).out, format!("{}", first.status())] {
        assert!(!said.contains("horse"), "{said}");
    }
}

/// Neighbours that find each other by themselves, and cannot read what the other says.
#[test]
fn neighbours_with_different_secrets_are_told_what_may_be_the_matter() {
    let lab = Lab::new();
    let neighbour = |secret| {
        let mut node = with_secret(lab.node(Underlay::V4), secret).without("--no-lan-discovery");
        node.launch();
        node
    };
    let nodes = [neighbour("a secret of one network"), neighbour("a secret of another")];
    for node in &nodes {
        eventually(Duration::from_secs(20), "it says that something comes which it cannot read", || {
            let status: serde_json::Value =
                serde_json::from_str(&node.azora(&["status", "--json"]).out).ok()?;
            let entry = status["health"].as_array()?.first()?.clone();
            (entry["code"] == "unauthenticated" && entry["text"].as_str()?.contains("network secret"))
                .then_some(())
        });
    }
    // Those of one network find each other, and nobody learns of those of the other.
    let third = neighbour("a secret of one network");
    third.reaches(&nodes[0], Duration::from_secs(10));
    for (one, other) in [(&third, &nodes[1]), (&nodes[1], &third), (&nodes[1], &nodes[0])] {
        assert_eq!(one.peer(other), None);
        assert_eq!(one.azora(&["dht", "lookup", &other.id]).code, 1);
    }
}
