//! What a stranger sees and can do with what they saw on the underlay.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use crate::lab::capture::{Capture, Frame, contains, datagram};
use crate::lab::node::{Node, PORT};
use crate::lab::{Lab, Underlay, eventually, long, noise};

const MARKER: &str = "A-MARKER-NOBODY-ELSE-WRITES.";

/// UDP payloads that `node` sent to a mesh port.
fn sent_by(frames: &[Frame], node: &Node) -> Vec<Vec<u8>> {
    let octets = match node.ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ours = frames.iter().filter_map(|frame| datagram(frame));
    ours.filter(|d| d.source == octets && d.source_port == PORT && d.destination_port == PORT)
        .map(|d| d.payload.to_vec())
        .collect()
}

#[test]
fn no_inner_byte_crosses_the_underlay_in_clear() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let lab = Lab::new();
        let server = lab.node(underlay).with(&["--inbound", "allow"]).started();
        let client = lab.node(underlay).knows(&server);
        let capture = Capture::start(&lab.lan(), "p2");
        let client = client.started();
        client.reaches(&server, Duration::from_secs(5));
        let marker: String = MARKER.bytes().take(16).map(|byte| format!("{byte:02x}")).collect();
        client.must(&format!("ping -6 -n -c 20 -i 0.01 -s 1000 -p {marker} {}", server.address));
        fs::write(server.dir.join("page"), MARKER.repeat(20_000)).unwrap();
        let line = format!(
            "python3 -m http.server 8000 --bind {} --directory {}",
            server.address,
            server.dir.display()
        );
        let _server = server.spawn(&line, "server.log");
        let url = format!("http://[{}]:8000/page", server.address);
        eventually(Duration::from_secs(10), "the page arrives", || {
            (client.sh(&format!("curl -sS --fail -m 5 '{url}'")).out == MARKER.repeat(20_000)).then_some(())
        });
        let frames = capture.stop();
        let bytes: usize = frames.iter().map(Vec::len).sum();
        assert!(bytes > 600_000, "the capture saw the transfer: {bytes} bytes");
        let needles =
            [&MARKER.as_bytes()[..8], b"HTTP/1", &client.address.octets(), &server.address.octets()];
        for needle in needles {
            let hits = frames.iter().filter(|frame| contains(frame, needle)).count();
            assert_eq!(hits, 0, "{underlay:?}: {needle:02x?} in clear");
        }
        println!("{underlay:?}: {} frames, {bytes} bytes, nothing in clear", frames.len());
    }
}

/// A node that starts anew fetches the record of the one whose key it was told (its first datagram), then opens a
/// session (its second).
#[test]
fn handshakes_share_nothing_but_the_family_bits() {
    let count = if long() { 1_000 } else { 40 };
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let mut client = lab.node(Underlay::V4).knows(&server);
    let (mut fetches, mut handshakes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let capture = Capture::start(&lab.lan(), "p2");
        client.start();
        let two = || sent_by(&capture.so_far(), &client).first_chunk::<2>().cloned();
        let ([fetch, handshake], _) = eventually(Duration::from_secs(5), "the client opens a session", two);
        fetches.push(fetch);
        handshakes.push(handshake);
        client.kill();
    }
    check_no_constant_bit("record fetches", &fetches);
    let lengths = check_no_constant_bit("handshakes", &handshakes);
    assert!(lengths.len() >= 16, "lengths are padded at random: {lengths:?}");
}

/// Every bit beyond the family takes both values; the lengths that occur.
fn check_no_constant_bit(what: &str, packets: &[Vec<u8>]) -> BTreeSet<usize> {
    let lengths: BTreeSet<_> = packets.iter().map(Vec::len).collect();
    println!("{} {what}, {} different lengths from {:?}", packets.len(), lengths.len(), lengths.first());
    assert!(packets.iter().all(|packet| packet[0] & 0b1100_0000 == 0b1100_0000), "family bits");
    for at in 0..*lengths.first().unwrap() {
        let ones = packets.iter().fold(0, |bits, packet| bits | packet[at]);
        let zeros = packets.iter().fold(0, |bits, packet| bits | !packet[at]);
        let constant = !(ones & zeros) & if at == 0 { 0b0011_1111 } else { 0xff };
        assert_eq!(constant, 0, "{what}: byte {at} has constant bits {constant:08b}");
    }
    lengths
}

/// Everything that two nodes said is sent again by a stranger: whole, cut and with junk behind it.
#[test]
fn captured_datagrams_from_a_stranger_get_no_answer_and_move_nothing() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let capture = Capture::start(&lab.lan(), "p1");
    let client = lab.node(Underlay::V4).knows(&server).started();
    let stranger = lab.machine(Underlay::V4);
    client.reaches(&server, Duration::from_secs(5));
    client.must(&format!("ping -6 -n -c 20 -i 0.02 {}", server.address));
    let said = sent_by(&capture.stop(), &client);
    assert!(said.len() >= 20);

    let answers = Capture::start(&lab.lan(), &format!("p{}", stranger.number));
    stranger.inside(|| {
        let socket = UdpSocket::bind((stranger.ip, PORT)).unwrap();
        for (number, packet) in said.iter().enumerate() {
            socket.send_to(packet, server.endpoint()).unwrap();
            let cut = number * packet.len() / said.len();
            socket.send_to(&packet[..cut], server.endpoint()).unwrap();
            let longer = [&packet[..], &noise(number as u64, 33)].concat();
            socket.send_to(&longer, server.endpoint()).unwrap();
        }
    });
    assert!(client.ping(server.address, 1).is_some(), "the session goes on");
    assert!(server.ping(client.address, 1).is_some(), "the session goes on");
    let endpoint = server.peer(&client).unwrap()["path"]["endpoint"].clone();
    assert_eq!(endpoint, client.endpoint().to_string(), "the peer did not move to the stranger");
    let answered = sent_by(&answers.stop(), &server);
    assert!(answered.is_empty(), "{} datagrams back to a stranger", answered.len());
}
