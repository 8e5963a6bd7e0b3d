//! What a stranger sees and can do with what they saw on the underlay.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab::capture::{Capture, Frame, contains, datagram};
use crate::lab::node::{DAEMON, Node, PORT};
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

#[test]
fn first_packets_share_nothing_but_the_family_bits() {
    let count = if long() { 10_000 } else { 160 };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/first-packets");
    let output = Command::new(script)
        .args(["--count", &count.to_string()])
        .env("AZORA_BIN_DIR", Path::new(DAEMON).parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert!(said.contains(&format!("{} handshakes", count / 2)));
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
