//! Several workers: queues of the interface and sockets that share a port.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::lab::node::Node;
use crate::lab::process::check_one_line;
use crate::lab::{Lab, Underlay, eventually, ip, long, noise};

const FLOWS: u64 = 8;
const PORT: u16 = 7000;

fn node(lab: &Lab, underlay: Underlay, workers: usize) -> Node {
    lab.node(underlay).with(&["--inbound", "allow", "--workers", &workers.to_string()])
}

fn content(seed: u64) -> Vec<u8> {
    noise(seed, if long() { 64 << 20 } else { 8 << 20 })
}

/// Sends what the other side knows, and checks what comes back.
fn exchange(mut stream: TcpStream, mine: u64, theirs: u64) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        writing.write_all(&content(mine)).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    let expected = content(theirs);
    assert_eq!(got.len(), expected.len(), "flow {theirs}");
    assert_eq!(blake3::hash(&got), blake3::hash(&expected), "flow {theirs}");
}

/// Parallel TCP flows, both ways at once.
fn flows_are_whole(client: &Node, server: &Node) {
    let listener = server.inside(|| TcpListener::bind((server.address, PORT)).unwrap());
    let accepting = thread::spawn(move || {
        let flows: Vec<_> = (0..FLOWS)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                thread::spawn(move || {
                    let mut number = [0; 1];
                    stream.read_exact(&mut number).unwrap();
                    let number = u64::from(number[0]);
                    exchange(stream, 100 + number, 200 + number);
                })
            })
            .collect();
        flows.into_iter().for_each(|flow| flow.join().unwrap());
    });
    let flows: Vec<_> = (0..FLOWS)
        .map(|number| {
            let mut stream = client.inside(|| TcpStream::connect((server.address, PORT)).unwrap());
            stream.write_all(&[number as u8]).unwrap();
            thread::spawn(move || exchange(stream, 200 + number, 100 + number))
        })
        .collect();
    flows.into_iter().for_each(|flow| flow.join().unwrap());
    accepting.join().unwrap();
}

