//! The gate, and cookies on the initiator's side.

use super::super::gate::{
    Admission, COOKIE_LIFETIME, Gate, PROVEN_BURST, PROVEN_PER_S, SOURCES_MAX, UNPROVEN_PER_S,
};
use super::*;

/// Asks the gate of `bob` about a packet.
fn admit(gate: &mut Gate, bob: &Node, now: Instant, from: &str, packet: &[u8], loaded: bool) -> Admission {
    let mut rng = rng(now.as_nanos());
    bob.receive(packet, |envelope| {
        gate.admit(now, address(from).into(), envelope, &bob.key, loaded, &mut rng)
    })
}

fn with_cookie(alice: &Node, bob: &Node, cookie: &[u8; 16]) -> Vec<u8> {
    let (peer, x25519) = (bob.identity.node_id(), bob.identity.x25519_public());
    let (me, config) = (&alice.identity, &alice.config);
    Initiator::start(me, config, peer, &x25519, 1, wall(1), Some(cookie), &mut rng(78)).unwrap().1
}

/// A gate under load, and an initiation with a cookie that it gave to `from` at `now`.
fn proven(now: Instant, from: &str) -> (Gate, Node, Vec<u8>) {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut gate = Gate::new(&mut rng(1), START);
    let (initiator, initiation) = alice.start(&bob, &mut rng(2));
    let Admission::Reply(reply) = admit(&mut gate, &bob, now, from, &initiation, true) else {
        panic!("no cookie")
    };
    let cookie = initiator.read_cookie(&reply).unwrap();
    let packet = with_cookie(&alice, &bob, &cookie);
    (gate, bob, packet)
}

const ALICE_AT: &str = "192.0.2.7:5747";

#[test]
fn a_cookie_opens_the_gate() {
    let (mut gate, bob, packet) = proven(START, ALICE_AT);
    assert_eq!(admit(&mut gate, &bob, START, ALICE_AT, &packet, true), Admission::Admit);
    assert!(bob.incoming(&packet).is_ok());
}

#[test]
fn a_cookie_is_bound_to_address_and_port() {
    let check = |from: &str| {
        let (mut gate, bob, packet) = proven(START, ALICE_AT);
        assert!(matches!(admit(&mut gate, &bob, START, from, &packet, true), Admission::Reply(_)), "{from}");
    };
    check("192.0.2.8:5747");
    check("192.0.2.7:5748");
    check("[2001:db8::7]:5747");
    let (mut gate, bob, packet) = proven(START, ALICE_AT);
    assert_eq!(admit(&mut gate, &bob, START, "[::ffff:192.0.2.7]:5747", &packet, true), Admission::Admit);
}

#[test]
fn a_cookie_is_good_for_one_to_two_minutes() {
    for born in [0, 1, 59, 60, 119] {
        let accepted_at = |age: u64| {
            let (mut gate, bob, packet) = proven(at(born), ALICE_AT);
            admit(&mut gate, &bob, at(born + age), ALICE_AT, &packet, true) == Admission::Admit
        };
        assert!(accepted_at(60), "born {born}");
        assert!(!accepted_at(COOKIE_LIFETIME.as_secs() + 1), "born {born}");
        assert!(!accepted_at(3600), "born {born}");
    }
    // Also when the gate has turned its secret in the meantime.
    let (mut gate, bob, packet) = proven(at(59), ALICE_AT);
    for now in 60..300 {
        let admitted = admit(&mut gate, &bob, at(now), ALICE_AT, &packet, true) == Admission::Admit;
        assert!(admitted || now >= 59 + 60, "refused after {}", now - 59);
        assert!(!admitted || now <= 59 + 120, "accepted after {}", now - 59);
    }
}

#[test]
fn who_has_a_cookie_is_still_limited() {
    let (mut gate, bob, packet) = proven(START, ALICE_AT);
    let admitted = |gate: &mut Gate, now, n| {
        (0..n).filter(|_| admit(gate, &bob, now, ALICE_AT, &packet, true) == Admission::Admit).count()
    };
    assert_eq!(admitted(&mut gate, START, 100), PROVEN_BURST as usize);
    assert_eq!(admit(&mut gate, &bob, START, ALICE_AT, &packet, true), Admission::Refuse);
    let per_s: usize = (1..=100).map(|i| admitted(&mut gate, START + Duration::from_millis(10 * i), 5)).sum();
    assert_eq!(per_s, PROVEN_PER_S as usize);
}

