//! Somebody else changes the interface while the daemon runs.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, eventually, ip};

const REPAIRED: Duration = Duration::from_secs(5);
/// Bytes that a tunnel in itself may send (WireGuard's `netns.sh`, "routing loop").
const LOOP_BYTES_MAX: u64 = 70_000;

/// What the user sees of `azora0`.
fn is_whole(node: &Node) -> bool {
    let link = node.sh("ip -d link show azora0").out;
    let mtu = node.sh("cat /sys/class/net/azora0/mtu").out;
    let expected = node.status()["interface"]["mtu"].to_string();
    link.contains(",UP")
        && mtu.trim() == expected
        && node.sh("ip -6 addr show dev azora0").out.contains(&format!("{}/128", node.address))
        && node.sh("ip -6 route show dev azora0").out.contains("600::/8")
}

#[test]
fn what_others_change_on_the_interface_is_put_right() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let mut node = lab.node(Underlay::V4).knows(&server).started();
    node.reaches(&server, Duration::from_secs(5));
    assert!(is_whole(&node));
    let address: Ipv6Addr = node.address;
    for change in [
        "link set azora0 down".to_owned(),
        "link set azora0 mtu 600".to_owned(),
        "link set azora0 mtu 9000".to_owned(),
        format!("addr del {address}/128 dev azora0"),
        "-6 addr flush dev azora0".to_owned(),
        "-6 route del 600::/8 dev azora0".to_owned(),
    ] {
        ip(&format!("-n {} {change}", node.netns));
        let (_, took) = eventually(REPAIRED, &format!("repaired after `ip {change}`"), || {
            assert!(node.is_running(), "the daemon ended after `ip {change}`:\n{}", node.log());
            is_whole(&node).then_some(())
        });
        println!("ip {change}: repaired after {took:?}");
        node.reaches(&server, Duration::from_secs(5));
    }
}

#[test]
fn a_deleted_interface_is_made_again_or_ends_the_daemon_with_the_reason() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let mut node = lab.node(Underlay::V4).knows(&server).started();
    node.reaches(&server, Duration::from_secs(5));
    ip(&format!("-n {} link del azora0", node.netns));
    let (exit, took) = eventually(Duration::from_secs(10), "made again, or the daemon ends", || {
        match node.exit(Duration::ZERO) {
            Some(code) => Some(Some(code)),
            None => (node.interfaces().contains(&"azora0".to_owned()) && is_whole(&node)).then_some(None),
        }
    });
    match exit {
        Some(code) => {
            println!("ended with {code} after {took:?}");
            assert_eq!(code, 1);
            let log = node.log();
            let last = log.lines().rev().take(3).collect::<String>().to_lowercase();
            assert!(last.contains("azora0"), "the last lines name the reason:\n{log}");
            assert!(!node.must("nft list tables").contains("azora"), "the guard went with it");
            assert!(server.log().contains("why=it has stopped"), "it said goodbye: {}", server.log());
        }
        None => {
            println!("made again after {took:?}");
            node.reaches(&server, Duration::from_secs(5));
        }
    }
}

#[test]
fn a_taken_name_or_route_is_refused_with_the_cause_and_left_alone() {
    for (taken, names) in [
        ("link add azora0 type bridge", vec!["azora0"]),
        ("link add other0 type bridge|link set other0 up|-6 route add 600::/8 dev other0", vec!["other0"]),
        (
            "link add other0 type bridge|link set other0 up|-6 addr add 6ab::1/64 dev other0 nodad",
            vec!["other0"],
        ),
    ] {
        let lab = Lab::new();
        let mut node = lab.node(Underlay::V4);
        for line in taken.split('|') {
            ip(&format!("-n {} {line}", node.netns));
        }
        let before = node.must("ip -6 route show; ip link show | grep -v LOWER");
        node.launch();
        let code =
            node.exit(Duration::from_secs(5)).unwrap_or_else(|| panic!("starts although taken: {taken}"));
        assert_eq!(code, 1, "{}", node.log());
        let log = node.log();
        println!("{taken}:\n  {}", log.trim());
        for name in names {
            assert!(log.contains(name), "names {name}: {log}");
        }
        assert_eq!(
            node.must("ip -6 route show; ip link show | grep -v LOWER"),
            before,
            "nothing of ours is left"
        );
    }
}

/// Outer packets into our own prefix would be a tunnel in itself.
#[test]
fn a_contact_inside_the_mesh_prefix_is_refused() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let node = lab.node(Underlay::V4).knows(&server).started();
    node.reaches(&server, Duration::from_secs(5));
    let ran = node.azora(&["peers", "add", &format!("{}@[{}]:5747", server.id, server.address)]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(!ran.err.trim().is_empty());
    // Nor is anybody else at our own address.
    let ran = node.azora(&["peers", "add", &format!("{}@{}", server.id, node.endpoint())]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("own address"), "{ran:?}");
    node.reaches(&server, Duration::from_secs(1));
}

/// A route leads outer packets back into the interface, as one for everything does.
#[test]
fn a_tunnel_in_its_own_tunnel_sends_next_to_nothing() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V6).started();
    let node = lab.node(Underlay::V6).knows(&server).started();
    node.reaches(&server, Duration::from_secs(5));
    let sent =
        || -> u64 { node.must("cat /sys/class/net/azora0/statistics/tx_bytes").trim().parse().unwrap() };
    let dropped = || node.status()["drops"]["not_mesh"].as_u64().unwrap();
    let before = (sent(), dropped());
    let route = format!("{}/128 dev azora0", server.ip);
    ip(&format!("-n {} -6 route replace {route}", node.netns));
    node.sh(&format!("ping -6 -n -c 20 -i 0.1 -W 1 {}", server.address));
    let (bytes, outer) = (sent() - before.0, dropped() - before.1);
    println!("{bytes} bytes sent, {outer} outer packets dropped");
    assert!(outer > 0, "outer packets came back");
    assert!(bytes < LOOP_BYTES_MAX, "{bytes} bytes");
    ip(&format!("-n {} -6 route del {route}", node.netns));
    node.reaches(&server, REPAIRED);
}
