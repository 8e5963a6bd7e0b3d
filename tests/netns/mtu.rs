//! Underlays of any MTU, and one that loses long packets without a word.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::lab::node::{Node, PORT};
use crate::lab::{Lab, Machine, Underlay, eventually, internet_checksum, ip, noise};

/// Bytes of a transfer.
const TRANSFER_BYTES: usize = 8 << 20;
/// From the first data to the end of the search.
const FOUND: Duration = Duration::from_secs(10);
/// Of a transfer that meets a path it does not know yet.
const TRANSFERRED: Duration = Duration::from_secs(30);
/// Bytes of a session packet around the inner one.
const OVERHEAD: u64 = 32;
/// Of a link that nothing was done to.
const LINK_MTU: u64 = 1500;
/// Payload of a ping that would not pass a path of 1280 in one datagram.
const BIG_PING_BYTES: u64 = 1300;
/// The search ends when less than this is to be gained.
const GAIN_MIN: u64 = 16;

const fn headers(underlay: Underlay) -> u64 {
    match underlay {
        Underlay::V4 => 28,
        Underlay::V6 => 48,
    }
}

/// Gives every link of the lab this MTU.
fn narrow(lab: &Lab, nodes: &[&Node], mtu: u64) {
    for node in nodes {
        ip(&format!("-n {} link set eth0 mtu {mtu}", node.netns));
        ip(&format!("-n {} link set p{} mtu {mtu}", lab.lan(), node.number));
    }
    ip(&format!("-n {} link set br0 mtu {mtu}", lab.lan()));
}

/// Lets packets of more than `mtu` bytes vanish between the machines.
fn swallow(lab: &Lab, nodes: &[&Node], mtu: u64) {
    for node in nodes {
        // A train would be judged as one long packet.
        ip(&format!("-n {} link set eth0 gso_max_segs 1", node.netns));
    }
    let rules = format!(
        "add table bridge silent; flush table bridge silent; \
         add chain bridge silent forward {{ type filter hook forward priority 0; }}; \
         add rule bridge silent forward meta length > {mtu} counter drop"
    );
    let lan = lab.lan();
    let ran = crate::lab::process::run(
        std::process::Command::new("ip").args(["netns", "exec", &lan, "nft", &rules]),
    );
    assert_eq!(ran.code, 0, "nft: {}", ran.err);
}

fn pair(lab: &Lab, underlay: Underlay) -> (Node, Node) {
    let server = lab.node(underlay).with(&["--inbound", "allow"]);
    let client = lab.node(underlay).with(&["--inbound", "allow"]).knows(&server);
    (server, client)
}

/// Sends bytes that look random from one node to the other, which must get the same ones.
fn transfer(from: &Node, to: &Node, bytes: usize) -> Duration {
    let address = to.address;
    let content = noise(11, bytes);
    let listener = to.inside(|| TcpListener::bind((address, 7100))).unwrap();
    let mut sender = from.inside(|| TcpStream::connect((address, 7100))).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    sender.set_write_timeout(Some(TRANSFERRED)).unwrap();
    receiver.set_read_timeout(Some(TRANSFERRED)).unwrap();
    let start = Instant::now();
    let sent = content.clone();
    let writer = thread::spawn(move || sender.write_all(&sent));
    let mut got = Vec::with_capacity(bytes);
    receiver.read_to_end(&mut got).unwrap();
    writer.join().unwrap().unwrap();
    assert!(got == content, "{} bytes arrived of {bytes}, or others", got.len());
    start.elapsed()
}

/// The datagram length that `status` shows once the search has ended.
fn found(from: &Node, to: &Node, mtu: u64, headers: u64) -> (u64, Duration) {
    eventually(FOUND, &format!("a length for a path of {mtu}"), || {
        // Keeps data flowing while it searches.
        from.ping(to.address, 1);
        let inner = from.peer(to)?["mtu"].as_u64()?;
        let packet = inner + OVERHEAD + headers;
        (packet <= mtu && packet + GAIN_MIN > mtu).then_some(inner)
    })
}

fn carries(underlay: Underlay, link: u64, silent: Option<u64>) {
    let lab = Lab::alone();
    let (mut server, mut client) = pair(&lab, underlay);
    narrow(&lab, &[&server, &client], link);
    if let Some(mtu) = silent {
        swallow(&lab, &[&server, &client], mtu);
    }
    server.start();
    client.start();
    client.reaches(&server, Duration::from_secs(5));
    let mtu = silent.unwrap_or(link);
    let first = transfer(&client, &server, TRANSFER_BYTES);
    let back = transfer(&server, &client, TRANSFER_BYTES);
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (inner, took) = found(from, to, mtu, headers(underlay));
        println!("{underlay:?}, link {link}, path {mtu}: inner packets of {inner}, seen {took:?} later");
    }
    println!("{underlay:?}, link {link}, path {mtu}: 8 MiB in {first:?}, back in {back:?}");
    let report = client.json(&["probe", &server.id]);
    let stage = report["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "mtu").unwrap();
    println!("probe: {stage}");
    assert_eq!(stage["ok"], true, "{stage}");
}

#[test]
fn underlay_of_1280() {
    carries(Underlay::V4, 1280, None);
    carries(Underlay::V6, 1280, None);
}

#[test]
fn underlay_of_1400() {
    carries(Underlay::V4, 1400, None);
    carries(Underlay::V6, 1400, None);
}