fn pings_are_not_lost(from: &Node, to: &Node) {
    let said = from.must(&format!("ping -n -q -c 300 -i 0.009 -W 1 {} || true", to.address));
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// One thread carries both directions while there is little to do: the other is not woken for single packets.
#[test]
fn the_outward_thread_works_only_while_there_is_much_to_do() {
    let lab = Lab::alone();
    let server = node(&lab, Underlay::V4, 1).started();
    let client = node(&lab, Underlay::V4, 1).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    let woken = || {
        [&client, &server].map(|node| {
            let threads = node.wake_ups();
            threads.iter().find(|((_, name), _)| name == "azora-out").map(|(_, woken)| *woken).unwrap()
        })
    };
    let sleeps = || {
        let before = woken();
        (0..20).all(|_| client.ping(server.address, 1).is_some()) && woken() == before
    };
    eventually(Duration::from_secs(5), "single packets leave it asleep", || sleeps().then_some(()));
    let before = woken();
    flows_are_whole(&client, &server);
    let after = woken();
    assert!(after.iter().zip(before).all(|(after, before)| *after > before), "{before:?}, then {after:?}");
    eventually(Duration::from_secs(5), "and again after much", || sleeps().then_some(()));
}

/// Names of the threads that carry packets.
fn threads(node: &Node) -> Vec<String> {
    let all = node.wake_ups().into_keys().map(|(_, name)| name);
    let mut carrying: Vec<_> =
        all.filter(|name| name.starts_with("azora-out") || name.starts_with("azora-in")).collect();
    carrying.sort();
    carrying
}

#[test]
fn nodes_with_any_number_of_workers_carry_flows_whole() {
    for (underlay, ours, theirs) in [
        (Underlay::V4, 3, 3),
        (Underlay::V6, 3, 3),
        (Underlay::V4, 3, 1),
        (Underlay::V4, 1, 3),
        (Underlay::V4, 8, 2),
    ] {
        let lab = Lab::alone();
        let server = node(&lab, underlay, theirs).started();
        let client = node(&lab, underlay, ours).knows(&server).started();
        client.reaches(&server, Duration::from_secs(5));
        assert_eq!((threads(&client).len(), threads(&server).len()), (2 * ours, 2 * theirs));
        let before = client.wake_ups();
        pings_are_not_lost(&client, &server);
        pings_are_not_lost(&server, &client);
        flows_are_whole(&client, &server);
        flows_are_whole(&server, &client);
        pings_are_not_lost(&client, &server);
        let busy = |kind: &str| {
            let woke = |thread: &(u32, String), n: u64| n > before.get(thread).copied().unwrap_or(0) + 20;
            let all = client.wake_ups();
            all.into_iter().filter(|(thread, n)| thread.1.starts_with(kind) && woke(thread, *n)).count()
        };
        println!(
            "{underlay:?}, {ours} and {theirs} workers: {} of {ours} threads sent, {} received",
            busy("azora-out"),
            busy("azora-in")
        );
        assert!(ours == 1 || busy("azora-out") > 1, "the flows of one peer are spread");
    }
}

/// How often the interface is deleted under the daemon.
const DELETIONS: usize = 5;

#[test]
fn several_workers_outlive_what_happens_to_the_interface_and_the_daemon() {
    let lab = Lab::alone();
    let server = node(&lab, Underlay::V4, 3).started();
    let mut client = node(&lab, Underlay::V4, 3).knows(&server).started();
    let soon = Duration::from_secs(5);
    client.reaches(&server, soon);
    for change in ["link set azora0 down", "link set azora0 mtu 600", "-6 addr flush dev azora0"] {
        ip(&format!("-n {} {change}", client.netns));
        client.reaches(&server, soon);
    }
    for command in ["down", "up"] {
        assert_eq!(client.azora(&[command]).code, 0);
    }
    client.reaches(&server, soon);
    flows_are_whole(&client, &server);

    // All threads end at the same moment: the reason must not be lost among them.
    for _ in 0..DELETIONS {
        ip(&format!("-n {} link del azora0", client.netns));
        assert_eq!(client.exit(Duration::from_secs(10)), Some(1), "{}", client.log());
        assert!(client.log().lines().last().unwrap_or_default().contains("azora0"), "{}", client.log());
        assert_eq!(client.interfaces(), ["lo", "eth0"]);
        client.start();
    }
    client.reaches(&server, soon);
    flows_are_whole(&client, &server);

    client.kill();
    client.start();
    client.reaches(&server, soon);
    assert_eq!(client.stop(), 0);
    assert_eq!(client.interfaces(), ["lo", "eth0"]);
    client.start();
    client.reaches(&server, soon);
    pings_are_not_lost(&client, &server);
}

/// A TUN with several queues and a port that sockets share would both let a second daemon in.
#[test]
fn a_second_daemon_gets_neither_queue_nor_port() {
    let lab = Lab::alone();
    let first = node(&lab, Underlay::V4, 3).started();
    let other = first.dir.join("other");
    let second = |flags: &str| {
        let words = first.daemon_line().join(" ");
        let words =
            words.replace(&first.state_dir().display().to_string(), &other.join("s").display().to_string());
        let words =
            words.replace(&first.socket().display().to_string(), &other.join("r/s").display().to_string());
        first.sh(&format!("mkdir -p {}; timeout 10 {words} {flags}", other.display()))
    };
    let taken = second("--tun azora1");
    assert_eq!(taken.code, 1, "{taken:?}");
    check_one_line(&taken.err, &["5747", "--listen"]);
    let taken = second("--listen 0.0.0.0:5999");
    assert_eq!(taken.code, 1, "{taken:?}");
    check_one_line(&taken.err, &["azora0", "in use"]);
    let peer = node(&lab, Underlay::V4, 1).knows(&first).started();
    peer.reaches(&first, Duration::from_secs(5));
    pings_are_not_lost(&peer, &first);
}

#[test]
fn a_prepared_tun_decides_how_many_workers_there_are() {
    for (kind, workers) in [("", 1), (" multi_queue", 3)] {
        let lab = Lab::alone();
        let server = node(&lab, Underlay::V4, 3).started();
        let mut client = node(&lab, Underlay::V4, 3).knows(&server);
        ip(&format!("-n {} tuntap add dev azora0 mode tun{kind}", client.netns));
        client.start();
        client.reaches(&server, Duration::from_secs(5));
        assert_eq!(threads(&client).len(), 2 * workers);
        assert_eq!(client.log().contains("fewer workers"), workers == 1, "{}", client.log());
        flows_are_whole(&client, &server);
        pings_are_not_lost(&server, &client);
        assert_eq!(client.stop(), 0);
        eventually(Duration::from_secs(2), "the prepared TUN stays", || {
            client.interfaces().contains(&"azora0".to_owned()).then_some(())
        });
    }
}
