//! What a swarm of many nodes must do.

use super::swarm::*;
use crate::proto::dht::*;
use crate::proto::identity::Identity;
use std::time::Duration;

/// Looks up `n` random pairs of living nodes one after the other; the number found, and a summary.
fn success(swarm: &mut Swarm, n: usize) -> (usize, String) {
    let (mut found, mut rpcs, mut rounds, mut elapsed) = (0, Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        let (from, whom) = (swarm.random_alive(), swarm.random_alive());
        let outcome = swarm.find(from, whom);
        let id = swarm.nodes[whom].identity.node_id();
        found += usize::from(outcome.record.is_some_and(|record| record.node_id() == id));
        rpcs.push(outcome.rpcs);
        rounds.push(outcome.rounds);
        elapsed.push(outcome.elapsed);
    }
    rpcs.sort_unstable();
    rounds.sort_unstable();
    elapsed.sort_unstable();
    let (mid, high) = (n / 2, n * 95 / 100);
    let text = format!(
        "{found}/{n} rpcs {}/{} rounds {}/{} time {:?}/{:?}",
        rpcs[mid], rpcs[high], rounds[mid], rounds[high], elapsed[mid], elapsed[high]
    );
    (found, text)
}

#[test]
fn every_lookup_finds_its_record() {
    let mut swarm = Swarm::grown(1, 200);
    swarm.run_for(Duration::from_secs(20));
    let (found, text) = success(&mut swarm, 300);
    assert_eq!(found, 300, "{text}");
    let estimates: Vec<u64> = swarm.nodes.iter().map(|n| n.dht.status().network_size_estimate).collect();
    let mean = estimates.iter().sum::<u64>() / 200;
    assert!((150..260).contains(&mean), "estimated {mean} nodes of 200");
}

#[test]
fn thirty_percent_loss_hides_no_record() {
    let mut swarm = Swarm::new(2);
    swarm.loss_percent = 30;
    for _ in 0..200 {
        swarm.join(Mode::Server);
        swarm.run_for(Duration::from_millis(50));
    }
    swarm.run_for(Duration::from_secs(60));
    let (found, text) = success(&mut swarm, 300);
    assert_eq!(found, 300, "{text}");
}

#[test]
fn half_of_all_contacts_may_be_stale() {
    let mut swarm = Swarm::grown(3, 200);
    swarm.run_for(Duration::from_secs(90));
    let mut left = 100;
    while left > 0 {
        let i = swarm.random_alive();
        swarm.kill(i);
        left -= 1;
    }
    let (found, text) = success(&mut swarm, 300);
    assert!(found >= 297, "{text}");
}

#[test]
fn an_idle_network_is_quiet() {
    let mut swarm = Swarm::grown(4, 60);
    swarm.run_for(Duration::from_secs(10 * 60));
    let sent = |swarm: &Swarm| swarm.nodes.iter().map(|node| node.cost()).sum::<u64>();
    let before = (swarm.messages, sent(&swarm));
    swarm.run_for(Duration::from_secs(20 * 60));
    let messages_per_min = (swarm.messages - before.0) as f64 / 60.0 / 20.0;
    let bytes_per_s = (sent(&swarm) - before.1) as f64 / 60.0 / 1200.0;
    println!("a node sends {messages_per_min:.1} messages a minute and {bytes_per_s:.1} B/s");
    assert!(messages_per_min < 40.0 && bytes_per_s < 100.0, "{messages_per_min} a minute, {bytes_per_s} B/s");
    let (found, text) = success(&mut swarm, 100);
    assert_eq!(found, 100, "{text}");
}

