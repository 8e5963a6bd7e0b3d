//! Sealed packets.

use super::super::sealed::{
    self, PAYLOAD_LEN_MAX, REPLAY_CACHE_LEN_MAX, ReplayCache, SealedError, TIME_WINDOW,
};
use super::*;
use crate::proto::identity::NodeId;
use crate::proto::wire::SETUP_LEN_MAX;
use crate::proto::wire::envelope::{BODY_AT, Kind};
use crate::proto::wire::sealed::{HOP_LIMIT_AT, Header, Message};

fn seal_with(from: &Node, to: NodeId, payload: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let network = &from.config.network;
    sealed::seal(&from.identity, to, Message::RecordRequest, payload, wall(0), network, rng)
}

fn seal_to(to: &Node, payload: &[u8]) -> Vec<u8> {
    seal_with(&Node::alice(), to.identity.node_id(), payload, &mut rng(1)).unwrap()
}

fn open_at(bob: &Node, packet: &[u8], wall: WallTime) -> Result<(Header, Vec<u8>), SealedError> {
    bob.receive(packet, |envelope| sealed::open(&bob.identity, envelope, wall))
}

fn reclose(bob: &Node, packet: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let kind = bob.key.open(&mut packet).unwrap().kind;
    change(&mut packet);
    bob.key.close(kind, None, [0; 16], &mut packet);
    packet
}

#[test]
fn what_is_sealed_opens() {
    let bob = Node::bob();
    for len in [0, 1, 100, PAYLOAD_LEN_MAX] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let packet = seal_to(&bob, &payload);
        assert!(packet.len() <= SETUP_LEN_MAX);
        let (header, opened) = open_at(&bob, &packet, wall(5)).unwrap();
        assert_eq!(opened, payload);
        assert_eq!(header.sender, Node::alice().identity.node_id());
        assert_eq!(header.recipient, bob.identity.node_id());
        assert_eq!((header.message, header.timestamp), (Message::RecordRequest, wall(0)));
        assert_eq!(header.hop_limit, 1);
    }
}

#[test]
fn no_packet_for_nobody_ourselves_or_too_much() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(2);
    let mut seal = |to, len| seal_with(&alice, to, &vec![0; len], &mut rng);
    assert!(seal(bob.identity.node_id(), PAYLOAD_LEN_MAX).is_some());
    assert!(seal(bob.identity.node_id(), PAYLOAD_LEN_MAX + 1).is_none());
    assert!(seal(alice.identity.node_id(), 1).is_none());
    assert!(seal(NodeId([0; 32]), 1).is_none());
}

/// Every byte of the body but the hop limit is authenticated.
#[test]
fn a_changed_packet_is_refused() {
    let bob = Node::bob();
    let packet = seal_to(&bob, b"payload");
    for at in BODY_AT..packet.len() {
        let changed = reclose(&bob, &packet, |packet| packet[at] ^= 4);
        let opened = open_at(&bob, &changed, wall(0)).map(|(header, _)| header.hop_limit);
        if at == BODY_AT + HOP_LIMIT_AT {
            assert_eq!(opened, Ok(1 ^ 4));
        } else {
            assert!(opened.is_err(), "byte {at}");
        }
    }
    for len in BODY_AT..packet.len() {
        let cut = reclose(&bob, &packet, |packet| packet.truncate(len));
        assert!(open_at(&bob, &cut, wall(0)).is_err(), "length {len}");
    }
    let longer = reclose(&bob, &packet, |packet| packet.push(0));
    assert_eq!(open_at(&bob, &longer, wall(0)).err(), Some(SealedError::Signature));
}

#[test]
fn only_the_recipient_opens_it() {
    let (alice, bob, carol) = (Node::alice(), Node::bob(), Node::new(3, NetworkSecret::default()));
    let packet = seal_to(&bob, b"payload");
    assert!(carol.key.open(&mut packet.clone()).is_err());
    let mut moved = packet.clone();
    bob.key.open(&mut moved).unwrap();
    carol.key.close(Kind::Sealed, None, [0; 16], &mut moved);
    assert_eq!(open_at(&carol, &moved, wall(0)).err(), Some(SealedError::NotForUs));
    let mut reflected = packet;
    bob.key.open(&mut reflected).unwrap();
    alice.key.close(Kind::Sealed, None, [0; 16], &mut reflected);
    assert_eq!(open_at(&alice, &reflected, wall(0)).err(), Some(SealedError::NotForUs));
}

