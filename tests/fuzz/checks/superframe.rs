//! What a peer may put into frames and slices, and what a kernel would be told about it.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use auramesh::proto::datapath::{
    ASSEMBLY_TIME_MAX, Drops, Inward, Notice, PlainPackets, Receiver, Reception, Shared, Snapshot, Train,
    Turn,
};
use auramesh::proto::identity::Identity;
use auramesh::proto::policy::{Account, Flows, Rules};
use auramesh::proto::session::noise::{Incoming, Initiator};
use auramesh::proto::session::transport::{Content, Session};
use auramesh::proto::session::{Config, Rng};
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::gso::{
    self, HEADERS_LEN_MAX, Segments, TCP_SEGMENT_LEN_MIN, UDP_SEGMENTS_MAX, VIRTIO_LEN, Virtio,
};
use auramesh::proto::wire::inner::{Inner, stated_len};
use auramesh::proto::wire::relay::Hop;
use auramesh::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, SLICES_MAX};
use auramesh::proto::wire::superframe::Offload;
use rand_core::SeedableRng as _;

const START: Instant = Instant::from_nanos(1_000_000_000);
/// Most datagrams of one input.
const DATAGRAMS_MAX: usize = 64;

/// Any bytes as a frame: what the kernel is told holds for the packet, and cutting it gives whole packets.
pub(crate) fn frame(data: &[u8]) {
    let Some((header, packet)) = data.split_first_chunk() else { return };
    let offload = Offload::parse(*header);
    assert_eq!(offload.emit(), *header);
    let Ok(inner) = Inner::parse(packet) else { return };
    let mut head = packet[..inner.len].to_vec();
    let Ok(virtio) = gso::prepare(&mut head, inner.len, offload) else { return };
    check_virtio(virtio, &head);
    let offload = virtio.offload();
    let mut room = vec![0; head.len()];
    let (mut plain, mut packets) = (PlainPackets::of(&head, offload), 0);
    while let Some(len) = plain.next(&head, &mut room) {
        packets += 1;
        assert_eq!(stated_len(&room[..len]), Ok(len));
    }
    let most = head.len() / usize::from(offload.segment_len.max(1)) + 1;
    assert!((1..=most).contains(&packets), "{packets} packets of {}", head.len());
    assert_eq!(Segments::of(&head, offload).is_some(), offload.segment_len != 0);
}

/// Slices and frames in any order: `first u8 ‖ number u8 ‖ count u8 ‖ length u16 ‖ bytes length u8 ‖ bytes`. A count of
/// one is a datagram of frames; what the bytes do not fill is zero.
pub(crate) fn superframe(data: &[u8]) {
    let mut kept = LINK.lock().expect("no input has panicked");
    let (link, first) = with_counters(&mut kept, 256 * u64::from(SLICES_MAX));
    let mut reception = Reception::new(true);
    let mut seen = Seen { source: link.source, destination: link.snapshot.own.ipv6() };
    let mut turn = Turn { snapshot: &link.snapshot, shared: &link.shared, now: START, out: &mut seen };
    let mut rest = data;
    for _ in 0..DATAGRAMS_MAX {
        let Some(([which, number, count, l0, l1, n], tail)) = rest.split_first_chunk() else { break };
        let bytes = &tail[..usize::from(*n).min(tail.len())];
        rest = &tail[bytes.len()..];
        let len = usize::from(u16::from_be_bytes([*l0, *l1])).min(9000).max(bytes.len());
        let count = count % SLICES_MAX + 1;
        let (kind, number) = if count == 1 { (Kind::Frames, 0) } else { (Kind::Slice, number % count) };
        let mut datagram = vec![0; OVERHEAD + len];
        datagram[HEADER_LEN..HEADER_LEN + bytes.len()].copy_from_slice(bytes);
        let counter = first + u64::from(*which) * u64::from(SLICES_MAX) + u64::from(number);
        let content = Content { kind, partial: false, slice: (number, count) };
        link.ours.seal_at(counter, content, &mut datagram);
        let datagram_len = datagram.len();
        reception.handle_train(&mut turn, link.endpoint, which % 4, &mut datagram, datagram_len);
    }
    turn.now = START + ASSEMBLY_TIME_MAX;
    reception.handle_timeout(&mut turn);
    assert_eq!(reception.poll_timeout(), None);
}

