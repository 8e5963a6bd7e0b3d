//! What happens to flows when a path fails under them: relays die, NATs forget, ways are cut.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::nat::{Nat, Router};
use crate::lab::node::Node;
use crate::lab::pinger::Pinger;
use crate::lab::process::Process;
use crate::lab::{Lab, Underlay, eventually, long};
use crate::programs::listening;
use crate::relays::{backbone, joined, kind};

/// Of iperf3.
const PORT: u16 = 5201;
/// How long a flow lasts, in seconds.
const FLOW_S: u64 = 8;
/// Longest silence of a flow; only where the machine does nothing else (`AZORA_TEST_LONG`) a failure, else told.
const GAP_MAX: Duration = Duration::from_millis(1500);
/// The same when a node moves.
const ROAM_MAX: Duration = Duration::from_secs(1);
/// How long a flow is watched before and after.
const WATCHED: Duration = Duration::from_secs(3);
/// From the end of a cut to the straight way.
const DIRECT_AGAIN: Duration = Duration::from_secs(70);

/// Two nodes behind NATs that know each other, and three public relays.
struct Pair<'lab> {
    routers: [Router<'lab>; 2],
    public: Vec<Node>,
    nodes: [Node; 2],
    _server: Process,
}

impl<'lab> Pair<'lab> {
    fn new(lab: &'lab Lab, nats: [Nat; 2], path: &str) -> Self {
        Self::prepared(lab, nats, path, |_| ())
    }

    /// The same, with something done to both machines before they start.
    fn prepared(lab: &'lab Lab, nats: [Nat; 2], path: &str, prepare: impl Fn(&mut Node)) -> Self {
        let public = backbone(lab, 3);
        let routers = nats.map(|nat| lab.router(nat));
        let nodes = [0, 1].map(|n| {
            let mut node = routers[n].node().with(&["--inbound", "allow"]).knows(&public[n]);
            prepare(&mut node);
            joined(node.started(), 2)
        });
        let _server = listening(&nodes[1], &format!("iperf3 -s -p {PORT}"), PORT);
        nodes[0].reaches(&nodes[1], Duration::from_secs(5));
        eventually(Duration::from_secs(5), "the expected path", || {
            (kind(&nodes[0], &nodes[1]) == path && kind(&nodes[1], &nodes[0]) == path).then_some(())
        });
        Self { routers, public, nodes, _server }
    }

    /// The longest silence of pings in both directions while `event` happens to a TCP flow, which must not break.
    fn through(&mut self, event: impl FnOnce(&mut Self)) -> Duration {
        let [a, b] = &self.nodes;
        let pingers = [Pinger::start(a, b.address, "0.02"), Pinger::start(b, a.address, "0.02")];
        let start = Instant::now();
        for pinger in &pingers {
            pinger.first_after(start, Duration::from_secs(3), "pings are answered before");
        }
        let line = format!("iperf3 -6 -c {} -p {PORT} -t {FLOW_S} -b 20M --connect-timeout 3000", b.address);
        let mut flow = a.spawn(&line, "iperf3.log");
        thread::sleep(Duration::from_secs(2));
        event(self);
        let ended = flow.ended(Duration::from_secs(FLOW_S + 30));
        assert!(ended.is_some_and(|status| status.success()), "the TCP flow breaks: {}", flow.log());
        eventually(Duration::from_secs(10), "pings are answered after", || {
            let lately = Instant::now() - Duration::from_millis(200);
            pingers.iter().all(|pinger| !pinger.since(lately).is_empty()).then_some(())
        });
        let gap = pingers.iter().map(|pinger| pinger.longest_gap(start)).max().unwrap();
        if gap > GAP_MAX {
            let [a, b] = &self.nodes;
            println!("{gap:?}\n{}\n{}", a.peer(b).unwrap(), b.peer(a).unwrap());
        }
        gap
    }

    /// The version of IP that carries packets from the first node to the second.
    fn underlay(&self) -> Underlay {
        let peer = self.nodes[0].peer(&self.nodes[1]).unwrap();
        let endpoint: SocketAddr = peer["path"]["endpoint"].as_str().unwrap().parse().unwrap();
        Underlay::of(endpoint.ip())
    }

    /// The relay that packets from the first node to the second take.
    fn relay(&self) -> usize {
        let peer = self.nodes[0].peer(&self.nodes[1]).unwrap();
        let via = peer["path"]["via"][0].as_str().unwrap().to_owned();
        self.public.iter().position(|node| node.id == via).unwrap()
    }
}

fn rounds() -> usize {
    if long() { 20 } else { 1 }
}

fn report(what: &str, gaps: Vec<Duration>) {
    report_within(GAP_MAX, what, gaps);
}

