//! Networks in which every node is a real `Dht`: what comes and goes, and what was cut in two.

use std::collections::BTreeSet;
use std::time::Duration;

use auramesh::proto::dht::{LOOKUP_TIME_MAX, Mode};
use auramesh::proto::timer::Instant;

use crate::network::{mix, unit};
use crate::swarm::Swarm;

/// Half of all nodes are gone after this.
const SESSION_MEDIAN: Duration = Duration::from_secs(30 * 60);
/// Until most of those who were there at the start are gone.
const SETTLING: Duration = Duration::from_secs(60 * 60);
/// During which records are searched, one each second.
const SEARCHING: Duration = Duration::from_secs(30 * 60);
/// Whoever is searched has been there for so long.
const AGE_MIN: Duration = Duration::from_secs(60);
/// Longer than the records of the other half live in the own one.
const CUT_FOR: Duration = Duration::from_secs(75 * 60);

/// Searches from one half in the other.
const MERGE_SEARCHES: usize = 1000;

/// What became of the searches in a network of changing nodes.
#[derive(Debug)]
pub(crate) struct Churn {
    /// Searches that found the record, in percent.
    pub(crate) found: f64,
    pub(crate) searches: usize,
    /// Bytes that a node sends in a second, searches included: half of them send less, 95 of a hundred.
    pub(crate) bytes_per_s: [u64; 2],
}

/// `nodes` of them; whoever leaves is followed by somebody new at once, and nobody says goodbye.
pub(crate) fn churn(nodes: usize, seed: u64) -> Churn {
    let mut swarm = Swarm::grown(seed as u8, nodes);
    let mut lot = mix(seed);
    // Sessions are exponential, so that it does not matter how long somebody was there.
    let mean = SESSION_MEDIAN.as_secs_f64() / std::f64::consts::LN_2;
    let mut leaves: BTreeSet<(Instant, usize)> = BTreeSet::new();
    let mut joined: Vec<Instant> = vec![swarm.now; nodes];
    let mut session = |from: Instant| {
        lot = mix(lot);
        from + Duration::from_secs_f64(-unit(lot).ln() * mean)
    };
    (0..nodes).for_each(|i| _ = leaves.insert((session(swarm.now), i)));
    let (start, mut found, mut searches) = (swarm.now, 0, 0);
    let mut before: Vec<u64> = Vec::new();
    while swarm.now < start + SETTLING + SEARCHING {
        while leaves.first().is_some_and(|(at, _)| *at <= swarm.now)
            && let Some((_, gone)) = leaves.pop_first()
        {
            swarm.kill(gone);
            let new = swarm.join(Mode::Server);
            joined.push(swarm.now);
            leaves.insert((session(swarm.now), new));
        }
        swarm.run_for(Duration::from_secs(1));
        if swarm.now < start + SETTLING {
            continue;
        }
        if before.is_empty() {
            before = swarm.nodes.iter().map(|node| node.cost()).collect();
        }
        let (from, whom) = (swarm.random_alive(), swarm.random_alive());
        if joined[from].max(joined[whom]) + AGE_MIN < swarm.now {
            searches += 1;
            found += usize::from(swarm.finds(from, whom));
        }
    }
    // Of whoever is there at the end, newcomers too, since the searches began or it joined.
    let there = (0..swarm.nodes.len()).filter(|i| swarm.nodes[*i].alive && joined[*i] + AGE_MIN < swarm.now);
    let bytes_per_s = crate::two(there.map(|i| {
        let since = joined[i].max(start + SETTLING);
        let sent = swarm.nodes[i].cost() - before.get(i).copied().unwrap_or(0);
        sent / swarm.now.saturating_since(since).as_secs().max(1)
    }));
    Churn { found: found as f64 * 100.0 / searches as f64, searches, bytes_per_s }
}

/// A network that was cut in halves for longer than records live, 120 s after the cut has ended: searches of a hundred in one
/// half, all begun at that moment, that find a node of the other.
pub(crate) fn merge(nodes: usize, seed: u64) -> f64 {
    let mut swarm = Swarm::grown(seed as u8, nodes);
    swarm.run_for(Duration::from_secs(120));
    (0..nodes).for_each(|i| swarm.nodes[i].group = (i % 2) as u8);
    swarm.run_for(CUT_FOR);
    (0..nodes).for_each(|i| swarm.nodes[i].group = 0);
    swarm.run_for(Duration::from_secs(120));
    let searches: Vec<_> = (0..MERGE_SEARCHES)
        .map(|i| {
            let (from, whom) = (2 * swarm.random(nodes / 2) + i % 2, 2 * swarm.random(nodes / 2) + 1 - i % 2);
            (swarm.start_lookup(from, whom), swarm.nodes[whom].identity.node_id())
        })
        .collect();
    swarm.run_for(LOOKUP_TIME_MAX + Duration::from_secs(1));
    let record_of = |search| swarm.done.get(search).and_then(|outcome| outcome.record.as_ref());
    let found = searches.iter().filter(|(search, id)| record_of(search).is_some_and(|r| r.node_id() == *id));
    found.count() as f64 * 100.0 / MERGE_SEARCHES as f64
}
