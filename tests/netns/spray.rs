//! Daemons of which one has to guess a port of the other's NAT: how long that takes, and what the way is worth.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::nat::{Nat, Router};
use crate::lab::node::Node;
use crate::lab::pinger::Pinger;
use crate::lab::{Lab, eventually, long, percentile};
use crate::programs::listening;
use crate::relays::{GUESSED, backbone, joined, kind};

/// Generous: chance has a part in it.
const MEDIAN_MS: f64 = 2000.0;
const WORST_MS: f64 = 9000.0;
/// From a moment of silence until the way is straight again.
const BACK: Duration = Duration::from_secs(15);

fn is_direct(one: &Node, other: &Node) -> bool {
    kind(one, other) == "direct" && kind(other, one) == "direct"
}

/// The last figures that a daemon logged of a way found: checks or sockets, and milliseconds.
fn guessed(node: &Node) -> Option<(f64, f64)> {
    let log = node.log();
    let line = log.lines().rfind(|line| line.contains("way found by guessing ports"))?;
    let field = |name: &str| {
        let (_, after) = line.split_once(&format!("{name}="))?;
        after.split_whitespace().next()?.parse().ok()
    };
    Some((field("checks")?, field("took_ms")?))
}

/// Received Mbit/s of one TCP flow.
fn throughput(from: &Node, to: &Node) -> f64 {
    let seconds = if long() { 10 } else { 2 };
    let line = format!("iperf3 -J -t {seconds} -c {}", to.address);
    let (rate, _) = eventually(Duration::from_secs(30), "iperf3", || {
        let report: Value = serde_json::from_str(&from.sh(&line).out).ok()?;
        report["end"]["sum_received"]["bits_per_second"].as_f64()
    });
    rate * 1e-6
}

/// Both orders. The way then carries as much as one that was punched without guessing.
#[test]
fn a_port_is_guessed_soon_and_the_way_is_as_fast_as_any() {
    let rounds = if long() { 40 } else { 3 };
    let lab = Lab::alone();
    let public = backbone(&lab, 3);
    let (mut hard_router, easy_router) = (lab.router(Nat::Symmetric), lab.router(Nat::PortRestricted));
    let node = |router: &Router<'_>, n: usize| {
        router.node().with(&["--inbound", "allow"]).logging("debug").knows(&public[n])
    };
    let (mut hard, mut easy) = (node(&hard_router, 0), node(&easy_router, 1));
    let (mut checks, mut sprays, mut directs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        if round > 0 {
            hard.kill();
            easy.kill();
            // Holes of the last round would let checks in that hit nothing.
            hard_router.forget_connections();
            easy_router.forget_connections();
        }
        hard.start();
        easy.start();
        (hard, easy) = (joined(hard, 2), joined(easy, 2));
        let (from, to) = if round % 2 == 0 { (&hard, &easy) } else { (&easy, &hard) };
        let first = from.reaches(to, Duration::from_secs(5));
        let (_, direct) = eventually(GUESSED, "the way is straight", || is_direct(from, to).then_some(()));
        let (sent, ms) = guessed(&easy).expect("its log says so");
        println!(
            "round {round}, {} side first: reply {first:.0?}, direct {direct:.0?} later; {sent} checks in {ms} ms",
            if round % 2 == 0 { "hard" } else { "easy" }
        );
        checks.push(sent);
        sprays.push(ms);
        directs.push(direct.as_secs_f64() * 1e3);
    }
    let line = |samples: &[f64]| {
        format!(
            "p50 {:.0}, p95 {:.0}, max {:.0}",
            percentile(samples, 50),
            percentile(samples, 95),
            percentile(samples, 100)
        )
    };
    println!("{rounds} sprays: {} ms; checks {}", line(&sprays), line(&checks));
    println!("from the first reply to the straight way: {} ms", line(&directs));
    assert!(!long() || percentile(&sprays, 50) <= MEDIAN_MS && percentile(&sprays, 100) <= WORST_MS);

    let other_router = lab.router(Nat::PortRestricted);
    let other = joined(node(&other_router, 2).started(), 2);
    other.reaches(&easy, Duration::from_secs(5));
    eventually(Duration::from_secs(5), "the other way is straight", || {
        is_direct(&other, &easy).then_some(())
    });
    let _server = listening(&easy, &format!("iperf3 -s -B {}", easy.address), 5201);
    let _hard_server = listening(&hard, &format!("iperf3 -s -B {}", hard.address), 5201);
    for round in 0..if long() { 3 } else { 1 } {
        let punched = throughput(&other, &easy);
        let (out, back) = (throughput(&hard, &easy), throughput(&easy, &hard));
        println!(
            "round {round}: TCP over a punched way {punched:.0} Mbit/s, a guessed one {out:.0} and {back:.0}"
        );
        // On a busy machine two runs tell nothing of each other.
        assert!(!long() || out > punched / 3.0 && back > punched / 3.0, "{punched}, {out}, {back}");
    }
    // A busy machine may be silent for longer than a path is trusted; the relay is left as soon as the straight way answers.
    eventually(BACK, "it stays so, or is so again", || is_direct(&hard, &easy).then_some(()));
    survives_forgetting(&mut hard_router, &hard, &easy);
}

