//! Two nodes in memory with a session between them. What depends on the data path's functions is here.

use std::net::SocketAddr;
use std::sync::Arc;

use auramesh::proto::datapath::{
    self, Arrival, Batch, Inbound, Inward, Notice, Outbound, Outbox, Reception, Route, Shared, Sink,
    Snapshot, Train, Turn,
};
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::{Identity, MeshAddress, NodeId};
use auramesh::proto::node::{Config, Node};
use auramesh::proto::path::LocalNetwork;
use auramesh::proto::policy::Rules;
use auramesh::proto::relay;
use auramesh::proto::session;
use auramesh::proto::session::transport::Session;
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::gso::{VIRTIO_LEN, Virtio};
use auramesh::proto::wire::handshake::Suite;
use auramesh::proto::wire::relay::Hop;
use auramesh::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE};

/// Largest inner packet in bytes.
pub(crate) const MTU: usize = 1420;
/// When everything happens.
pub(crate) const NOW: Instant = Instant::from_nanos(1_000_000_000);
const WALL: WallTime = WallTime::from_unix_ms(1_800_000_000_000);

/// The sender and the receiver of what is measured.
pub(crate) struct Pair {
    sender: Side,
    receiver: Side,
}

/// What the data path of one node reads.
struct Side {
    snapshot: Arc<Snapshot>,
    shared: Arc<Shared>,
    endpoint: SocketAddr,
}

impl Pair {
    /// A new session, which has sent nothing: no benchmark comes near the packets that a key may seal.
    pub(crate) fn connected(suite: Suite) -> Self {
        let (first, second) = (identity(1), identity(2));
        let (one, two) = (endpoint(1), endpoint(2));
        let mut receiver = start(first, suite, one, &[]);
        let mut sender = start(second, suite, two, &[(receiver.node_id(), one)]);
        sender.handle_timeout(NOW, WALL);
        for _ in 0..8 {
            carry(&mut sender, two, &mut receiver, one);
            carry(&mut receiver, one, &mut sender, two);
        }
        let pair = Self { sender: Side::of(&mut sender, two), receiver: Side::of(&mut receiver, one) };
        assert_eq!(pair.sealing().suite(), suite);
        pair
    }

    /// The session at the sender.
    pub(crate) fn sealing(&self) -> &Session {
        let to = &self.receiver.snapshot.own;
        &self.sender.snapshot.routes.get(to).expect("the session stands").session
    }

    /// The sender's snapshot, as if the receiver had all these addresses.
    pub(crate) fn snapshot_with(&self, addresses: &[MeshAddress]) -> Snapshot {
        let Snapshot { own, own_key, rules, .. } = &*self.sender.snapshot;
        let mut snapshot = Snapshot::empty(*own, own_key.clone(), rules.clone());
        let route = || Route::new(self.sealing().clone(), self.receiver.endpoint, MTU, true);
        for address in addresses {
            snapshot.routes.insert(*address, Arc::new(route()));
        }
        snapshot
    }

    /// The session at the receiver.
    pub(crate) fn opening(&self) -> &Session {
        let index = self.sealing().remote_index();
        &self.receiver.snapshot.receivers.get(&index).expect("the session stands").session
    }

    /// The key that headers of packets to the receiver are masked with.
    pub(crate) fn mask_key(&self) -> &RecipientKey {
        &self.receiver.snapshot.own_key
    }

    /// A UDP packet of `len` bytes from the sender's interface, its checksum partial.
    pub(crate) fn udp(&self, len: usize) -> (Vec<u8>, Virtio) {
        let mut packet = Vec::new();
        self.ipv6().udp(40_000, 5300).write(&mut packet, &vec![0x5a; len - 48]).expect("a vector takes it");
        assert_eq!(packet.len(), len);
        let mut header = [0; VIRTIO_LEN];
        header[0] = 1;
        (packet, Virtio::parse(&header).expect("as a kernel writes it"))
    }

    /// A TCP packet of `len` bytes that the sender's kernel leaves uncut.
    pub(crate) fn large_tcp(&self, len: usize) -> (Vec<u8>, Virtio) {
        let (mut packet, tcp) = (Vec::new(), self.ipv6().tcp(40_000, 5300, 1, 65_535).ack(1));
        tcp.write(&mut packet, &vec![0x5a; len - 60]).expect("a vector takes it");
        let mut header = [0; VIRTIO_LEN];
        (header[0], header[1]) = (1, 4);
        header[4..6].copy_from_slice(&1360u16.to_ne_bytes());
        (packet, Virtio::parse(&header).expect("as a kernel writes it"))
    }

