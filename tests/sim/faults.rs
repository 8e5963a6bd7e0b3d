//! What goes wrong on one machine or on its way to others, and how soon it is made up for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use auramesh::proto::wire::envelope::Kind;

use crate::host::Machine;
use crate::network::Conditions;
use crate::pair::{pair, ping};
use crate::traffic::{log, quiet_pair, route, steady};
use crate::world::{PORT, Seen, World};

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
    let contacts = |world: &World| world.host(b).node.status(world.now).dht.contacts;
    assert_eq!((contacts(&world), world.is_running(a)), (0, true));
    let took = world.run_until(Duration::from_secs(5), |world| contacts(world) == 1);
    assert!(took.is_some_and(|took| took < Duration::from_secs(2)), "{took:?}");
}

#[test]
fn peer_restarted_elsewhere_is_found_by_its_new_record() {
    let mut world = World::new(421, Conditions::default());
    let nodes = world.add_mesh(12, Duration::from_millis(50));
    world.run_for(Duration::from_secs(30));
    let (a, b) = (nodes[3], nodes[7]);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(2)).is_some());
    // The one that moves does not open the session by itself: the other one has to look it up.
    let (id, to) = (world.id(a), world.endpoint(a));
    world.filter(move |seen| {
        let from_b = matches!(seen.from.ip(), IpAddr::V6(ip) if ip.segments()[0] == 0x2a77);
        let opens = matches!(seen.setup_kind(&id), Some(Kind::Initiation | Kind::Sealed));
        !(from_b && seen.to == to && opens)
    });
    for place in 1..12u16 {
        world.kill(b);
        world.disk(b).endpoint = SocketAddr::new(Ipv6Addr::new(0x2a77, place, 0, 0, 0, 0, 0, 1).into(), PORT);
        world.start(b);
        world.run_for(Duration::from_secs(20));
        // The first ones go into the session that is dead, which takes 2 s to notice.
        let mut answered = None;
        for i in 0..20 {
            if ping(&mut world, a, b, place * 100 + i, Duration::from_millis(500)).is_some() {
                answered = Some(i);
                break;
            }
        }
        assert!(answered.is_some(), "not found at place {place}");
    }
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
fn lost_notice_of_a_new_epoch_is_made_up_for() {
    let mut world = World::new(425, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(3)).is_some());
    let age = world.now.saturating_since(route(&world, a, b).expect("a session").established());
    steady(&mut world, a, b, Duration::from_millis(100), Duration::from_secs(118) - age);
    // The session lives on, since no handshake comes through.
    world.filter(Seen::is_session);
    for host in [a, b] {
        assert_eq!(world.host(host).notices_lost, 0);
        world.host_mut(host).notices_lost = u32::MAX;
    }
    steady(&mut world, a, b, Duration::from_millis(100), Duration::from_secs(20));
    for (from, to) in [(a, b), (b, a)] {
        let session = route(&world, from, to).expect("the session stands");
        assert_eq!((session.sending_epoch(), session.newest_epoch()), (1, 1));
        assert_eq!(session.receiving_epoch(), 1, "the keys of the old epoch are gone");
        assert!(world.host(from).notices_lost < u32::MAX, "a notice was lost");
    }
}

/// A machine that was suspended for more than a day: `CLOCK_BOOTTIME` leaps.
#[test]
fn leap_of_the_clock_is_survived_without_a_burst() {
    let mut world = World::new(426, Conditions::default());
    let nodes = world.add_mesh(8, Duration::from_millis(50));
    world.run_for(Duration::from_secs(30));
    let (a, b) = (nodes[3], nodes[6]);
    steady(&mut world, a, b, Duration::from_millis(100), Duration::from_secs(3));
    world.suspend(Duration::from_secs(100_000));
    let seen = log(&mut world);
    let pings = steady(&mut world, a, b, Duration::from_millis(100), Duration::from_secs(8));
    let first = pings.iter().find_map(|(_, reply)| *reply);
    assert!(first.is_some_and(|first| first <= Duration::from_secs(5)), "{first:?}");
    let n = seen.borrow().len();
    println!("back after {first:?}, {n} datagrams of 8 nodes in 9 s");
    assert!(n < 3000, "{n} datagrams at once");
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
