//! Strangers at the TCP port where streams are taken: it looks like a small web server, and nothing they do there harms.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use auramesh::proto::identity::NodeId;
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::stream::ticket;
use auramesh::stream::PLACES_PER_PREFIX_MAX;
use serde_json::Value;

use crate::lab::capture::{Capture, Frame, contains};
use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::{Lab, Machine, Underlay, eventually};
use crate::streams::LISTEN;

/// Idle connections of one stranger.
const CROWD: usize = 1000;
/// Descriptors that the daemon may have while they come: those of its own, and of connections that ask for nothing.
const DESCRIPTORS_MAX: usize = 300;
const PATIENCE: Duration = Duration::from_secs(3);
/// Streams of one stranger, more than there are places for it.
const STREAMS: usize = PLACES_PER_PREFIX_MAX + 20;

fn server(lab: &Lab) -> Node {
    lab.public(Underlay::V4)
        .with(&["--inbound", "allow", "--stream-listen", LISTEN])
        .logging("debug")
        .started()
}

fn counter(node: &Node, name: &str) -> u64 {
    let streams: Value = node.status()["streams"].clone();
    streams["counters"][name].as_u64().unwrap_or_else(|| panic!("{name} in {streams}"))
}

fn dial(from: &Machine, to: &Node) -> TcpStream {
    let at = SocketAddr::new(to.ip, 443);
    let stream = from.inside(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_thousand_idle_connections_cost_little_and_keep_nobody_out() {
    let lab = Lab::new();
    let server = server(&lab);
    let friend = lab.public(Underlay::V4).knows(&server).started();
    friend.reaches(&server, Duration::from_secs(5));
    let stranger = lab.public_machine(Underlay::V4);
    let start = Instant::now();
    let mut crowd: Vec<_> = (0..CROWD)
        .map(|n| {
            let mut stream = dial(&stranger, &server);
            let _ = stream.write_all(if n % 2 == 0 { b"G" } else { b"\x16" });
            stream
        })
        .collect();
    // One who knows the node, and has nothing to say.
    let mut silent = dial(&stranger, &server);
    silent.write_all(upgrade(&server, "").as_bytes()).unwrap();
    let length = silent.read(&mut [0; 512]).unwrap();
    assert!(length > 0, "the stream is opened");
    crowd.push(silent);
    let descriptors = server.proc_count("fd");
    assert!(descriptors <= DESCRIPTORS_MAX, "{descriptors} descriptors");
    let asked = Instant::now();
    assert!(counter(&server, "crowded") >= CROWD as u64 - 200);
    assert!(asked.elapsed() < Duration::from_secs(1), "the control socket waits: {:?}", asked.elapsed());
    assert!(friend.ping(server.address, 1).is_some(), "UDP goes on");

    let blocked = lab.router(Nat::UdpBlocked);
    let own = blocked.node().knows(&server).started();
    own.reaches(&server, Duration::from_secs(5));
    // Who says no more is not waited for.
    let (_, took) = eventually(Duration::from_secs(20), "the last of the crowd is gone", || {
        let mut open = 0;
        for stream in &mut crowd {
            stream.set_nonblocking(true).unwrap();
            open += usize::from(
                stream.read(&mut [0; 512]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
            );
        }
        (open == 0).then_some(())
    });
    println!(
        "{CROWD} connections in {:?}, {descriptors} descriptors; the last ended {took:?} later; {}",
        start.elapsed() - took,
        server.status()["streams"]["counters"]
    );
    assert!(counter(&server, "timed-out") > 0);
    assert!(own.ping(server.address, 1).is_some() && friend.ping(server.address, 1).is_some());
}

/// Sends `request` and reads until the other side ends it, or says nothing more.
fn answer(from: &Machine, to: &Node, request: &[u8]) -> Vec<u8> {
    let mut stream = dial(from, to);
    let _ = stream.write_all(request);
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        answer.extend(&buffer[..length]);
    }
    answer
}

fn status_of(answer: &[u8]) -> u16 {
    let head = String::from_utf8_lossy(answer).into_owned();
    let number = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    number.map_or(0, |number| number.parse().unwrap())
}

/// The request that opens a stream to `server`, with more headers.
fn upgrade(server: &Node, more: &str) -> String {
    let id: NodeId = server.id.parse().unwrap();
    let key = RecipientKey::new(&id, &NetworkSecret::default());
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let ticket = ticket(&key, unix.as_millis() as u64, [1, 2, 3, 4, 5, 6]);
    format!(
        "GET /{ticket} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n",
        server.ip
    )
}

#[test]
fn what_is_no_stream_gets_the_answers_of_a_web_server() {
    let lab = Lab::new();
    let server = server(&lab);
    let stranger = lab.public_machine(Underlay::V4);
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(500));
    let smuggled = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /a";
    let plain = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let foreign = upgrade(&server, "Origin: https://example.org\r\n");
    let cases: [(&str, &[u8], &[u16]); 9] = [
        ("a page", b"GET /index.html HTTP/1.1\r\nHost: x\r\n\r\n", &[404]),
        ("the control API", b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", &[404]),
        ("an upgrade without a ticket", plain.as_bytes(), &[404]),
        ("a foreign origin", foreign.as_bytes(), &[403]),
        ("an HTTP proxy", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n", &[404, 400]),
        ("a long header", long.as_bytes(), &[431, 400, 0]),
        ("many headers", many.as_bytes(), &[431, 400]),
        ("a smuggled request", smuggled.as_bytes(), &[404, 400]),
        ("no HTTP", b"\x00\x01\x02SSH-2.0-x\r\n\r\n", &[400, 0]),
    ];
    for (what, request, expected) in cases {
        let rejected = counter(&server, "rejected");
        let answer = answer(&stranger, &server, request);
        assert!(expected.contains(&status_of(&answer)), "{what}: {}", String::from_utf8_lossy(&answer));
        assert!(!contains(&answer, b"aura") && !contains(&answer, b"azora"), "{what}");
        eventually(PATIENCE, what, || (counter(&server, "rejected") > rejected).then_some(()));
    }

    // Who knows the node gets a stream, and no further than that.
    let frames: [(&str, &[u8]); 5] = [
        ("a frame without a mask", b"\x82\x05hello"),
        ("text", b"\x81\x81\x00\x00\x00\x00x"),
        ("a frame beyond the limit", b"\x82\xff\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00"),
        ("a message that is none of ours", &[&b"\x82\xc0\x00\x00\x00\x00"[..], &[7; 64]].concat()),
        ("a reserved opcode", b"\x8b\x80\x00\x00\x00\x00"),
    ];
    for (what, frame) in frames {
        let malformed = counter(&server, "malformed");
        let answer = answer(&stranger, &server, &[upgrade(&server, "").as_bytes(), frame].concat());
        assert_eq!(status_of(&answer), 101, "{what}");
        eventually(PATIENCE, what, || (counter(&server, "malformed") > malformed).then_some(()));
    }
    eventually(PATIENCE, "all streams are gone", || (server.status()["streams"]["taken"] == 0).then_some(()));
}

/// The node is told of the end also when a stream ends because another one took its place.
#[test]
fn streams_that_give_way_to_others_are_forgotten() {
    let lab = Lab::new();
    let server = server(&lab);
    let stranger = lab.public_machine(Underlay::V4);
    let crowd: Vec<_> = (0..STREAMS)
        .map(|_| {
            let mut stream = dial(&stranger, &server);
            stream.write_all(upgrade(&server, "").as_bytes()).unwrap();
            assert!(stream.read(&mut [0; 512]).unwrap() > 0, "the stream is opened");
            stream
        })
        .collect();
    assert!(counter(&server, "crowded") > 0);
    let taken = |at_most: usize| {
        let taken = server.status()["streams"]["taken"].as_u64().unwrap();
        (taken <= at_most as u64).then_some(())
    };
    eventually(PATIENCE, "no more streams than there are places", || taken(PLACES_PER_PREFIX_MAX));
    drop(crowd);
    eventually(PATIENCE, "all streams are gone", || taken(0));
}

/// What `machine` sent by TCP to port 443, connection after connection, without retransmissions.
fn sent(frames: &[Frame], machine: &Machine) -> Vec<Vec<u8>> {
    let std::net::IpAddr::V4(ip) = machine.ip else { panic!("an IPv4 lab") };
    let mut streams = std::collections::BTreeMap::<u16, std::collections::BTreeMap<u32, Vec<u8>>>::new();
    for frame in frames {
        let is_ours =
            frame.len() > 54 && frame[23] == 6 && frame[26..30] == ip.octets() && frame[36..38] == [1, 187];
        if is_ours {
            let tcp = &frame[34..];
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]])) + 14;
            let payload = &frame[34 + usize::from(tcp[12] >> 4) * 4..total.min(frame.len())];
            let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
            if !payload.is_empty() {
                let port = u16::from_be_bytes([tcp[0], tcp[1]]);
                streams.entry(port).or_default().insert(number(4), payload.to_vec());
            }
        }
    }
    streams.into_values().map(|parts| parts.into_values().collect::<Vec<_>>().concat()).collect()
}

