//! Handshakes with liars, thieves and noise.

use zeroize::Zeroizing;

use super::super::crypto::{Noise, Setup};
use super::*;
use crate::proto::identity::NodeId;
use crate::proto::wire::envelope::{BODY_AT, Kind};
use crate::proto::wire::handshake::{
    INITIATION_LEN_MIN, INITIATION_NOISE_AT, Initiation, InitiationPayload, RESPONSE_NOISE_AT, Response,
    ResponsePayload,
};

/// Points of small order on Curve25519 and its twist, and their other spellings (cr.yp.to/ecdh.html).
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn key(hex: &str) -> [u8; 32] {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
}

/// Closes a packet for `recipient` after its unmasked body was changed: anybody can, mac1 is no secret.
fn forge(recipient: &Node, packet: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let kind = recipient.key.open(&mut packet).unwrap().kind;
    change(&mut packet);
    recipient.key.close(kind, None, [0; 16], &mut packet);
    packet
}

/// An initiation by `liar` with all right but what `lie` changes; signed by the liar before.
fn lying_initiation(liar: &Identity, bob: &Node, lie: impl FnOnce(&mut InitiationPayload)) -> Vec<u8> {
    let mut noise = Noise::new(&Setup {
        identity: liar,
        network: &bob.config.network,
        responder: bob.identity.node_id(),
        responder_x25519: Some(&bob.identity.x25519_public()),
        initiator_index: ALICE_INDEX,
    });
    noise.set_ephemeral(Zeroizing::new([5; 32]));
    let mut payload = InitiationPayload {
        node_id: liar.node_id(),
        timestamp: wall(0),
        suites: Suite::Aes256Gcm.bit(),
        preferred: Suite::Aes256Gcm,
        capabilities: 0,
        signature: [0; 64],
    };
    let text = noise::initiation_text(&noise.hash(), &liar.x25519_public(), &payload);
    payload.signature = liar.sign(&text);
    lie(&mut payload);
    let payload = payload.emit(100);
    let mut packet = Initiation::emit(ALICE_INDEX, payload.len() + 96);
    noise.write(&payload, &mut packet[INITIATION_NOISE_AT..]).unwrap();
    bob.key.close(Kind::Initiation, None, [0; 16], &mut packet);
    packet
}

fn refusal(bob: &Node, packet: &[u8]) -> HandshakeError {
    bob.incoming(packet).err().expect("refused")
}

#[test]
fn an_initiation_cut_anywhere_is_refused() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, initiation) = alice.start(&bob, &mut rng(1));
    for len in BODY_AT..initiation.len() {
        let cut = forge(&bob, &initiation, |packet| packet.truncate(len));
        let expected = if len < INITIATION_LEN_MIN {
            Malformed::Truncated.into()
        } else {
            HandshakeError::Authentication
        };
        assert_eq!(refusal(&bob, &cut), expected, "length {len}");
    }
    let longer = forge(&bob, &initiation, |packet| packet.push(0));
    assert_eq!(refusal(&bob, &longer), HandshakeError::Authentication);
}

#[test]
fn an_initiation_changed_anywhere_is_refused() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, initiation) = alice.start(&bob, &mut rng(2));
    // Version, index, ephemeral, static and its tag, and a bit of the payload.
    for at in (BODY_AT..INITIATION_NOISE_AT + 32 + 48 + 8).chain([initiation.len() - 1]) {
        let changed = forge(&bob, &initiation, |packet| packet[at] ^= 0x40);
        let expected = if at == BODY_AT {
            HandshakeError::Malformed(Malformed::Version(0x41))
        } else {
            HandshakeError::Authentication
        };
        assert_eq!(refusal(&bob, &changed), expected, "byte {at}");
    }
    assert!(bob.incoming(&initiation).is_ok());
}

