//! What the DHT does in a large network, some of whose nodes fail or lie: the figures of `scripts/simulate`.
//!
//! ```text
//! people.rs    keys in order of their positions, and keys ground to stand near one
//! network.rs   what each node would answer: tables drawn when asked; who dies, who lies
//! trial.rs     two real `Dht`s in it: one places its record, the other searches it
//! live.rs      networks of nothing but real `Dht`s: who comes and goes, halves that meet again
//! plain.rs     Kademlia as in the paper, in the same network
//! ```
//! The owner of a record is in nobody's table: it is found only where it is kept. The figures of a row come from its seed
//! and are the same on every machine.

#![expect(clippy::print_stdout, reason = "the figures are the result")]

mod live;
mod network;
mod people;
mod plain;
#[allow(dead_code, clippy::unwrap_used, reason = "part of the library's own tests, which use more of it")]
#[path = "../../src/proto/dht/tests/swarm.rs"]
mod swarm;
mod trial;

use std::cell::RefCell;
use std::time::Duration;

// `swarm.rs` calls it `crate::proto`, as in the library.
use auramesh::proto;
use clap::Parser;

use crate::network::{Kept, Network, Shares, mix};
use crate::people::{People, ground, parallel};

/// A kind of trouble, and the share of searches that is to succeed all the same.
struct Row {
    name: &'static str,
    shares: Shares,
    sybils: usize,
    percent_min: f64,
}

const fn row(name: &'static str, dead: f64, colluding: f64, sybils: usize, percent_min: f64) -> Row {
    Row { name, shares: Shares { dead, colluding }, sybils, percent_min }
}

const ROWS: [Row; 7] = [
    row("all well", 0.0, 0.0, 0, 100.0),
    row("half are dead, and in all tables", 0.5, 0.0, 0, 99.9),
    row("a fifth colludes", 0.0, 0.2, 0, 99.9),
    row("half dead, a fifth colludes", 0.5, 0.2, 0, 95.0),
    row("20 keys ground next to the record", 0.0, 0.0, 20, 100.0),
    row("60 keys ground next to it", 0.0, 0.0, 60, 100.0),
    row("200 keys ground next to it", 0.0, 0.0, 200, 74.0),
];
/// Keys that an attacker makes for each that it wants, in a network of one node: all wanted are then nearer to the record
/// than half the distance at which its nearest node is expected.
const TRIES_PER_SYBIL: usize = 2;

/// The figures of one row.
#[derive(Debug)]
struct Figures {
    /// Searches that found the record, in percent.
    found: f64,
    plain: f64,
    /// Of our searches: 50 and 95 of a hundred need no more.
    questions: [u32; 2],
    rounds: [u32; 2],
    get_ms: [u128; 2],
    publish_ms: [u128; 2],
    holders: usize,
    plain_questions: [u32; 2],
}

