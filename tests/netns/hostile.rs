//! A hostile peer: it holds a genuine session and sends whatever inner packets it likes.
//!
//! It is built from the protocol core itself, without the checks of its own data path, on a real socket.

use std::iter::{once, repeat_n};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use auramesh::proto::datapath::{self, Arrival, Inbound};
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::{Identity, MeshAddress, NodeId};
use auramesh::proto::node::{Config, Node as Core};
use auramesh::proto::policy::Rules;
use auramesh::proto::relay;
use auramesh::proto::session::{self, transport::Session};
use auramesh::proto::timer::{self, WallTime};
use auramesh::proto::wire::control::{CONTROL_LEN_MAX, Control};
use auramesh::proto::wire::envelope::NetworkSecret;
use auramesh::proto::wire::inner::icmp_checksum;
use auramesh::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE};

use crate::lab::capture::Capture;
use crate::lab::node::Node;
use crate::lab::pinger::Pinger;
use crate::lab::{Lab, Machine, Underlay, eventually, internet_checksum};

/// Packets of each class.
const PACKETS: usize = 10_000;
/// Packets between two pauses, so that the victim's socket buffer never overflows.
const BURST: u64 = 250;
/// Silence between two replies, at 20 a second, that a friendly node takes for a disturbance.
const DISTURBED: Duration = Duration::from_secs(1);
/// Protocol number of TCP.
const TCP: u8 = 6;

pub(crate) struct Hostile {
    core: Core,
    socket: UdpSocket,
    started: Instant,
}