/// The response that would follow must not be longer than what was asked for.
#[test]
fn a_short_initiation_is_refused_even_when_it_is_genuine() {
    let bob = Node::bob();
    let identity = &Node::alice().identity;
    let packet = lying_initiation(identity, &bob, |_| {});
    assert!(bob.incoming(&packet).is_ok());
    let mut noise = Noise::new(&Setup {
        identity,
        network: &bob.config.network,
        responder: bob.identity.node_id(),
        responder_x25519: Some(&bob.identity.x25519_public()),
        initiator_index: 1,
    });
    noise.set_ephemeral(Zeroizing::new([5; 32]));
    let mut packet = Initiation::emit(1, 96);
    noise.write(&[], &mut packet[INITIATION_NOISE_AT..]).unwrap();
    bob.key.close(Kind::Initiation, None, [0; 16], &mut packet);
    assert_eq!(refusal(&bob, &packet), HandshakeError::Malformed(Malformed::Truncated));
}

#[test]
fn nobody_can_claim_another_identity() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mallory = Identity::from_seed([66; 32]);
    let check = |lie: &dyn Fn(&mut InitiationPayload), expected| {
        assert_eq!(refusal(&bob, &lying_initiation(&mallory, &bob, lie)), expected);
    };
    check(&|payload| payload.node_id = alice.identity.node_id(), HandshakeError::Signature);
    check(&|payload| payload.timestamp = wall(9), HandshakeError::Signature);
    check(&|payload| payload.suites |= 1 << 7, HandshakeError::Signature);
    check(&|payload| payload.preferred = Suite::ChaCha20Poly1305, HandshakeError::Signature);
    check(&|payload| payload.capabilities = 1, HandshakeError::Signature);
    check(&|payload| payload.signature[0] ^= 1, HandshakeError::Signature);
    check(&|payload| payload.node_id = bob.identity.node_id(), HandshakeError::OwnIdentity);
    check(&|payload| payload.node_id = NodeId(key(LOW_ORDER[1])), HandshakeError::Signature);
}

/// A signature that Alice made for Bob is worth nothing with another X25519 key, nor towards another node.
#[test]
fn a_signature_cannot_be_carried_over() {
    let (alice, bob, carol) = (Node::alice(), Node::bob(), Node::new(3, NetworkSecret::default()));
    let mut stolen = None;
    lying_initiation(&alice.identity, &bob, |payload| stolen = Some(payload.clone()));
    let stolen = stolen.unwrap();
    let mallory = Identity::from_seed([66; 32]);
    let packet = lying_initiation(&mallory, &bob, |payload| *payload = stolen.clone());
    assert_eq!(refusal(&bob, &packet), HandshakeError::Signature);
    let packet = lying_initiation(&alice.identity, &carol, |payload| *payload = stolen.clone());
    assert_eq!(refusal(&carol, &packet), HandshakeError::Signature);
}

#[test]
fn no_common_suite_is_a_refusal() {
    let mut bob = Node::bob();
    bob.config = Config::new(false, NetworkSecret::default());
    let packet = lying_initiation(&Node::alice().identity, &bob, |_| {});
    assert_eq!(refusal(&bob, &packet), HandshakeError::Suite);
}

#[test]
fn unusable_keys_and_ourselves_get_no_packet() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(3);
    for point in LOW_ORDER {
        let started = alice.start_with(&bob, &key(point), &mut rng);
        assert_eq!(started.err(), Some(HandshakeError::UnusableKey), "{point}");
    }
    let start = |peer: [u8; 32], x25519: &[u8; 32]| {
        Initiator::start(
            &alice.identity,
            &alice.config,
            NodeId(peer),
            x25519,
            1,
            wall(0),
            None,
            &mut Rng::seed_from_u64(1),
        )
        .err()
    };
    let x25519 = bob.identity.x25519_public();
    assert_eq!(start([0; 32], &x25519), Some(HandshakeError::UnusableKey));
    assert_eq!(start(key(LOW_ORDER[1]), &x25519), Some(HandshakeError::UnusableKey));
    assert_eq!(start([0xff; 32], &x25519), Some(HandshakeError::UnusableKey));
    let own = alice.identity.node_id().0;
    assert_eq!(start(own, &x25519), Some(HandshakeError::OwnIdentity));
    let peer = bob.identity.node_id().0;
    assert_eq!(start(peer, &alice.identity.x25519_public()), Some(HandshakeError::OwnIdentity));
}

#[test]
fn a_low_order_ephemeral_key_is_refused() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, initiation) = alice.start(&bob, &mut rng(4));
    for point in LOW_ORDER {
        let at = INITIATION_NOISE_AT..INITIATION_NOISE_AT + 32;
        let changed = forge(&bob, &initiation, |packet| packet[at].copy_from_slice(&key(point)));
        assert_eq!(refusal(&bob, &changed), HandshakeError::Authentication);
    }
}

