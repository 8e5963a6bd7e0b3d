use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use crate::proto::identity::NodeId;
use crate::proto::path::spray::*;
use crate::proto::timer::Instant;
use crate::proto::wire::control::SprayStep;
use crate::proto::wire::relay::Hop;

const T0: Instant = Instant::from_nanos(1_000_000_000);
const BEGINS: Instant = Instant::from_nanos(1_300_000_000);

fn target() -> SocketAddr {
    "20.0.0.1:5747".parse().unwrap()
}

fn spray(side: Side) -> Spray {
    Spray::new(T0, BEGINS, side, 7, target(), &mut ChaCha8Rng::seed_from_u64(1))
}

fn vouch(spray: &mut Spray, now: Instant) {
    for relay in 1..=2 {
        spray.handle_vouched(now, NodeId([relay; 32]), 2);
    }
}

/// All that is done until `end` or the end, and when.
fn run(spray: &mut Spray, end: Instant) -> Vec<(Instant, Action)> {
    let (mut done, mut now) = (Vec::new(), T0);
    loop {
        let before = done.len();
        while let Some(action) = spray.poll(now) {
            done.push((now, action));
            if action == Action::End {
                return done;
            }
        }
        let due = spray.poll_timeout();
        assert!(done.len() > before || due > now, "woken for nothing at {now:?}");
        if due > end {
            return done;
        }
        now = now.max(due);
    }
}

fn checks(done: &[(Instant, Action)]) -> Vec<(Instant, SocketAddr, Option<u16>, u64)> {
    let check = |(at, action): &(Instant, Action)| {
        let Action::Check { to, socket, nonce } = *action else { return None };
        Some((*at, to, socket, nonce))
    };
    done.iter().filter_map(check).collect()
}

fn opened(spray: &mut Spray, sockets: usize) -> Vec<(Instant, Action)> {
    vouch(spray, T0);
    spray.handle_step(SprayStep::Ready);
    let done = run(spray, BEGINS);
    assert_eq!(done.last(), Some(&(BEGINS, Action::Open)));
    spray.handle_sockets(BEGINS, sockets);
    done
}

#[test]
fn nothing_is_sent_anywhere_until_relays_have_vouched_and_the_peer_agrees() {
    for side in [Side::Hard, Side::Easy] {
        for (vouchers, agrees) in [(0, true), (1, true), (2, false)] {
            let mut spray = spray(side);
            for relay in 0..vouchers {
                // The same one does not count twice.
                spray.handle_vouched(T0, NodeId([relay; 32]), 2);
                spray.handle_vouched(T0, NodeId([relay; 32]), 2);
            }
            if agrees {
                spray.handle_step(SprayStep::Ready);
                spray.handle_step(SprayStep::Open);
            }
            let done = run(&mut spray, T0 + LIFE * 10);
            assert!(spray.began().is_none(), "{side:?} with {vouchers}, {agrees}");
            assert!(checks(&done).is_empty() && !done.iter().any(|(_, action)| *action == Action::Open));
            let (ended, last) = done.last().unwrap();
            assert_eq!((*last, *ended), (Action::End, BEGINS + ASK_LIFE));
            assert!(done.len() <= 12, "asked {} times", done.len());
        }
    }
}

#[test]
fn the_wrong_word_begins_nothing() {
    let mut easy = spray(Side::Easy);
    vouch(&mut easy, T0);
    easy.handle_step(SprayStep::Ready);
    assert!(!easy.is_about_to_begin(BEGINS), "its peer has no sockets open");
    let mut hard = spray(Side::Hard);
    vouch(&mut hard, T0);
    hard.handle_step(SprayStep::Open);
    assert!(!hard.is_about_to_begin(BEGINS), "its peer is not ready");
}

