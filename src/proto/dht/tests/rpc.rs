//! Questions on their way.

use std::time::Duration;

use super::swarm::*;
use crate::proto::dht::rpc::{Due, Owner, Question, Rpcs};
use crate::proto::dht::*;

fn find() -> Question {
    Question::Find { want: Want::Contacts, target: Position([1; 32]) }
}

fn peer(i: usize) -> Contact {
    contact_of(&identity(i), private_endpoint(i))
}

fn ms(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn number(query: &Query) -> u64 {
    let (Control::Find { request, .. } | Control::Store { request, .. }) = query.control else { panic!() };
    request
}

/// When a question to a silent node is sent and given up, in ms.
fn times(rpcs: &mut Rpcs, start: Instant) -> Vec<u64> {
    let mut times = Vec::new();
    loop {
        let now = rpcs.poll_timeout().unwrap();
        times.push(now.saturating_since(start).as_millis() as u64);
        if let Due::Failed(_) = rpcs.handle_timeout(now).unwrap() {
            return times;
        }
    }
}

#[test]
fn a_silent_node_is_asked_four_times() {
    let mut rpcs = Rpcs::default();
    rpcs.ask(ms(0), 77, peer(1), Owner::Liveness, find()).unwrap();
    assert_eq!(times(&mut rpcs, ms(0)), [500, 1500, 3500, 7500]);
    assert_eq!((rpcs.len(), rpcs.poll_timeout()), (0, None));
}

#[test]
fn the_timeout_follows_the_round_trip() {
    let mut rpcs = Rpcs::default();
    for i in 0..40 {
        let start = ms(1000 * i);
        let query = rpcs.ask(start, i << 8, peer(1), Owner::Liveness, find()).unwrap();
        let end = start + Duration::from_millis(100);
        assert!(rpcs.handle_answer(end, peer(1).node_id, number(&query), false).is_some());
    }
    rpcs.ask(ms(0), 77, peer(1), Owner::Liveness, find()).unwrap();
    let first = times(&mut rpcs, ms(0))[0];
    assert!((200..210).contains(&first), "{first}");
}

#[test]
fn a_late_answer_shows_the_round_trip_of_its_own_sending() {
    let mut rpcs = Rpcs::default();
    rpcs.ask(ms(0), 0, peer(1), Owner::Liveness, find()).unwrap();
    let Some(Due::Again { query, .. }) = rpcs.handle_timeout(ms(500)) else { panic!() };
    assert!(rpcs.handle_answer(ms(520), peer(1).node_id, number(&query), false).is_some());
    rpcs.ask(ms(1000), 8, peer(1), Owner::Liveness, find()).unwrap();
    assert_eq!(rpcs.poll_timeout(), Some(ms(1000) + RPC_TIMEOUT_MIN), "20 ms, not 520");
}

#[test]
fn only_the_node_asked_answers_once_and_in_kind() {
    let mut rpcs = Rpcs::default();
    let query = rpcs.ask(ms(0), 0x1234_5678, peer(1), Owner::Liveness, find()).unwrap();
    let request = number(&query);
    assert!(rpcs.handle_answer(ms(1), peer(2).node_id, request, false).is_none(), "another node");
    assert!(rpcs.handle_answer(ms(1), peer(1).node_id, request, true).is_none(), "another kind");
    assert!(rpcs.handle_answer(ms(1), peer(1).node_id, request ^ 64, false).is_none(), "another number");
    assert!(rpcs.handle_answer(ms(1), peer(1).node_id, request | 1, false).is_none(), "a sending to come");
    assert!(rpcs.handle_answer(ms(1), peer(1).node_id, request, false).is_some());
    assert!(rpcs.handle_answer(ms(1), peer(1).node_id, request, false).is_none(), "again");
}

#[test]
fn what_nobody_waits_for_is_sent_twice_at_most() {
    let mut rpcs = Rpcs::default();
    rpcs.ask(ms(0), 0, peer(1), Owner::Lookup(LookupId(1)), find()).unwrap();
    rpcs.detach(LookupId(1));
    assert_eq!(times(&mut rpcs, ms(0)), [500, 1500]);
}

#[test]
fn questions_are_limited() {
    let mut rpcs = Rpcs::default();
    let asked = (0..5000).filter(|i| rpcs.ask(ms(0), i << 4, peer(1), Owner::Liveness, find()).is_some());
    assert_eq!(asked.count(), RPCS_MAX);
    assert_eq!(rpcs.fail(peer(1).node_id).len(), RPCS_MAX);
    assert_eq!((rpcs.len(), rpcs.poll_timeout()), (0, None));
}
