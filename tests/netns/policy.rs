//! Closed by default; a rule opens exactly what it names.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::lab::capture::{Capture, Frame};
use crate::lab::node::Node;
use crate::lab::{Lab, Machine, Underlay, eventually};

const SILENCE: Duration = Duration::from_millis(1500);

/// How a connection attempt ends: `None` when it opens.
fn tcp(from: &Machine, to: Ipv6Addr, port: u16) -> Option<ErrorKind> {
    let target = SocketAddr::from((to, port));
    from.inside(|| TcpStream::connect_timeout(&target, SILENCE)).map_err(|error| error.kind()).err()
}

/// Whether a datagram from a fresh port comes back from an echo service.
fn udp(from: &Machine, to: Ipv6Addr, port: u16) -> bool {
    let socket = from.inside(|| UdpSocket::bind("[::]:0")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    (0..2).any(|_| {
        socket.send_to(b"hello", (to, port)).unwrap();
        socket.recv_from(&mut [0; 16]).is_ok()
    })
}

/// Services on TCP and UDP ports 7001 and 7002 that live as long as the test.
fn serve(node: &Node) -> Vec<TcpListener> {
    let address = node.address;
    let ports = [7001, 7002];
    for port in ports {
        let echo = node.inside(|| UdpSocket::bind((address, port))).unwrap();
        echo.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..length], from);
            }
        });
    }
    ports.map(|port| node.inside(|| TcpListener::bind((address, port))).unwrap()).into()
}

/// The IPv6 packets of a capture on a TUN that a node sent.
fn packets_from(node: &Node, frames: &[Frame]) -> Vec<Frame> {
    let source = node.address.octets();
    frames.iter().filter(|packet| packet.get(8..24) == Some(&source)).cloned().collect()
}

#[test]
fn inbound_flows_are_refused_without_any_answer_and_a_rule_opens_one_port_for_one_peer() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let client = lab.node(Underlay::V4).knows(&server).started();
    let other = lab.node(Underlay::V4).knows(&server).started();
    let listeners = serve(&server);
    client.reaches(&server, Duration::from_secs(5));
    other.reaches(&server, Duration::from_secs(5));

    let back = Capture::start(&client.netns, "azora0");
    for port in [7001, 7002, 9999] {
        assert_eq!(
            tcp(&client, server.address, port),
            Some(ErrorKind::TimedOut),
            "TCP {port}: no RST, no ICMP"
        );
        assert!(!udp(&client, server.address, port), "UDP {port}");
    }
    let back = packets_from(&server, &back.stop());
    assert!(back.is_empty(), "an answer to a refused flow: {:02x?}", back.first());
    assert!(server.status()["drops"]["policy"].as_u64().unwrap() > 0, "refusals are counted");

    let refused = server.json(&["firewall", "trace"]);
    let flow = refused.as_array().unwrap().iter().find(|flow| flow["proto"] == "tcp" && flow["port"] == 7001);
    let flow = flow.unwrap_or_else(|| panic!("TCP 7001 is listed: {refused}"));
    assert_eq!((&flow["peer"], flow["times"].as_u64() > Some(0)), (&client.id.as_str().into(), true));
    let let_in = format!("in allow -p tcp --port 7001 --peer {}", client.id);
    assert!(flow["fix"].as_str().unwrap().ends_with(&let_in), "{flow}");
    let hint = server.azora(&["firewall", "trace"]).out;
    let as_typed = format!("azora --socket {} firewall add {let_in}\n", server.socket().display());
    assert!(hint.contains(&as_typed), "{hint}");
    eventually(Duration::from_secs(40), "the log tells of it", || {
        let log = server.log();
        (log.contains(&format!("not let in: tcp port 7001 from {}", client.id)) && log.contains(&let_in))
            .then_some(())
    });

    let allow = |words: &[&str]| {
        let ran = server.azora(&[&["firewall", "add", "in", "allow"], words].concat());
        assert_eq!(ran.code, 0, "firewall add {words:?}: {}", ran.err);
    };
    allow(&["-p", "tcp", "--port", "7001", "--peer", &client.id]);
    assert_eq!(tcp(&client, server.address, 7001), None, "the named port opens");
    assert_eq!(tcp(&client, server.address, 7002), Some(ErrorKind::TimedOut), "no other port");
    assert_eq!(tcp(&other, server.address, 7001), Some(ErrorKind::TimedOut), "no other peer");
    assert!(!udp(&client, server.address, 7001), "no other protocol");

    allow(&["-p", "udp", "--port", "7002", "--peer", &client.id]);
    assert!(udp(&client, server.address, 7002), "the named port opens");
    assert!(!udp(&client, server.address, 7001), "no other port");
    assert!(!udp(&other, server.address, 7002), "no other peer");
    assert_eq!(tcp(&client, server.address, 7002), Some(ErrorKind::TimedOut), "no other protocol");

    rules_live_and_end(server, &client, &listeners[0]);
}

