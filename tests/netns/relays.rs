//! Daemons behind real NATs: they reach each other, without a relay wherever that is possible.

use std::fs;
use std::time::Duration;

use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::process::Process;
use crate::lab::{Lab, Underlay, eventually, noise, percentile};
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
    let lab = Lab::new();
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
    let lab = Lab::new();
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
}
