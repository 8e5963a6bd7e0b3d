//! What a node does by itself.

use std::time::Duration;

use super::swarm::*;
use crate::proto::dht::lookup::Purpose;
use crate::proto::dht::upkeep::Timer;
use crate::proto::dht::*;

fn contact(i: usize) -> Contact {
    contact_of(&identity(i), private_endpoint(i))
}

fn lonely() -> Dht {
    Dht::new(identity(0).node_id(), Mode::Server, [1; 32], at(0))
}

/// Leading bits that a position shares with the lonely node's.
fn shared(position: &Position) -> u32 {
    position.distance(&identity(0).node_id().position()).leading_zeros()
}

/// `n` contacts in the bucket of those that share so many bits with the lonely node.
fn sharing(bits: u32, n: usize) -> Vec<Contact> {
    (1..200).map(contact).filter(|c| shared(&c.node_id.position()) == bits).take(n).collect()
}

/// Lets `time` pass while nobody answers; what was sent, with seconds.
fn pass(dht: &mut Dht, from: Instant, time: Duration) -> Vec<(u64, Query)> {
    let mut sent = Vec::new();
    while let Some(next) = dht.poll_timeout().filter(|next| *next <= from + time) {
        let next = next.max(from);
        dht.handle_timeout(next, wall(next));
        sent.extend(std::iter::from_fn(|| dht.poll_transmit()).map(|q| (next.as_nanos() / 1_000_000_000, q)));
    }
    sent
}

#[test]
fn a_node_that_knows_nobody_sleeps() {
    let mut dht = lonely();
    assert_eq!(dht.poll_timeout(), None);
    dht.publish(at(0), record_of(&identity(0), 1, at(0), private_endpoint(0)));
    dht.handle_timeout(at(0), wall(at(0)));
    assert_eq!((dht.poll_timeout(), dht.poll_transmit()), (None, None));
}

#[test]
fn dead_bootstrap_nodes_give_way_to_cached_ones() {
    let mut swarm = Swarm::grown(7, 30);
    swarm.run_for(Duration::from_secs(30));
    let i = swarm.add(Mode::Server);
    // Twenty that are dead come first, one of the living last.
    let mut cached: Vec<_> = (500..520).map(contact).collect();
    cached.push(contact(3));
    swarm.nodes[i].dht.remember(cached);
    swarm.settle(i);
    swarm.run_for(Duration::from_secs(30));
    assert!(swarm.nodes[i].dht.status().contacts >= 20, "{:?}", swarm.nodes[i].dht.status());
    assert!(swarm.find(5, i).record.is_some(), "and its record is published");
}

#[test]
fn alone_a_node_asks_less_and_less() {
    let mut dht = lonely();
    dht.remember((1..=50).map(contact).collect());
    let sent = pass(&mut dht, at(0), Duration::from_secs(600));
    let rounds = |from: u64, to: u64| sent.iter().filter(|(s, _)| (from..to).contains(s)).count();
    assert!(rounds(0, 1) >= ALPHA);
    assert!(rounds(0, 20) > 3 * rounds(300, 320), "{} {}", rounds(0, 20), rounds(300, 320));
    assert!(rounds(300, 600) < 300 / 20 * ALPHA * 4 + 20);
    dht.handle_network_change(at(600));
    let sent = pass(&mut dht, at(600), Duration::from_secs(10));
    assert!(sent.len() > 5 * ALPHA, "a change of network starts over: {}", sent.len());
}

#[test]
fn the_first_answer_starts_a_self_lookup_and_the_publication() {
    let mut dht = lonely();
    dht.publish(at(0), record_of(&identity(0), 1, at(0), private_endpoint(0)));
    dht.handle_peer_up(at(5), contact(1), true);
    assert_eq!(dht.poll_timeout(), Some(at(5)));
    dht.handle_timeout(at(5), wall(at(5)));
    let Some(Query { control: Control::Find { target, want, .. }, .. }) = dht.poll_transmit() else {
        panic!()
    };
    assert_eq!((target, want), (identity(0).node_id().position(), Want::Contacts));
}