impl Hostile {
    /// A peer at an address of `machine` that begins a session with the victim.
    pub(crate) fn begin(machine: &Machine, at: SocketAddr, seed: [u8; 32], victim: &Node) -> Self {
        let socket = machine.inside(|| UdpSocket::bind(at)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let config = Config {
            identity: Identity::from_seed(seed),
            session: session::Config::new(true, NetworkSecret::default()),
            dht_mode: Mode::Client,
            dht_auto: false,
            relay: relay::Config::default(),
            rules: Rules { allow_all: true, ..Rules::default() },
            mtu: 1420,
            bootstrap: vec![(victim.id.parse().unwrap(), victim.endpoint())],
            remembered: Vec::new(),
            seed: seed.map(|byte| byte ^ 1),
        };
        let core = Core::new(config, timer::Instant::ZERO);
        let mut hostile = Self { core, socket, started: Instant::now() };
        let (now, wall) = hostile.time();
        hostile.core.handle_links(now, wall, Vec::new(), vec![at]);
        hostile
    }

    /// A peer on `machine` that has a session with the victim.
    fn connect(machine: &Machine, victim: &Node) -> Self {
        let at = SocketAddr::new(machine.ip, 5747);
        let mut hostile = Self::begin(machine, at, [66; 32], victim);
        eventually(Duration::from_secs(5), "a session of the hostile peer", || {
            hostile.turn();
            hostile.has_session(victim).then_some(())
        });
        // A turn waits a little for what may come.
        hostile.socket.set_nonblocking(false).unwrap();
        hostile.socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        hostile
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.core.node_id()
    }

    pub(crate) fn has_session(&mut self, victim: &Node) -> bool {
        self.session(victim).is_some()
    }

    /// Sends whatever it likes, as it is.
    pub(crate) fn throw(&self, victim: &Node, datagram: &[u8]) {
        // A full buffer is as good as a lost packet.
        let _ = self.socket.send_to(datagram, victim.endpoint());
    }

    /// Says something in its session.
    pub(crate) fn say(&mut self, victim: &Node, message: &Control) {
        let mut plaintext = Vec::new();
        message.emit(&mut plaintext);
        let mut packet = vec![0; HEADER_LEN];
        packet.extend(&plaintext);
        packet.resize(packet.len() + OVERHEAD + PADDING_MULTIPLE, 0);
        let session = self.session(victim).unwrap();
        let len = session
            .seal(Kind::Control, &mut packet, plaintext.len(), CONTROL_LEN_MAX, self.time().0)
            .unwrap();
        self.throw(victim, &packet[..len]);
    }

    fn time(&self) -> (timer::Instant, WallTime) {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = timer::Instant::ZERO + self.started.elapsed();
        (now, WallTime::from_unix_ms(unix.as_millis() as u64))
    }

    /// Takes what came and does what is due.
    pub(crate) fn turn(&mut self) {
        let (now, wall) = self.time();
        self.core.handle_timeout(now, wall);
        self.flush();
        let mut buffer = [0; 2048];
        while let Ok((len, source)) = self.socket.recv_from(&mut buffer) {
            let (now, wall) = self.time();
            let (snapshot, shared) = (self.core.snapshot(), self.core.shared());
            let Arrival { verdict, notice, .. } =
                datapath::inbound(&snapshot, &shared, source, 0, &mut buffer[..len], now);
            if let Some(notice) = notice {
                self.core.handle_notice(now, wall, notice);
            }
            match verdict {
                Inbound::Control { local_index, messages } => {
                    self.core.handle_control(now, wall, local_index, source.into(), messages);
                }
                Inbound::Setup => self.core.handle_setup(now, wall, source.into(), &mut buffer[..len], false),
                Inbound::Deliver(..)
                | Inbound::Frames { .. }
                | Inbound::Slice(_)
                | Inbound::Reply
                | Inbound::Forward(_)
                | Inbound::Drop(_) => {}
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        while let Some(transmit) = self.core.poll_transmit() {
            self.socket.send_to(&transmit.datagram, transmit.to).unwrap();
        }
    }

    fn session(&mut self, victim: &Node) -> Option<Session> {
        let address = MeshAddress::from_ipv6(victim.address).unwrap();
        self.core.snapshot().routes.get(&address).map(|route| route.session.clone())
    }

    /// Seals inner packets and sends them.
    fn send(&mut self, victim: &Node, packets: impl Iterator<Item: AsRef<[u8]>>) {
        let session = self.session(victim).unwrap();
        let mut buffer = [0; 2048];
        for (i, inner) in (1_u64..).zip(packets) {
            let inner = inner.as_ref();
            buffer[HEADER_LEN..HEADER_LEN + inner.len()].copy_from_slice(inner);
            let now = self.time().0;
            let len = session.seal(Kind::Data, &mut buffer, inner.len(), 1420, now).unwrap();
            self.socket.send_to(&buffer[..len], victim.endpoint()).unwrap();
            if i % BURST == 0 {
                self.turn();
            }
        }
    }
}

/// An echo request in IPv6.
fn echo(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![128, 0, 0, 0, 0, 1, 0, 1];
    message.extend(b"whatever");
    let checksum = icmp_checksum(&source, &destination, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, 58, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(message);
    packet
}

/// The first packet of a TCP connection, in IPv6.
fn syn(source: Ipv6Addr, destination: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut segment = [0xc0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    let pseudo = [&source.octets()[..], &destination.octets(), &[0, segment.len() as u8, 0, TCP]].concat();
    let checksum = internet_checksum(&[&pseudo[..], &segment].concat());
    segment[16..18].copy_from_slice(&checksum);
    let mut packet = vec![0x60, 0, 0, 0, 0, segment.len() as u8, TCP, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(segment);
    packet
}

/// A UDP datagram in IPv4, the checksum of its header right.
fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    let checksum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&checksum);
    packet.extend([0, 9, 0, 9, 0, 8, 0, 0]);
    packet
}

/// Packets that the daemon gave to the kernel.
fn delivered(victim: &Node) -> u64 {
    victim.must("cat /sys/class/net/azora0/statistics/rx_packets").trim().parse().unwrap()
}

fn dropped(victim: &Node, reason: &str) -> u64 {
    victim.status()["drops"][reason].as_u64().unwrap()
}

#[test]
fn nine_classes_of_spoofed_inner_packets_are_never_delivered() {
    let lab = Lab::alone();
    // Open to everybody: what is dropped is not dropped by the policy.
    let victim = lab.node(Underlay::V6).with(&["--inbound", "allow"]).started();
    let machine = lab.machine(Underlay::V6);
    let mut hostile = Hostile::connect(&machine, &victim);
    let (us, victim_address) = (hostile.core.address().ipv6(), victim.address);
    let IpAddr::V6(lan) = victim.ip else { panic!("the underlay is IPv6") };
    let other = Identity::from_seed([68; 32]).node_id().address().ipv6();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();

    let before = delivered(&victim);
    hostile.send(&victim, once(echo(us, victim_address)));
    eventually(Duration::from_secs(2), "the honest packet", || (delivered(&victim) > before).then_some(()));

    let classes = [
        ("source", "another node's address", echo(other, victim_address)),
        ("source", "the victim's own address", echo(victim_address, victim_address)),
        ("source", "the victim's LAN address", echo(lan, victim_address)),
        ("source", "a multicast source", echo(all_nodes, victim_address)),
        ("source", "the unspecified source", echo(Ipv6Addr::UNSPECIFIED, victim_address)),
        ("destination", "to the victim's LAN address", echo(us, lan)),
        ("destination", "to all nodes of the link", echo(us, all_nodes)),
        ("destination", "to another node", echo(us, other)),
        ("not_ipv6", "IPv4", ipv4([10, 77, 0, 2], [10, 77, 0, 1])),
    ];
    for (reason, what, packet) in classes {
        let (delivered_before, dropped_before) = (delivered(&victim), dropped(&victim, reason));
        hostile.send(&victim, repeat_n(&packet, PACKETS));
        let counted = eventually(Duration::from_secs(10), what, || {
            let counted = dropped(&victim, reason) - dropped_before;
            (counted >= PACKETS as u64 * 9 / 10).then_some(counted)
        });
        assert_eq!(delivered(&victim), delivered_before, "{what}: delivered to the kernel");
        println!("{what}: {PACKETS} sent, {} dropped as {reason}, 0 delivered", counted.0);
    }
}

/// A stranger looks for services; without a rule there is neither one nor a reset.
#[test]
fn a_scan_of_every_tcp_port_meets_silence() {
    let lab = Lab::alone();
    let victim = lab.node(Underlay::V6).started();
    let friend = lab.node(Underlay::V6).knows(&victim).started();
    friend.reaches(&victim, Duration::from_secs(5));
    let machine = lab.machine(Underlay::V6);
    let mut hostile = Hostile::connect(&machine, &victim);
    let (us, victim_address) = (hostile.core.address().ipv6(), victim.address);
    let pinger = Pinger::start(&friend, victim_address, "0.05");
    pinger.first_after(Instant::now(), Duration::from_secs(5), "the friendly node's ping runs");

    let capture = Capture::start(&victim.netns, "azora0");
    let (start, before) = (Instant::now(), dropped(&victim, "policy"));
    hostile.send(&victim, (1..=u16::MAX).map(|port| syn(us, victim_address, port)));
    let ports = u64::from(u16::MAX);
    let (counted, _) = eventually(Duration::from_secs(10), "the scan is counted", || {
        let counted = dropped(&victim, "policy") - before;
        (counted >= ports * 9 / 10).then_some(counted)
    });
    let took = start.elapsed();
    let gap = pinger.longest_gap(start);
    let frames = capture.stop();
    println!("{ports} ports in {took:?}, {counted} refused, the friendly node's longest silence {gap:?}");
    assert!(pinger.since(start).len() > 1 && gap <= DISTURBED, "the friendly node is served: {gap:?}");
    assert!(!frames.is_empty(), "pings are seen");
    let segments = frames.iter().filter(|frame| frame.get(6) == Some(&TCP)).count();
    assert_eq!(segments, 0, "segments to or from the kernel");
}
