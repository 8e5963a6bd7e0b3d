//! Two nodes and what passes between them.

use rand_core::SeedableRng;

use super::noise::{Established, Incoming, Initiator};
use super::transport::{OpenError, Session};
use super::*;
use crate::proto::identity::Identity;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::envelope::{Envelope, RecipientKey};
use crate::proto::wire::session::{HEADER_LEN, Header, Kind, OVERHEAD};
use crate::proto::wire::{self, session};
use std::net::SocketAddr;
use std::time::Duration;

mod gate;
mod handshake;
mod hostile;
mod loss;
mod sealed;
mod threads;
mod transport;
mod vectors;

const START: Instant = Instant::from_nanos(1_000_000_000_000);
const ALICE_INDEX: u32 = 0x0a11_ce01;
const BOB_INDEX: u32 = 0x0000_0b0b;

fn rng(seed: u64) -> Rng {
    Rng::seed_from_u64(seed)
}

fn wall(seconds: u64) -> WallTime {
    WallTime::from_unix_ms((1_800_000_000 + seconds) * 1000)
}

fn at(seconds: u64) -> Instant {
    START + Duration::from_secs(seconds)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn alice_at() -> SocketAddr {
    address("192.0.2.7:5747")
}

struct Node {
    identity: Identity,
    config: Config,
    key: RecipientKey,
}

impl Node {
    fn new(seed: u8, network: NetworkSecret) -> Self {
        let identity = Identity::from_seed([seed; 32]);
        let key = RecipientKey::new(&identity.node_id(), &network);
        Self { identity, config: Config::new(true, network), key }
    }

    fn alice() -> Self {
        Self::new(1, NetworkSecret::default())
    }

    fn bob() -> Self {
        Self::new(2, NetworkSecret::default())
    }

    fn start(&self, peer: &Self, rng: &mut Rng) -> (Initiator, Vec<u8>) {
        self.start_with(peer, &peer.identity.x25519_public(), rng).unwrap()
    }

    fn start_with(
        &self,
        peer: &Self,
        peer_x25519: &[u8; 32],
        rng: &mut Rng,
    ) -> Result<(Initiator, Vec<u8>), HandshakeError> {
        let peer = peer.identity.node_id();
        let (me, config) = (&self.identity, &self.config);
        Initiator::start(me, config, peer, peer_x25519, ALICE_INDEX, wall(0), None, rng)
    }

    /// Opens the envelope of a copy of the packet and hands it on.
    fn receive<T>(&self, packet: &[u8], then: impl FnOnce(&Envelope<'_>) -> T) -> T {
        then(&self.key.open(&mut packet.to_vec()).expect("mac1 is good"))
    }

    fn incoming(&self, packet: &[u8]) -> Result<Incoming, HandshakeError> {
        self.receive(packet, |envelope| Incoming::open(&self.identity, &self.config, envelope))
    }

    fn respond(&self, packet: &[u8], rng: &mut Rng) -> (Session, Vec<u8>) {
        let incoming = self.incoming(packet).unwrap();
        incoming.accept(&self.identity, BOB_INDEX, alice_at(), START, rng).unwrap()
    }

    fn finish(&self, initiator: &mut Initiator, packet: &[u8]) -> Result<Established, HandshakeError> {
        self.receive(packet, |envelope| initiator.finish(envelope, START))
    }
}

/// Sessions of Alice, who initiated, and of Bob.
fn sessions() -> (Session, Session) {
    sessions_between(&Node::alice(), &Node::bob(), &mut rng(1))
}

fn sessions_between(alice: &Node, bob: &Node, rng: &mut Rng) -> (Session, Session) {
    let (mut initiator, initiation) = alice.start(bob, rng);
    let (theirs, response) = bob.respond(&initiation, rng);
    (alice.finish(&mut initiator, &response).unwrap().session, theirs)
}

/// Seals a text and returns the packet as it goes on the wire.
fn seal(session: &Session, text: &[u8], now: Instant) -> Vec<u8> {
    let mut packet = vec![0xee; OVERHEAD + text.len() + 16];
    packet[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    let len = session.seal(Kind::Data, &mut packet, text.len(), 1500, now).unwrap();
    packet.truncate(len);
    packet
}

/// Unmasks a packet as its recipient does.
fn unmask(recipient: &Node, packet: &[u8]) -> (Header, Vec<u8>) {
    let mut packet = packet.to_vec();
    session::mask(&recipient.key, &mut packet).unwrap();
    let header = Header::parse(packet.first_chunk().unwrap()).unwrap();
    (header, packet)
}

/// The plaintext, and whether it is the newest, the first, and of a new epoch.
fn open(
    session: &Session,
    recipient: &Node,
    packet: &[u8],
    now: Instant,
) -> Result<(Vec<u8>, [bool; 3]), OpenError> {
    let (header, mut packet) = unmask(recipient, packet);
    let opened = session.open(&header, &mut packet, now)?;
    Ok((opened.plaintext.to_vec(), [opened.newest, opened.first, opened.epoch_advanced]))
}

/// What bits of each byte took both values in a set of packets, over the length of the shortest.
fn varying(packets: &[Vec<u8>]) -> Vec<u8> {
    let len = packets.iter().map(Vec::len).min().unwrap();
    let both = |at: usize| packets.iter().fold(0, |seen, packet| seen | (packet[at] ^ packets[0][at]));
    (0..len).map(both).collect()
}

/// Every bit varies but the two of the family.
fn assert_no_constant_bit(packets: &[Vec<u8>]) {
    let varying = varying(packets);
    assert_eq!(varying[0], !wire::FAMILY_MASK);
    let constant: Vec<_> = (1..varying.len()).filter(|at| varying[*at] != 0xff).collect();
    assert!(constant.is_empty(), "bytes with constant bits: {constant:?}");
}
