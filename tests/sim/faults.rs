//! What goes wrong on one machine or on its way to others, and how soon it is made up for.

use std::net::SocketAddr;
use std::time::Duration;

use crate::host::Machine;
use crate::network::Conditions;
use crate::pair::{pair, ping};
use crate::world::World;

#[test]
fn lost_introduction_is_repeated() {
    for seed in 400..410 {
        let mut world = World::exact(seed, Conditions::default());
        let (a, b) = pair(&mut world);
        // The responder never hears the initiator's first words, only that it is there, or the other way round.
        let (deaf, mut lost) = (world.endpoint(if seed % 2 == 0 { a } else { b }), 0);
        world.filter(move |seen| {
            let first = lost < 1 && seen.to == deaf && seen.is_session();
            lost += u32::from(first);
            !first
        });
        world.run_for(Duration::from_secs(20));
        for host in [a, b] {
            let contacts = world.host(host).node.status(world.now).dht.contacts;
            assert_eq!(contacts, 1, "seed {seed}: {host:?} does not know the other one");
        }
    }
}

#[test]
fn new_link_is_used_at_once() {
    let mut world = World::new(420, Conditions::default());
    let first = world.machine();
    let bootstrap = vec![(first.identity().node_id(), first.endpoint)];
    let a = world.add(first);
    let offline: SocketAddr = "[2a00:1::1]:5747".parse().unwrap();
    let machine = Machine { bootstrap, ..world.machine_at(offline) };
    let b = world.add(machine);
    world.cut_off(&[b]);
    // Long enough for the waits between the efforts to have grown.
    world.run_for(Duration::from_secs(301));
    world.move_to(b, "[2a00:2::1]:5747".parse().unwrap(), true);
    let took = ping(&mut world, b, a, 1, Duration::from_secs(5));
    assert!(took.is_some_and(|took| took < Duration::from_secs(2)), "{took:?}");
}

#[test]
fn peer_restarted_elsewhere_is_found_by_its_new_record() {
    let mut world = World::new(421, Conditions::default());
    let nodes = world.add_mesh(12, Duration::from_millis(50));
    world.run_for(Duration::from_secs(30));
    let (a, b) = (nodes[3], nodes[7]);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(2)).is_some());
    world.kill(b);
    // The sessions with it expire; who knew it still knows its old endpoint.
    world.run_for(Duration::from_secs(200));
    world.disk(b).endpoint = "[2a00:7777::1]:5747".parse().unwrap();
    world.start(b);
    world.run_for(Duration::from_secs(10));
    let took = ping(&mut world, a, b, 2, Duration::from_secs(10));
    assert!(took.is_some_and(|took| took < Duration::from_secs(3)), "{took:?}");
}

#[test]
fn notice_that_found_no_room_is_raised_again() {
    let mut world = World::new(422, Conditions::default());
    let (a, b) = pair(&mut world);
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(3)).is_some());
    // The peer comes back from where it was, and what says that it is there again gets lost.
    world.run_for(Duration::from_secs(2));
    world.kill(b);
    world.start(b);
    world.host_mut(a).notices_lost = 1;
    world.run_for(Duration::from_millis(400));
    assert_eq!(world.host(a).notices_lost, 0);
    for sequence in 2..5 {
        ping(&mut world, b, a, sequence, Duration::from_millis(100));
    }
    assert!(ping(&mut world, b, a, 9, Duration::from_millis(300)).is_some());
}

#[test]
fn nodes_find_each_other_without_their_bootstrap() {
    let mut world = World::new(423, Conditions::default());
    let nodes = world.add_mesh(8, Duration::from_millis(100));
    world.run_for(Duration::from_secs(30));
    world.kill(nodes[0]);
    let pairs = (1..8).flat_map(|a| (1..8).map(move |b| (a, b))).filter(|(a, b)| a != b);
    let mut times = Vec::new();
    for (sequence, (a, b)) in pairs.enumerate() {
        let took = ping(&mut world, nodes[a], nodes[b], 100 + sequence as u16, Duration::from_secs(1));
        times.push(took.expect("the first reply comes within a second"));
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] <= Duration::from_millis(100), "median {:?}", times[times.len() / 2]);
}

#[test]
fn saved_contacts_are_enough_to_come_back() {
    let mut world = World::new(424, Conditions::default());
    let nodes = world.add_mesh(12, Duration::from_millis(50));
    world.run_for(Duration::from_secs(30));
    let saved = world.host(nodes[5]).node.known();
    world.kill(nodes[5]);
    world.kill(nodes[0]);
    let disk = world.disk(nodes[5]);
    disk.bootstrap.clear();
    disk.remembered = saved;
    world.start(nodes[5]);
    let took = ping(&mut world, nodes[5], nodes[9], 1, Duration::from_secs(10));
    assert!(took.is_some_and(|took| took < Duration::from_secs(5)), "{took:?}");
}
