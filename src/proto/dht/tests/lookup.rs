//! One walk against nodes that lie, dawdle or are not there. The test plays all other nodes by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use super::swarm::*;
use crate::proto::dht::*;

/// A node that knows `n` others, numbered from 1, and has nothing else to do.
struct Walker {
    dht: Dht,
    now: Instant,
}

fn contact(i: usize) -> Contact {
    contact_of(&identity(i), private_endpoint(i))
}

fn target(i: usize) -> Position {
    identity(i).address().position_prefix()
}

impl Walker {
    fn new(n: usize) -> Self {
        let mut dht = Dht::new(identity(0).node_id(), Mode::Server, [1; 32], at(0));
        (1..=n).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
        Self { dht, now: at(1) }
    }

    /// Queries for `target` that were sent, as (to, request).
    fn asked(&mut self, target: Position) -> Vec<(Contact, u64)> {
        let mut asked = Vec::new();
        while let Some(query) = self.dht.poll_transmit() {
            if let Control::Find { request, target: t, .. } = query.control
                && t == target
            {
                asked.push((query.to, request));
            }
        }
        asked
    }

    fn stores(&mut self) -> Vec<Query> {
        let queries = std::iter::from_fn(|| self.dht.poll_transmit());
        queries.filter(|query| matches!(query.control, Control::Store { .. })).collect()
    }

    fn answer(&mut self, (to, request): (Contact, u64), record: Option<&[u8]>, contacts: Vec<Contact>) {
        let found = Control::Found { request, record: record.map(<[u8]>::to_vec), contacts };
        self.dht.handle_reply(self.now, wall(self.now), to.node_id, found);
    }

    fn outcome(&mut self) -> Option<Outcome> {
        match self.dht.poll_event()? {
            Event::LookupDone { outcome, .. } => Some(outcome),
            Event::RecordDue => panic!("nothing was published"),
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.dht.handle_timeout(self.now, wall(self.now));
    }
}

fn record(i: usize, sequence: u64) -> NodeRecord {
    record_of(&identity(i), sequence, at(0), private_endpoint(i))
}

#[test]
fn one_node_of_each_path_is_asked_at_once_closest_first() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let asked = walker.asked(target);
    assert_eq!(asked.iter().map(|a| a.0).collect::<Vec<_>>(), walker.dht.closest(&target, PATHS));
    walker.answer(asked[0], None, Vec::new());
    assert_eq!(walker.asked(target).len(), 1, "an answer makes room for one more");
}

#[test]
fn a_walk_ends_when_the_closest_have_answered() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let mut waiting = walker.asked(target);
    let mut n = 0;
    while let Some(next) = waiting.pop() {
        n += 1;
        walker.answer(next, None, vec![contact(50 + n % 4)]);
        waiting.extend(walker.asked(target));
    }
    let outcome = walker.outcome().unwrap();
    assert_eq!(outcome.closest.len(), K);
    assert!(outcome.rounds >= 2);
    assert!((K..=34).contains(&n), "{n}");
    assert_eq!(outcome.steps.len(), n);
    let mut sorted = outcome.closest.clone();
    sorted.sort_by_key(|c| c.node_id.position().distance(&target));
    assert_eq!(sorted, outcome.closest);
}

#[test]
fn the_first_record_ends_the_asking_and_newer_ones_still_count() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Record);
    let asked = walker.asked(target);
    walker.answer(asked[0], Some(record(99, 1).bytes()), Vec::new());
    assert_eq!(walker.asked(target), [], "nobody new is asked");
    assert_eq!(walker.outcome(), None, "three more may answer");
    walker.answer(asked[1], Some(record(99, 2).bytes()), Vec::new());
    asked[2..].iter().for_each(|asked| walker.answer(*asked, None, Vec::new()));
    let outcome = walker.outcome().unwrap();
    assert_eq!(outcome.record, Some(record(99, 2)));
    assert_eq!(outcome.holders, [asked[1].0.node_id], "who has an older one is no holder");
}

#[test]
fn a_slow_node_does_not_hold_up_a_record() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Record);
    let asked = walker.asked(target);
    walker.answer(asked[0], Some(record(99, 1).bytes()), Vec::new());
    walker.wait(RPC_TIMEOUT_FIRST);
    assert_eq!(walker.outcome().unwrap().record, Some(record(99, 1)));
}

