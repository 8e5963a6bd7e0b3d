//! Handshakes between honest nodes.

use rand_core::Rng as _;
use snow::Builder;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use super::super::crypto::{Noise, PROTOCOL, Setup};
use super::*;
use crate::proto::wire::handshake::{INITIATION_LEN_MAX, INITIATION_LEN_MIN};

#[test]
fn both_sides_agree() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(1);
    let (mut initiator, initiation) = alice.start(&bob, &mut rng);
    assert_eq!((initiator.peer(), initiator.local_index()), (bob.identity.node_id(), ALICE_INDEX));
    let incoming = bob.incoming(&initiation).unwrap();
    assert_eq!(incoming.peer(), alice.identity.node_id());
    assert_eq!(*incoming.peer_x25519(), alice.identity.x25519_public());
    assert_eq!(incoming.timestamp(), wall(0));
    let (theirs, response) = incoming.accept(&bob.identity, BOB_INDEX, alice_at(), at(1), &mut rng).unwrap();
    let Established { session: ours, observed } = alice.finish(&mut initiator, &response).unwrap();
    assert_eq!(observed, alice_at());
    assert_eq!((ours.peer(), theirs.peer()), (bob.identity.node_id(), alice.identity.node_id()));
    assert_eq!((ours.local_index(), ours.remote_index()), (ALICE_INDEX, BOB_INDEX));
    assert_eq!((theirs.local_index(), theirs.remote_index()), (BOB_INDEX, ALICE_INDEX));
    assert_eq!((ours.is_initiator(), theirs.is_initiator()), (true, false));
    assert_eq!((ours.established(), theirs.established()), (START, at(1)));
    assert_eq!((ours.suite(), theirs.suite()), (Suite::Aes256Gcm, Suite::Aes256Gcm));
    let packet = seal(&ours, b"hello bob", START);
    assert_eq!(open(&theirs, &bob, &packet, at(1)).unwrap().0, b"hello bob\0\0\0\0\0\0\0");
    let packet = seal(&theirs, b"hello, alice 16+", at(1));
    assert_eq!(open(&ours, &alice, &packet, START).unwrap().0, b"hello, alice 16+");
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let run = |seed| {
        let (mut rng, bob) = (rng(seed), Node::bob());
        let (_, initiation) = Node::alice().start(&bob, &mut rng);
        (bob.respond(&initiation, &mut rng).1, initiation)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn lengths_are_random_and_a_response_is_never_longer() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(2);
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..60 {
        let (_, initiation) = alice.start(&bob, &mut rng);
        let (_, response) = bob.respond(&initiation, &mut rng);
        assert!((INITIATION_LEN_MIN..=INITIATION_LEN_MAX).contains(&initiation.len()));
        assert!(response.len() <= initiation.len());
        lengths.insert(initiation.len());
        lengths.insert(response.len());
    }
    assert!(lengths.len() > 80, "{} different lengths", lengths.len());
}

/// A censor that sees any number of handshakes between two nodes finds no bit to match on.
#[test]
fn a_thousand_handshakes_share_no_constant_bit() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(3);
    let (mut initiations, mut responses, mut first, mut second) = (vec![], vec![], vec![], vec![]);
    for _ in 0..1000 {
        let (mut initiator, initiation) = alice.start(&bob, &mut rng);
        let (theirs, response) = bob.respond(&initiation, &mut rng);
        let ours = alice.finish(&mut initiator, &response).unwrap().session;
        first.push(seal(&ours, &[0; 64], START));
        second.push(seal(&theirs, &[], START));
        initiations.push(initiation);
        responses.push(response);
    }
    for packets in [initiations, responses, first, second] {
        assert_no_constant_bit(&packets);
    }
}

#[test]
fn the_suite_is_the_fast_one_of_both() {
    let check = |alice_has_aes, bob_has_aes, expected| {
        let (mut alice, mut bob) = (Node::alice(), Node::bob());
        alice.config = Config::new(alice_has_aes, NetworkSecret::default());
        bob.config = Config::new(bob_has_aes, NetworkSecret::default());
        let (ours, theirs) = sessions_between(&alice, &bob, &mut rng(4));
        assert_eq!((ours.suite(), theirs.suite()), (expected, expected));
        let packet = seal(&ours, b"text", START);
        assert!(open(&theirs, &bob, &packet, START).is_ok());
    };
    check(true, true, Suite::Aes256Gcm);
    check(true, false, Suite::ChaCha20Poly1305);
    check(false, true, Suite::ChaCha20Poly1305);
    check(false, false, Suite::ChaCha20Poly1305);
}