/// A flood with good MACs from one source ends in cookies, which cost no curve operation.
#[test]
fn a_source_without_cookie_is_limited_without_load() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, packet) = alice.start(&bob, &mut rng(3));
    let mut gate = Gate::new(&mut rng(1), START);
    let mut admitted = |from: &str| {
        let is_admitted = |_: &u32| admit(&mut gate, &bob, START, from, &packet, false) == Admission::Admit;
        (0..3 * UNPROVEN_PER_S).filter(is_admitted).count()
    };
    assert_eq!(admitted("192.0.2.7:1"), UNPROVEN_PER_S as usize);
    assert_eq!(admitted("192.0.2.7:2"), 0, "another port is the same source");
    assert_eq!(admitted("192.0.2.8:1"), UNPROVEN_PER_S as usize);
    assert_eq!(admitted("[2001:db8:0:aa00::1]:1"), UNPROVEN_PER_S as usize);
    assert_eq!(admitted("[2001:db8:0:aaff::2]:1"), 0, "the same /56");
    assert_eq!(admitted("[2001:db8:0:ab00::1]:1"), UNPROVEN_PER_S as usize);
    assert_eq!(admitted("[::ffff:192.0.2.8]:1"), 0);
    // Whose address was spoofed in that flood proves itself and gets in.
    let (initiator, initiation) = alice.start(&bob, &mut rng(4));
    let Admission::Reply(reply) = admit(&mut gate, &bob, START, ALICE_AT, &initiation, false) else {
        panic!("no cookie")
    };
    let packet = with_cookie(&alice, &bob, &initiator.read_cookie(&reply).unwrap());
    assert_eq!(admit(&mut gate, &bob, START, ALICE_AT, &packet, false), Admission::Admit);
}

#[test]
fn the_tables_are_bounded_and_forget() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let (_, packet) = alice.start(&bob, &mut rng(5));
    let mut gate = Gate::new(&mut rng(1), START);
    let source = |i: usize| format!("10.{}.{}.{}:1", i >> 16, (i >> 8) & 255, i & 255);
    let n = SOURCES_MAX + 100;
    let from = |i: usize| source(i);
    let admitted = (0..n)
        .filter(|i| admit(&mut gate, &bob, START, &from(*i), &packet, false) == Admission::Admit)
        .count();
    assert_eq!(admitted, SOURCES_MAX);
    assert_eq!(gate.sources(), SOURCES_MAX);
    assert_eq!(admit(&mut gate, &bob, at(2), &source(n), &packet, false), Admission::Admit);
    assert_eq!(gate.sources(), 1, "those that may send at full rate again are forgotten");
}

#[test]
fn a_reply_is_never_longer_than_the_packet_and_has_no_constant_bit() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut gate = Gate::new(&mut rng(1), START);
    let mut rng = rng(6);
    let mut replies = Vec::new();
    for _ in 0..200 {
        let (_, initiation) = alice.start(&bob, &mut rng);
        let admission = bob.receive(&initiation, |envelope| {
            gate.admit(START, alice_at().into(), envelope, &bob.key, true, &mut rng)
        });
        let Admission::Reply(reply) = admission else { panic!("no cookie") };
        assert!(reply.len() <= initiation.len());
        replies.push(reply);
    }
    assert_no_constant_bit(&replies);
    for len in 33..140 {
        let mut packet = vec![0; len];
        bob.key.close(wire::envelope::Kind::Sealed, None, [0; 16], &mut packet);
        match admit(&mut gate, &bob, START, ALICE_AT, &packet, true) {
            Admission::Reply(reply) => assert!(reply.len() <= len),
            Admission::Refuse => assert!(len < 65),
            Admission::Admit => panic!("admitted under load without a cookie"),
        }
    }
}

#[test]
fn only_the_initiation_that_was_answered_reads_the_cookie() {
    let (alice, bob) = (Node::alice(), Node::bob());
    let mut gate = Gate::new(&mut rng(1), START);
    let (initiator, initiation) = alice.start(&bob, &mut rng(7));
    let (other, response) = alice.start(&bob, &mut rng(8));
    let Admission::Reply(reply) = admit(&mut gate, &bob, START, ALICE_AT, &initiation, true) else {
        panic!("no cookie")
    };
    let reads = |initiator: &Initiator, packet: &[u8]| initiator.read_cookie(packet);
    assert!(reads(&initiator, &reply).is_some());
    assert!(reads(&other, &reply).is_none());
    assert!(reads(&initiator, &response).is_none());
    assert!(reads(&initiator, &[]).is_none());
    assert!(reads(&initiator, &[0xc1; 2000]).is_none());
    for at in (0..17).chain(33..reply.len()) {
        let mut changed = reply.clone();
        changed[at] ^= 1;
        assert!(reads(&initiator, &changed).is_none(), "byte {at}");
    }
    // A packet of another kind, made by who saw the initiation.
    let mac1 = std::array::from_fn(|i| initiation[1 + i]);
    let mut packet = vec![0; 80];
    bob.key.for_cookie_reply(&mac1).close(wire::envelope::Kind::Sealed, None, [0; 16], &mut packet);
    assert!(reads(&initiator, &packet).is_none());
}
