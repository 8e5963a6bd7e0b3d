//! A whole node with one live session, and whatever may come to it.
//!
//! The input is a sequence of `what u8 ‖ length u16 ‖ bytes`; what comes from the peer is sealed in the session, and a
//! stranger's setup packets get a valid envelope, or nothing would ever reach the node.

use std::net::SocketAddr;
use std::time::Duration;

use auramesh::proto::datapath::{
    Batch, Inward, Notice, Outbound, Outbox, Reception, Sink, Snapshot, Train, Turn,
};
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::Identity;
use auramesh::proto::node::{Config, Node};
use auramesh::proto::path::LocalNetwork;
use auramesh::proto::policy::Rules;
use auramesh::proto::relay;
use auramesh::proto::session;
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::SETUP_LEN_MAX;
use auramesh::proto::wire::cursor::Reader;
use auramesh::proto::wire::envelope::{BODY_AT, Kind as SetupKind, NetworkSecret, RecipientKey};
use auramesh::proto::wire::gso::Virtio;
use auramesh::proto::wire::inner::Inner;
use auramesh::proto::wire::relay::Hop;
use auramesh::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE};

const MTU: usize = 1400;
const SETUP_KINDS: [SetupKind; 4] =
    [SetupKind::Initiation, SetupKind::Response, SetupKind::CookieReply, SetupKind::Sealed];

/// The node, its peer, and the time.
struct Pair {
    node: Node,
    peer: Node,
    /// What the peer seals with.
    sealing: std::sync::Arc<Snapshot>,
    now: Instant,
}

/// Nothing that comes brings the node down, gets a spoofed packet delivered, or makes it say more than it was told.
pub(crate) fn node(data: &[u8]) {
    let mut pair = Pair::connected();
    let mut reader = Reader::new(data);
    while let (Ok(what), Ok(len)) = (reader.u8(), reader.u16()) {
        let Ok(bytes) = reader.take(usize::from(len).min(reader.len())) else { break };
        pair.happen(what, bytes);
    }
    pair.advance(Duration::from_secs(200));
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([11, 0, n, 1], 5747))
}

const PEER: u8 = 2;
const STRANGER: u8 = 3;

fn start(n: u8, bootstrap: &[u8], now: Instant, wall: WallTime) -> Node {
    let identity = |n| Identity::from_seed([n; 32]);
    let config = Config {
        identity: identity(n),
        session: session::Config::new(true, NetworkSecret::default()),
        dht_mode: Mode::Server,
        dht_auto: true,
        relay: relay::Config::default(),
        rules: Rules { allow_all: true, ..Rules::default() },
        mtu: MTU,
        bootstrap: bootstrap.iter().map(|n| (identity(*n).node_id(), endpoint(*n))).collect(),
        remembered: Vec::new(),
        seed: [n; 32],
    };
    let mut node = Node::new(config, now);
    let local = LocalNetwork { ip: endpoint(n).ip(), prefix_len: 24 };
    node.handle_links(now, wall, vec![local], vec![endpoint(n)]);
    node
}