fn report_within(limit: Duration, what: &str, mut gaps: Vec<Duration>) {
    gaps.sort();
    let at = |percent: usize| gaps[(gaps.len() - 1) * percent / 100];
    let (p50, p95, max, rounds) = (at(50), at(95), at(100), gaps.len());
    println!("{what}: gap p50 {p50:?}, p95 {p95:?}, max {max:?} in {rounds} rounds");
    assert!(!long() || p95 <= limit, "{what}: {gaps:?}");
}

#[test]
fn a_flow_survives_the_death_of_its_relay() {
    let lab = Lab::for_figures();
    let mut pair = Pair::new(&lab, [Nat::Symmetric, Nat::Symmetric], "relay");
    let gaps = (0..rounds()).map(|_| {
        let gap = pair.through(|pair| {
            let relay = pair.relay();
            let peer = pair.nodes[0].peer(&pair.nodes[1]).unwrap();
            let standby = &peer["standby"][0];
            assert!(standby["kind"] == "relay" && standby["via"] != peer["path"]["via"], "{peer}");
            pair.public[relay].kill();
        });
        for node in &mut pair.public {
            if !node.is_running() {
                node.start();
            }
        }
        for node in &pair.nodes {
            eventually(Duration::from_secs(60), "two relays again", || {
                (node.status()["nat"]["relays"].as_array()?.len() >= 2).then_some(())
            });
        }
        gap
    });
    report("relay killed", gaps.collect());
}

#[test]
fn a_flow_survives_the_cut_of_its_straight_way_and_returns_to_it() {
    let lab = Lab::for_figures();
    let mut pair = Pair::new(&lab, [Nat::PortRestricted, Nat::PortRestricted], "direct");
    let gaps = (0..rounds()).map(|_| {
        let gap = pair.through(|pair| lab.cut(pair.routers[0].ip, pair.routers[1].ip));
        let [a, b] = &pair.nodes;
        assert_eq!((kind(a, b).as_str(), kind(b, a).as_str()), ("relay", "relay"));
        lab.mend();
        let pinger = Pinger::start(a, b.address, "0.2");
        let (_, took) = eventually(DIRECT_AGAIN, "direct again", || {
            (kind(a, b) == "direct" && kind(b, a) == "direct").then_some(())
        });
        println!(
            "direct again after {took:?}, longest gap meanwhile {:?}",
            pinger.longest_gap(Instant::now() - took)
        );
        gap
    });
    report("straight way cut", gaps.collect());
}

#[test]
fn a_flow_survives_a_nat_that_forgets() {
    let lab = Lab::for_figures();
    let mut pair = Pair::new(&lab, [Nat::PortRestricted, Nat::PortRestricted], "direct");
    let gaps = (0..rounds()).map(|_| {
        let gap = pair.through(|pair| pair.routers[0].forget());
        thread::sleep(WATCHED);
        gap
    });
    report("NAT forgot", gaps.collect());
}

#[test]
fn a_flow_survives_a_nat_with_a_new_address() {
    let lab = Lab::for_figures();
    let mut pair = Pair::new(&lab, [Nat::PortRestricted, Nat::PortRestricted], "direct");
    let gaps = (0..rounds()).map(|_| {
        let gap = pair.through(|pair| pair.routers[0].renumber());
        thread::sleep(WATCHED);
        gap
    });
    report("NAT renumbered", gaps.collect());
}

#[test]
fn a_flow_survives_a_move_to_another_network() {
    let lab = Lab::for_figures();
    let mut pair = Pair::new(&lab, [Nat::PortRestricted, Nat::PortRestricted], "direct");
    let networks = [Nat::FullCone, Nat::PortRestricted].map(|nat| lab.router(nat));
    let gaps = (0..rounds()).map(|round| {
        let gap = pair.through(|pair| pair.nodes[0].move_to(&networks[round % networks.len()]));
        thread::sleep(WATCHED);
        gap
    });
    report_within(ROAM_MAX, "moved to another network", gaps.collect());
}

#[test]
fn a_flow_survives_the_loss_of_ipv4_and_of_ipv6() {
    let lab = Lab::for_figures();
    let mut pair = Pair::prepared(&lab, [Nat::PortRestricted, Nat::PortRestricted], "direct", |node| {
        node.plug_in(&lab, Underlay::V6);
    });
    let [mut v4, mut v6] = [Vec::new(), Vec::new()];
    for _ in 0..rounds().max(2) {
        let lost = pair.underlay();
        let gap = pair.through(|pair| pair.nodes[0].lose(lost));
        assert_ne!(pair.underlay(), lost);
        if lost == Underlay::V4 { &mut v4 } else { &mut v6 }.push(gap);
        pair.nodes[0].regain(lost);
        thread::sleep(WATCHED);
    }
    // The way that was found stays in use while the other is no better: the next round takes that away.
    report("IPv4 gone", v4);
    report("IPv6 gone", v6);
}