    fn ipv6(&self) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let (source, destination) = (self.sender.snapshot.own.ipv6(), self.receiver.snapshot.own.ipv6());
        etherparse::PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
    }

    /// The sender's data path: packets that are there at once, to trains; returns their bytes.
    #[inline]
    pub(crate) fn outbound(&self, outbox: &mut Outbox, packets: &[(Vec<u8>, Virtio)], wire: &mut Wire) {
        let Side { snapshot, shared, .. } = &self.sender;
        let mut batch = Batch::new(snapshot, shared, outbox, wire, NOW);
        for (packet, virtio) in packets {
            let (verdict, _) = batch.push(packet, *virtio);
            assert_eq!(verdict, Outbound::Sent);
        }
        batch.flush();
    }

    /// The receiver's data path: a train to packets for the interface; returns their number.
    #[inline]
    pub(crate) fn inbound(&self, reception: &mut Reception, train: &mut [u8], datagram_len: usize) -> usize {
        let Side { snapshot, shared, .. } = &self.receiver;
        let mut kernel = Kernel(0);
        let mut turn = Turn { snapshot, shared, now: NOW, out: &mut kernel };
        reception.handle_train(&mut turn, self.sender.endpoint, 0, train, datagram_len);
        kernel.0
    }
}

/// Trains as they leave; kept only when wanted.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) keep: bool,
    pub(crate) trains: Vec<(usize, Vec<u8>)>,
    pub(crate) bytes: usize,
}

impl Sink for Wire {
    fn send(&mut self, trains: &[Train<'_>]) {
        for train in trains {
            self.bytes += train.bytes.len();
            if self.keep {
                self.trains.push((train.datagram_len, train.bytes.to_vec()));
            }
        }
    }
}

/// Counts the packets that would be written to the interface, and the datagrams in them.
struct Kernel(usize);

impl Inward for Kernel {
    fn deliver(&mut self, virtio: Virtio, pieces: &[&[u8]]) {
        self.0 += if virtio.is_udp_train() { pieces.len() } else { 1 };
    }

    fn control(&mut self, _: u32, _: Hop, _: &[u8]) {}

    fn setup(&mut self, _: Hop, _: &[u8]) {}

    fn reply(&mut self, _: Hop, _: &[u8]) {}

    fn forward(&mut self, _: Train<'_>) {}

    fn notify(&mut self, _: Notice) {}
}

impl Side {
    fn of(node: &mut Node, endpoint: SocketAddr) -> Self {
        Self { snapshot: node.snapshot(), shared: node.shared(), endpoint }
    }
}

/// An inner packet with the room that sealing needs.
pub(crate) fn buffer(inner: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; HEADER_LEN + inner.len() + OVERHEAD + PADDING_MULTIPLE];
    buffer[HEADER_LEN..HEADER_LEN + inner.len()].copy_from_slice(inner);
    buffer
}

/// Seals what [`buffer`] made with the session alone; returns the length of the datagram.
#[inline]
pub(crate) fn seal(session: &Session, buffer: &mut [u8], len: usize) -> usize {
    session.seal(Kind::Data, buffer, len, MTU, NOW).expect("a fresh session seals")
}

/// An identity for each number.
pub(crate) fn identity(n: u32) -> Identity {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    Identity::from_seed(seed)
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([11, 0, n, 1], 5747))
}

fn start(identity: Identity, suite: Suite, endpoint: SocketAddr, bootstrap: &[(NodeId, SocketAddr)]) -> Node {
    let config = Config {
        identity,
        session: session::Config::new(suite == Suite::Aes256Gcm, NetworkSecret::default()),
        dht_mode: Mode::Server,
        dht_auto: false,
        relay: relay::Config::default(),
        rules: Rules { allow_all: true, ..Rules::default() },
        mtu: MTU,
        bootstrap: bootstrap.to_vec(),
        remembered: Vec::new(),
        seed: [3; 32],
    };
    let mut node = Node::new(config, NOW);
    node.handle_links(NOW, WALL, vec![LocalNetwork { ip: endpoint.ip(), prefix_len: 24 }], vec![endpoint]);
    node
}

/// Takes all that `from` has to say to `to`, as the engine does.
fn carry(from: &mut Node, source: SocketAddr, to: &mut Node, destination: SocketAddr) {
    while from.poll_event().is_some() {}
    while let Some(mut transmit) = from.poll_transmit() {
        if transmit.to == destination {
            receive(to, source, &mut transmit.datagram);
        }
    }
}

fn receive(node: &mut Node, source: SocketAddr, datagram: &mut [u8]) {
    let (snapshot, shared) = (node.snapshot(), node.shared());
    let Arrival { verdict, notice, .. } = datapath::inbound(&snapshot, &shared, source, 0, datagram, NOW);
    let mut setup = false;
    let mut control = None;
    match verdict {
        Inbound::Control { local_index, messages } => control = Some((local_index, messages.to_vec())),
        Inbound::Setup => setup = true,
        Inbound::Deliver(..)
        | Inbound::Frames { .. }
        | Inbound::Slice(_)
        | Inbound::Reply
        | Inbound::Forward(_)
        | Inbound::Drop(_) => {}
    }
    if let Some(notice) = notice {
        node.handle_notice(NOW, WALL, notice);
    }
    if let Some((local_index, messages)) = control {
        node.handle_control(NOW, WALL, local_index, source.into(), &messages);
    }
    if setup {
        node.handle_setup(NOW, WALL, source.into(), datagram, false);
    }
}
