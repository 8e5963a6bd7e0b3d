//! Daemons behind real NATs: they reach each other, without a relay wherever that is possible.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::process::Process;
use crate::lab::{Lab, Underlay, eventually, long, noise, percentile};
use crate::programs::listening;

/// From the start of a node behind a NAT until others can find it.
const JOINED: Duration = Duration::from_secs(10);
/// From the first ping to the straight way.
const DIRECT: Duration = Duration::from_secs(5);
/// The same where one side has to guess a port of the other.
pub(crate) const GUESSED: Duration = Duration::from_secs(20);

/// Says that a node carries data for strangers.
pub(crate) fn open(node: Node) -> Node {
    let file = node.dir.join("azora.toml");
    fs::write(&file, "[relay]\nenabled = true\nlimits = { kbit_s = 100000 }\n").unwrap();
    node.with(&["--config", file.to_str().unwrap()])
}

/// Public nodes that know the first one and relay for everybody.
pub(crate) fn backbone(lab: &Lab, n: usize) -> Vec<Node> {
    backbone_on(lab, n, Underlay::V4)
}

/// The same on either version of IP.
pub(crate) fn backbone_on(lab: &Lab, n: usize, underlay: Underlay) -> Vec<Node> {
    let first = open(lab.public(underlay)).started();
    let others: Vec<_> = (1..n).map(|_| open(lab.public(underlay)).knows(&first).started()).collect();
    std::iter::once(first).chain(others).collect()
}

/// Waits until a node behind a NAT has its relays.
pub(crate) fn joined(node: Node, relays: usize) -> Node {
    eventually(JOINED, "the node has relays", || {
        (node.status()["nat"]["relays"].as_array()?.len() >= relays).then_some(())
    });
    node
}

pub(crate) fn kind(from: &Node, to: &Node) -> String {
    from.peer(to).map_or("none".into(), |peer| peer["path"]["kind"].as_str().unwrap().to_owned())
}

/// Bytes of the file that is fetched.
const FILE_BYTES: usize = 2_000_000;

/// Serves a file over HTTP, which [`fetches`] takes.
pub(crate) fn serves(node: &Node) -> Process {
    fs::create_dir(node.dir.join("www")).unwrap();
    fs::write(node.dir.join("www/file"), noise(7, FILE_BYTES)).unwrap();
    let directory = node.dir.join("www");
    listening(
        node,
        &format!("python3 -m http.server 8080 --bind :: --directory {}", directory.display()),
        8080,
    )
}

/// The hash of the file that a node serves.
pub(crate) fn fetched(server: &Node) -> Option<String> {
    let line = format!("sha256sum {}", server.dir.join("www/file").display());
    server.sh(&line).out.split_whitespace().next().map(str::to_owned)
}

/// True when `from` gets the whole file by TCP.
pub(crate) fn fetches(from: &Node, to: &Node) -> bool {
    let line = format!("curl -s --fail -m 20 'http://[{}]:8080/file' | sha256sum", to.address);
    from.sh(&line).out.split_whitespace().next() == fetched(to).as_deref()
}

