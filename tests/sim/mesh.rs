//! Many nodes that all start from one: everybody finds everybody.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use auramesh::proto::dht::{Mode, Outcome};
use auramesh::proto::identity::NodeId;
use auramesh::proto::node::Ticket;

use crate::host::{Machine, ms};
use crate::network::Conditions;
use crate::packet;
use crate::world::{HostId, World};

/// Time between two nodes that join.
const JOIN_GAP: Duration = Duration::from_millis(50);
/// Time that a mesh gets after the last node has joined.
const SETTLING: Duration = Duration::from_secs(20);
/// Time between two lookups.
const LOOKUP_GAP: Duration = Duration::from_millis(20);

/// Measures the wall time of the parts of a scenario, for the output only.
struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "how long the test itself takes")]
    fn start() -> Self {
        Self(Instant::now())
    }

    #[expect(clippy::print_stdout, reason = "what the scenario measured")]
    fn lap(&mut self, world: &World, what: &str) {
        let took = self.0.elapsed();
        let datagrams: u64 = world.running().iter().map(|id| world.host(*id).sent).sum();
        println!("{what}: {took:.1?} for {datagrams} datagrams so far, at {:?}", world.now);
        *self = Self::start();
    }
}

/// Looks `n` random other running nodes up from random nodes; how many were found, and who was not.
pub(crate) fn look_up_random(world: &mut World, n: usize) -> (usize, Vec<(HostId, HostId)>) {
    let running = world.running();
    let (mut asked, mut failed) = (Vec::<(HostId, HostId, Ticket)>::new(), Vec::new());
    for _ in 0..n {
        let from = running[world.draw(running.len())];
        let to = loop {
            let to = running[world.draw(running.len())];
            if to != from {
                break to;
            }
        };
        let address = world.mesh_address(to);
        asked.push((from, to, world.look_up(from, address)));
        world.run_for(LOOKUP_GAP);
    }
    world.run_for(Duration::from_secs(11));
    for (from, to, ticket) in asked {
        let outcome = world.lookup_outcome(from, ticket);
        let record = outcome.and_then(|outcome| outcome.record.as_ref());
        if record.is_none_or(|record| record.node_id() != world.id(to)) {
            explain(world, from, to, outcome);
            failed.push((from, to));
        }
    }
    (n - failed.len(), failed)
}

/// Pings `n` random other running nodes from random nodes with real packets; how many answered within `patience`.
pub(crate) fn ping_random(world: &mut World, n: usize, patience: Duration) -> (usize, Vec<Duration>) {
    let running = world.running();
    let mut asked = Vec::new();
    for sequence in 0..n as u16 {
        let from = running[world.draw(running.len())];
        let to = running[world.draw(running.len())];
        if to != from {
            let request = packet::echo_request(world.address(from), world.address(to), 99, sequence, 56);
            asked.push((from, sequence, world.now));
            world.send(from, &request);
        }
        world.run_for(LOOKUP_GAP);
    }
    world.run_for(patience);
    let mut times: Vec<_> = asked
        .iter()
        .filter_map(|(from, sequence, at)| {
            world.host(*from).echo_reply_at(99, *sequence).map(|reply| reply.saturating_since(*at))
        })
        .collect();
    times.sort_unstable();
    (asked.len(), times)
}

/// What is to be known of a lookup that failed.
#[expect(clippy::print_stdout, reason = "for whoever looks into it")]
fn explain(world: &World, from: HostId, to: HostId, outcome: Option<&Outcome>) {
    let sought = world.host(to).node.status(world.now).dht;
    println!(
        "{to:?} has {} contacts, {} holders; in {:?}",
        sought.contacts,
        sought.publish_holders,
        world
            .running()
            .iter()
            .filter(|id| world.host(**id).node.known().iter().any(|c| c.node_id == world.id(to)))
            .count()
    );
    let Some(outcome) = outcome else { return println!("{from:?} is still looking for it") };
    let (rpcs, rounds, elapsed) = (outcome.rpcs, outcome.rounds, outcome.elapsed);
    println!("{from:?} asked {rpcs} nodes in {rounds} rounds and {elapsed:?}:");
    let position = world.id(to).position();
    let host = |id| world.running().into_iter().find(|host| world.id(*host) == id);
    for step in &outcome.steps {
        let bits = step.asked.position().distance(&position).leading_zeros();
        println!("  {:?} at {bits} bits: {:?}, {} contacts", host(step.asked), step.answered, step.contacts);
    }
}

fn join(seed: u64, nodes: usize, conditions: Conditions) -> (World, Stopwatch) {
    let mut stopwatch = Stopwatch::start();
    let mut world = World::new(seed, conditions);
    world.add_mesh(nodes, JOIN_GAP);
    world.run_for(SETTLING);
    stopwatch.lap(&world, "joined");
    (world, stopwatch)
}

/// How many of the pings were answered, and how fast.
#[expect(clippy::print_stdout, reason = "what the scenario measured")]
fn show(asked: usize, times: &[Duration]) {
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("pings: {} of {asked}, median {}, worst {}", times.len(), ms(median), ms(worst));
}

