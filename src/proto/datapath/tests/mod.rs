//! Two nodes' data paths back to back, with whatever a network does to datagrams in between.

mod backlog;
mod ecn;
mod gro;
mod hostile;
mod loss;
mod outbound;
mod packets;
mod threads;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rand_core::SeedableRng;

use super::{
    Batch, Inward, Notice, Outbound, Outbox, PlainPackets, Receiver, Reception, Route, Shared, Sink,
    Snapshot, Train, Turn,
};
use crate::proto::identity::Identity;
use crate::proto::policy::{Account, Flows, Rules};
use crate::proto::session::noise::{Incoming, Initiator};
use crate::proto::session::transport::Session;
use crate::proto::session::{Config, Rng};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::envelope::{Envelope, NetworkSecret, RecipientKey};
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::relay::Hop;

const NOW: Instant = Instant::from_nanos(1_000_000_000);

/// One end.
struct End {
    snapshot: Snapshot,
    shared: Shared,
    outbox: Outbox,
    reception: Reception,
}

/// What came out of the data path: packets in one piece and what the kernel is told about them.
#[derive(Default)]
struct Out {
    packets: Vec<(Virtio, Vec<u8>)>,
    control: usize,
    forwarded: Vec<(SocketAddr, usize, Vec<u8>)>,
}

impl Inward for Out {
    fn deliver(&mut self, virtio: Virtio, pieces: &[&[u8]]) {
        self.packets.push((virtio, pieces.concat()));
    }

    fn control(&mut self, _: u32, _: Hop, _: &[u8]) {
        self.control += 1;
    }

    fn setup(&mut self, _: Hop, _: &[u8]) {}

    fn reply(&mut self, _: Hop, _: &[u8]) {}

    fn forward(&mut self, train: Train<'_>) {
        self.forwarded.push((train.to, train.datagram_len, train.bytes.to_vec()));
    }

    fn notify(&mut self, _: Notice) {}
}

impl Out {
    /// What programs see: cut by a kernel, checksums complete.
    fn plain(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (virtio, packet) in &self.packets {
            let mut plain = PlainPackets::of(packet, virtio.offload());
            let mut room = vec![0; packet.len()];
            while let Some(len) = plain.next(packet, &mut room) {
                all.push(room[..len].to_vec());
            }
        }
        all
    }
}

/// One train, as it left.
#[derive(Clone, Debug)]
struct Sent {
    ecn: u8,
    datagram_len: usize,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Wire(Vec<Sent>);

impl Sink for Wire {
    fn send(&mut self, trains: &[Train<'_>]) {
        for train in trains {
            assert!(train.bytes.len() <= super::TRAIN_BYTES_MAX && train.to == endpoint(2));
            let (ecn, datagram_len) = (train.ecn, train.datagram_len);
            self.0.push(Sent { ecn, datagram_len, bytes: train.bytes.to_vec() });
        }
    }
}

impl Wire {
    fn datagrams(&self) -> Vec<Vec<u8>> {
        self.0.iter().flat_map(|train| train.bytes.chunks(train.datagram_len).map(<[u8]>::to_vec)).collect()
    }
}

fn identity(n: u8) -> Identity {
    Identity::from_seed([n; 32])
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 5747))
}

fn address(n: u8) -> Ipv6Addr {
    identity(n).address().ipv6()
}

fn sessions(capabilities: u16) -> [Session; 2] {
    let config = Config { capabilities, ..Config::new(true, NetworkSecret::default()) };
    let (alice, bob, mut rng) = (identity(1), identity(2), Rng::from_seed([7; 32]));
    let wall = WallTime::from_unix_ms(1_800_000_000_000);
    let x25519 = bob.x25519_public();
    let (mut initiator, mut packet) =
        Initiator::start(&alice, &config, bob.node_id(), &x25519, 11, wall, None, &mut rng).unwrap();
    let key = |identity: &Identity| RecipientKey::new(&identity.node_id(), &NetworkSecret::default());
    let envelope = key(&bob).open(&mut packet).unwrap();
    let incoming = Incoming::open(&bob, &config, &envelope).unwrap();
    let (theirs, mut response) = incoming.accept(&bob, 22, endpoint(1), NOW, &mut rng).unwrap();
    key(&alice).open(&mut response).unwrap();
    let ours = initiator.finish(&Envelope::reopen(&mut response).unwrap(), NOW).unwrap().session;
    [ours, theirs]
}