/// Rules survive a restart and end with `firewall remove`, as do the connections that they let in.
fn rules_live_and_end(mut server: Node, client: &Node, listener: &TcpListener) {
    let own = server.azora(&["firewall", "add", "in", "allow", "--peer", &server.id]);
    assert!(own.code != 0 && own.err.contains("the node itself"), "a rule that can never match: {}", own.err);
    let open = server.azora(&["firewall", "add", "in", "allow"]).out;
    let number = open.strip_prefix("rule ").and_then(|rest| rest.split(':').next()).unwrap();
    let worst = || server.status()["health"][0]["code"].clone();
    assert_eq!(worst(), "rule-open", "{open}");
    assert_eq!(server.azora(&["firewall", "remove", number]).code, 0);
    assert_ne!(worst(), "rule-open");
    let rules = server.json(&["firewall", "list"]);
    let rule = |rule: &serde_json::Value| rule["port"] == 7001 && rule["peer"] == client.id.as_str();
    assert!(rules.as_array().unwrap().iter().any(rule), "{rules}");
    assert_eq!(server.stop(), 0);
    server.start();
    client.reaches(&server, Duration::from_secs(5));
    let connected = client.inside(|| TcpStream::connect((server.address, 7001)));
    let mut theirs = connected.expect("the rule survived the restart");
    let mut ours = accepted(listener, &theirs);
    theirs.write_all(b"a").unwrap();
    ours.read_exact(&mut [0]).expect("carried while the rule is there");

    let rules = server.json(&["firewall", "list"]);
    let index = rules.as_array().unwrap().iter().find(|&r| rule(r)).unwrap()["index"].clone();
    assert_eq!(server.azora(&["firewall", "remove", &index.to_string()]).code, 0);
    assert_eq!(tcp(client, server.address, 7001), Some(ErrorKind::TimedOut), "closed again");
    // What the server goes on sending must not pass for the start of a flow of its own.
    ours.write_all(b"b").unwrap();
    theirs.read_exact(&mut [0]).expect("outbound packets pass");
    theirs.write_all(b"c").unwrap();
    ours.set_read_timeout(Some(SILENCE)).unwrap();
    let read = ours.read_exact(&mut [0]).map_err(|error| error.kind());
    assert_eq!(read, Err(ErrorKind::WouldBlock), "a running connection ends too");
}

/// The server's end of a connection; those of earlier attempts wait before it.
fn accepted(listener: &TcpListener, client: &TcpStream) -> TcpStream {
    let client = client.local_addr().unwrap();
    let mut accepted = listener.incoming().map(Result::unwrap);
    accepted.find(|stream| stream.peer_addr().unwrap() == client).unwrap()
}

#[test]
fn replies_to_own_flows_and_icmpv6_echo_pass() {
    let lab = Lab::new();
    let closed = lab.node(Underlay::V4).started();
    let open = lab.node(Underlay::V4).with(&["--inbound", "allow"]).knows(&closed).started();
    let _listeners = serve(&open);
    closed.reaches(&open, Duration::from_secs(5));
    open.reaches(&closed, Duration::from_secs(1));
    assert_eq!(tcp(&closed, open.address, 7001), None, "TCP from the closed node");
    assert!(udp(&closed, open.address, 7001), "UDP from the closed node");
    assert_eq!(
        tcp(&closed, open.address, 9999),
        Some(ErrorKind::ConnectionRefused),
        "a reset is a reply too"
    );
}

#[test]
fn a_port_scan_over_the_mesh_gets_no_packet_back() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).started();
    let client = lab.node(Underlay::V4).knows(&server).started();
    let _listeners = serve(&server);
    client.reaches(&server, Duration::from_secs(5));
    let back = Capture::start(&client.netns, "azora0");
    let address = server.address;
    client.inside(|| {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        for port in 1..=u16::MAX {
            let _ = socket.send_to(b"?", (address, port));
        }
        for port in (1..=u16::MAX).step_by(1009) {
            let target = SocketAddr::from((address, port));
            let outcome = TcpStream::connect_timeout(&target, Duration::from_millis(5));
            assert!(outcome.is_err(), "TCP {port} is open");
        }
    });
    eventually(Duration::from_secs(5), "the server counted the scan", || {
        (server.status()["drops"]["policy"].as_u64()? > 1000).then_some(())
    });
    let back = packets_from(&server, &back.stop());
    assert!(back.is_empty(), "{} packets back to a scanner: {:02x?}", back.len(), back[0]);
    client.reaches(&server, Duration::from_secs(2));
}
