//! Floods from the underlay and from a program of the machine itself, under a cap on memory.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use auramesh::proto::identity::Identity;
use auramesh::proto::session::noise::Initiator;
use auramesh::proto::session::{Config, Rng};
use auramesh::proto::timer::WallTime;
use auramesh::proto::wire::envelope::{BODY_AT, Kind, NetworkSecret, RecipientKey};
use auramesh::proto::wire::handshake::{INITIATION_LEN_MAX, Initiation};
use rand_chacha::rand_core::SeedableRng;

use crate::lab::node::Node;
use crate::lab::{Lab, Machine, Underlay, eventually, ip, long, noise};

/// The budget of a node with few peers, 30 MiB, and a tenth.
const DATA_BYTES_MAX: u64 = 33 << 20;
/// Strangers with good handshakes; more than there are places for peers.
const STRANGERS: u32 = 1500;
/// Of a flood that a new node has to get through, in datagrams a second: as many as are answered with cookies here.
const JOINABLE_PER_S: u64 = 20_000;
/// From the start of a node that comes in the middle of the flood to its first ping.
const JOINED: Duration = Duration::from_secs(10);
/// Initiations shed before any curve work; the flood has hundreds of thousands.
const RATE_LIMITED_MIN: u64 = 1_000;
/// Junk initiations with a valid envelope.
const JUNK: u32 = 256;

/// Beyond the cap an allocation fails and the daemon aborts, as it would be killed in a container.
#[test]
fn memory_stays_in_its_budget_under_a_flood() {
    let lab = Lab::alone();
    let mut server = lab.node(Underlay::V4);
    server.launch_under(&["prlimit", &format!("--data={DATA_BYTES_MAX}")]);
    server.wait_ready();
    let client = lab.node(Underlay::V4).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    let stranger = stranger(&lab, &server);
    let packets = packets(&identity(&server));
    let before = rate_limited(&server);

    let seconds = if long() { 60 } else { 6 };
    let (stop, mut answered, mut asked) = (AtomicBool::new(false), 0, 0);
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(|| stranger.inside(|| flood(&packets, server.endpoint(), u64::MAX, &stop)));
        let local = scope.spawn(|| server.inside(|| flood_unknown_addresses(&stop)));
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            asked += 1;
            answered += usize::from(client.ping(server.address, 1).is_some());
        }
        stop.store(true, Ordering::Relaxed);
        (flood.join().unwrap(), local.join().unwrap())
    });
    println!("{sent:?} datagrams in {seconds} s, {answered} of {asked} pings answered");
    let shed = rate_limited(&server) - before;
    assert!(shed > RATE_LIMITED_MIN, "{shed} asked for a proof of their address, or refused");
    assert!(server.is_running(), "{}", server.log());
    let (peak, data) = (server.proc_status("VmHWM"), server.proc_status("VmData"));
    println!("RSS at most {peak} kB, data {data} kB, drops {}", server.status()["drops"]);
    assert!(peak * 1024 <= DATA_BYTES_MAX, "RSS {peak} kB");
    assert!(answered * 2 > asked, "the peer is served through the flood: {answered} of {asked}");
    client.reaches(&server, Duration::from_secs(5));
}

/// A node that knows no more than ID and endpoint gets in while others have to prove their addresses.
#[test]
fn a_flood_of_good_envelopes_lets_a_new_node_in() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let mut newcomer = lab.node(Underlay::V4).knows(&server);
    let stranger = stranger(&lab, &server);
    let packets = packets(&identity(&server));
    let (stop, before) = (AtomicBool::new(false), rate_limited(&server));
    let joined = thread::scope(|scope| {
        scope.spawn(|| stranger.inside(|| flood(&packets, server.endpoint(), JOINABLE_PER_S, &stop)));
        let _stop = Stop(&stop);
        eventually(JOINED, "the gate sheds", || {
            (rate_limited(&server) > before + RATE_LIMITED_MIN).then_some(())
        });
        let start = Instant::now();
        newcomer.start();
        newcomer.reaches(&server, JOINED);
        start.elapsed()
    });
    println!("flood of {JOINABLE_PER_S}/s: a new node reaches it {joined:?} after its start");
    println!("drops {}", server.status()["drops"]);
    assert!(joined <= JOINED, "{joined:?}");
}

