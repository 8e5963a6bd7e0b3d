//! Every way of carrying packets against every other: what kernels and ciphers offer differs from machine to machine.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, ip, long, noise};

const PORT: u16 = 9000;
/// Bytes each way between two nodes.
const SHORT: usize = 3_000_000;
/// Bytes each way of a node with its like, when there is time.
const LONG: usize = 1_000_000_000;
/// Payload of a UDP packet that just fits the interface.
const UDP_LEN_MAX: usize = 1372;

struct Rung {
    name: &'static str,
    flags: &'static [&'static str],
    tun: &'static str,
    udp: &'static str,
    superframes: bool,
    /// ChaCha20-Poly1305 whatever the peer prefers.
    chacha: bool,
}

const TOP: Rung =
    Rung { name: "top", flags: &[], tun: "tcp-udp", udp: "trains", superframes: true, chacha: false };

/// The ladder, each rung alone and all together.
const RUNGS: [Rung; 8] = [
    TOP,
    Rung { name: "TCP only", flags: &["--tun-offload", "tcp"], tun: "tcp", ..TOP },
    Rung { name: "plain interface", flags: &["--tun-offload", "none"], tun: "none", ..TOP },
    Rung { name: "no trains", flags: &["--udp-offload", "none"], udp: "none", ..TOP },
    Rung { name: "no superframes", flags: &["--no-superframes"], superframes: false, ..TOP },
    Rung { name: "AES", flags: &["--cipher", "aes-256-gcm"], ..TOP },
    Rung { name: "ChaCha", flags: &["--cipher", "chacha20-poly1305"], chacha: true, ..TOP },
    Rung {
        name: "bottom",
        flags: &[
            "--tun-offload",
            "none",
            "--udp-offload",
            "none",
            "--no-superframes",
            "--cipher",
            "chacha20-poly1305",
        ],
        tun: "none",
        udp: "none",
        superframes: false,
        chacha: true,
    },
];

#[test]
fn every_rung_works_with_every_other_over_ipv4() {
    every_rung_works_with_every_other(Underlay::V4);
}

#[test]
fn every_rung_works_with_every_other_over_ipv6() {
    every_rung_works_with_every_other(Underlay::V6);
}

fn every_rung_works_with_every_other(underlay: Underlay) {
    let lab = Lab::alone();
    let flags = |rung: &Rung| [&["--inbound", "allow"], rung.flags].concat();
    let servers = RUNGS.each_ref().map(|rung| lab.node(underlay).with(&flags(rung)).started());
    let clients = RUNGS.each_ref().map(|rung| {
        let node = lab.node(underlay).with(&flags(rung));
        servers.iter().fold(node, Node::knows).started()
    });
    for (rung, node) in RUNGS.iter().chain(&RUNGS).zip(servers.iter().chain(&clients)) {
        check_in_force(rung, node);
    }
    let content = Arc::new(noise(9, 1_000_003));
    let echoes = servers.each_ref().map(|server| Echo::start(server, &content));
    for offloads in [true, false] {
        for node in servers.iter().chain(&clients) {
            set_veth_offloads(&lab, node, offloads);
        }
        let start = Instant::now();
        for (client_rung, client) in RUNGS.iter().zip(&clients) {
            for (server_rung, server) in RUNGS.iter().zip(&servers) {
                let what = format!("{} to {}, veth offloads {offloads}", client_rung.name, server_rung.name);
                client.reaches(server, Duration::from_secs(5));
                let whole = long() && offloads && client_rung.name == server_rung.name;
                let bytes = if whole { LONG } else { SHORT };
                let took = client.inside(|| tcp_both_ways(server.address, &content, bytes, &what));
                client.inside(|| udp_both_ways(server.address, &content, &what));
                if whole {
                    println!("{underlay:?}, {what}: 1 GB each way, {took:?}");
                }
                let cipher = client.peer(server).unwrap()["cipher"].clone();
                let chacha = client_rung.chacha || server_rung.chacha || !has_aes();
                let expected = if chacha { "chacha20-poly1305" } else { "aes-256-gcm" };
                assert!(cipher == expected || client_rung.name == "AES" && !has_aes(), "{what}: {cipher}");
            }
        }
        println!(
            "{underlay:?}, veth offloads {offloads}: {} pairs in {:?}",
            RUNGS.len().pow(2),
            start.elapsed()
        );
    }
    drop(echoes);
    for node in servers.iter().chain(&clients) {
        let drops = node.status()["drops"].clone();
        // Too big some are: to a peer without frames, until it is known how much the path carries.
        for reason in ["malformed", "unauthenticated", "not_ipv6", "replay"] {
            assert_eq!(drops[reason], 0, "machine {}: {drops}", node.number);
        }
    }
}

