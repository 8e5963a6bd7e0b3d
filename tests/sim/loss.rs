//! Paths that lose much: noticed by both ends while there is traffic, and by nobody when there is none.

use std::time::Duration;

use crate::network::Conditions;
use crate::packet;
use crate::traffic::quiet_pair;
use crate::world::{HostId, World};

/// Datagrams a second, of one direction.
const RATE: u64 = 400;

fn cuts(world: &World, from: HostId, to: HostId) -> bool {
    let routes = &world.host(from).snapshot.routes;
    routes.get(&world.mesh_address(to)).is_some_and(|route| route.cuts)
}

/// Everything that `from` sends, one of so many gets lost.
fn lose_one_of(world: &mut World, n: u64, from: HostId) {
    let (endpoint, mut count) = (world.endpoint(from), 0u64);
    world.filter(move |datagram| {
        count += u64::from(datagram.from == endpoint);
        datagram.from != endpoint || !count.is_multiple_of(n)
    });
}

/// `flows` for so many seconds, stopping as soon as `until`.
fn stream(
    world: &mut World,
    flows: &[(HostId, HostId)],
    seconds: u64,
    until: impl Fn(&World) -> bool,
) -> Option<u64> {
    stream_at(RATE, world, flows, seconds, until)
}

fn stream_at(
    rate: u64,
    world: &mut World,
    flows: &[(HostId, HostId)],
    seconds: u64,
    until: impl Fn(&World) -> bool,
) -> Option<u64> {
    for i in 0..rate * seconds {
        for (from, to) in flows {
            let (source, destination) = (world.address(*from), world.address(*to));
            world.send(*from, &packet::udp(source, destination, (4000, 4000), b"data"));
        }
        world.run_for(Duration::from_secs(1) / rate as u32);
        if until(world) {
            return Some(i / rate);
        }
    }
    None
}

fn calm() -> Conditions {
    Conditions { duplicated: 0.0, late: 0.0, ..Conditions::default() }
}

fn connected(seed: u64) -> (World, HostId, HostId) {
    let mut world = World::new(seed, calm());
    let (a, b) = quiet_pair(&mut world);
    world.run_for(Duration::from_secs(3));
    (world, a, b)
}

#[test]
fn a_lossy_path_is_noticed_and_so_is_its_end() {
    for (seed, both_ways) in [(400, true), (401, false)] {
        let (mut world, a, b) = connected(seed);
        let flows = if both_ways { vec![(a, b), (b, a)] } else { vec![(a, b)] };
        let calm = stream(&mut world, &flows, 5, |world| cuts(world, a, b) || cuts(world, b, a));
        assert_eq!(calm, None, "nothing gets lost");
        lose_one_of(&mut world, 30, a);
        let after = stream(&mut world, &flows, 5, |world| cuts(world, a, b));
        assert!(after.is_some_and(|seconds| seconds <= 3), "both ways {both_ways}: {after:?}");
        // A report may span the beginning: two more are of the lossy path alone.
        stream(&mut world, &flows, 2, |_| false);
        assert!(!cuts(&world, b, a), "the way back loses nothing");
        let status = world.host(a).node.status(world.now);
        let loss =
            status.peers.iter().find(|peer| peer.node_id == world.id(b)).and_then(|p| p.loss_per_mille);
        assert!(loss.is_some_and(|loss| (20..=50).contains(&loss)), "{loss:?}");
        world.unfilter();
        let early = stream(&mut world, &flows, 9, |world| !cuts(world, a, b));
        assert_eq!(early, None, "it is not trusted at once");
        let after = stream(&mut world, &flows, 6, |world| !cuts(world, a, b));
        assert!(after.is_some(), "both ways {both_ways}: still cut 15 s later");
    }
}

/// Probes beyond what the path carries leave by thread 0, and are missed when it is heard again; data by another.
#[test]
fn the_search_for_the_mtu_is_no_loss_whatever_thread_carries_the_data() {
    for (seed, threads) in [(403, 1), (404, 1), (405, 2), (406, 2), (407, 8)] {
        let mut world = World::new(seed, calm());
        let (a, b) = quiet_pair(&mut world);
        for id in [a, b] {
            world.kill(id);
            world.disk(id).threads = threads;
            world.start(id);
        }
        world.run_for(Duration::from_secs(3));
        let cut = stream_at(120, &mut world, &[(a, b)], 60, |world| cuts(world, a, b));
        assert_eq!(cut, None, "{threads} threads");
        let mtu = world.host(a).node.path_mtu(&world.mesh_address(b));
        assert!(mtu.is_some_and(|(len, _)| len > 1400), "{mtu:?}");
    }
}

#[test]
fn nobody_reports_when_little_is_sent() {
    let (mut world, a, b) = connected(402);
    stream(&mut world, &[(a, b), (b, a)], 3, |_| false);
    world.run_for(Duration::from_secs(3));
    let sent = |world: &World| (world.host(a).sent, world.host(b).sent);
    let before = sent(&world);
    world.run_for(Duration::from_secs(60));
    assert_eq!(sent(&world), before, "silence stays silence");
}