#[test]
fn a_record_is_placed_at_the_k_closest_and_again() {
    let mut swarm = Swarm::grown(8, 40);
    swarm.run_for(Duration::from_secs(100));
    let position = swarm.nodes[7].identity.node_id().position();
    let holders = |swarm: &Swarm| -> Vec<usize> {
        let holds = |i: &usize| swarm.nodes[*i].dht.records.find(swarm.now, &position).is_some();
        (0..40).filter(|i| *i != 7).filter(holds).collect()
    };
    let mut closest: Vec<usize> = (0..40).filter(|i| *i != 7).collect();
    closest.sort_by_key(|i| swarm.nodes[*i].identity.node_id().position().distance(&position));
    let placed = holders(&swarm);
    assert!(closest[..K].iter().all(|i| placed.contains(i)), "{:?} {placed:?}", &closest[..K]);
    assert_eq!(swarm.nodes[7].dht.status().publish_holders, placed.len());
    assert!((K..K * 2).contains(&placed.len()), "the k closest, and those of the region");
    swarm.run_for(Duration::from_secs(4000));
    assert!(swarm.nodes[7].sequence > 2, "fresh records were asked for");
    assert!(closest[..K].iter().all(|i| holders(&swarm).contains(i)));
}

#[test]
fn changing_records_keep_a_distance() {
    let mut dht = lonely();
    dht.handle_peer_up(at(0), contact(1), true);
    let mut starts = Vec::new();
    for s in 0..60 {
        dht.handle_peer_up(at(s), contact(1), true);
        dht.publish(at(s), record_of(&identity(0), s + 1, at(s), private_endpoint(0)));
        let before = dht.publication.placed;
        pass(&mut dht, at(s), Duration::from_millis(999));
        if dht.publication.placed != before {
            starts.push(s);
        }
    }
    assert!(starts.len() >= 5);
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= PUBLISH_GAP_MIN.as_secs() - 1), "{starts:?}");
}

#[test]
fn nobody_to_place_a_record_at_means_another_try() {
    let mut dht = lonely();
    dht.handle_peer_up(at(0), contact(1), true);
    dht.publish(at(0), record_of(&identity(0), 1, at(0), private_endpoint(0)));
    pass(&mut dht, at(0), Duration::from_secs(12));
    assert!(dht.publication.placed > Some(at(10)), "{:?}", dht.publication.placed);
}

/// Of those known to be closest most do not take the record: a walk finds out who does.
#[test]
fn a_record_that_most_do_not_take_is_placed_by_a_walk() {
    for takers in [0, 5, 15] {
        let mut dht = lonely();
        (1..=20).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
        pass(&mut dht, at(0), Duration::from_secs(120));
        (1..=20).for_each(|i| dht.handle_peer_up(at(199), contact(i), true));
        dht.publication.times = 2;
        dht.publish(at(200), record_of(&identity(0), 1, at(200), private_endpoint(0)));
        dht.handle_timeout(at(200), wall(at(200)));
        let mut told = 0;
        for query in std::iter::from_fn(|| dht.poll_transmit()).collect::<Vec<_>>() {
            let Control::Store { request, .. } = query.control else { continue };
            told += 1;
            if told <= takers {
                let stored = Control::Stored { request, outcome: StoreOutcome::Stored };
                dht.handle_reply(at(200), wall(at(200)), query.to.node_id, stored);
            }
        }
        assert_eq!(told, 20, "without a walk");
        pass(&mut dht, at(200), Duration::from_secs(17));
        assert_eq!(dht.publication.wants_walk, takers < 10, "{takers}");
        (1..=20).for_each(|i| dht.handle_peer_up(at(217), contact(i), true));
        pass(&mut dht, at(217), Duration::from_secs(1));
        let walks = dht.lookups.values().any(|lookup| lookup.purpose() == Purpose::Publish);
        assert_eq!((walks, dht.publication.wants_walk), (takers < 10, false), "{takers}");
    }
}