/// A link that becomes shorter than the datagrams of a train: everything still arrives, and trains go on elsewhere.
#[test]
fn a_link_shorter_than_the_datagrams_of_a_train_carries_them() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let lab = Lab::alone();
        let server = lab.node(underlay).with(&["--inbound", "allow"]).started();
        let client = lab.node(underlay).with(&["--inbound", "allow"]).knows(&server).started();
        client.reaches(&server, Duration::from_secs(5));
        let content = Arc::new(noise(9, 1_000_003));
        let _echo = Echo::start(&server, &content);
        ip(&format!("-n {} link set eth0 mtu 1400", client.netns));
        let took = client.inside(|| tcp_both_ways(server.address, &content, SHORT, "short link"));
        println!("{underlay:?}: {SHORT} bytes each way over a link of 1400 in {took:?}");
        assert_eq!(client.status()["data"]["udp_offload"], "trains");
    }
}

/// What was asked for is what `status` and the log say.
fn check_in_force(rung: &Rung, node: &Node) {
    let data = node.status()["data"].clone();
    assert_eq!(data["tun_offload"], rung.tun, "{}", rung.name);
    assert_eq!(data["udp_offload"], rung.udp, "{}", rung.name);
    assert_eq!(data["superframes"], rung.superframes, "{}", rung.name);
    if rung.chacha {
        assert_eq!(data["ciphers"], json!(["chacha20-poly1305"]), "{}", rung.name);
    }
    let log = node.log();
    let said = log.lines().find(|line| line.contains("data path")).unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains(&format!("tun_offload={}", rung.tun)), "{said}");
    assert!(said.contains(&format!("udp_offload={}", rung.udp)), "{said}");
}

fn has_aes() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").unwrap().split_whitespace().any(|flag| flag == "aes")
}

/// With all offloads a train crosses a veth as one packet; without, as many and through checksums in software.
fn set_veth_offloads(lab: &Lab, node: &Node, on: bool) {
    let word = if on { "on" } else { "off" };
    let offloads = ["tx", "rx", "sg", "tso", "gso", "gro", "tx-udp-segmentation"];
    let flags: Vec<_> = offloads.iter().map(|name| format!("{name} {word}")).collect();
    node.must(&format!("ethtool -K eth0 {}", flags.join(" ")));
    let port = format!("ip netns exec {} ethtool -K p{} {}", lab.lan(), node.number, flags.join(" "));
    let ran = crate::lab::process::run(std::process::Command::new("sh").args(["-c", &port]));
    assert_eq!(ran.code, 0, "{port}: {}", ran.err);
}

/// Bytes `from..` of the endless content.
fn at(content: &[u8], from: usize) -> &[u8] {
    &content[from % content.len()..]
}

fn send(stream: &mut TcpStream, content: &[u8], len: usize) -> io::Result<()> {
    let mut sent = 0;
    while sent < len {
        let part = at(content, sent);
        let part = &part[..part.len().min(len - sent)];
        stream.write_all(part)?;
        sent += part.len();
    }
    Ok(())
}