#[test]
fn sixteen_pairs_of_places_are_connected_and_all_but_one_directly() {
    const PLACES: [Option<Nat>; 4] =
        [None, Some(Nat::FullCone), Some(Nat::PortRestricted), Some(Nat::Symmetric)];
    let lab = Lab::alone();
    let public = backbone(&lab, 3);
    let routers: Vec<_> = PLACES.iter().chain(&PLACES).map(|nat| nat.map(|nat| lab.router(nat))).collect();
    let place = |(n, router): (usize, &Option<_>)| {
        let machine: &Option<crate::lab::nat::Router<'_>> = router;
        let node = machine.as_ref().map_or_else(|| lab.public(Underlay::V4), |router| router.node());
        let node = node.with(&["--inbound", "allow"]).knows(&public[n % public.len()]).started();
        joined(node, if machine.is_some() { 2 } else { 0 })
    };
    let nodes: Vec<_> = routers.iter().enumerate().map(place).collect();
    let (from, to) = nodes.split_at(PLACES.len());
    let _servers: Vec<_> = to.iter().map(serves).collect();
    let (mut firsts, mut directs, mut guessed, mut relayed) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (a, from) in PLACES.iter().zip(from) {
        for (b, to) in PLACES.iter().zip(to) {
            let first = from.ping(to.address, 3).unwrap_or_else(|| {
                for node in public.iter().chain([from, to]) {
                    println!("{} {}", node.number, node.status());
                }
                panic!("{a:?} to {b:?}: no reply")
            });
            firsts.push(first);
            let hard = Some(Nat::Symmetric);
            let easy = Some(Nat::PortRestricted);
            let what = format!("{a:?} to {b:?} is direct");
            let both = || (kind(from, to) == "direct" && kind(to, from) == "direct").then_some(());
            if (*a, *b) == (hard, hard) {
                relayed.push((from, to));
            } else if [(hard, easy), (easy, hard)].contains(&(*a, *b)) {
                guessed.push(eventually(GUESSED, &what, both).1.as_secs_f64() * 1e3);
            } else {
                directs.push(eventually(DIRECT, &what, both).1.as_secs_f64() * 1e3);
            }
            eventually(Duration::from_secs(10), "a page", || fetches(from, to).then_some(()));
            println!("{a:?} to {b:?}: first reply {first:.1} ms, then {}", kind(from, to));
        }
    }
    for (from, to) in relayed {
        assert_eq!((kind(from, to).as_str(), kind(to, from).as_str()), ("relay", "relay"));
    }
    println!(
        "first reply p50 {:.1} ms, max {:.1} ms; direct p50 {:.1} ms, max {:.1} ms; with a port to guess {guessed:.0?} ms",
        percentile(&firsts, 50),
        percentile(&firsts, 100),
        percentile(&directs, 50),
        percentile(&directs, 100)
    );
}

#[test]
fn strangers_introduce_two_nodes_and_say_what_is_missing_where_that_is_not_enough() {
    let lab = Lab::alone();
    let public = [lab.public(Underlay::V4).started(), lab.public(Underlay::V4)];
    let [first, second] = public;
    let second = second.knows(&first).started();
    let behind = |nat| {
        let router = lab.router(nat);
        let node = router.node().with(&["--inbound", "allow"]).knows(&second).started();
        joined(node, 1)
    };
    let (easy, other) = (behind(Nat::PortRestricted), behind(Nat::PortRestricted));
    let (hard, harder) = (behind(Nat::Symmetric), behind(Nat::Symmetric));
    easy.reaches(&other, Duration::from_secs(5));
    assert_eq!((kind(&easy, &other).as_str(), kind(&other, &easy).as_str()), ("direct", "direct"));

    assert!(harder.ping(hard.address, 1).is_none(), "nobody carries it");
    let said = harder.sh(&format!("ping -6 -n -c 2 -W 8 -i 1 {}", hard.address)).out;
    assert!(said.contains("nreachable"), "{said}");
    let (health, took) = eventually(Duration::from_secs(15), "health says what is missing", || {
        let status = harder.status();
        let all = status["health"].as_array()?.clone();
        all.into_iter().find(|entry| entry["code"] == "no-relay-for-data")
    });
    println!("after {took:?}: {health}");
    assert!(health["fix"].as_str().is_some_and(|fix| fix.contains("[relay]")), "{health}");
    let probe = harder.azora(&["probe", &hard.id]);
    assert!(probe.code == 1 && probe.out.contains("carries no data"), "{}", probe.out);
    // Our own ping comes back, which is not all that a user wants to know.
    let ping = harder.azora(&["ping", &hard.id, "-c", "1"]).out;
    assert!(ping.contains("0% lost") && ping.contains("no program gets through"), "{ping}");
    assert!(ping.contains("symmetric NAT") && ping.contains("[relay] enabled = true"), "{ping}");
    let status = harder.azora(&["status"]).out;
    assert!(status.contains("no program gets through") && status.contains("symmetric NAT"), "{status}");
}