/// A walk that met few of them left it with too few.
#[test]
fn a_record_that_few_of_those_known_hold_is_placed_again_soon() {
    for known in [5, 20] {
        let mut dht = lonely();
        (1..=4).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
        dht.publish(at(0), record_of(&identity(0), 1, at(0), private_endpoint(0)));
        dht.publication.times = 1;
        dht.place(at(1), (1..=4).map(contact).collect(), true);
        for query in std::iter::from_fn(|| dht.poll_transmit()).collect::<Vec<_>>() {
            let Control::Store { request, .. } = query.control else { continue };
            let stored = Control::Stored { request, outcome: StoreOutcome::Stored };
            dht.handle_reply(at(1), wall(at(1)), query.to.node_id, stored);
        }
        assert_eq!(dht.publication.holders(), 4);
        (1..=known).for_each(|i| dht.handle_peer_up(at(2), contact(i), true));
        let planned = dht.timers.deadline(&Timer::Publish).unwrap();
        let is_soon = planned <= at(2) + PUBLISH_GAP_MIN;
        assert_eq!((is_soon, dht.publication.wants_walk), (known > 8, known > 8), "{known}");
    }
}

/// Whom nobody helps does not ask ever more often.
#[test]
fn a_record_that_is_not_taken_is_placed_more_and_more_seldom() {
    let mut dht = lonely();
    (1..=20).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
    dht.publish(at(0), record_of(&identity(0), 1, at(0), private_endpoint(0)));
    let mut waits = Vec::new();
    for i in 0..10 {
        let now = at(1 + i);
        dht.place(now, (1..=20).map(contact).collect(), true);
        (0..20).for_each(|i| dht.handle_placed(now, i < 5));
        waits.push(dht.timers.deadline(&Timer::Publish).unwrap().saturating_since(now).as_secs());
    }
    assert_eq!(waits[..4], [10, 20, 40, 80]);
    assert_eq!(waits[8], waits[9]);
}

/// What was known before says little of who is near now.
#[test]
fn who_was_alone_places_its_record_by_walks_again() {
    let mut dht = lonely();
    dht.handle_peer_up(at(0), contact(1), true);
    for change in ["alone", "elsewhere"] {
        dht.publication.times = 7;
        if change == "alone" {
            [100, 110].into_iter().for_each(|s| dht.handle_peer_failed(at(s), identity(1).node_id()));
            dht.handle_peer_up(at(200), contact(1), true);
        } else {
            dht.handle_network_change(at(300));
        }
        assert_eq!(dht.publication.times, 0, "{change}");
    }
}

/// A bucket in which hardly anybody is expected is not searched for somebody again and again.
#[test]
fn a_bucket_that_may_well_be_empty_is_not_filled() {
    let mut dht = lonely();
    let known = [sharing(0, 1), sharing(1, 20), sharing(2, 1), sharing(4, 1)].concat();
    known.into_iter().for_each(|contact| dht.handle_peer_up(at(0), contact, true));
    assert_eq!(dht.sparse(), [0, 2, 3], "nobody knows how many there are");
    // By these there are 35 nodes: 17 should differ from us in the first bit, four share two bits with us, two share three.
    let closest = dht.closest(&dht.position, K);
    dht.size.handle_lookup(&identity(0).node_id().position(), false, &closest);
    assert_eq!(dht.sparse(), [0], "{:?} nodes", dht.size.estimate());
}

/// Whoever is new comes to a server by itself, mostly, but not to a client.
#[test]
fn members_are_asked_for_others_where_some_are_missing() {
    let own = identity(0).node_id().position();
    let mut near: Vec<_> = (1..1000).map(contact).collect();
    near.sort_by_cached_key(|contact| contact.node_id.position().distance(&own));
    for (mode, members, asked) in
        [(Mode::Server, 5, true), (Mode::Server, 12, false), (Mode::Client, 12, true)]
    {
        let mut dht = Dht::new(identity(0).node_id(), mode, [1; 32], at(0));
        sharing(0, 20)
            .into_iter()
            .chain(sharing(1, members))
            .for_each(|c| dht.handle_peer_up(at(0), c, true));
        dht.size.handle_lookup(&own, false, &near[..K]);
        let mut seen = std::collections::BTreeSet::new();
        for s in 1..=40 {
            dht.handle_unrest(at(s));
            dht.handle_timer(at(s), wall(at(s)), Timer::Liveness);
            for query in std::iter::from_fn(|| dht.poll_transmit()).collect::<Vec<_>>() {
                let Control::Find { want, .. } = query.control else { continue };
                seen.insert((shared(&query.to.node_id.position()), want == Want::Contacts));
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(0, false), (1, asked)], "{mode:?}, {members}");
    }
}