#[test]
fn underlay_of_1500() {
    carries(Underlay::V4, 1500, None);
    carries(Underlay::V6, 1500, None);
}

#[test]
fn underlay_of_9000() {
    carries(Underlay::V4, 9000, None);
    carries(Underlay::V6, 9000, None);
}

#[test]
fn underlay_that_loses_packets_over_1400_without_a_word() {
    carries(Underlay::V4, 1500, Some(1400));
    carries(Underlay::V6, 1500, Some(1400));
}

#[test]
fn underlay_that_loses_packets_over_1300_without_a_word() {
    carries(Underlay::V4, 1500, Some(1300));
    carries(Underlay::V6, 1500, Some(1300));
}

#[test]
fn what_status_shows_on_narrow_underlays() {
    for (underlay, link, silent) in [
        (Underlay::V4, 1280, None),
        (Underlay::V6, 1280, None),
        (Underlay::V4, 1500, Some(1300)),
        (Underlay::V6, 1500, Some(1300)),
    ] {
        let lab = Lab::alone();
        let (mut server, mut client) = pair(&lab, underlay);
        narrow(&lab, &[&server, &client], link);
        if let Some(mtu) = silent {
            swallow(&lab, &[&server, &client], mtu);
        }
        server.start();
        client.start();
        client.reaches(&server, Duration::from_secs(5));
        let mtu = silent.unwrap_or(link);
        let (inner, took) = found(&client, &server, mtu, headers(underlay));
        println!("{underlay:?}, link {link}, path {mtu}: inner packets of {inner} after {took:?}");
        let ran = client.azora(&["probe", &server.id]);
        println!("{}", ran.out);
        assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    }
}

/// The path becomes narrower under a TCP flow.
#[test]
fn a_path_that_shrinks_under_a_transfer_goes_on() {
    let lab = Lab::alone();
    let (mut server, mut client) = pair(&lab, Underlay::V4);
    server.start();
    client.start();
    client.reaches(&server, Duration::from_secs(5));
    transfer(&client, &server, TRANSFER_BYTES);
    found(&client, &server, 1500, 28);
    swallow(&lab, &[&server, &client], 1400);
    let took = transfer(&client, &server, TRANSFER_BYTES);
    let (inner, _) = found(&client, &server, 1400, 28);
    println!("path 1500 -> 1400: 8 MiB in {took:?}, inner packets of {inner}");
    assert!(took <= Duration::from_secs(15), "{took:?}");
}

/// A neighbour says that packets between two nodes were too big for a path.
#[test]
fn forged_reports_of_a_narrow_path_change_nothing() {
    // The kernel believes the last of each kind.
    for (underlay, reports, believed) in
        [(Underlay::V4, [0, 1, 1279, 68], "mtu lock 552"), (Underlay::V6, [0, 68, 1279, 1280], "mtu 1280")]
    {
        let lab = Lab::alone();
        let (mut server, mut client) = pair(&lab, underlay);
        let forger = lab.machine(underlay);
        server.start();
        client.start();
        client.reaches(&server, Duration::from_secs(5));
        let (mtu, _) = found(&client, &server, LINK_MTU, headers(underlay));
        for path_mtu in reports {
            forge_too_big(&forger, client.ip, server.ip, path_mtu);
        }
        let route = format!("ip route get {}", server.ip);
        eventually(Duration::from_secs(2), "the kernel believes it", || {
            client.must(&route).contains(believed).then_some(())
        });
        client.must(&format!("ping -6 -n -c 20 -i 0.05 -W 1 -M do -s {BIG_PING_BYTES} {}", server.address));
        let after = client.peer(&server).unwrap()["mtu"].as_u64().unwrap();
        println!("{underlay:?}: inner packets of {mtu} before, {after} after the reports");
        assert_eq!(after, mtu);
    }
}

/// Sends "fragmentation needed" (RFC 792, RFC 1191) or "packet too big" (RFC 4443) about a datagram from one node to
/// another.
fn forge_too_big(forger: &Machine, from: IpAddr, to: IpAddr, path_mtu: u32) {
    let mut quoted_udp = [PORT.to_be_bytes(), PORT.to_be_bytes(), 1400_u16.to_be_bytes(), [0, 0]].concat();
    let (family, protocol, message) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut message = vec![3, 4, 0, 0, 0, 0];
            message.extend((path_mtu as u16).to_be_bytes());
            message.extend([0x45, 0, 5, 0x8c, 0, 0, 0x40, 0, 64, 17, 0, 0]);
            message.extend([from.octets(), to.octets()].concat());
            message.append(&mut quoted_udp);
            let checksum = internet_checksum(&message);
            message[2..4].copy_from_slice(&checksum);
            (AddressFamily::Inet, SockProtocol::Icmp, message)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // The kernel writes the checksum (raw sockets, RFC 3542 section 3.1).
            let mut message = vec![2, 0, 0, 0];
            message.extend(path_mtu.to_be_bytes());
            message.extend([0x60, 0, 0, 0, 5, 0x78, 17, 64]);
            message.extend([from.octets(), to.octets()].concat());
            message.append(&mut quoted_udp);
            (AddressFamily::Inet6, SockProtocol::IcmpV6, message)
        }
        _ => panic!("{from} and {to} are of one family"),
    };
    forger.inside(|| {
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        let to = SockaddrStorage::from(SocketAddr::new(from, 0));
        sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
    });
}
