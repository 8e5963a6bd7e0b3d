use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use crate::proto::path::checks::*;
use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

const T0: Instant = Instant::from_nanos(1_000_000_000);

fn at(n: usize) -> Hop {
    Hop::Direct(format!("20.0.0.{n}:1024").parse().unwrap())
}

/// All pings until nothing is due any more: when, where to, and the nonce.
fn all(checks: &mut Checks) -> Vec<(Instant, Hop, u64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut sent = Vec::new();
    while let Some(now) = checks.poll_timeout() {
        let before = sent.len();
        while let Some((to, nonce)) = checks.poll_transmit(now, &mut rng) {
            sent.push((now, to, nonce));
        }
        assert!(sent.len() > before, "woken for nothing");
    }
    sent
}

#[test]
fn who_does_not_answer_gets_few_pings_and_then_none() {
    let mut checks = Checks::default();
    checks.begin(T0, (1..=20).map(at));
    let sent = all(&mut checks);
    assert_eq!(sent.len(), TARGETS_MAX * CHECKS_PER_TARGET);
    const { assert!(CHECKS_PER_TARGET <= 20 && TARGETS_MAX <= 8) };
    let to_first = sent.iter().filter(|(_, to, _)| *to == at(1));
    assert_eq!(to_first.count(), CHECKS_PER_TARGET);
    assert!(sent.iter().all(|(when, ..)| *when <= T0 + Duration::from_secs(4)));
    assert!((1..=20).all(|n| !checks.is_trying(at(n))));
}

#[test]
fn an_answer_names_the_endpoint_and_ends_its_pings() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut checks = Checks::default();
    checks.begin(T0, [at(1), at(2)]);
    let (to, nonce) = checks.poll_transmit(T0, &mut rng).unwrap();
    let rtt = Duration::from_millis(30);
    assert_eq!(checks.handle_answer(T0 + rtt, nonce ^ 1), None, "made up");
    assert_eq!(checks.handle_answer(T0 + rtt, nonce), Some((to, rtt)));
    assert_eq!(checks.handle_answer(T0 + rtt, nonce), None, "again");
    assert!(all(&mut checks).iter().all(|(_, other, _)| *other != to));
}

#[test]
fn an_endpoint_heard_meanwhile_is_tried_once_and_late_answers_count() {
    let mut checks = Checks::default();
    checks.begin(T0, [at(1)]);
    checks.add(T0, at(1));
    checks.add(T0, at(2));
    let sent = all(&mut checks);
    assert_eq!(sent.len(), 2 * CHECKS_PER_TARGET);
    checks.add(T0 + Duration::from_secs(5), at(1));
    assert_eq!(all(&mut checks).len(), CHECKS_SHORT, "anew, once it was given up");
    checks.stop();
    let (_, to, nonce) = sent[sent.len() - 1];
    assert_eq!(checks.handle_answer(T0 + Duration::from_secs(9), nonce).map(|(to, _)| to), Some(to));
}

#[test]
fn an_address_that_does_not_answer_is_tried_now_and_then_all_the_time() {
    let mut checks = Checks::default();
    let mut last = T0;
    for round in 0..100u64 {
        let now = T0 + Duration::from_secs(25 * round);
        checks.add(now, at(1));
        let sent = all(&mut checks);
        assert!(sent.len() >= CHECKS_SHORT, "round {round}");
        assert_eq!(checks.exhausted_until(now), None);
        last = sent.last().map_or(last, |(when, ..)| *when);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for port in 0..40u16 {
        last += Duration::from_millis(60);
        checks.add(last, Hop::Direct(format!("20.0.0.1:{}", 2000 + port).parse().unwrap()));
        while checks.poll_transmit(last, &mut rng).is_some() {}
    }
    let until = checks.exhausted_until(last).unwrap();
    assert!(until > last && until <= last + UNANSWERED_FOR);
    checks.begin(until, [at(1)]);
    assert_eq!(all(&mut checks).len(), CHECKS_PER_TARGET, "forgotten");
}

#[test]
fn whoever_names_a_victim_over_and_over_has_it_pinged_a_few_times_only() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let ports = |n: u16| Hop::Direct(format!("21.0.0.1:{}", 1024 + n).parse().unwrap());
    let mut checks = Checks::default();
    let mut sent = 0;
    for step in 0..500u64 {
        let now = T0 + Duration::from_millis(100 * step);
        (0..8).for_each(|n| checks.add(now, ports(n)));
        while checks.poll_transmit(now, &mut rng).is_some() {
            sent += 1;
        }
    }
    assert_eq!(sent, UNANSWERED_MAX, "in the first 50 s, over all ports");
    for step in 0..500u64 {
        let now = T0 + Duration::from_millis(100 * step);
        (0..8).for_each(|n| checks.add(now, at(1 + n)));
        checks.add(now, at(usize::try_from(step % 200).unwrap() + 1));
        while checks.poll_transmit(now, &mut rng).is_some() {
            sent += 1;
        }
    }
    assert!(sent <= UNANSWERED_MAX * ADDRESSES_MAX as u32, "{sent} over all addresses");
}

#[test]
fn it_is_known_where_pings_went_while_their_answers_are_awaited() {
    let mut checks = Checks::default();
    checks.add(T0, at(1));
    assert!(checks.has_tried(at(1)), "it is about to be");
    all(&mut checks);
    checks.stop();
    assert!(checks.has_tried(at(1)) && !checks.is_trying(at(1)));
    assert!(!checks.has_tried(at(2)));
}
