//! Datagrams from strangers.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::lab::capture::{Capture, datagram};
use crate::lab::node::{Node, PORT};
use crate::lab::{Lab, Machine, Underlay, eventually, noise};

/// Bytes that memory may grow under any flood of strangers.
const GROWTH_KB: u64 = 16 * 1024;

/// Large datagrams of a kind, and how many are sent between two pauses, so that the socket's buffer does not overflow.
const LARGE: u64 = 200;
const LARGE_BURST: u64 = 8;
const LARGE_PAUSE: Duration = Duration::from_millis(5);

/// UDP bytes that came out of port 5747 towards a stranger; none may.
fn bytes_back(capture: Capture) -> usize {
    let frames = capture.stop();
    let answers =
        frames.iter().filter_map(|frame| datagram(frame)).filter(|answer| answer.source_port == PORT);
    answers.map(|answer| answer.payload.len()).sum()
}

fn stranger(lab: &Lab) -> (Machine, UdpSocket, Capture) {
    let machine = lab.machine(Underlay::V4);
    let socket = machine.inside(|| UdpSocket::bind((machine.ip, 4000))).unwrap();
    let capture = Capture::start(&lab.lan(), &format!("p{}", machine.number));
    (machine, socket, capture)
}

/// Everything that was dropped, whatever the reason.
fn dropped(node: &Node) -> u64 {
    node.status()["drops"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum()
}

fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    let _ = socket.send_to(bytes, to);
}

/// Silence. Each length once at random and once for each family.
#[test]
fn random_datagrams_of_every_length_get_no_byte_back() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let client = lab.node(Underlay::V4).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    let (_machine, socket, capture) = stranger(&lab);
    let before = dropped(&server);
    for length in 0..=2048 {
        let mut bytes = noise(length as u64, length);
        send(&socket, &bytes, server.endpoint());
        for family in [0b0100_0000, 0b1100_0000] {
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0b0011_1111 | family;
            }
            send(&socket, &bytes, server.endpoint());
        }
        if length % 64 == 0 {
            assert!(client.ping(server.address, 1).is_some(), "peers are not disturbed at length {length}");
        }
    }
    let after = dropped(&server);
    println!("6147 datagrams, {} counted", after - before);
    assert!(after > before + 5000, "junk is counted: {before} to {after}");
    assert_eq!(bytes_back(capture), 0, "bytes back to a stranger");
}

/// The largest datagrams, whole and in segments.
#[test]
fn datagrams_of_64_kib_are_dropped_and_reception_goes_on() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let client = lab.node(Underlay::V4).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    let (_machine, socket, capture) = stranger(&lab);
    let counted = |what: &str, bytes_each: usize, datagrams: u64| {
        let before = dropped(&server);
        for seed in 0..LARGE {
            let mut bytes = noise(seed, bytes_each);
            bytes[0] |= 0b1100_0000;
            send(&socket, &bytes, server.endpoint());
            if seed % LARGE_BURST == 0 {
                thread::sleep(LARGE_PAUSE);
            }
        }
        eventually(Duration::from_secs(5), what, || {
            let counted = dropped(&server) - before;
            (counted >= datagrams * 9 / 10).then(|| println!("{what}: {counted} of {datagrams} counted"))
        });
    };
    counted("datagrams of 64 KiB", 65_507, LARGE);
    setsockopt(&socket, UdpGsoSegment, &1200).unwrap();
    counted("segments of 1,200 bytes", 48_000, LARGE * 40);
    client.reaches(&server, Duration::from_secs(2));
    client.must(&format!("ping -6 -n -c 50 -i 0.01 -W 1 {}", server.address));
    assert_eq!(bytes_back(capture), 0, "bytes back to a stranger");
}

/// A flood of junk with the family bits of a handshake; a node that nobody knows yet still gets in.
#[test]
fn a_flood_of_junk_lets_a_new_node_in() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let client = lab.node(Underlay::V4).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    let memory = server.proc_status("VmRSS");
    let (_machine, socket, capture) = stranger(&lab);
    let stop = AtomicBool::new(false);
    let to = server.endpoint();
    let (took, sent, seconds) = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let junk: Vec<Vec<u8>> = (0..256)
                .map(|seed| {
                    let mut bytes = noise(seed, 148 + seed as usize);
                    bytes[0] |= 0b1100_0000;
                    bytes
                })
                .collect();
            let (start, mut sent) = (Instant::now(), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                send(&socket, &junk[sent as usize % junk.len()], to);
                sent += 1;
                // 50,000 a second: in steps of a millisecond.
                let due = Duration::from_millis(sent / 50);
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            (sent, start.elapsed().as_secs_f64())
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let newcomer = lab.node(Underlay::V4).knows(&server);
            let start = Instant::now();
            let newcomer = newcomer.started();
            newcomer.reaches(&server, Duration::from_secs(10));
            let took = start.elapsed();
            client.must(&format!("ping -6 -n -c 100 -i 0.01 -W 1 {}", server.address));
            took
        }));
        stop.store(true, Ordering::Relaxed);
        let (sent, seconds) = flood.join().unwrap();
        (outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), sent, seconds)
    });
    println!("flood of {:.0}/s: a new node reaches it {took:?} after its start", sent as f64 / seconds);
    assert!(took <= Duration::from_secs(6), "{took:?}");
    let growth = server.proc_status("VmRSS").saturating_sub(memory);
    assert!(growth <= GROWTH_KB, "memory grew by {growth} kB");
    assert_eq!(bytes_back(capture), 0, "bytes back to a stranger");
}

/// Other families on the same port: STUN, DTLS, TURN channels and RTP are not ours.
#[test]
fn foreign_protocols_on_the_port_get_no_byte_back() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let (_machine, socket, capture) = stranger(&lab);
    for first in 0..=255_u8 {
        for length in [1, 16, 20, 148, 200, 1200] {
            let mut bytes = noise(first.into(), length);
            bytes[0] = first;
            send(&socket, &bytes, server.endpoint());
        }
    }
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    send(&socket, &stun, server.endpoint());
    eventually(Duration::from_secs(2), "all of it was read", || (dropped(&server) > 1500).then_some(()));
    assert_eq!(bytes_back(capture), 0, "bytes back to a stranger");
}
