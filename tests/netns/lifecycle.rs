//! Starting, stopping and dying leave nothing behind.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::lab::node::Node;
use crate::lab::process::check_one_line;
use crate::lab::{Lab, Underlay, eventually, long, noise};

/// What a daemon holds inside and outside its process.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: Vec<String>,
    interfaces: Vec<String>,
    routes: Vec<String>,
    tables: String,
}

fn held(node: &Node) -> Held {
    Held { descriptors: node.proc_count("fd"), threads: node.threads(), ..outside(node) }
}

/// What is in the machine, whether the daemon runs or not.
fn outside(node: &Node) -> Held {
    let routes = node.must("ip -6 route show table all; ip -6 rule show");
    let mut interfaces = node.interfaces();
    interfaces.sort();
    Held {
        descriptors: 0,
        threads: Vec::new(),
        interfaces,
        routes: routes.lines().filter(|line| line.contains("azora")).map(str::to_owned).collect(),
        tables: node.must("nft list tables"),
    }
}

fn cycles() -> usize {
    if long() { 50 } else { 10 }
}

#[test]
fn up_and_down_leaves_no_descriptor_task_route_table_or_interface() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let node = lab.node(Underlay::V4).knows(&server).started();
    let cycle = || {
        let down = node.azora(&["down"]);
        assert_eq!(down.code, 0, "azora down: {}", down.err);
        assert_eq!(node.status()["interface"]["up"], false);
        assert_eq!(node.ping(server.address, 1), None, "down carries nothing");
        let up = node.azora(&["up"]);
        assert_eq!(up.code, 0, "azora up: {}", up.err);
        node.reaches(&server, Duration::from_secs(5));
    };
    cycle();
    let before = held(&node);
    assert!(before.tables.contains("azora_azora0"), "the guard is there: {before:?}");
    for _ in 0..cycles() {
        cycle();
    }
    eventually(Duration::from_secs(5), &format!("the same as before the cycles: {before:?}"), || {
        (held(&node) == before).then_some(())
    });
}

#[test]
fn start_and_stop_leaves_nothing_in_the_machine() {
    let lab = Lab::new();
    let mut node = lab.node(Underlay::V4);
    let before = outside(&node);
    for round in 0..cycles() {
        node.start();
        assert!(node.interfaces().contains(&"azora0".to_owned()));
        assert_eq!(node.stop(), 0, "SIGTERM ends it with 0: {}", node.log());
        assert_eq!(outside(&node), before, "after stop {round}");
        assert!(!node.socket().exists(), "the socket file is gone");
    }
}

#[test]
fn the_log_tells_of_peers_that_come_and_go_once_each() {
    let lab = Lab::new();
    let mut server = lab.node(Underlay::V4).with(&["--inbound", "allow"]).started();
    let mut node = lab.node(Underlay::V4).knows(&server).started();
    let told = |at: &Node, what: &str, of: &Node| {
        at.log().lines().filter(|line| line.contains(what) && line.contains(&of.id)).count()
    };
    let becomes = |at: &Node, what: &str, of: &Node, times: usize| {
        eventually(Duration::from_secs(20), what, || (told(at, what, of) == times).then_some(()));
    };
    let counts = |at: &Node, of: &Node| (told(at, "peer reached", of), told(at, "peer lost", of));
    node.reaches(&server, Duration::from_secs(5));
    becomes(&node, "peer reached", &server, 1);
    becomes(&server, "peer reached", &node, 1);
    node.stop();
    becomes(&server, "it has stopped", &node, 1);
    node.start();
    node.reaches(&server, Duration::from_secs(5));
    becomes(&server, "peer reached", &node, 2);
    let before = told(&node, "peer reached", &server);
    server.kill();
    node.ping(server.address, 1);
    becomes(&node, "no answer", &server, 1);
    server.start();
    node.reaches(&server, Duration::from_secs(20));
    becomes(&node, "peer reached", &server, before + 1);
    assert_eq!((counts(&node, &server), counts(&server, &node).1), ((before + 1, 1), 1));
}

/// Killed at a random moment of its start; the next start finds nothing that stops it.
#[test]
fn killed_at_any_moment_it_starts_again() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let mut node = lab.node(Underlay::V4).knows(&server);
    let rounds = if long() { 500 } else { 25 };
    let moments = noise(52, rounds);
    for moment in moments {
        node.launch();
        thread::sleep(Duration::from_millis(moment.into()));
        assert!(node.is_running(), "the daemon ended by itself: {}", node.log());
        node.kill();
    }
    let key = fs::read(node.state_dir().join("identity.key")).unwrap();
    node.start();
    assert_eq!(node.status()["node_id"], node.id.as_str(), "the identity stays");
    assert_eq!(fs::read(node.state_dir().join("identity.key")).unwrap(), key);
    node.reaches(&server, Duration::from_secs(5));
    assert_eq!(outside(&node).tables.matches("table").count(), 1, "one guard");
    assert_eq!(node.stop(), 0);
    assert!(!outside(&node).tables.contains("azora"), "no guard of a dead daemon is left");
    assert_eq!(outside(&node).interfaces, ["eth0", "lo"]);
}

/// What was acknowledged is there after the next start, however soon the daemon died.
#[test]
fn killed_right_after_an_acknowledgement_it_has_lost_no_rule() {
    let lab = Lab::new();
    let mut node = lab.node(Underlay::V4).started();
    let mut acknowledged = Vec::new();
    for port in 1..=u64::try_from(cycles()).unwrap() {
        let added = node.azora(&["firewall", "add", "in", "allow", "-p", "tcp", "--port", &port.to_string()]);
        node.kill();
        assert_eq!(added.code, 0, "{}", added.err);
        acknowledged.push(port);
        node.start();
        let rules = node.json(&["firewall", "list"]);
        let kept: Vec<_> =
            rules.as_array().unwrap().iter().filter_map(|rule| rule["port"].as_u64()).collect();
        assert_eq!(kept, acknowledged, "what is left after SIGKILL");
    }
}

#[test]
fn a_second_daemon_on_the_same_state_directory_exits_and_says_why() {
    let lab = Lab::new();
    let first = lab.node(Underlay::V4).started();
    let socket = first.socket().display().to_string();
    let words =
        first.daemon_line().join(" ").replace(&socket, &format!("{}/other.sock", first.dir.display()));
    let second = first.sh(&format!("timeout 5 {words} --tun azora1"));
    assert!([1, 2].contains(&second.code), "exits by itself: {second:?}");
    check_one_line(&second.err, &["state", "use"]);
    assert_eq!(first.azora(&["status", "--check", "live"]).code, 0, "the first goes on");
    assert!(first.interfaces().contains(&"azora0".to_owned()));
    assert!(!first.interfaces().contains(&"azora1".to_owned()));
}
