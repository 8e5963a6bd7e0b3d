//! Networks that let no UDP through: by TCP to a node that takes streams, and from there to all others.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::pinger::Pinger;
use crate::lab::process::Process;
use crate::lab::{Lab, Underlay, eventually, long, noise};
use crate::programs::listening;
use crate::relays::{joined, kind};

/// Bytes of the file that is fetched.
const FILE_BYTES: usize = 12_000_000;
/// Where streams are taken: one of the ports that are tried without being told.
pub(crate) const LISTEN: &str = "0.0.0.0:443";
/// From the loss of UDP to the stream.
const FALLBACK: Duration = Duration::from_secs(15);
/// The same soon after UDP got through: for ten seconds nothing is suspected.
const FALLBACK_AGAIN: Duration = Duration::from_secs(30);
/// From UDP getting through again to its use; links have changed.
const BACK: Duration = Duration::from_secs(15);
/// The same when nothing tells that it might.
const BACK_UNTOLD: Duration = Duration::from_secs(95);

/// Public nodes that know the first one, relay for everybody and take streams.
fn servers<const N: usize>(lab: &Lab) -> [Node; N] {
    let mut first: Option<String> = None;
    std::array::from_fn(|_| {
        let node = lab.public(Underlay::V4).with(&["--inbound", "allow", "--stream-listen", LISTEN]);
        let file = node.dir.join("azora.toml");
        fs::write(&file, "[relay]\nenabled = true\nlimits = { kbit_s = 10000000 }\n").unwrap();
        let node = node.with(&["--config", file.to_str().unwrap()]);
        let node = match &first {
            Some(contact) => node.with(&["--bootstrap", contact]),
            None => node,
        };
        first.get_or_insert_with(|| node.contact());
        node.started()
    })
}

/// True when what `from` sends to `to` leaves by TCP.
fn by_tcp(from: &Node, to: &Node) -> bool {
    from.peer(to).is_some_and(|peer| peer["path"]["tcp"] == true)
}

fn serve(node: &Node) -> Process {
    let directory = node.dir.join("www");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), noise(u64::from(node.number), FILE_BYTES)).unwrap();
    listening(
        node,
        &format!("python3 -m http.server 8080 --bind :: --directory {}", directory.display()),
        8080,
    )
}

/// Fetches the file of `to`, whose hash has to be right; megabits a second.
fn fetch(from: &Node, to: &Node) -> f64 {
    let hash = |text: &str| text.split_whitespace().next().unwrap().to_owned();
    let expected = hash(&to.must(&format!("sha256sum {}", to.dir.join("www/file").display())));
    let start = Instant::now();
    let got = from.must(&format!("curl -sS --fail -m 60 'http://[{}]:8080/file' | sha256sum", to.address));
    assert_eq!(hash(&got), expected);
    FILE_BYTES as f64 * 8e-6 / start.elapsed().as_secs_f64()
}

#[test]
fn nodes_without_udp_reach_servers_of_streams_nodes_behind_nats_and_each_other() {
    let lab = Lab::alone();
    let [first, second] = servers(&lab);
    let blocked = [lab.router(Nat::UdpBlocked), lab.router(Nat::UdpBlocked)];
    let behind_nat = lab.router(Nat::PortRestricted);
    let start = Instant::now();
    let [a, c] = blocked.each_ref().map(|router| router.node().with(&["--inbound", "allow"]).knows(&first));
    let b = behind_nat.node().with(&["--inbound", "allow"]).knows(&second).started();
    let a = a.started();
    println!("ready {:?} after the start of the first", start.elapsed());
    let (a, b, c) = (joined(a, 1), joined(b, 2), joined(c.started(), 1));
    let health = a.status()["health"].as_array().unwrap().clone();
    let said = health.iter().find(|entry| entry["code"] == "udp-blocked").unwrap();
    let text = said["text"].as_str().unwrap();
    assert!(text.contains(&first.id) || text.contains(&second.id), "{said}");
    eventually(Duration::from_secs(20), "a second stream, to a node that it was told of", || {
        (a.status()["streams"]["opened"].as_array()?.len() == 2).then_some(())
    });

    let _servers = [&first, &b, &c].map(serve);
    for (to, path) in [(&first, "direct"), (&b, "relay"), (&c, "relay")] {
        let took = a.reaches(to, Duration::from_secs(10));
        let rate = fetch(&a, to);
        assert!(by_tcp(&a, to) && kind(&a, to) == path, "{}", a.peer(to).unwrap());
        println!("to machine {}: {path} by TCP, first reply after {took:?}, {rate:.0} Mbit/s", to.number);
    }
    println!("without a stream, from the second server to the first: {:.0} Mbit/s", fetch(&second, &first));
    let said = a.azora(&["ping", &first.id, "-c", "1"]).out;
    assert!(said.contains(&format!("direct tcp {}:443", first.ip)), "{said}");
    assert_eq!(first.status()["streams"]["taken"], 2, "{}", first.status()["streams"]);
}