#[test]
fn a_packet_from_ourselves_is_refused() {
    let bob = Node::bob();
    let packet = seal_to(&bob, b"payload");
    let own = reclose(&bob, &packet, |packet| {
        packet[BODY_AT + 12..BODY_AT + 44].copy_from_slice(bob.identity.node_id().as_bytes());
    });
    assert_eq!(open_at(&bob, &own, wall(0)).err(), Some(SealedError::OwnIdentity));
}

#[test]
fn time_must_be_near() {
    let bob = Node::bob();
    let packet = seal_to(&bob, b"payload");
    let sealed_at = wall(0).as_unix_ms();
    let window = TIME_WINDOW.as_millis() as u64;
    let check = |now: u64, expected: Option<SealedError>| {
        assert_eq!(open_at(&bob, &packet, WallTime::from_unix_ms(now)).err(), expected);
    };
    check(sealed_at - window, None);
    check(sealed_at + window, None);
    check(sealed_at - window - 1, Some(SealedError::Time));
    check(sealed_at + window + 1, Some(SealedError::Time));
    check(0, Some(SealedError::Time));
    check(u64::MAX, Some(SealedError::Time));
}

#[test]
fn the_hop_limit_is_a_forwarders_to_change() {
    let bob = Node::bob();
    let packet = reclose(&bob, &seal_to(&bob, b"payload"), |packet| packet[BODY_AT + HOP_LIMIT_AT] = 7);
    assert_eq!(open_at(&bob, &packet, wall(0)).unwrap().0.hop_limit, 7);
}

#[test]
fn other_kinds_are_not_sealed() {
    let bob = Node::bob();
    let mut packet = seal_to(&bob, b"payload");
    bob.key.open(&mut packet).unwrap();
    bob.key.close(Kind::Initiation, None, [0; 16], &mut packet);
    assert_eq!(open_at(&bob, &packet, wall(0)).err(), Some(SealedError::Kind));
}

#[test]
fn a_thousand_sealed_packets_share_no_constant_bit() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(3);
    let packets: Vec<_> =
        (0..1000).map(|_| seal_with(&alice, bob.identity.node_id(), &[0; 200], &mut rng).unwrap()).collect();
    assert_no_constant_bit(&packets);
}

fn numbered(n: usize) -> [u8; 64] {
    let mut signature = [0; 64];
    signature[..8].copy_from_slice(&n.to_be_bytes());
    signature
}

#[test]
fn a_replay_is_seen_while_its_time_is_acceptable() {
    let bob = Node::bob();
    let packet = seal_to(&bob, b"payload");
    let signature = bob.receive(&packet, |envelope| sealed::signature(envelope).unwrap());
    // Dated TIME_WINDOW ahead it can come again for twice as long, whenever in a generation it came.
    for offset in [0, 1, 600, 1199, 1200, 1201] {
        let mut cache = ReplayCache::new(START);
        assert!(cache.first_seen(at(0), &numbered(0)));
        assert!(cache.first_seen(at(offset), &signature));
        for age in [0, 1, 599, 600, 1200] {
            assert!(!cache.first_seen(at(offset + age), &signature), "offset {offset} age {age}");
        }
    }
}

#[test]
fn the_replay_cache_is_bounded_and_keeps_the_latest() {
    let mut cache = ReplayCache::new(START);
    for n in 0..3 * REPLAY_CACHE_LEN_MAX {
        assert!(cache.first_seen(START, &numbered(n)));
        assert!(cache.len() <= REPLAY_CACHE_LEN_MAX);
    }
    let kept = REPLAY_CACHE_LEN_MAX / 2;
    assert!(
        (3 * REPLAY_CACHE_LEN_MAX - kept..3 * REPLAY_CACHE_LEN_MAX)
            .all(|n| !cache.first_seen(START, &numbered(n)))
    );
}