/// With many in its nearest bucket and nobody nearer, a node misses some, and its neighbours may miss the same ones: it asks
/// those who are farther away for them.
#[test]
fn who_knows_nobody_nearer_asks_those_farther_away() {
    let mut dht = lonely();
    sharing(0, 6).into_iter().chain(sharing(1, 20)).for_each(|c| dht.handle_peer_up(at(0), c, true));
    let sent = pass(&mut dht, at(0), Duration::from_secs(5));
    let fills = sent.iter().filter(|(_, query)| {
        let Control::Find { target, .. } = &query.control else { return false };
        *target != dht.position && shared(target) >= 2
    });
    let asked: Vec<_> = fills.map(|(_, query)| shared(&query.to.node_id.position())).collect();
    assert!(asked.contains(&0) && asked.contains(&1), "{asked:?}");
}

/// A bucket of which all went is filled again, as when a node has just joined.
#[test]
fn a_bucket_that_lost_its_members_is_filled() {
    let mut dht = lonely();
    let (lost, kept) = (sharing(0, 4), [sharing(1, 4), sharing(2, 2)].concat());
    lost.iter().chain(&kept).for_each(|contact| dht.handle_peer_up(at(0), *contact, true));
    // As after the first minute.
    dht.timers.disarm(&Timer::Fill);
    for (s, contact) in (200..).step_by(6).zip(lost.iter().chain(&lost)) {
        dht.handle_peer_failed(at(s), contact.node_id);
    }
    assert!(dht.timers.deadline(&Timer::Fill).is_some_and(|due| due < at(260)));
}

#[test]
fn members_are_checked_one_by_one() {
    let mut dht = lonely();
    (1..=5).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
    pass(&mut dht, at(0), Duration::from_secs(5));
    (1..=5).for_each(|i| dht.handle_peer_up(at(5), contact(i), true));
    let mut checked = std::collections::BTreeSet::new();
    for s in 6..75 {
        for (_, query) in pass(&mut dht, at(s), Duration::from_secs(1)) {
            let Control::Find { request, target, .. } = query.control else { continue };
            if target != identity(0).node_id().position() {
                checked.insert(query.to.node_id);
            }
            let found = Control::Found { request, record: None, contacts: Vec::new() };
            dht.handle_reply(at(s + 1), wall(at(s + 1)), query.to.node_id, found);
        }
    }
    assert_eq!(checked.len(), 5);
}

/// Seconds at which members were asked in `from..to`; everybody but `silent` answers at once.
fn checks(dht: &mut Dht, from: u64, to: u64, silent: Option<usize>) -> Vec<u64> {
    let silent = silent.map(|i| identity(i).node_id());
    let mut asked = Vec::new();
    for s in from..to {
        for (_, query) in pass(dht, at(s), Duration::from_millis(999)) {
            let Control::Find { request, target, .. } = query.control else { continue };
            if target != identity(0).node_id().position() {
                asked.push(s);
            }
            if Some(query.to.node_id) != silent {
                let found = Control::Found { request, record: None, contacts: Vec::new() };
                dht.handle_reply(at(s + 1), wall(at(s + 1)), query.to.node_id, found);
            }
        }
    }
    asked
}

#[test]
fn members_are_checked_less_often_while_nobody_comes_or_goes() {
    let mut dht = lonely();
    (1..=3).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
    checks(&mut dht, 0, 120, None);
    let calm = checks(&mut dht, 120, 2520, None).len();
    assert!((7..=13).contains(&calm), "{calm} checks in 2400 s, one every 240 s");
    let after_a_miss = checks(&mut dht, 2520, 3720, Some(2)).len();
    assert!(after_a_miss >= 13, "{after_a_miss} checks in 1200 s around a node that went silent");
    checks(&mut dht, 3720, 3860, None);
    dht.handle_peer_up(at(3860), contact(4), true);
    let soon = checks(&mut dht, 3860, 3872, None);
    assert!(!soon.is_empty(), "somebody came");
}