#[test]
fn the_responder_chooses_among_what_is_offered() {
    let (aes, chacha) = (Suite::Aes256Gcm, Suite::ChaCha20Poly1305);
    let check = |own: u8, own_preferred, offered: u8, preferred, expected| {
        let config = Config {
            suites: own,
            preferred: own_preferred,
            capabilities: 0,
            network: NetworkSecret::default(),
        };
        assert_eq!(config.choose(offered, preferred), expected);
    };
    let both = aes.bit() | chacha.bit();
    check(both, aes, both, aes, Some(aes));
    check(both, chacha, both, aes, Some(chacha));
    check(both, aes, both, chacha, Some(chacha));
    check(both, aes, aes.bit(), aes, Some(aes));
    check(both, chacha, aes.bit(), aes, Some(aes));
    check(aes.bit(), aes, chacha.bit(), chacha, None);
    check(both, aes, 0, aes, None);
    check(both, aes, chacha.bit(), aes, Some(chacha));
}

#[test]
fn a_network_with_a_secret_works_and_is_apart() {
    let secret = NetworkSecret([7; 32]);
    let (alice, bob) = (Node::new(1, secret.clone()), Node::new(2, secret));
    let (ours, theirs) = sessions_between(&alice, &bob, &mut rng(5));
    assert!(open(&theirs, &bob, &seal(&ours, b"text", START), START).is_ok());
    let (_, initiation) = alice.start(&bob, &mut rng(6));
    assert!(Node::bob().key.open(&mut initiation.clone()).is_err());
}

/// Simultaneous open: both handshakes come to an end, and the node keeps whichever it likes.
#[test]
fn crossing_handshakes_give_two_working_sessions() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut rng = rng(7);
    let (mut by_alice, one) = alice.start(&bob, &mut rng);
    let (mut by_bob, two) = bob.start(&alice, &mut rng);
    let (bob_one, one) = bob.respond(&one, &mut rng);
    let (alice_two, two) = alice.respond(&two, &mut rng);
    let alice_one = alice.finish(&mut by_alice, &one).unwrap().session;
    let bob_two = bob.finish(&mut by_bob, &two).unwrap().session;
    assert!(open(&bob_one, &bob, &seal(&alice_one, b"1", START), START).is_ok());
    assert!(open(&bob_two, &bob, &seal(&alice_two, b"2", START), START).is_ok());
    assert_eq!(open(&bob_two, &bob, &seal(&alice_one, b"3", START), START), Err(OpenError::Authentication));
}

#[test]
fn drawn_secrets_are_not_in_the_generators_future_or_past() {
    let mut rng = rng(8);
    let secret = draw_secret(&mut rng);
    let mut later = rng.clone();
    later.set_word_pos(0);
    for _ in 0..64 {
        let mut word = [0; 32];
        later.fill_bytes(&mut word);
        assert_ne!(word, *secret);
    }
    assert_ne!(*draw_secret(&mut rng), *secret);
}

/// Our X25519 and ChaCha20-Poly1305 under `snow` against `snow`'s own.
#[test]
fn our_primitives_speak_noise_as_snow_does() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let setup = |node| Setup {
        identity: node,
        network: &alice.config.network,
        responder: bob.identity.node_id(),
        responder_x25519: None,
        initiator_index: 9,
    };
    let prologue = Noise::prologue(&setup(&bob.identity));
    let psk = Noise::psk(&alice.config.network, 9, 10);
    let remote = bob.identity.x25519_public();
    let mut stock = Builder::with_resolver(PROTOCOL.parse().unwrap(), Box::new(Stock))
        .local_private_key(alice.identity.x25519_secret())
        .and_then(|builder| builder.remote_public_key(&remote))
        .and_then(|builder| builder.prologue(&prologue))
        .and_then(|builder| builder.psk(2, &psk))
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(&[3; 32])
        .build_initiator()
        .unwrap();
    let mut ours = Noise::new(&setup(&bob.identity));
    let (mut message, mut payload) = ([0; 200], [0; 200]);
    let len = stock.write_message(b"payload one", &mut message).unwrap();
    assert_eq!(ours.read(&message[..len], &mut payload).unwrap(), b"payload one");
    ours.set_ephemeral(Zeroizing::new([4; 32]));
    ours.set_psk(&bob.config.network, 9, 10);
    let mut message = [0; 32 + 11 + 16];
    ours.write(b"payload two", &mut message).unwrap();
    let len = stock.read_message(&message, &mut payload).unwrap();
    assert_eq!(payload[..len], *b"payload two");
    assert_eq!(ours.hash(), stock.get_handshake_hash());
    let (first, second) = stock.dangerously_get_raw_split();
    assert_eq!(ours.split().unwrap().map(|key| *key), [first, second]);
}

/// `snow`'s defaults without a generator, since it is given the ephemeral key.
struct Stock;

impl CryptoResolver for Stock {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        struct None;
        impl Random for None {
            fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
                Err(snow::Error::Rng)
            }
        }
        Some(Box::new(None))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}