impl Pair {
    fn connected() -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let (mut node, peer) = (start(1, &[], now, wall(now)), start(PEER, &[1], now, wall(now)));
        let sealing = node.snapshot();
        let mut pair = Self { node, peer, sealing, now };
        pair.peer.handle_timeout(now, wall(now));
        for _ in 0..8 {
            pair.exchange();
        }
        pair.sealing = pair.peer.snapshot();
        assert!(pair.sealing.routes.contains_key(&pair.node.address()), "the session stands");
        pair
    }

    /// Carries datagrams both ways, nothing to and from others.
    fn exchange(&mut self) {
        let (a, b) = ((1, endpoint(1)), (PEER, endpoint(PEER)));
        for datagram in drain(&mut self.peer, a.1) {
            receive(&mut self.node, b.1, datagram, self.now);
        }
        for datagram in drain(&mut self.node, b.1) {
            receive(&mut self.peer, a.1, datagram, self.now);
        }
    }

    fn happen(&mut self, what: u8, bytes: &[u8]) {
        match what % 8 {
            0 => self.take_from_stranger(bytes.to_vec()),
            1 => self.take_from_stranger_in_envelope(bytes),
            2 => self.take_from_peer(Kind::Control, bytes),
            3 => {
                let kind = [Kind::Data, Kind::Frames][bytes.len() % 2];
                self.take_from_peer(kind, bytes);
            }
            4 => self.take_from_interface(bytes),
            5 => {
                let _ = self.node.handle_announce(self.now, wall(self.now), endpoint(STRANGER), bytes);
            }
            6 => self.advance(Duration::from_millis(bytes.iter().map(|ms| u64::from(*ms)).sum())),
            _ => self.exchange(),
        }
    }

    fn take_from_stranger(&mut self, datagram: Vec<u8>) {
        let len = datagram.len();
        // What the node has to say for other reasons goes first.
        drain(&mut self.node, endpoint(STRANGER));
        receive(&mut self.node, endpoint(STRANGER), datagram, self.now);
        let answers = drain(&mut self.node, endpoint(STRANGER));
        assert!(answers.iter().map(Vec::len).sum::<usize>() <= len, "an answer longer than what it answers");
    }

    fn take_from_stranger_in_envelope(&mut self, bytes: &[u8]) {
        let Some((kind, body)) = bytes.split_first() else { return };
        let mut packet = vec![0; BODY_AT];
        packet.extend(body.iter().take(SETUP_LEN_MAX - BODY_AT));
        let key = RecipientKey::new(&self.node.node_id(), &NetworkSecret::default());
        key.close(SETUP_KINDS[usize::from(*kind) % SETUP_KINDS.len()], None, [0; 16], &mut packet);
        self.take_from_stranger(packet);
    }

    fn take_from_peer(&mut self, kind: Kind, bytes: &[u8]) {
        let Some(route) = self.sealing.routes.get(&self.node.address()) else { return };
        let len = bytes.len().min(MTU);
        let mut packet = vec![0; HEADER_LEN + len + OVERHEAD + PADDING_MULTIPLE];
        packet[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&bytes[..len]);
        if let Ok(total) = route.session.seal(kind, &mut packet, len, MTU, self.now) {
            packet.truncate(total);
            let (peer, own) = (self.peer.address().ipv6(), self.node.address().ipv6());
            for delivered in receive(&mut self.node, endpoint(PEER), packet, self.now) {
                let inner = Inner::parse(&delivered).expect("only whole packets are delivered");
                assert_eq!((inner.source, inner.destination), (peer, own));
            }
        }
    }

    fn take_from_interface(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(MTU);
        let (snapshot, shared) = (self.node.snapshot(), self.node.shared());
        let (mut outbox, mut wire) = (Outbox::new(), Wire);
        let mut batch = Batch::new(&snapshot, &shared, &mut outbox, &mut wire, self.now);
        let (verdict, notice) = batch.push(&bytes[..len], Virtio::PLAIN);
        batch.flush();
        if let Some(notice) = notice {
            self.node.handle_notice(self.now, wall(self.now), notice);
        }
        match verdict {
            Outbound::Queue => {
                self.node.handle_unrouted(self.now, wall(self.now), bytes[..len].to_vec());
            }
            Outbound::Sent | Outbound::TooBig(_) | Outbound::Drop(_) => {}
        }
    }

    /// Time passes; what is due on the way is done.
    fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..1000 {
            let Some(due) = self.node.poll_timeout().filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.node.handle_timeout(self.now, wall(self.now));
            self.exchange();
        }
        self.now = end;
        assert!(
            self.node.poll_timeout().is_none_or(|due| due > end),
            "a deadline that comes again and again"
        );
    }
}

fn wall(now: Instant) -> WallTime {
    WallTime::from_unix_ms(1_800_000_000_000 + now.as_nanos() / 1_000_000)
}

/// What the node wants to send to `to`; all else is lost.
fn drain(node: &mut Node, to: SocketAddr) -> Vec<Vec<u8>> {
    while node.poll_event().is_some() {}
    assert_eq!(node.poll_socket_order(), None, "sockets for a peer that no relay of ours has seen");
    let transmits = std::iter::from_fn(|| node.poll_transmit());
    transmits.filter(|transmit| transmit.to == to).map(|transmit| transmit.datagram).collect()
}

/// Gives a datagram to a node as the engine does; the packets for the interface.
fn receive(node: &mut Node, source: SocketAddr, mut datagram: Vec<u8>, now: Instant) -> Vec<Vec<u8>> {
    let (snapshot, shared) = (node.snapshot(), node.shared());
    let mut seen = Seen::default();
    let len = datagram.len();
    let mut turn = Turn { snapshot: &snapshot, shared: &shared, now, out: &mut seen };
    Reception::new(true).handle_train(&mut turn, source, 0, &mut datagram, len);
    for notice in seen.notices {
        node.handle_notice(now, wall(now), notice);
    }
    for (index, hop, messages) in seen.control {
        node.handle_control(now, wall(now), index, hop, &messages);
    }
    for (hop, mut packet) in seen.setup {
        node.handle_setup(now, wall(now), hop, &mut packet, false);
    }
    for (hop, mut packet) in seen.replies {
        node.handle_reply(now, wall(now), hop, &mut packet);
    }
    seen.packets
}

/// What comes out of the data path.
#[derive(Default)]
struct Seen {
    packets: Vec<Vec<u8>>,
    control: Vec<(u32, Hop, Vec<u8>)>,
    setup: Vec<(Hop, Vec<u8>)>,
    replies: Vec<(Hop, Vec<u8>)>,
    notices: Vec<Notice>,
}

impl Inward for Seen {
    fn deliver(&mut self, _: Virtio, pieces: &[&[u8]]) {
        self.packets.push(pieces.concat());
    }

    fn control(&mut self, local_index: u32, source: Hop, messages: &[u8]) {
        self.control.push((local_index, source, messages.to_vec()));
    }

    fn setup(&mut self, source: Hop, packet: &[u8]) {
        self.setup.push((source, packet.to_vec()));
    }

    fn reply(&mut self, source: Hop, packet: &[u8]) {
        self.replies.push((source, packet.to_vec()));
    }

    fn forward(&mut self, train: Train<'_>) {
        assert!(train.to == endpoint(PEER), "only between nodes with a session");
    }

    fn notify(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

struct Wire;

impl Sink for Wire {
    fn send(&mut self, trains: &[Train<'_>]) {
        assert!(trains.iter().all(|train| train.to == endpoint(PEER)));
    }
}