fn end(own: u8, peer: u8, session: &Session, datagram_len: usize) -> End {
    let key = RecipientKey::new(&identity(own).node_id(), &NetworkSecret::default());
    let rules = Arc::new(Rules { allow_all: true, ..Rules::default() });
    let mut snapshot = Snapshot::empty(identity(own).address(), key, rules);
    let address = identity(peer).address();
    let route = Route::new(session.clone(), endpoint(peer), datagram_len, true);
    snapshot.routes.insert(address, Arc::new(route));
    let account = Arc::new(Account::default());
    let receiver = Receiver::new(session.clone(), address, Some(endpoint(peer).into()), account);
    snapshot.receivers.insert(session.local_index(), Arc::new(receiver));
    let shared = Shared { flows: Flows::new([own; 16]), drops: super::Drops::default() };
    End { snapshot, shared, outbox: Outbox::new(), reception: Reception::new(false) }
}

/// Alice and Bob; `capabilities` is what both can do.
fn pair(capabilities: u16, datagram_len: usize) -> [End; 2] {
    let [ours, theirs] = sessions(capabilities);
    [end(1, 2, &ours, datagram_len), end(2, 1, &theirs, datagram_len)]
}

impl End {
    /// From now on the path counts as one that loses much.
    fn cut(&mut self) {
        let address = identity(2).address();
        if let Some(mut route) = self.snapshot.routes.remove(&address) {
            Arc::get_mut(&mut route).unwrap().cuts = true;
            self.snapshot.routes.insert(address, route);
        }
    }

    /// Sends packets as one batch.
    fn send(&mut self, packets: &[(Vec<u8>, Virtio)]) -> (Wire, Vec<Outbound>) {
        let mut wire = Wire::default();
        let mut batch = Batch::new(&self.snapshot, &self.shared, &mut self.outbox, &mut wire, NOW);
        let verdicts = packets.iter().map(|(packet, virtio)| batch.push(packet, *virtio).0).collect();
        batch.flush();
        (wire, verdicts)
    }

    fn receive(&mut self, datagrams: &[Vec<u8>], out: &mut Out) {
        self.receive_marked(datagrams.iter().map(|datagram| (datagram, 0)), out);
    }

    /// Receives datagrams, each with the ECN codepoint of its IP header.
    fn receive_marked<'d>(&mut self, datagrams: impl Iterator<Item = (&'d Vec<u8>, u8)>, out: &mut Out) {
        for (datagram, ecn) in datagrams {
            let (mut train, len) = (datagram.clone(), datagram.len());
            let Self { snapshot, shared, reception, .. } = self;
            let mut turn = Turn { snapshot, shared, now: NOW, out };
            reception.handle_train(&mut turn, endpoint(1), ecn, &mut train, len);
        }
    }

    fn receive_trains(&mut self, wire: &Wire, out: &mut Out) {
        for train in &wire.0 {
            let mut bytes = train.bytes.clone();
            let Self { snapshot, shared, reception, .. } = self;
            let mut turn = Turn { snapshot, shared, now: NOW, out };
            reception.handle_train(&mut turn, endpoint(1), train.ecn, &mut bytes, train.datagram_len);
        }
    }

    /// Receives datagrams as the kernel hands over those that arrived together.
    fn receive_train(&mut self, datagrams: &[u8], datagram_len: usize, out: &mut Out) {
        let Self { snapshot, shared, reception, .. } = self;
        let mut turn = Turn { snapshot, shared, now: NOW, out };
        reception.handle_train(&mut turn, endpoint(1), 0, &mut datagrams.to_vec(), datagram_len);
    }

    /// Long enough for every superframe to be given up.
    fn wait(&mut self, out: &mut Out) {
        let later = NOW + super::ASSEMBLY_TIME_MAX;
        let Self { snapshot, shared, reception, .. } = self;
        reception.handle_timeout(&mut Turn { snapshot, shared, now: later, out });
        assert_eq!(reception.poll_timeout(), None);
    }
}