#[test]
fn our_own_initiation_sent_back_is_refused() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, mut initiation) = alice.start(&bob, &mut rng(5));
    bob.key.open(&mut initiation).unwrap();
    alice.key.close(Kind::Initiation, None, [0; 16], &mut initiation);
    assert_eq!(refusal(&alice, &initiation), HandshakeError::Authentication);
    let packet = lying_initiation(&bob.identity, &bob, |_| {});
    assert_eq!(refusal(&bob, &packet), HandshakeError::OwnIdentity);
}

#[test]
fn the_wrong_static_key_or_network_does_not_authenticate() {
    let (alice, bob, carol) = (Node::alice(), Node::bob(), Node::new(3, NetworkSecret::default()));
    let mut rng = rng(6);
    let (_, packet) = alice.start_with(&bob, &carol.identity.x25519_public(), &mut rng).unwrap();
    assert_eq!(refusal(&bob, &packet), HandshakeError::Authentication);

    let secret = NetworkSecret([7; 32]);
    let (elsewhere, bob_there) = (Node::new(1, secret.clone()), Node::new(2, secret));
    let (_, mut packet) = elsewhere.start(&bob_there, &mut rng);
    bob_there.key.open(&mut packet).unwrap();
    bob.key.close(Kind::Initiation, None, [0; 16], &mut packet);
    assert_eq!(refusal(&bob, &packet), HandshakeError::Authentication);
}

/// Whatever comes before the genuine response, it still counts.
#[test]
fn garbage_leaves_the_handshake_pending() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(7);
    let (mut initiator, initiation) = alice.start(&bob, &mut rng);
    let (theirs, response) = bob.respond(&initiation, &mut rng);
    for at in (BODY_AT..RESPONSE_NOISE_AT + 40).chain([response.len() - 1]) {
        let changed = forge(&alice, &response, |packet| packet[at] ^= 1);
        let expected = match at - BODY_AT {
            0 => HandshakeError::Malformed(Malformed::Version(0)),
            // The responder's index is authenticated too.
            1..5 => HandshakeError::Authentication,
            5..9 => HandshakeError::Index,
            _ => HandshakeError::Authentication,
        };
        assert_eq!(alice.finish(&mut initiator, &changed).err(), Some(expected), "byte {at}");
    }
    for len in BODY_AT..response.len() {
        let cut = forge(&alice, &response, |packet| packet.truncate(len));
        assert!(alice.finish(&mut initiator, &cut).is_err(), "length {len}");
    }
    let (_, other) = bob.start(&alice, &mut rng);
    assert_eq!(alice.finish(&mut initiator, &other).err(), Some(HandshakeError::Kind));
    let (_, stranger) = Node::new(9, NetworkSecret::default()).start(&bob, &mut rng);
    let (_, not_ours) = bob.respond(&stranger, &mut rng);
    let not_ours = {
        let mut packet = not_ours;
        Node::new(9, NetworkSecret::default()).key.open(&mut packet).unwrap();
        alice.key.close(Kind::Response, None, [0; 16], &mut packet);
        packet
    };
    assert_eq!(alice.finish(&mut initiator, &not_ours).err(), Some(HandshakeError::Authentication));

    let ours = alice.finish(&mut initiator, &response).unwrap().session;
    assert!(open(&theirs, &bob, &seal(&ours, b"text", START), START).is_ok());
    assert_eq!(alice.finish(&mut initiator, &response).err(), Some(HandshakeError::Over));
}