#[test]
fn a_flow_goes_on_when_udp_is_blocked_and_when_it_is_back() {
    let lab = Lab::alone();
    let [server] = servers(&lab);
    let router = lab.router(Nat::PortRestricted);
    let node = joined(router.node().knows(&server).started(), 1);
    node.reaches(&server, Duration::from_secs(5));
    assert!(!by_tcp(&node, &server));
    let _iperf = listening(&server, "iperf3 -s -p 5201", 5201);
    let pinger = Pinger::start(&node, server.address, "0.05");
    // Until it is told to end.
    let line = format!("iperf3 -6 -c {} -p 5201 -t 600 -b 10M --connect-timeout 3000", server.address);
    let mut flow = node.spawn(&line, "iperf3.log");
    thread::sleep(Duration::from_secs(1));
    let mut phase = |what: &str, event: &dyn Fn(), limit: Duration, tcp: bool| {
        let start = Instant::now();
        event();
        let (_, took) = eventually(limit, what, || {
            let settled = by_tcp(&node, &server) == tcp && by_tcp(&server, &node) == tcp;
            (settled && !pinger.since(Instant::now() - Duration::from_millis(300)).is_empty()).then_some(())
        });
        assert!(flow.is_running(), "{what}: the TCP flow has broken: {}", flow.log());
        println!("{what}: after {took:?}, longest silence {:?}", pinger.longest_gap(start));
    };
    phase("blocked: by TCP", &|| router.block_udp(), FALLBACK, true);
    let moves = || {
        router.let_udp();
        node.must("ip address add 192.168.77.7/24 dev eth0");
    };
    phase("links changed: by UDP", &moves, BACK, false);
    let told = |what: &str| node.log().matches(what).count();
    assert_eq!((told("UDP does not get through: TCP is tried"), told("UDP gets through again")), (1, 1));
    // The stream is still there, and not used.
    thread::sleep(Duration::from_secs(2));
    assert!(!by_tcp(&node, &server) && !by_tcp(&server, &node), "{}", node.peer(&server).unwrap());
    if long() {
        eventually(Duration::from_secs(30), "the stream is hung up", || {
            node.status()["streams"]["opened"].as_array()?.is_empty().then_some(())
        });
    }
    phase("blocked again: by TCP", &|| router.block_udp(), FALLBACK_AGAIN, true);
    if long() {
        // Until the last checks by UDP are over.
        thread::sleep(Duration::from_secs(10));
        phase("back, and nobody says so: by UDP", &|| router.let_udp(), BACK_UNTOLD, false);
    }
}

#[test]
fn a_flow_goes_on_by_another_stream_when_the_server_of_one_dies() {
    let lab = Lab::alone();
    let mut servers: [Node; 2] = servers(&lab);
    let blocked = lab.router(Nat::UdpBlocked);
    let behind_nat = lab.router(Nat::PortRestricted);
    let b = behind_nat.node().with(&["--inbound", "allow"]).knows(&servers[0]).knows(&servers[1]).started();
    let b = joined(b, 2);
    let a = joined(blocked.node().knows(&servers[0]).knows(&servers[1]).started(), 2);
    a.reaches(&b, Duration::from_secs(10));
    let _iperf = listening(&b, "iperf3 -s -p 5201", 5201);
    let pinger = Pinger::start(&a, b.address, "0.05");
    let line = format!("iperf3 -6 -c {} -p 5201 -t 8 -b 10M --connect-timeout 3000", b.address);
    let mut flow = a.spawn(&line, "iperf3.log");
    thread::sleep(Duration::from_secs(2));
    let via = a.peer(&b).unwrap()["path"]["via"][0].as_str().unwrap().to_owned();
    let dies = servers.iter().position(|server| server.id == via).unwrap();
    let start = Instant::now();
    servers[dies].kill();
    let ended = flow.ended(Duration::from_secs(40));
    assert!(ended.is_some_and(|status| status.success()), "the TCP flow breaks: {}", flow.log());
    println!("server of the stream killed: longest silence {:?}", pinger.longest_gap(start));
    let path = a.peer(&b).unwrap()["path"].clone();
    assert_eq!(path["via"][0], servers[1 - dies].id.as_str(), "{path}");
}