/// Stops the flood at the end, also where a panic ends the test: its thread is waited for.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A machine with all the addresses of [`flood`], which the server answers.
fn stranger(lab: &Lab, server: &Node) -> Machine {
    let stranger = lab.machine(Underlay::V4);
    ip(&format!("-n {} route add local 10.78.0.0/16 dev lo", stranger.netns));
    ip(&format!("-n {} route add 10.78.0.0/16 via {}", server.netns, stranger.ip));
    server.must("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
    stranger
}

fn rate_limited(node: &Node) -> u64 {
    node.status()["drops"]["rate_limited"].as_u64().unwrap()
}

/// The identity behind a node, whose public keys everybody can learn.
fn identity(node: &Node) -> Identity {
    let file = fs::read_to_string(node.state_dir().join("identity.key")).unwrap();
    let seed = file.split_whitespace().nth(1).unwrap().to_uppercase();
    Identity::from_seed(data_encoding::BASE32_NOPAD.decode(seed.as_bytes()).unwrap().try_into().unwrap())
}

/// Good initiations of many strangers, then junk behind valid envelopes.
fn packets(victim: &Identity) -> Vec<Vec<u8>> {
    let (network, mut rng) = (NetworkSecret::default(), Rng::seed_from_u64(1));
    let config = Config::new(true, network.clone());
    let (node_id, x25519) = (victim.node_id(), victim.x25519_public());
    let key = RecipientKey::new(&node_id, &network);
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let wall = WallTime::from_unix_ms(unix.as_millis() as u64);
    let good = (0..STRANGERS).map(|n| {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let identity = Identity::from_seed(seed);
        Initiator::start(&identity, &config, node_id, &x25519, n, wall, None, &mut rng).unwrap().1
    });
    let mut packets: Vec<_> = good.collect();
    for n in 0..JUNK {
        let mut packet = Initiation::emit(n, INITIATION_LEN_MAX - BODY_AT - 5);
        let junk = noise(n.into(), INITIATION_LEN_MAX - BODY_AT - 5);
        packet[BODY_AT + 5..].copy_from_slice(&junk);
        key.close(Kind::Initiation, None, [0; 16], &mut packet);
        packets.push(packet);
    }
    packets
}

/// Sends them round and round, from 256 addresses, not faster than `per_s`.
fn flood(packets: &[Vec<u8>], to: SocketAddr, per_s: u64, stop: &AtomicBool) -> u64 {
    let addresses = (0..=u8::MAX).map(|n| Ipv4Addr::new(10, 78, n, 1));
    let sockets: Vec<_> = addresses.map(|from| UdpSocket::bind((from, 5747)).unwrap()).collect();
    let (start, mut sent) = (Instant::now(), 0_u64);
    for (packet, socket) in packets.iter().cycle().zip(sockets.iter().cycle()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        sent += u64::from(socket.send_to(packet, to).is_ok());
        if sent.is_multiple_of(64) {
            let due = Duration::from_micros(sent * 1_000_000 / per_s);
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    sent
}

/// A program of the machine sends to mesh addresses that nobody has.
fn flood_unknown_addresses(stop: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let (body, mut sent) = ([0; 1200], 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let [.., a, b, c, d] = (sent % 50_000).to_be_bytes().map(u16::from);
        let address = Ipv6Addr::new(0x6ff, a, b, c, d, 1, 2, 3);
        // Errors about earlier packets come back here; they are not the point.
        sent += u64::from(socket.send_to(&body, (address, 9)).is_ok());
        if sent.is_multiple_of(64) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    sent
}