fn check_virtio(virtio: Virtio, packet: &[u8]) {
    let bytes: [u8; VIRTIO_LEN] = virtio.emit();
    let field = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    let (headers, segment, start, offset) = (field(2), field(4), field(6), field(8));
    if bytes[0] == 0 {
        return assert_eq!(virtio, Virtio::PLAIN);
    }
    assert!(start >= 40 && start + offset + 2 <= packet.len());
    match bytes[1] {
        0 => assert_eq!((segment, headers), (0, 0)),
        4 => assert!(segment >= usize::from(TCP_SEGMENT_LEN_MIN) && headers + segment < packet.len()),
        5 => assert!((packet.len() - headers).div_ceil(segment) <= UDP_SEGMENTS_MAX),
        other => panic!("gso_type {other}"),
    }
    assert!(headers <= HEADERS_LEN_MAX);
}

struct Link {
    ours: Session,
    snapshot: Snapshot,
    shared: Shared,
    endpoint: SocketAddr,
    source: Ipv6Addr,
}

/// One for many inputs: every input has counters of its own.
static LINK: Mutex<Option<Link>> = Mutex::new(None);

/// A link that has `n` more counters, and the first of them.
fn with_counters(kept: &mut Option<Link>, n: u64) -> (&Link, u64) {
    let first = kept.as_ref().and_then(|link| link.ours.reserve(0, n, START).ok());
    let link = match first {
        Some(_) => kept.get_or_insert_with(link),
        None => kept.insert(link()),
    };
    (link, first.unwrap_or_else(|| link.ours.reserve(0, n, START).expect("a new session")))
}

fn link() -> Link {
    let (alice, bob) = (Identity::from_seed([1; 32]), Identity::from_seed([2; 32]));
    let (config, mut rng) = (Config::new(true, NetworkSecret::default()), Rng::seed_from_u64(3));
    let wall = WallTime::from_unix_ms(1_800_000_000_000);
    let (to, x25519) = (bob.node_id(), bob.x25519_public());
    let (mut initiator, mut packet) =
        Initiator::start(&alice, &config, to, &x25519, 7, wall, None, &mut rng).expect("usable keys");
    let key = RecipientKey::new(&to, &config.network);
    let incoming = Incoming::open(&bob, &config, &key.open(&mut packet).expect("an initiation"));
    let endpoint = ([192, 0, 2, 1], 5747).into();
    let incoming = incoming.expect("honest");
    let (theirs, mut reply) = incoming.accept(&bob, 8, endpoint, START, &mut rng).expect("honest");
    let own_key = RecipientKey::new(&alice.node_id(), &config.network);
    let envelope = own_key.open(&mut reply).expect("a response");
    let ours = initiator.finish(&envelope, START).expect("honest").session;
    let rules = Arc::new(Rules { allow_all: true, ..Rules::default() });
    let mut snapshot = Snapshot::empty(bob.address(), key, rules);
    let account = Arc::new(Account::default());
    let receiver = Receiver::new(theirs, alice.address(), Some(endpoint.into()), account);
    snapshot.receivers.insert(8, Arc::new(receiver));
    let shared = Shared { flows: Flows::new([5; 16]), drops: Drops::default() };
    Link { ours, snapshot, shared, endpoint, source: alice.address().ipv6() }
}

/// Checks all that would be written to the interface.
struct Seen {
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

impl Inward for Seen {
    fn deliver(&mut self, virtio: Virtio, pieces: &[&[u8]]) {
        let packet = pieces.concat();
        let inner = Inner::parse(&packet).expect("a whole packet");
        assert_eq!((inner.source, inner.destination), (self.source, self.destination));
        assert_eq!(inner.len, packet.len());
        check_virtio(virtio, &packet);
    }

    fn control(&mut self, _: u32, _: Hop, _: &[u8]) {}

    fn setup(&mut self, _: Hop, _: &[u8]) {}

    fn reply(&mut self, _: Hop, _: &[u8]) {}

    fn forward(&mut self, _: Train<'_>) {}

    fn notify(&mut self, _: Notice) {}
}
