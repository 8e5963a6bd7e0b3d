//! The LAN neighbour: packets for mesh addresses that arrive beside the mesh.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::node::Node;
use crate::lab::{Lab, Machine, Underlay, eventually, ip};

const TABLE: &str = "inet azora_azora0";
const BACK: Duration = Duration::from_secs(5);

/// A node and a neighbour that routes the whole mesh prefix to the node's LAN address.
fn node_and_neighbour(lab: &Lab) -> (Node, Machine) {
    let node = lab.node(Underlay::V6).with(&["--inbound", "allow"]).started();
    let neighbour = lab.machine(Underlay::V6);
    ip(&format!("-n {} -6 route add 600::/8 via {} dev eth0", neighbour.netns, node.ip));
    (node, neighbour)
}

fn answered(neighbour: &Machine, to: Ipv6Addr) -> usize {
    let said = neighbour.sh(&format!("ping -6 -n -c 4 -i 0.05 -W 1 {to}")).out;
    said.lines().filter(|line| line.contains("time=")).count()
}

fn guarded(node: &Node) -> bool {
    node.sh(&format!("nft list table {TABLE}")).out.contains("drop")
}

#[test]
fn a_lan_neighbour_does_not_reach_the_mesh_address() {
    let lab = Lab::new();
    let (node, neighbour) = node_and_neighbour(&lab);
    let service = SocketAddr::from((node.address, 7000));
    let _listener = node.inside(|| TcpListener::bind(service)).unwrap();
    let connect = || neighbour.inside(|| TcpStream::connect_timeout(&service, Duration::from_secs(1)));

    assert!(guarded(&node), "the daemon installs the guard");
    assert_eq!(answered(&neighbour, node.address), 0, "pings answered");
    assert_eq!(
        connect().map_err(|error| error.kind()).err(),
        Some(ErrorKind::TimedOut),
        "no service, no reset"
    );

    // The daemon sleeps, so that it cannot put the guard back: now the neighbour is served.
    node.signal(Signal::SIGSTOP);
    node.must(&format!("nft delete table {TABLE}"));
    assert_eq!(answered(&neighbour, node.address), 4, "without the guard the kernel answers");
    assert!(connect().is_ok(), "without the guard the service answers");
    node.signal(Signal::SIGCONT);

    let (_, took) = eventually(BACK, "the guard is back", || guarded(&node).then_some(()));
    println!("guard back {took:?} after the daemon could act");
    assert_eq!(answered(&neighbour, node.address), 0, "pings answered");
}

/// A neighbour that writes a mesh address as its source.
#[test]
fn a_lan_neighbour_does_not_pass_as_a_mesh_node() {
    let lab = Lab::new();
    let (node, neighbour) = node_and_neighbour(&lab);
    let stolen: Ipv6Addr = "612:3456::1".parse().unwrap();
    ip(&format!("-n {} addr add {stolen}/128 dev eth0 nodad", neighbour.netns));
    // The kernel would ask for the neighbour from the stolen address, and wait for the answer in vain.
    let hardware = node.must("cat /sys/class/net/eth0/address");
    ip(&format!(
        "-n {} neigh replace {} lladdr {} nud permanent dev eth0",
        neighbour.netns,
        node.ip,
        hardware.trim()
    ));
    let target = SocketAddr::new(node.ip, 7001);
    let service = node.inside(|| UdpSocket::bind(target)).unwrap();
    service.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let socket = neighbour.inside(|| UdpSocket::bind((stolen, 0))).unwrap();
    let arrives = || {
        (0..5).for_each(|_| drop(socket.send_to(b"I am a mesh node", target)));
        service.recv_from(&mut [0; 64]).is_ok()
    };
    assert!(!arrives(), "a stolen mesh source was delivered");
    node.signal(Signal::SIGSTOP);
    node.must(&format!("nft delete table {TABLE}"));
    assert!(arrives(), "without the guard it is delivered");
    node.signal(Signal::SIGCONT);
    eventually(BACK, "the guard is back", || guarded(&node).then_some(()));
    while service.recv_from(&mut [0; 64]).is_ok() {}
    assert!(!arrives(), "a stolen mesh source was delivered");
}

#[test]
fn a_flushed_ruleset_gets_its_guard_back() {
    let lab = Lab::new();
    let (node, neighbour) = node_and_neighbour(&lab);
    for _ in 0..3 {
        node.must("nft flush ruleset");
        let (_, took) = eventually(BACK, "the guard is back", || guarded(&node).then_some(()));
        println!("guard back {took:?} after the flush");
    }
    node.must(&format!("nft flush table {TABLE}"));
    eventually(BACK, "emptied chains are filled again", || guarded(&node).then_some(()));
    assert_eq!(answered(&neighbour, node.address), 0, "pings answered");
}

#[test]
fn the_guard_leaves_other_tables_and_traffic_alone() {
    let lab = Lab::new();
    let (mut node, neighbour) = node_and_neighbour(&lab);
    node.must(
        "nft add table inet mine && nft add chain inet mine c '{ type filter hook input priority 0; }'",
    );
    let local = node.ip.to_string().parse().unwrap();
    assert_eq!(answered(&neighbour, local), 4, "the LAN address answers as before");
    assert_eq!(node.stop(), 0);
    assert_eq!(node.must("nft list tables").trim(), "table inet mine");
}
