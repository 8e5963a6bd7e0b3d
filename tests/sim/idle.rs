//! What a node costs that has nothing to do.

use std::time::Duration;

use crate::host::Machine;
use crate::nat::NatKind;
use crate::network::Conditions;
use crate::world::{HostId, World};

#[test]
fn idle_node_with_eight_peers_sleeps() {
    const TIME_S: u64 = 600;
    let mut world = World::new(300, Conditions::default());
    let nodes = world.add_mesh(9, Duration::from_millis(100));
    // Past the joining, the first republication and the first refresh.
    world.run_for(Duration::from_secs(300));
    let counts = |world: &World| -> Vec<_> {
        let count = |id| (world.host(id).wakeups, world.host(id).sent, world.host(id).sent_bytes);
        nodes.iter().map(|id| count(*id)).collect()
    };
    let before = counts(&world);
    world.run_for(Duration::from_secs(TIME_S));
    for ((wakeups, sent, bytes), (before_wakeups, before_sent, before_bytes)) in
        counts(&world).into_iter().zip(before)
    {
        let per_s = |n: u64| n as f64 / TIME_S as f64;
        // IPv6 and UDP headers count too.
        let bytes = bytes - before_bytes + 48 * (sent - before_sent);
        println!(
            "{:.2} wake-ups/s, {:.2} datagrams/s, {:.2} MB/day",
            per_s(wakeups - before_wakeups),
            per_s(sent - before_sent),
            per_s(bytes) * 86_400.0 / 1e6
        );
        assert!(per_s(wakeups - before_wakeups) <= 1.0);
        // One question of the DHT every 10 s, as many answers, and a handshake now and then: nobody asks whether an
        // answer arrived.
        assert!(per_s(sent - before_sent) <= 0.325);
    }
}

/// Neighbours on the LAN announce themselves once a minute for as long as they are there: they have met.
#[test]
fn neighbours_that_have_met_cost_nothing_when_they_announce_themselves() {
    let (mut world, nodes, announcing) = idle_neighbours(true);
    let (_, _, silent) = idle_neighbours(false);
    println!("{silent} datagrams of all in ten minutes, {announcing} with announcements");
    assert!(announcing <= silent + silent / 4, "{silent}, {announcing} with announcements");
    // One that comes anew and knows nobody is met at once, though the others know it from before.
    world.kill(nodes[8]);
    world.run_for(Duration::from_secs(400));
    world.disk(nodes[8]).bootstrap.clear();
    world.disk(nodes[8]).remembered.clear();
    world.start(nodes[8]);
    announce(&mut world, &nodes, &nodes);
    world.run_for(Duration::from_secs(1));
    assert_eq!(reached(&world, nodes[8]), 8);
    // So is a stranger, though nobody is alone.
    let strangers = world.add_mesh(2, Duration::from_millis(100));
    world.run_for(Duration::from_secs(5));
    assert_eq!(reached(&world, strangers[0]), 1);
    announce(&mut world, &strangers[..1], &nodes);
    world.run_for(Duration::from_secs(1));
    assert_eq!(reached(&world, strangers[0]), 10);
}

/// Nine nodes, and the datagrams that they send from the fifth to the fifteenth minute.
fn idle_neighbours(announcing: bool) -> (World, Vec<HostId>, u64) {
    let mut world = World::new(302, Conditions::default());
    let nodes = world.add_mesh(9, Duration::from_millis(100));
    world.run_for(Duration::from_secs(300));
    let sent = |world: &World| nodes.iter().map(|id| world.host(*id).sent).sum::<u64>();
    let before = sent(&world);
    for _ in 0..10 {
        if announcing {
            announce(&mut world, &nodes, &nodes);
        }
        world.run_for(Duration::from_secs(60));
    }
    let sent = sent(&world) - before;
    (world, nodes, sent)
}

/// Each of `senders` is heard by all listeners.
fn announce(world: &mut World, senders: &[HostId], listeners: &[HostId]) {
    for from in senders {
        let endpoint = world.endpoint(*from);
        let packet =
            world.with(*from, |host, _| host.node.announcement(endpoint.port()).expect("it has a record"));
        for to in listeners.iter().filter(|to| *to != from) {
            world.with(*to, |host, now| host.node.handle_announce(now, host.wall(now), endpoint, &packet));
        }
    }
}

/// Peers with a session.
fn reached(world: &World, id: HostId) -> usize {
    let peers = world.host(id).node.status(world.now).peers;
    peers.iter().filter(|peer| peer.session_age.is_some()).count()
}

/// All that costs a node that knows many others and has nothing to say: behind a NAT it keeps two relays.
#[test]
fn idle_node_with_fifty_peers_costs_little_also_behind_a_nat() {
    const PEERS: usize = 50;
    // Long enough for all that is done once an hour.
    const TIME_S: u64 = 7200;
    let mut world = World::new(301, Conditions::default());
    let mut public = Vec::<HostId>::new();
    for _ in 0..PEERS {
        let bootstrap = public.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
        let machine = world.machine_v4();
        public.push(world.add(Machine { bootstrap, ..machine }));
        world.run_for(Duration::from_millis(100));
    }
    let nat = world.nat(NatKind::PortRestricted);
    let bootstrap = vec![(world.id(public[0]), world.endpoint(public[0]))];
    let machine = world.machine_behind(nat);
    let behind = world.add(Machine { bootstrap, ..machine });
    world.run_for(Duration::from_secs(20));
    for (sequence, id) in public.iter().enumerate() {
        // They have met, and then said nothing more.
        crate::pair::ping(&mut world, behind, *id, sequence as u16, Duration::from_secs(2));
    }
    world.run_for(Duration::from_secs(1200));
    let status = world.host(behind).node.status(world.now);
    assert!(status.peers.len() >= PEERS && status.relays.len() == 2, "{} peers", status.peers.len());
    // The first is where all others came to.
    let (hub, others) = public.split_first().unwrap();
    let nodes: Vec<_> = others.iter().chain([hub, &behind]).copied().collect();
    let count = |world: &World, id: HostId| {
        let host = world.host(id);
        // IP and UDP headers count too.
        (host.wakeups, host.sent_bytes + 28 * host.sent)
    };
    let before: Vec<_> = nodes.iter().map(|id| count(&world, *id)).collect();
    world.run_for(Duration::from_secs(TIME_S));
    let figures = nodes.iter().zip(before).map(|(id, (wakeups, bytes))| {
        let now = count(&world, *id);
        let per_s = |n: u64| n as f64 / TIME_S as f64;
        (per_s(now.0 - wakeups), per_s(now.1 - bytes) * 86_400.0 / 1e6)
    });
    let mut figures: Vec<_> = figures.collect();
    let (behind, hub) = (figures.pop().unwrap(), figures.pop().unwrap());
    let most = figures.iter().fold((0.0, 0.0), |a: (f64, f64), b| (a.0.max(b.0), a.1.max(b.1)));
    let mean = figures.iter().map(|figure| figure.1).sum::<f64>() / figures.len() as f64;
    println!(
        "wake-ups/s and MB/day sent: public nodes at most {:.2} and {:.2} (mean {mean:.2}); behind a NAT {:.2} and {:.2}; \
         the node that all were told of {:.2} and {:.2}",
        most.0, most.1, behind.0, behind.1, hub.0, hub.1
    );
    assert!([most, behind, hub].iter().all(|(wakeups, megabytes)| *wakeups <= 1.0 && *megabytes <= 5.0));
}