/// A response by who holds the X25519 key but lies about the rest.
fn lying_response(
    bob: &Identity,
    alice: &Node,
    initiation: &[u8],
    claimed: NodeId,
    lie: impl FnOnce(&mut ResponsePayload),
) -> Vec<u8> {
    let key = RecipientKey::new(&claimed, &alice.config.network);
    let mut initiation = initiation.to_vec();
    let envelope = key.open(&mut initiation).unwrap();
    let body = Initiation::parse(envelope.body()).unwrap();
    let mut noise = Noise::new(&Setup {
        identity: bob,
        network: &alice.config.network,
        responder: claimed,
        responder_x25519: None,
        initiator_index: body.sender_index,
    });
    noise.read(body.noise, &mut [0; 1232]).unwrap();
    let suite = Suite::Aes256Gcm;
    let signature = bob.sign(&noise::response_text(&noise.hash(), suite, 0));
    let mut payload = ResponsePayload { suite, capabilities: 0, signature, observed: alice_at() };
    lie(&mut payload);
    let payload = payload.emit(0);
    noise.set_ephemeral(Zeroizing::new([6; 32]));
    noise.set_psk(&alice.config.network, body.sender_index, BOB_INDEX);
    let mut packet = Response::emit(BOB_INDEX, body.sender_index, payload.len() + 48);
    noise.write(&payload, &mut packet[RESPONSE_NOISE_AT..]).unwrap();
    alice.key.close(Kind::Response, None, [0; 16], &mut packet);
    packet
}

#[test]
fn a_responder_proves_its_identity_too() {
    let (alice, bob, carol) = (Node::alice(), Node::bob(), Node::new(3, NetworkSecret::default()));
    // Bob pretends that Carol's X25519 key is his.
    let start = || alice.start_with(&carol, &bob.identity.x25519_public(), &mut rng(8)).unwrap();
    let (mut initiator, initiation) = start();
    let response = lying_response(&bob.identity, &alice, &initiation, carol.identity.node_id(), |_| {});
    assert_eq!(alice.finish(&mut initiator, &response).err(), Some(HandshakeError::Signature));
    assert_eq!(alice.finish(&mut initiator, &response).err(), Some(HandshakeError::Over));

    let check = |lie: &dyn Fn(&mut ResponsePayload), expected| {
        let (mut initiator, initiation) = alice.start(&bob, &mut rng(9));
        let response =
            lying_response(&bob.identity, &alice, &initiation, bob.identity.node_id(), |payload| {
                lie(payload)
            });
        assert_eq!(alice.finish(&mut initiator, &response).err(), expected);
    };
    check(&|_| {}, None);
    check(&|payload| payload.suite = Suite::ChaCha20Poly1305, Some(HandshakeError::Signature));
    check(&|payload| payload.capabilities = 1, Some(HandshakeError::Signature));
}

#[test]
fn a_suite_that_was_not_offered_is_refused() {
    let mut alice = Node::alice();
    alice.config = Config::new(false, NetworkSecret::default());
    let bob = Node::bob();
    let (mut initiator, initiation) = alice.start(&bob, &mut rng(10));
    let response = lying_response(&bob.identity, &alice, &initiation, bob.identity.node_id(), |_| {});
    assert_eq!(alice.finish(&mut initiator, &response).err(), Some(HandshakeError::Suite));
}

/// A replay opens a session that nobody else has the keys of; the timestamp tells the node.
#[test]
fn a_replayed_initiation_gives_nothing() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(11);
    let (mut initiator, initiation) = alice.start(&bob, &mut rng);
    let (theirs, response) = bob.respond(&initiation, &mut rng);
    let ours = alice.finish(&mut initiator, &response).unwrap().session;
    assert_eq!(bob.incoming(&initiation).unwrap().timestamp(), wall(0));
    let (replayed, _) = bob.respond(&initiation, &mut rng);
    let packet = seal(&ours, b"text", START);
    assert_eq!(open(&replayed, &bob, &packet, START), Err(OpenError::Authentication));
    assert!(open(&theirs, &bob, &packet, START).is_ok());
}

#[test]
fn other_kinds_are_not_initiations() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, mut packet) = alice.start(&bob, &mut rng(12));
    bob.key.open(&mut packet).unwrap();
    bob.key.close(Kind::Sealed, None, [0; 16], &mut packet);
    assert_eq!(refusal(&bob, &packet), HandshakeError::Kind);
}

#[test]
fn a_split_needs_a_finished_handshake() {
    let alice = Node::alice();
    let noise = Noise::new(&Setup {
        identity: &alice.identity,
        network: &alice.config.network,
        responder: alice.identity.node_id(),
        responder_x25519: None,
        initiator_index: 1,
    });
    assert_eq!(noise.split().err(), Some(HandshakeError::Over));
}