#[test]
fn a_stranger_met_in_passing_is_visited_once_a_minute() {
    let mut dht = lonely();
    (1..=3).for_each(|i| dht.handle_peer_up(at(0), contact(i), true));
    let visits = |dht: &mut Dht, s: u64, strangers: &[usize]| -> usize {
        let running = dht.lookups.len();
        let contacts = strangers.iter().map(|i| (identity(*i).node_id().position(), contact(*i)));
        dht.handle_upkeep_answer(at(s), Position([1; 32]), &contacts.collect::<Vec<_>>(), true);
        dht.lookups.len() - running
    };
    assert_eq!(visits(&mut dht, 1, &[1, 2, 3]), 0, "no strangers");
    assert_eq!(visits(&mut dht, 1, &[50]), 1);
    assert_eq!(visits(&mut dht, 60, &[51]), 0, "too soon");
    dht.avoid(at(60), identity(51).node_id());
    assert_eq!(visits(&mut dht, 62, &[51]), 0, "nobody could reach it lately");
    assert_eq!(visits(&mut dht, 62, &[52]), 1);
    assert_eq!(visits(&mut dht, 1000, &[51]), 1);
    let asked = dht.rpcs.len();
    assert_eq!(visits(&mut dht, 1061, &[1, 2, 3, 53]), 0, "one among many is met without a lookup");
    assert_eq!(dht.rpcs.len(), asked + 1);
}

/// One with room every hour: walks to ourselves do not count for it. A full one every four hours.
#[test]
fn an_idle_bucket_is_refreshed() {
    let mut dht = lonely();
    sharing(0, 10).into_iter().chain(sharing(1, 20)).for_each(|c| dht.handle_peer_up(at(0), c, true));
    let mut walks = std::collections::BTreeSet::new();
    for s in 60..5 * 3600 {
        for (_, query) in pass(&mut dht, at(s), Duration::from_secs(1)) {
            let Control::Find { request, .. } = query.control else { continue };
            walks.extend(dht.lookups.iter().map(|(id, lookup)| (*id, shared(lookup.target()))));
            let found = Control::Found { request, record: None, contacts: Vec::new() };
            dht.handle_reply(at(s + 1), wall(at(s + 1)), query.to.node_id, found);
        }
        // Nobody is calm.
        dht.handle_unrest(at(s));
    }
    let to = |bits: u32| walks.iter().filter(|(_, shared)| *shared == bits).count();
    assert!((4..=6).contains(&to(0)) && to(1) == 1, "{} and {}", to(0), to(1));
}

#[test]
fn known_nodes_are_saved_best_first_and_limited() {
    let mut dht = lonely();
    dht.remember((100..100 + KNOWN_MAX + 50).map(contact).collect());
    assert_eq!(dht.known().count(), KNOWN_MAX);
    dht.handle_peer_up(at(5), contact(1), true);
    dht.handle_peer_up(at(6), contact(2), true);
    let saved: Vec<_> = dht.known().collect();
    assert_eq!(saved.len(), KNOWN_MAX);
    assert_eq!(saved[..2], [contact(2), contact(1)]);
    dht.handle_peer_failed(at(7), identity(2).node_id());
    assert_eq!(dht.known().next(), Some(contact(1)));
    assert_eq!(dht.known().last(), Some(contact(2)));
}

#[test]
fn one_network_cannot_fill_the_known_nodes() {
    let mut dht = lonely();
    for i in 1..40 {
        dht.handle_peer_up(at(1), Contact { endpoint: ([8, 8, 8, 8], i as u16).into(), ..contact(i) }, true);
    }
    assert_eq!(dht.status().known, PER_NETWORK_IN_TABLE_MAX);
    assert!(dht.status().counters.crowded > 0);
}

#[test]
fn random_positions_fall_into_their_bucket() {
    let mut dht = lonely();
    for index in 0..256 {
        let position = dht.random_position(index);
        assert_eq!(dht.table.index(&position), Some(index));
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let run = || {
        let mut swarm = Swarm::new(11);
        swarm.loss_percent = 10;
        for _ in 0..20 {
            swarm.join(Mode::Server);
        }
        swarm.run_for(Duration::from_secs(300));
        (swarm.messages, swarm.nodes.iter().map(|node| node.dht.status()).collect::<Vec<_>>())
    };
    assert_eq!(run(), run());
}