#[test]
fn a_split_network_heals_within_two_minutes() {
    let mut swarm = Swarm::grown(5, 80);
    swarm.run_for(Duration::from_secs(120));
    (0..80).for_each(|i| swarm.nodes[i].group = (i % 2) as u8);
    swarm.run_for(Duration::from_secs(25 * 60));
    (0..80).for_each(|i| swarm.nodes[i].group = 0);
    swarm.run_for(Duration::from_secs(120));
    let mut found = 0;
    for i in 0..200 {
        let (from, whom) = (2 * swarm.random(40) + i % 2, 2 * swarm.random(40) + 1 - i % 2);
        found += usize::from(swarm.finds(from, whom));
    }
    assert!(found >= 198, "{found} of 200 cross lookups");
}

#[test]
fn churn_is_survived() {
    let mut swarm = Swarm::grown(6, 200);
    swarm.run_for(Duration::from_secs(90));
    let (mut found, mut tried) = (0, 0);
    for _ in 0..200 {
        let gone = swarm.random_alive();
        swarm.kill(gone);
        swarm.join(Mode::Server);
        swarm.run_for(Duration::from_secs(1));
        let settled = swarm.nodes.len() - 20;
        let (from, whom) = (swarm.random(settled), swarm.random(settled));
        if swarm.nodes[from].alive && swarm.nodes[whom].alive {
            tried += 1;
            found += usize::from(swarm.finds(from, whom));
        }
    }
    assert!(found * 100 >= tried * 95, "{found} of {tried}");
}

/// Every second node lies: it names only liars, and shows no record.
#[test]
fn liars_do_not_lead_all_paths_astray() {
    let mut swarm = Swarm::grown(7, 400);
    swarm.run_for(Duration::from_secs(90));
    (0..400).step_by(2).for_each(|i| swarm.nodes[i].liar = true);
    let honest = |swarm: &mut Swarm| loop {
        let i = swarm.random_alive();
        if !swarm.nodes[i].liar {
            return i;
        }
    };
    let (mut found, mut rpcs) = (0, Vec::new());
    for _ in 0..400 {
        let (from, whom) = (honest(&mut swarm), honest(&mut swarm));
        let outcome = swarm.find(from, whom);
        found += usize::from(outcome.record.is_some());
        rpcs.push(outcome.rpcs);
    }
    rpcs.sort_unstable();
    let text = format!("{found} of 400, questions {} {}", rpcs[200], rpcs[380]);
    println!("{text}");
    assert!(found >= 398, "{text}");
}

/// Keys made to be nearer to a node than any honest one, in such number; how many of 100 searches find it.
fn besieged(seed: u8, liars: usize, drip: bool) -> (usize, String) {
    let mut swarm = Swarm::grown(seed, 300);
    let victim = 123;
    let position = swarm.nodes[victim].identity.node_id().position();
    let near = |identity: &Identity| identity.node_id().position().distance(&position).leading_zeros() >= 10;
    let ground: Vec<_> = (1_000_000..).map(identity).filter(near).take(liars).collect();
    for identity in ground {
        let i = swarm.add_as(identity, Mode::Server);
        let other = swarm.random(300);
        swarm.introduce(i, other);
        swarm.nodes[i].liar = true;
        swarm.run_for(Duration::from_millis(50));
    }
    swarm.liars_drip = drip;
    // Until the victim has placed its record anew, with all of them there.
    swarm.run_for(Duration::from_secs(30 * 60));
    let (mut found, mut rpcs) = (0, Vec::new());
    for _ in 0..100 {
        let from = swarm.random(300);
        let outcome = swarm.find(from, victim);
        found += usize::from(outcome.record.is_some());
        rpcs.push(outcome.rpcs);
    }
    rpcs.sort_unstable();
    let text = format!("{liars} liars: {found} of 100, questions {} {}", rpcs[50], rpcs[95]);
    println!("{text}");
    (found, text)
}

/// As many as could hold its record three times over, and twice as many as can be told it.
#[test]
fn nobody_is_hidden_by_keys_made_to_be_nearest() {
    for (liars, drip) in [(60, false), (60, true), (128, false)] {
        let (found, text) = besieged(8, liars, drip);
        assert!(found >= 99, "{text}");
    }
}