#[test]
fn what_cannot_be_verified_never_ends_a_walk() {
    let mut walker = Walker::new(30);
    let (target, now) = (target(99), walker.now);
    walker.dht.lookup(now, target, Want::Record);
    let mut forged = record(99, 9).bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let expired = record_of(&identity(99), 9, at(0), private_endpoint(1));
    let foreign = record(98, 9);
    let lies: [&[u8]; 4] = [&forged, foreign.bytes(), b"junk", &forged[..100]];
    let mut waiting = walker.asked(target);
    let mut lied = 0;
    while let Some(next) = waiting.pop() {
        walker.answer(next, Some(lies[lied % 4]), Vec::new());
        lied += 1;
        waiting.extend(walker.asked(target));
    }
    let outcome = walker.outcome().unwrap();
    assert_eq!((outcome.record, outcome.holders.len(), lied >= K), (None, 0, true));
    assert_eq!(walker.dht.status().counters.records_invalid, lied as u64);
    // An expired record is no better.
    walker.now = at(3601);
    walker.dht.lookup(walker.now, target, Want::Record);
    let asked = walker.asked(target);
    walker.answer(asked[0], Some(expired.bytes()), Vec::new());
    assert_eq!(walker.asked(target).len(), 1);
}

#[test]
fn the_record_that_we_hold_competes_but_saves_no_walk() {
    let mut walker = Walker::new(30);
    let (target, now) = (target(99), walker.now);
    walker.dht.handle_record(now, wall(now), record(99, 5));
    walker.dht.lookup(now, target, Want::Record);
    let asked = walker.asked(target);
    assert_eq!(asked.len(), PATHS);
    walker.answer(asked[0], Some(record(99, 4).bytes()), Vec::new());
    asked[1..].iter().for_each(|asked| walker.answer(*asked, None, Vec::new()));
    assert_eq!(walker.outcome().unwrap().record, Some(record(99, 5)));
}

#[test]
fn a_found_record_is_written_back_to_the_closest_that_lacked_it() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Record);
    let asked = walker.asked(target);
    walker.answer(asked[0], None, Vec::new());
    let next = walker.asked(target);
    walker.answer(asked[1], Some(record(99, 1).bytes()), Vec::new());
    asked[2..].iter().chain(&next).for_each(|asked| walker.answer(*asked, None, Vec::new()));
    let stores = walker.stores();
    assert_eq!(stores.len(), 1);
    assert_eq!(stores[0].to, asked[0].0);
    assert!(matches!(&stores[0].control, Control::Store { record: r, .. } if r == record(99, 1).bytes()));
}

#[test]
fn ever_nearer_strangers_end_at_the_cap() {
    let mut walker = Walker::new(3);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Record);
    let (mut waiting, mut fresh, mut asked) = (walker.asked(target), 1000, BTreeSet::new());
    while let Some(next) = waiting.pop() {
        assert!(asked.insert(next.0.node_id), "asked twice");
        fresh += 20;
        walker.answer(next, None, (fresh..fresh + 20).map(contact).collect());
        waiting.extend(walker.asked(target));
    }
    assert!(asked.len() <= LOOKUP_RPCS_MAX as usize, "{}", asked.len());
    assert!(walker.outcome().unwrap().rpcs <= LOOKUP_RPCS_MAX);
}

#[test]
fn a_walk_among_the_silent_ends_in_time() {
    let mut walker = Walker::new(60);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Record);
    let start = walker.now;
    let mut asked = BTreeSet::new();
    let outcome = loop {
        asked.extend(walker.asked(target).iter().map(|(to, _)| to.node_id));
        if let Some(outcome) = walker.outcome() {
            break outcome;
        }
        walker.wait(Duration::from_millis(100));
    };
    assert!(walker.now.saturating_since(start) <= LOOKUP_TIME_MAX);
    assert_eq!((outcome.closest.len(), outcome.rpcs as usize), (0, asked.len()));
    assert!(asked.len() >= K, "slow ones free their slots: {} asked", asked.len());
}

#[test]
fn dripping_answers_end_in_time_too() {
    const DRIP_MS: u64 = 400;
    let mut walker = Walker::new(3);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let start = walker.now;
    // Each answer names one node that is nearer than all before: the walk never comes to rest.
    let mut nearer: Vec<_> = (1000..1200).map(contact).collect();
    nearer.sort_by_key(|contact| contact.node_id.position().distance(&target));
    let mut waiting = walker.asked(target);
    while walker.outcome().is_none() {
        walker.wait(Duration::from_millis(DRIP_MS));
        waiting.extend(walker.asked(target));
        if let Some(next) = waiting.pop() {
            walker.answer(next, None, nearer.pop().into_iter().collect());
        }
    }
    let took = walker.now.saturating_since(start);
    assert!(took <= LOOKUP_TIME_MAX + Duration::from_millis(DRIP_MS), "{took:?}");
}

