//! A router that maps ports is made use of, and one that lies is not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::diagnosis::verdict;
use crate::lab::nat::{Mapper, Nat};
use crate::lab::node::{Node, PORT};
use crate::lab::process::run;
use crate::lab::{Lab, command, eventually, inside};
use crate::relays::{backbone, joined, kind};

/// From the start until the mapping is known to others.
const MAPPED: Duration = Duration::from_secs(10);

/// Where others are told that a node is.
fn record(asking: &Node, of: &Node) -> Vec<String> {
    let ran = asking.azora(&["dht", "lookup", &of.id, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_default();
    let endpoints = found["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().filter_map(|endpoint| endpoint.as_str().map(str::to_owned)).collect()
}

/// Asks its router for nothing.
pub(crate) fn unmapped(node: Node) -> Node {
    let file = node.dir.join("azora.toml");
    std::fs::write(&file, "[net]\nport_mapping = false\n").unwrap();
    node.with(&["--config", file.to_str().unwrap()])
}

/// Another address of the same network.
fn beside(gateway: IpAddr) -> IpAddr {
    let IpAddr::V4(ip) = gateway else { panic!("IPv4 only") };
    let [a, b, c, _] = ip.octets();
    IpAddr::from([a, b, c, 200])
}

fn told(node: &Node) -> Option<SocketAddr> {
    let mapping = node.status()["nat"]["port_mapping"].clone();
    (mapping["told"] == true).then(|| mapping["endpoint"].as_str().unwrap().parse().unwrap())
}

#[test]
fn a_port_that_the_router_maps_makes_two_symmetric_nats_meet_and_is_given_back() {
    meets_and_gives_back(Mapper::Pcp, "pcp");
}

#[test]
fn a_router_that_speaks_only_upnp_is_asked_too() {
    meets_and_gives_back(Mapper::Upnp, "upnp");
}

fn meets_and_gives_back(by: Mapper, name: &str) {
    let lab = Lab::new();
    let public = backbone(&lab, 3);
    let (router, other) = (lab.router(Nat::Symmetric), lab.router(Nat::Symmetric));
    let daemon = router.maps_ports(by);
    let mut node = joined(router.node().knows(&public[0]).started(), 2);
    let peer = joined(other.node().knows(&public[1]).started(), 2);
    let outside = SocketAddr::new(router.ip, PORT);
    let (_, took) = eventually(MAPPED, "the mapping is told", || (told(&node)? == outside).then_some(()));
    println!("mapped and told {took:?} after the node was joined");
    let told = eventually(MAPPED, "the record names it", || {
        record(&public[2], &node).iter().any(|endpoint| *endpoint == outside.to_string()).then_some(())
    });
    println!("in the record {:?} later", told.1);
    let (answer, detail) = verdict(&node.json(&["netcheck"]), "PortMapping");
    assert_eq!((answer.as_str(), detail), ("yes", format!("{name} maps {outside}")));

    peer.reaches(&node, Duration::from_secs(5));
    let both = || (kind(&peer, &node) == "direct" && kind(&node, &peer) == "direct").then_some(());
    let (_, took) = eventually(Duration::from_secs(5), "both send straight", both);
    println!("direct {took:?} after the first reply");
    let silent = verdict(&peer.json(&["netcheck"]), "PortMapping");
    assert!(silent.0 == "no" && silent.1.contains("answers neither PCP nor NAT-PMP nor UPnP"), "{silent:?}");

    let rules = || run(command(&router.netns, "nft").args(["list", "ruleset"])).out;
    let mapped = |rules: &str| rules.contains(&format!("dport {PORT} dnat"));
    assert!(mapped(&rules()), "{}", rules());
    assert!(by != Mapper::Pcp || daemon.log().contains("PCP request received"), "{}", daemon.log());

    // Another address of the machine does not take it away.
    node.add_address(beside(router.gateway()));
    eventually(MAPPED, "the mapping is told again", || (self::told(&node)? == outside).then_some(()));
    assert_eq!(node.stop(), 0);
    eventually(Duration::from_secs(2), "the router has its port back", || (!mapped(&rules())).then_some(()));
    drop(daemon);
}

#[test]
fn a_mapping_is_not_asked_for_when_it_is_not_wanted_or_not_needed() {
    let lab = Lab::new();
    let public = backbone(&lab, 1);
    let router = lab.router(Nat::PlainConntrack);
    let daemon = router.maps_ports(Mapper::Pcp);
    let node = unmapped(router.node()).knows(&public[0]).started();
    let (_, detail) = verdict(&node.json(&["netcheck"]), "PortMapping");
    assert_eq!(detail, "switched off");
    let (_, detail) = verdict(&public[0].json(&["netcheck"]), "PortMapping");
    assert!(detail.starts_with("not needed"), "{detail}");
    assert!(!daemon.log().contains("PCP request received"), "{}", daemon.log());
}

/// What a router does that is not to be trusted.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Garbage,
    WrongNonce,
    Outside(Ipv4Addr),
    Lifetime(u32),
    Silence,
}

/// Ends all liars when it is dropped.
struct Liars<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Liars<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Answers PCP and NAT-PMP at a router until it is told to stop; counts what it is asked.
fn lies(netns: &str, gateway: IpAddr, lie: Lie, stop: &AtomicBool, asked: &AtomicUsize) {
    inside(netns, || {
        let socket = UdpSocket::bind((gateway, 5351)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut buffer = [0; 1100];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
            asked.fetch_add(1, Ordering::Relaxed);
            if let Some(answer) = lying(&buffer[..len], lie) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    });
}

fn lying(request: &[u8], lie: Lie) -> Option<Vec<u8>> {
    let mut answer = request.to_vec();
    let outside = Ipv4Addr::new(20, 200, 0, 2);
    let is_pcp = request.first() == Some(&2) && request.len() == 60;
    if let Lie::Silence = lie {
        return None;
    }
    if let Lie::Garbage = lie {
        return Some(request.iter().rev().copied().cycle().take(900).collect());
    }
    if !is_pcp {
        return None;
    }
    answer[1] |= 0x80;
    answer[8..24].fill(0);
    answer[44..60].copy_from_slice(&outside.to_ipv6_mapped().octets());
    match lie {
        Lie::WrongNonce => answer[30] ^= 1,
        Lie::Outside(ip) => answer[44..60].copy_from_slice(&ip.to_ipv6_mapped().octets()),
        Lie::Lifetime(seconds) => answer[4..8].copy_from_slice(&seconds.to_be_bytes()),
        Lie::Garbage | Lie::Silence => {}
    }
    Some(answer)
}

#[test]
fn a_router_that_lies_is_not_believed_and_gets_few_packets() {
    let lab = Lab::new();
    let public = backbone(&lab, 2);
    let victim = Ipv4Addr::new(20, 200, 0, 2);
    let lies_told = [
        Lie::Garbage,
        Lie::WrongNonce,
        Lie::Outside(Ipv4Addr::UNSPECIFIED),
        Lie::Outside(Ipv4Addr::new(192, 168, 7, 7)),
        Lie::Outside(victim),
        Lie::Lifetime(0),
        Lie::Lifetime(u32::MAX),
        Lie::Silence,
    ];
    let routers: Vec<_> = lies_told.iter().map(|_| lab.router(Nat::PlainConntrack)).collect();
    let asked: Vec<_> = lies_told.iter().map(|_| AtomicUsize::new(0)).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for ((lie, router), asked) in lies_told.iter().zip(&routers).zip(&asked) {
            let (netns, gateway, stop) = (&router.netns, router.gateway(), &stop);
            scope.spawn(move || lies(netns, gateway, *lie, stop, asked));
        }
        let _liars = Liars { stop: &stop };
        let nodes: Vec<_> = routers.iter().map(|router| router.node().knows(&public[0]).started()).collect();
        for (((lie, router), asked), node) in lies_told.iter().zip(&routers).zip(&asked).zip(nodes) {
            let mut node = joined(node, 2);
            let (answer, said) = verdict(&node.json(&["netcheck"]), "PortMapping");
            assert_ne!(answer, "unknown", "{lie:?}: {said}");
            assert_eq!(told(&node), None, "{lie:?}");
            let places = [router.ip.to_string(), node.ip.to_string()];
            let endpoints = record(&public[1], &node);
            let true_ones = |endpoint: &String| places.iter().any(|place| endpoint.starts_with(place));
            assert!(endpoints.iter().all(true_ones), "{lie:?}: {endpoints:?}");
            let packets = asked.load(Ordering::Relaxed);
            println!("{lie:?}: {packets} packets, {said}");
            assert!(packets <= 10 && node.is_running(), "{lie:?}: {packets} packets");
        }
    });
}