#[test]
fn the_start_of_a_stream_is_that_of_any_websocket_or_tls_connection() {
    let lab = Lab::new();
    let server = server(&lab);
    for tls in [false, true] {
        let router = lab.router(Nat::UdpBlocked);
        let node = router.node();
        let file = node.dir.join("azora.toml");
        std::fs::write(&file, format!("[net]\nstream_tls = {tls}\n")).unwrap();
        let node = node.with(&["--config", file.to_str().unwrap()]).knows(&server);
        let capture = Capture::start(&node.netns, "eth0");
        let mut node = node.started();
        node.reaches(&server, Duration::from_secs(5));
        if !tls {
            node.kill();
            node.start();
            node.reaches(&server, Duration::from_secs(5));
        }
        let streams = sent(&capture.stop(), &node);
        assert!(streams.len() >= if tls { 1 } else { 2 }, "{} connections", streams.len());
        let constants = [server.id.as_bytes(), node.id.as_bytes(), b"aura", b"azora", b"noise"];
        for stream in &streams {
            assert!(constants.iter().all(|constant| !contains(stream, constant)));
        }
        if tls {
            assert!(streams.iter().all(|stream| stream.starts_with(&[22, 3, 1])), "a client hello");
            continue;
        }
        let heads: Vec<_> = streams.iter().map(|stream| head(stream)).collect();
        println!("{}", heads[0].0);
        assert_ne!(heads[0].0, heads[1].0, "the path and the key are others each time");
        for (request, frames) in &heads {
            let names: Vec<_> = request.lines().skip(1).filter_map(|line| line.split(':').next()).collect();
            let usual = ["Host", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key"];
            assert_eq!(names, usual, "{request}");
            assert!(frames[0] == 0x82 && frames[1] & 0x80 != 0, "a masked binary frame");
        }
    }
}

/// The request, and what follows.
fn head(stream: &[u8]) -> (String, Vec<u8>) {
    let end = stream.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    (String::from_utf8(stream[..end].to_vec()).unwrap(), stream[end + 4..].to_vec())
}