#[test]
fn a_wrong_endpoint_does_not_hide_a_node() {
    let mut walker = Walker::new(3);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Record);
    let asked = walker.asked(target);
    let wrong = Contact { endpoint: private_endpoint(666), ..contact(50) };
    walker.answer(asked[0], None, vec![wrong]);
    let second = walker.asked(target);
    assert_eq!(second[0].0, wrong);
    walker.answer(asked[1], None, vec![contact(50)]);
    walker.dht.handle_peer_failed(walker.now, wrong.node_id);
    let third = walker.asked(target);
    assert_eq!(third[0].0, contact(50), "where somebody else says that it is");
    walker.dht.handle_peer_failed(walker.now, wrong.node_id);
    walker.answer(asked[2], None, vec![wrong, contact(50)]);
    assert_eq!(walker.asked(target), [], "no third time");
}

#[test]
fn a_proven_endpoint_is_not_replaced_by_hearsay() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let asked = walker.asked(target);
    let far = walker.dht.closest(&target, 30)[25];
    let wrong = Contact { endpoint: private_endpoint(666), ..far };
    walker.answer(asked[0], None, vec![wrong]);
    let lookup = walker.dht.lookups.values().next().unwrap();
    assert!(format!("{lookup:?}").contains(&far.endpoint.to_string()));
    assert!(!format!("{lookup:?}").contains(&wrong.endpoint.to_string()));
}

#[test]
fn answers_bring_few_of_one_network_and_never_ourselves() {
    let mut walker = Walker::new(1);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let asked = walker.asked(target);
    let crowd = (10..30).map(|i| Contact { endpoint: ([8, 8, 8, i as u8], 1).into(), ..contact(i) });
    let contacts = crowd.chain([contact(0)]).collect();
    walker.answer(asked[0], None, contacts);
    let mut named = Vec::new();
    while let asked = walker.asked(target)
        && !asked.is_empty()
    {
        named.extend(asked.iter().map(|(to, _)| to.node_id));
        asked.into_iter().for_each(|next| walker.answer(next, None, Vec::new()));
    }
    assert_eq!(named.len(), PER_NETWORK_IN_ANSWER_MAX);
    assert!(!named.contains(&identity(0).node_id()));
}

#[test]
fn unusable_keys_are_not_asked() {
    let mut walker = Walker::new(1);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let asked = walker.asked(target);
    let weak = [[0; 32], [0xff; 32]].map(|id| Contact { node_id: NodeId(id), ..contact(5) });
    walker.answer(asked[0], None, weak.to_vec());
    assert_eq!(walker.asked(target), []);
    assert_eq!(walker.outcome().unwrap().closest, [contact(1)]);
}

#[test]
fn a_lookup_that_knows_nobody_ends_at_once() {
    let mut walker = Walker::new(0);
    let id = walker.dht.lookup(walker.now, target(1), Want::Record);
    let Some(Event::LookupDone { id: done, outcome }) = walker.dht.poll_event() else { panic!() };
    assert_eq!((done, outcome.rpcs, outcome.record), (id, 0, None));
}

#[test]
fn callers_may_start_only_so_many() {
    let mut walker = Walker::new(3);
    for i in 0..LOOKUPS_MAX + 5 {
        walker.dht.lookup(walker.now, target(100 + i), Want::Record);
    }
    assert_eq!(std::iter::from_fn(|| walker.outcome()).count(), 5);
    assert_eq!(walker.dht.status().counters.lookups_refused, 5);
    assert!(walker.dht.transmits.len() <= TRANSMITS_MAX);
}

#[test]
fn a_failed_handshake_makes_room_at_once() {
    let mut walker = Walker::new(30);
    let target = target(99);
    walker.dht.lookup(walker.now, target, Want::Contacts);
    let asked = walker.asked(target);
    walker.dht.handle_peer_failed(walker.now, asked[0].0.node_id);
    assert_eq!(walker.asked(target).len(), 1);
}

#[test]
fn the_dead_hold_up_a_walk_for_two_timeouts_only() {
    let mut walker = Walker::new(5);
    let (target, start) = (target(99), walker.now);
    walker.dht.lookup(start, target, Want::Contacts);
    let dead = identity(3).node_id();
    while walker.outcome().is_none() {
        let asked = walker.asked(target);
        asked
            .into_iter()
            .filter(|(to, _)| to.node_id != dead)
            .for_each(|next| walker.answer(next, None, Vec::new()));
        walker.wait(Duration::from_millis(10));
    }
    let took = walker.now.saturating_since(start);
    assert!(took <= RPC_TIMEOUT_FIRST * 3 + Duration::from_millis(20), "{took:?}");
}

#[test]
fn queries_that_nobody_takes_do_not_pile_up() {
    let mut walker = Walker::new(60);
    for i in 0..LOOKUPS_MAX {
        walker.dht.lookup(walker.now, target(100 + i), Want::Record);
    }
    (0..60).for_each(|_| walker.wait(Duration::from_millis(100)));
    assert_eq!(walker.dht.transmits.len(), TRANSMITS_MAX);
    assert!(walker.dht.status().counters.transmits_dropped > 0);
}