/// Megabits a second of one TCP flow.
fn mbit_s(from: &Node, to: &Node) -> f64 {
    let line = format!("iperf3 -6 -c {} -p 5201 -t 3 -J --connect-timeout 3000", to.address);
    let said = from.sh(&line).out;
    let report: serde_json::Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("iperf3: {said}"));
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
}

/// A relay that carries as much as it can for everybody.
fn unlimited(node: Node) -> Node {
    let file = node.dir.join("azora.toml");
    fs::write(&file, "[relay]\nenabled = true\nlimits = { kbit_s = 100000000 }\n").unwrap();
    node.with(&["--config", file.to_str().unwrap()])
}

#[test]
fn a_relay_carries_a_good_part_of_what_the_straight_way_does() {
    let rounds = if long() { 3 } else { 1 };
    let lab = Lab::alone();
    let first = unlimited(lab.public(Underlay::V4)).started();
    let second = unlimited(lab.public(Underlay::V4)).knows(&first).started();
    let behind = |nat| {
        let router = lab.router(nat);
        joined(router.node().with(&["--inbound", "allow"]).knows(&second).started(), 2)
    };
    let [easy, hard, harder] = [Nat::FullCone, Nat::Symmetric, Nat::Symmetric].map(behind);
    let _servers = [&easy, &harder].map(|node| listening(node, "iperf3 -s -p 5201", 5201));
    hard.reaches(&easy, Duration::from_secs(5));
    hard.reaches(&harder, Duration::from_secs(5));
    eventually(DIRECT, "one straight way", || (kind(&hard, &easy) == "direct").then_some(()));
    for _ in 0..rounds {
        let (direct, relayed) = (mbit_s(&hard, &easy), mbit_s(&hard, &harder));
        assert_eq!((kind(&hard, &easy).as_str(), kind(&hard, &harder).as_str()), ("direct", "relay"));
        println!("direct {direct:.0} Mbit/s, by a relay {relayed:.0}: {:.0} %", 100.0 * relayed / direct);
        assert!(relayed > direct / 10.0, "a relay carries next to nothing");
    }
}

/// What others send through a relay over a slow link finds no room: the relay's own packets must not wait for that.
#[test]
fn a_slow_link_of_others_does_not_hold_up_the_relay_itself() {
    let lab = Lab::alone();
    let mut relay = unlimited(lab.public(Underlay::V4));
    relay.plug_in(&lab, Underlay::V6);
    let relay = relay.with(&["--inbound", "allow"]).started();
    let other = unlimited(lab.public(Underlay::V4)).knows(&relay).started();
    let behind = || {
        let router = lab.router(Nat::Symmetric);
        joined(router.node().with(&["--inbound", "allow"]).knows(&relay).started(), 2)
    };
    let [one, two] = [behind(), behind()];
    drop(other);
    let own = lab.public(Underlay::V6);
    let IpAddr::V6(at) = relay.second_address() else { panic!("it has IPv6") };
    let contact = format!("{}@[{at}]:5747", relay.id);
    let own = own.with(&["--bootstrap", &contact]).started();
    own.reaches(&relay, Duration::from_secs(5));
    let _server = listening(&two, "iperf3 -s -p 5201", 5201);
    one.reaches(&two, Duration::from_secs(10));
    let pings = |what: &str| {
        let said = own.must(&format!("ping -6 -n -c 150 -i 0.01 -q {}", relay.address));
        let line = said.lines().find(|line| line.contains("min/avg/max")).unwrap_or_default().to_owned();
        let figures: Vec<f64> =
            line.split(['=', '/', ' ']).filter_map(|word| word.trim().parse().ok()).collect();
        println!("{what}: {line}");
        figures[1]
    };
    let before = pings("pings of the relay before");
    relay.must("tc qdisc add dev eth0 root tbf rate 3mbit burst 10kb limit 8mb");
    let _flow =
        one.spawn(&format!("iperf3 -6 -c {} -p 5201 -u -b 60M -l 1200 -t 20", two.address), "flow.log");
    std::thread::sleep(Duration::from_secs(3));
    let during = pings("and while others overload its link");
    assert!(during < before + 8.0, "{during} ms");
}