#[expect(clippy::print_stdout, reason = "what the scenario measured")]
fn check_all_found(world: &mut World, stopwatch: &mut Stopwatch, n: usize) {
    let (found, failed) = look_up_random(world, n);
    stopwatch.lap(world, "lookups");
    println!("{found} of {n} found");
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn thousand_nodes_find_each_other_and_survive_the_death_of_300() {
    let (mut world, mut stopwatch) = join(11, 1000, Conditions::default());
    check_all_found(&mut world, &mut stopwatch, 2000);
    let (asked, times) = ping_random(&mut world, 200, Duration::from_secs(5));
    stopwatch.lap(&world, "200 pings");
    show(asked, &times);
    assert_eq!(times.len(), asked);

    for _ in 0..300 {
        let running = world.running();
        let victim = running[world.draw(running.len())];
        world.kill(victim);
    }
    let (found, failed) = look_up_random(&mut world, 2000);
    stopwatch.lap(&world, "lookups among the 700 left");
    println!("{found} of 2000 found; missed {failed:?}");
    assert!(found >= 1980);
}

#[test]
fn thousand_nodes_find_each_other_with_30_percent_loss() {
    let (mut world, mut stopwatch) = join(12, 1000, Conditions::default().with_loss(0.3));
    check_all_found(&mut world, &mut stopwatch, 2000);
}

/// `AZORA_TEST_LONG=1`: a thousand nodes instead of a hundred, minutes instead of seconds.
#[expect(clippy::disallowed_methods, reason = "asked of the tests themselves")]
fn is_long() -> bool {
    std::env::var_os("AZORA_TEST_LONG").is_some()
}

#[test]
fn split_network_heals_within_two_minutes() {
    let half = if is_long() { 500 } else { 50 };
    let (mut world, mut stopwatch) = join(13, 2 * half, Conditions::default());
    let all = world.running();
    let (mut left, mut right) = (all[..half].to_vec(), all[half..].to_vec());
    world.cut_off(&left);
    world.run_for(Duration::from_secs(300));
    // Of these nobody on the other side has ever heard.
    for half in [&mut left, &mut right] {
        for i in 0..10 {
            let bootstrap = vec![(world.id(half[i]), world.endpoint(half[i]))];
            let machine = Machine { bootstrap, ..world.machine() };
            half.push(world.add(machine));
        }
    }
    world.cut_off(&left);
    world.run_for(Duration::from_secs(300));
    stopwatch.lap(&world, "10 minutes apart");
    let (from, to) = (left[0], right[half + 5]);
    let address = world.mesh_address(to);
    let ticket = world.look_up(from, address);
    world.run_for(Duration::from_secs(11));
    let outcome = world.lookup_outcome(from, ticket);
    assert!(outcome.is_some_and(|outcome| outcome.record.is_none()), "the halves are not apart");
    world.reunite();
    world.run_for(Duration::from_secs(120));
    stopwatch.lap(&world, "2 minutes together");
    let mut missed = Vec::new();
    for i in 0..500 {
        // The newcomers come last in each half, and are sought every other time.
        let newcomers = |world: &mut World| {
            if i % 4 < 2 { half + world.draw(10) } else { world.draw(half + 10) }
        };
        let (a, b) = (left[newcomers(&mut world)], right[newcomers(&mut world)]);
        let (from, to) = if i % 2 == 0 { (a, b) } else { (b, a) };
        let address = world.mesh_address(to);
        let ticket = world.look_up(from, address);
        let done =
            world.run_until(Duration::from_secs(11), |world| world.lookup_outcome(from, ticket).is_some());
        let record = world.lookup_outcome(from, ticket).and_then(|outcome| outcome.record.as_ref());
        if done.is_none() || record.is_none() {
            missed.push((from, to));
        }
    }
    stopwatch.lap(&world, "500 lookups across");
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn a_node_with_one_ip_version_is_told_where_others_answer_by_it() {
    const SERVERS: usize = 6;
    let mut world = World::new(141, Conditions::default());
    world.filter(|seen| seen.from.is_ipv4() == seen.to.is_ipv4());
    let mut bootstrap: Vec<(NodeId, SocketAddr)> = Vec::new();
    let mut first_v4 = None;
    for _ in 0..SERVERS {
        // By IPv6 they know each other.
        let also_at = Some(world.machine_v4().endpoint);
        let server = Machine { also_at, bootstrap: bootstrap.clone(), ..world.machine() };
        if bootstrap.is_empty() {
            bootstrap.push((server.identity().node_id(), server.endpoint));
            first_v4 = also_at.map(|endpoint| (server.identity().node_id(), endpoint));
        }
        world.add(server);
        world.run_for(Duration::from_secs(5));
    }
    for bootstrap in [first_v4, bootstrap.pop()].into_iter().flatten() {
        let machine = if bootstrap.1.is_ipv4() { world.machine_v4() } else { world.machine() };
        let one = world.add(Machine { bootstrap: vec![bootstrap], mode: Mode::Client, ..machine });
        let knows_all = |world: &World| world.host(one).node.status(world.now).dht.contacts == SERVERS;
        let took = world.run_until(Duration::from_secs(20), knows_all);
        assert!(took.is_some(), "{bootstrap:?}: {:?}", world.host(one).node.status(world.now).dht.contacts);
    }
}

#[test]
fn same_seed_same_history() {
    let run = |seed| {
        let mut world = World::exact(seed, Conditions::default().with_loss(0.1));
        world.add_mesh(20, JOIN_GAP);
        world.run_for(Duration::from_secs(30));
        let (found, _) = look_up_random(&mut world, 20);
        assert_eq!(found, 20);
        world.log_hash()
    };
    assert_eq!(run(14), run(14), "a run depends on more than its seed");
    assert_ne!(run(14), run(15), "the log does not show what happened");
}