/// The symmetric NAT forgets its mappings under a TCP flow: the relay takes over, and the port is guessed anew.
fn survives_forgetting(hard_router: &mut Router<'_>, hard: &Node, easy: &Node) {
    let pinger = Pinger::start(easy, hard.address, "0.02");
    let start = Instant::now();
    pinger.first_after(start, Duration::from_secs(3), "pings are answered before");
    let line = format!("iperf3 -6 -c {} -t 4 -b 20M --connect-timeout 3000", easy.address);
    let mut flow = hard.spawn(&line, "iperf3.log");
    thread::sleep(Duration::from_secs(1));
    let ways = || hard.log().matches("way found by guessing ports").count();
    let (forgot, before) = (Instant::now(), ways());
    hard_router.forget();
    let ended = flow.ended(Duration::from_secs(30));
    assert!(ended.is_some_and(|status| status.success()), "the TCP flow breaks: {}", flow.log());
    eventually(Duration::from_secs(60), "the port is guessed anew", || {
        (ways() > before && is_direct(hard, easy)).then_some(())
    });
    println!(
        "the NAT forgot: straight again after {:.1?}, longest gap {:.0?}",
        forgot.elapsed(),
        pinger.longest_gap(start)
    );
}

/// A daemon that may open few files has no sockets to spare: it stays on its relay, and nothing else fails.
#[test]
fn without_descriptors_to_spare_the_relay_is_good_enough() {
    let lab = Lab::alone();
    let public = backbone(&lab, 3);
    let (hard_router, easy_router) = (lab.router(Nat::Symmetric), lab.router(Nat::PortRestricted));
    let mut hard = hard_router.node().with(&["--inbound", "allow"]).logging("debug").knows(&public[0]);
    hard.launch_under(&["prlimit", "--nofile=64"]);
    hard.wait_ready();
    let hard = joined(hard, 2);
    let easy = joined(easy_router.node().with(&["--inbound", "allow"]).knows(&public[1]).started(), 2);
    easy.reaches(&hard, Duration::from_secs(5));
    let (_, took) = eventually(Duration::from_secs(10), "the log says why", || {
        hard.log().contains("too few descriptors").then_some(())
    });
    println!("said after {took:?}, {} open", hard.proc_count("fd"));
    assert_eq!((kind(&easy, &hard).as_str(), kind(&hard, &easy).as_str()), ("relay", "relay"));
    assert!(easy.ping(hard.address, 1).is_some() && hard.ping(easy.address, 1).is_some());
    assert!(hard.proc_count("fd") < 64);
}