/// Takes `len` bytes and checks each.
fn take(stream: &mut TcpStream, content: &[u8], len: usize) -> Result<(), String> {
    let mut buffer = vec![0; 1 << 18];
    let mut taken = 0;
    while taken < len {
        let most = buffer.len().min(len - taken).min(at(content, taken).len());
        match stream.read(&mut buffer[..most]) {
            Ok(0) => return Err(format!("ends after {taken} of {len} bytes")),
            Ok(n) if buffer[..n] == at(content, taken)[..n] => taken += n,
            Ok(n) => return Err(format!("other bytes in {taken}..{}", taken + n)),
            Err(error) => return Err(format!("{error} after {taken} of {len} bytes")),
        }
    }
    Ok(())
}

fn tcp_both_ways(server: Ipv6Addr, content: &[u8], len: usize, what: &str) -> Duration {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&(server, PORT).into(), Duration::from_secs(10))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&(len as u64).to_be_bytes()).unwrap();
    send(&mut stream, content, len).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut word = [0; 2];
    stream.read_exact(&mut word).unwrap_or_else(|error| panic!("{what}, there: {error}"));
    assert_eq!(&word, b"ok", "{what}: the server has other bytes");
    take(&mut stream, content, len).unwrap_or_else(|error| panic!("{what}, back: {error}"));
    start.elapsed()
}

/// Datagrams of all sizes come back as they were sent, alone and as one large packet of the kernel.
fn udp_both_ways(server: Ipv6Addr, content: &[u8], what: &str) {
    let socket = UdpSocket::bind("[::]:0").unwrap();
    socket.connect((server, PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = vec![0; 2048];
    let mut back = |payload: &[u8], count: usize, send: &dyn Fn()| {
        // A datagram may be lost, for the machine is busy, but not twice three times in a row.
        let all = (0..3).any(|_| {
            send();
            (0..count).all(|_| socket.recv(&mut buffer).is_ok_and(|n| buffer[..n] == *payload))
        });
        assert!(all, "{what}: {count} datagrams of {} bytes", payload.len());
    };
    for len in [1, 100, UDP_LEN_MAX] {
        back(&content[..len], 1, &|| assert_eq!(socket.send(&content[..len]).unwrap(), len));
    }
    // Many at once, which are joined on their way and come apart again as they were.
    let lens = [100, 100, 100, 60, 1200, 1200, 7, 300].repeat(8);
    let several = || {
        let sent = lens.iter().enumerate().map(|(n, len)| &content[n..n + len]);
        sent.clone().for_each(|payload| assert_eq!(socket.send(payload).unwrap(), payload.len()));
        let mut buffer = vec![0; 2048];
        let mut expected = sent;
        let all = expected.all(|payload| socket.recv(&mut buffer).is_ok_and(|n| buffer[..n] == *payload));
        // After a loss, what belongs to this attempt must not be taken for the next one's.
        while !all && socket.recv(&mut buffer).is_ok() {}
        all
    };
    assert!((0..3).any(|_| several()), "{what}: datagrams of many sizes");
    let payload = vec![7; 1200];
    setsockopt(&socket, sockopt::UdpGsoSegment, &1200).unwrap();
    back(&payload, 20, &|| assert_eq!(socket.send(&[7; 20 * 1200]).unwrap(), 20 * 1200));
}

/// Takes what is sent, checks it and sends as much back; datagrams as they are.
struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    fn start(server: &Node, content: &Arc<Vec<u8>>) -> Self {
        let address = (server.address, PORT);
        let (listener, socket) =
            server.inside(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        listener.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (content, stopping) = (Arc::clone(content), Arc::clone(&stop));
        let tcp = thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                        let mut len = [0; 8];
                        if stream.read_exact(&mut len).is_err() {
                            continue;
                        }
                        let len = u64::from_be_bytes(len) as usize;
                        let word = take(&mut stream, &content, len).map_or_else(|_| b"no", |()| b"ok");
                        let _ = stream.write_all(word);
                        if word == b"ok" {
                            let _ = send(&mut stream, &content, len);
                        }
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        let stopping = Arc::clone(&stop);
        let udp = thread::spawn(move || {
            let mut buffer = vec![0; 2048];
            while !stopping.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], from);
                }
            }
        });
        Self { stop, threads: vec![tcp, udp] }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the server panicked");
        }
    }
}