#[test]
fn the_easy_side_checks_no_port_twice_and_never_too_many() {
    let mut spray = spray(Side::Easy);
    assert_eq!(spray.target(), "20.0.0.1:0".parse().unwrap());
    vouch(&mut spray, T0);
    spray.handle_step(SprayStep::Open);
    let done = run(&mut spray, T0 + LIFE * 10);
    let sent = checks(&done);
    assert_eq!(sent.len(), PROBES_MAX);
    assert!(sent.iter().all(|(_, to, socket, _)| to.ip() == target().ip() && socket.is_none()));
    assert_eq!(sent.iter().map(|(_, to, ..)| to.port()).collect::<BTreeSet<_>>().len(), PROBES_MAX);
    assert!(sent.iter().all(|(_, to, ..)| to.port() >= 1024));
    assert_eq!(done.last(), Some(&(T0 + LIFE, Action::End)));
    for (n, (at, ..)) in sent.iter().enumerate() {
        let within = sent[n..].iter().take_while(|(other, ..)| other.saturating_since(*at) < LIFE);
        assert!(within.count() <= PROBES_MAX);
        let second =
            sent[n..].iter().take_while(|(other, ..)| other.saturating_since(*at).as_millis() < 1000);
        assert!(second.count() <= 820);
    }
    const { assert!(PROBES_MAX as u64 / LIFE.as_secs() <= 250) };
}

#[test]
fn the_hard_side_checks_one_endpoint_from_every_socket_some_times() {
    for sockets in [SOCKETS_MIN, SOCKETS_MAX, SOCKETS_MAX + 1] {
        let mut spray = spray(Side::Hard);
        assert_eq!(spray.target(), target());
        opened(&mut spray, sockets);
        let done = run(&mut spray, T0 + LIFE * 10);
        let (sent, sockets) = (checks(&done), sockets.min(SOCKETS_MAX));
        assert_eq!(sent.len(), 3 * sockets);
        assert!(sent.len() <= CHECKS_MAX && sent.iter().all(|(_, to, ..)| *to == target()));
        let numbers: BTreeSet<_> = sent.iter().filter_map(|(.., socket, _)| *socket).collect();
        assert_eq!(numbers, (0..sockets as u16).collect());
        let says = done.iter().filter(|(_, action)| *action == Action::Say(SprayStep::Open));
        assert_eq!(says.count(), 3);
        assert_eq!(done.last(), Some(&(BEGINS + LIFE, Action::End)));
    }
}

#[test]
fn too_few_sockets_are_not_tried() {
    let mut spray = spray(Side::Hard);
    opened(&mut spray, SOCKETS_MIN - 1);
    assert_eq!(spray.poll(BEGINS), Some(Action::End));
}

#[test]
fn the_first_socket_that_the_peer_hits_is_the_one() {
    let mut spray = spray(Side::Hard);
    opened(&mut spray, SOCKETS_MAX);
    let done = run(&mut spray, BEGINS + Duration::from_millis(100));
    let nonces: Vec<_> = checks(&done).into_iter().map(|(.., nonce)| nonce).collect();
    let now = BEGINS + Duration::from_millis(200);
    assert_eq!(spray.handle_answer(now, nonces[9]), None, "an answer to no socket");
    let elsewhere = "20.0.0.1:5748".parse().unwrap();
    assert!(!spray.handle_heard(now, elsewhere, 9) && !spray.handle_heard(now, target(), 256));
    assert!(spray.handle_heard(now, target(), 9));
    assert!(!spray.handle_heard(now, target(), 10), "one is enough");
    assert_eq!(spray.handle_answer(now, nonces[10]), None);
    let (hop, rtt) = spray.handle_answer(now, nonces[9]).unwrap();
    assert!(
        hop == Hop::Direct(target()) && rtt > Duration::from_millis(100) && rtt <= Duration::from_millis(200)
    );
    assert_eq!(spray.poll(now), None, "no more checks");
    assert_eq!(spray.poll(now + Duration::from_secs(2)), Some(Action::End), "unless it is not proven");
}

#[test]
fn an_answer_tells_the_easy_side_which_port_it_was() {
    let mut spray = spray(Side::Easy);
    vouch(&mut spray, T0);
    spray.handle_step(SprayStep::Open);
    let sent = checks(&run(&mut spray, T0 + Duration::from_millis(300)));
    let (at, to, _, nonce) = sent[123];
    let now = T0 + Duration::from_millis(310);
    assert_eq!(spray.handle_answer(now, nonce), Some((Hop::Direct(to), now.saturating_since(at))));
    for other in [sent[0].3.wrapping_sub(1), sent[sent.len() - 1].3.wrapping_add(1), 0] {
        assert_eq!(spray.handle_answer(now, other), None);
    }
    spray.handle_step(SprayStep::Over);
    assert_eq!(spray.handle_answer(now, nonce), None);
    assert_eq!(spray.poll(now), Some(Action::End));
}