/// Runs the DHT's real state machines in modelled networks and prints what became of each search.
#[derive(Debug, Parser)]
struct Args {
    /// Nodes of the network, 1,000 at least; may be given several times
    #[arg(long, default_values_t = [10_000, 100_000])]
    nodes: Vec<usize>,
    /// Records placed and searched, in each row
    #[arg(long, default_value_t = 1000)]
    trials: usize,
    /// Nodes of the networks in which each is simulated whole, 100 at least; 0 leaves those out
    #[arg(long, default_value_t = 1000)]
    live: usize,
    /// The same seed gives the same figures
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    let mut args = Args::parse();
    args.nodes.iter_mut().for_each(|nodes| *nodes = (*nodes).max(1000));
    args.trials = args.trials.max(1);
    args.live = if args.live > 0 { args.live.max(100) } else { 0 };
    let mut missed = 0;
    for nodes in args.nodes {
        println!("{nodes} nodes, {} trials a row, seed {}", args.trials, args.seed);
        println!(
            "{:35} {:>7} {:>7} {:>7}  {:>9} {:>7} {:>11} {:>11} {:>7} {:>11}",
            "",
            "found %",
            "wanted",
            "plain %",
            "questions",
            "rounds",
            "get ms",
            "publish ms",
            "holders",
            "plain quest"
        );
        let people = People::new(args.seed, nodes);
        for row in &ROWS {
            let f = figures(&people, nodes, row, args.trials, args.seed);
            let pair = |[half, most]: [String; 2]| format!("{half}/{most}");
            println!(
                "{:35} {:7.1} {:7.1} {:7.1}  {:>9} {:>7} {:>11} {:>11} {:7} {:>11}",
                row.name,
                f.found,
                row.percent_min,
                f.plain,
                pair(f.questions.map(|n| n.to_string())),
                pair(f.rounds.map(|n| n.to_string())),
                pair(f.get_ms.map(|n| n.to_string())),
                pair(f.publish_ms.map(|n| n.to_string())),
                f.holders,
                pair(f.plain_questions.map(|n| n.to_string())),
            );
            missed += u32::from(f.found < row.percent_min);
        }
        println!();
    }
    if args.live > 0 {
        let churn = live::churn(args.live, args.seed);
        println!(
            "{} nodes come and go, half stay 30 min or less: {:.1} % of {} searches find the record (wanted 99.5)",
            args.live, churn.found, churn.searches
        );
        let [half, most] = churn.bytes_per_s;
        println!("  half of the nodes send {half} B/s or less (wanted 50), 95 of a hundred {most}");
        let merged = live::merge(args.live, args.seed);
        println!(
            "{} nodes, cut in halves for 75 min, 120 s later: {merged:.1} % of searches in the other half (wanted 99)",
            args.live
        );
        missed += u32::from(churn.found < 99.5) + u32::from(half > 50) + u32::from(merged < 99.0);
    }
    if missed > 0 {
        println!("{missed} figures are not as wanted");
        std::process::exit(1);
    }
}

fn figures(people: &People, nodes: usize, row: &Row, trials: usize, seed: u64) -> Figures {
    let seeds: Vec<u64> = (0..trials as u64).map(|trial| mix(seed).wrapping_add(trial)).collect();
    let nobody = || (0..trials).map(|_| People::default()).collect();
    let targets: Vec<_> = seeds.iter().map(|seed| trial::both(*seed).0).collect();
    let sybils: Vec<People> = match row.sybils {
        0 => nobody(),
        each => ground(seed, &targets, each, TRIES_PER_SYBIL * each * nodes),
    };
    let results = parallel(trials, |i| {
        let seed = seeds[i];
        let kept = RefCell::new(Kept::default());
        let mut network = Network {
            people,
            sybils: &sybils[i],
            shares: row.shares,
            seed,
            later: false,
            plain: false,
            kept,
        };
        let ours = trial::run(&mut network, seed);
        let record = network.kept.borrow().record.clone();
        let (owner, stranger) = trial::both(seed);
        (ours, plain::run(&mut network, &owner, &stranger, &record))
    });
    let percent = |count: usize| count as f64 * 100.0 / trials as f64;
    let ms = |time: Duration| time.as_millis();
    Figures {
        found: percent(results.iter().filter(|(ours, _)| ours.get.record.is_some()).count()),
        plain: percent(results.iter().filter(|(_, plain)| plain.found).count()),
        questions: two(results.iter().map(|(ours, _)| ours.get.rpcs)),
        rounds: two(results.iter().map(|(ours, _)| ours.get.rounds)),
        get_ms: two(results.iter().map(|(ours, _)| ms(ours.get.elapsed))),
        publish_ms: two(results.iter().map(|(ours, _)| ms(ours.publish))),
        holders: two(results.iter().map(|(ours, _)| ours.holders))[0],
        plain_questions: two(results.iter().map(|(_, plain)| plain.questions)),
    }
}

/// The value that half of the samples do not exceed, and the one for 95 of a hundred.
fn two<T: Ord + Copy>(samples: impl Iterator<Item = T>) -> [T; 2] {
    let mut sorted: Vec<T> = samples.collect();
    sorted.sort_unstable();
    [50, 95].map(|percent| sorted[(sorted.len() - 1) * percent / 100])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the smallest network, with as many trials as a debug build makes in seconds.
    #[test]
    fn ten_thousand_nodes_half_dead_or_lying_hide_nothing() {
        let (nodes, trials) = (10_000, 40);
        let people = People::new(1, nodes);
        for row in &ROWS {
            let f = figures(&people, nodes, row, trials, 1);
            println!("{}: {f:?}", row.name);
            assert!(f.found >= row.percent_min, "{}: {f:?}", row.name);
        }
    }
}
