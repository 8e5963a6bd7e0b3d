//! Opening sessions: crossing, lost, repeated and replayed handshakes, clocks that are wrong, and load.

use std::net::SocketAddr;
use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::wire::control::Contact;
use auramesh::proto::wire::envelope::Kind;

use crate::host::Machine;
use crate::network::Conditions;
use crate::pair::{pair, ping};
use crate::traffic::{SEEDS, agree, log, quiet_pair, route, steady};
use crate::world::{Seen, World};
#[test]
fn simultaneous_open_ends_in_one_session() {
    for seed in SEEDS {
        for loss in [0.0, 0.3] {
            let conditions = Conditions { duplicated: 0.0, late: 0.0, ..Conditions::default() };
            let mut world = World::exact(seed, conditions.with_loss(loss));
            let (a, b) = quiet_pair(&mut world);
            let took = world.run_until(Duration::from_secs(8), |world| agree(world, a, b));
            assert!(took.is_some(), "seed {seed}");
            if loss == 0.0 {
                world.run_for(Duration::from_secs(2));
                assert!(agree(&world, a, b), "seed {seed}");
                assert_eq!(world.host(a).snapshot.receivers.len(), 1, "seed {seed}");
                assert_eq!(world.host(b).snapshot.receivers.len(), 1, "seed {seed}");
            }
        }
    }
}

#[test]
fn retries_that_cross_end_in_one_session() {
    for seed in SEEDS {
        let mut world = World::exact(seed, Conditions::default());
        let (a, b) = quiet_pair(&mut world);
        let (ids, mut lost) = ([world.id(a), world.id(b)], [false; 2]);
        let endpoints = [world.endpoint(a), world.endpoint(b)];
        world.filter(move |seen| {
            let to = usize::from(seen.to == endpoints[1]);
            let first = !lost[to] && seen.setup_kind(&ids[to]) == Some(Kind::Initiation);
            lost[to] |= first;
            !first
        });
        world.run_for(Duration::from_secs(2));
        assert!(agree(&world, a, b), "seed {seed}");
    }
}

#[test]
fn lost_response_costs_one_retry() {
    let mut world = World::new(220, Conditions::default());
    let (a, b) = pair(&mut world);
    let initiator = world.id(b);
    let mut lost = false;
    world.filter(move |seen| {
        let first = !lost && seen.setup_kind(&initiator) == Some(Kind::Response);
        lost |= first;
        !first
    });
    let took = ping(&mut world, b, a, 1, Duration::from_secs(3));
    assert!(took.is_some_and(|took| took < Duration::from_millis(800)), "{took:?}");
    assert!(agree(&world, a, b));
}

#[test]
fn lost_confirmation_is_made_up_for() {
    let mut world = World::new(221, Conditions::default());
    let (a, b) = pair(&mut world);
    let mut lost = 0;
    let to = world.endpoint(a);
    world.filter(move |seen| {
        let first = lost < 2 && seen.to == to && seen.is_session();
        lost += u32::from(first);
        !first
    });
    let took = world.run_until(Duration::from_secs(4), |world| agree(world, a, b));
    assert!(took.is_some_and(|took| took < Duration::from_secs(3)), "{took:?}");
}

#[test]
fn replayed_initiation_after_a_restart_disturbs_nobody() {
    let mut world = World::new(230, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    let seen = log(&mut world);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(3)).is_some());
    let (id, to) = (world.id(b), world.endpoint(b));
    let is_initiation = |s: &&Seen| s.to == to && s.setup_kind(&id) == Some(Kind::Initiation);
    let old: Vec<Seen> = seen.borrow().iter().filter(is_initiation).cloned().collect();
    let orphans: Vec<Seen> = seen.borrow().iter().filter(|s| s.to == to && s.is_session()).cloned().collect();
    world.unfilter();
    assert!(!old.is_empty(), "the lower node ID initiates; choose another seed");
    // Not restarted: refused, and the live session carries on.
    let (sent, session) = (world.host(b).sent, route(&world, b, a).unwrap().local_index());
    for replay in &old {
        world.deliver(b, replay.from, replay.datagram.clone());
    }
    assert_eq!(world.host(b).sent, sent);
    // Restarted: it cannot know; it answers, and nothing comes of it.
    world.host_mut(b).machine.bootstrap.clear();
    world.kill(b);
    world.start(b);
    // What belongs to a session that it has lost, the third message of the handshake among it, is met with silence.
    for orphan in &orphans {
        world.deliver(b, orphan.from, orphan.datagram.clone());
    }
    assert!(!orphans.is_empty());
    assert_eq!(world.host(b).drops(DropReason::UnknownSession), orphans.len() as u64);
    assert_eq!((world.host(b).sent, world.host(b).snapshot.routes.len()), (0, 0));
    let (stranger, last): (SocketAddr, _) = ("9.9.9.9:9".parse().unwrap(), old.last().unwrap());
    world.deliver(b, stranger, last.datagram.clone());
    world.deliver(b, stranger, last.datagram.clone());
    assert_eq!(world.host(b).sent, 1, "one answer at most");
    assert!(world.host(b).snapshot.routes.is_empty(), "nothing is sent on an unconfirmed session");
    let pings = steady(&mut world, a, b, Duration::from_millis(200), Duration::from_secs(5));
    let first = pings.iter().find_map(|(_, reply)| *reply);
    assert!(first.is_some_and(|first| first < Duration::from_secs(3)), "{first:?}");
    assert_ne!(route(&world, b, a).unwrap().local_index(), session);
}

#[test]
fn clock_far_ahead_and_back_locks_nobody_out() {
    const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;
    for offset in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        let mut world = World::new(231, Conditions::default());
        let b = world.machine();
        let contact = Contact {
            node_id: b.identity().node_id(),
            x25519: b.identity().x25519_public(),
            endpoint: b.endpoint,
        };
        let b = world.add(b);
        let a = Machine { remembered: vec![contact], wall_offset_ms: offset, ..world.machine() };
        let a = world.add(a);
        let took = world.run_until(Duration::from_secs(5), |world| agree(world, a, b));
        assert!(took.is_some(), "a wrong clock does not prevent sessions");
        world.run_for(Duration::from_secs(30));
        // Set right while it runs, and once more by a restart, which forgets how far ahead it was.
        world.host_mut(a).machine.wall_offset_ms = 0;
        let pings = steady(&mut world, a, b, Duration::from_millis(500), Duration::from_secs(5));
        assert!(pings.iter().all(|(_, reply)| reply.is_some()), "{pings:?}");
        world.host_mut(a).machine.wall_offset_ms = offset.min(0);
        world.kill(a);
        world.disk(a).wall_offset_ms = 0;
        world.run_for(Duration::from_secs(3));
        world.start(a);
        let took = ping(&mut world, a, b, 1, Duration::from_secs(5));
        assert!(took.is_some_and(|took| took < Duration::from_secs(4)), "{offset}: {took:?}");
    }
}

#[test]
fn calendar_that_leaps_while_sessions_stand_disturbs_nobody() {
    const TEN_YEARS_MS: i64 = 10 * 365 * 86_400_000;
    for offset in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        let mut world = World::new(234, Conditions::default());
        let nodes = world.add_mesh(6, Duration::from_millis(50));
        world.run_for(Duration::from_secs(20));
        let (a, b) = (nodes[2], nodes[4]);
        steady(&mut world, a, b, Duration::from_millis(500), Duration::from_secs(5));
        world.host_mut(a).machine.wall_offset_ms = offset;
        // Through the next handshakes and the renewal of its record.
        let pings = steady(&mut world, a, b, Duration::from_millis(500), Duration::from_secs(1500));
        assert!(pings.iter().all(|(_, reply)| reply.is_some()), "{offset}");
        // Set right, and started again: somebody who never met it finds it, and it finds others.
        world.kill(a);
        world.disk(a).wall_offset_ms = 0;
        world.start(a);
        world.run_for(Duration::from_secs(20));
        let newcomer = Machine { bootstrap: vec![(world.id(b), world.endpoint(b))], ..world.machine() };
        let newcomer = world.add(newcomer);
        world.run_for(Duration::from_secs(2));
        for (sequence, (from, to)) in [(newcomer, a), (a, newcomer), (b, a)].into_iter().enumerate() {
            let took = ping(&mut world, from, to, sequence as u16, Duration::from_secs(3));
            assert!(took.is_some(), "{offset}: {sequence}");
        }
    }
}

/// A node that was far ahead comes back from elsewhere, so it cannot be asked where it was: what it said is forgotten.
#[test]
fn initiation_from_the_future_locks_its_node_out_for_minutes_only() {
    let mut world = World::new(235, Conditions::default());
    let a = world.machine();
    let contact = Contact {
        node_id: a.identity().node_id(),
        x25519: a.identity().x25519_public(),
        endpoint: a.endpoint,
    };
    let a = world.add(a);
    let ahead_ms = 10 * 365 * 86_400_000;
    let b = Machine { remembered: vec![contact], wall_offset_ms: ahead_ms, ..world.machine() };
    let b = world.add(b);
    world.run_for(Duration::from_secs(5));
    assert!(route(&world, a, b).is_some());
    world.kill(b);
    world.disk(b).wall_offset_ms = 0;
    world.disk(b).endpoint = "9.9.9.9:5747".parse().unwrap();
    world.start(b);
    world.run_for(Duration::from_secs(20));
    assert!(!agree(&world, a, b), "an older initiation may be a replay");
    let took = world.run_until(Duration::from_secs(300), |world| agree(world, a, b));
    println!("back after {took:?}");
    assert!(took.is_some());
}

#[test]
fn restart_with_the_clock_set_back_recovers() {
    let mut world = World::new(232, Conditions::default());
    let b = world.machine();
    let contact = Contact {
        node_id: b.identity().node_id(),
        x25519: b.identity().x25519_public(),
        endpoint: b.endpoint,
    };
    let b = world.add(b);
    let a = Machine { remembered: vec![contact], ..world.machine() };
    let a = world.add(a);
    assert!(world.run_until(Duration::from_secs(5), |world| agree(world, a, b)).is_some());
    world.run_for(Duration::from_secs(10));
    world.kill(a);
    world.disk(a).wall_offset_ms = -3_600_000;
    world.start(a);
    let took = ping(&mut world, a, b, 1, Duration::from_secs(10));
    assert!(took.is_some_and(|took| took < Duration::from_secs(4)), "{took:?}");
}

#[test]
fn loaded_node_is_joined_by_way_of_a_cookie() {
    let mut world = World::new(233, Conditions::default());
    let a = world.machine();
    let contact = Contact {
        node_id: a.identity().node_id(),
        x25519: a.identity().x25519_public(),
        endpoint: a.endpoint,
    };
    let a = world.add(Machine { loaded: true, ..a });
    let b = Machine { remembered: vec![contact], ..world.machine() };
    let b = world.add(b);
    let took = world.run_until(Duration::from_secs(3), |world| agree(world, a, b));
    assert!(took.is_some_and(|took| took < Duration::from_millis(290)), "{took:?}");
    assert_eq!(world.host(a).drops(DropReason::RateLimited), 1, "one initiation was answered by a cookie");
}

/// The first question to it is for its record.
#[test]
fn loaded_node_of_which_only_the_id_is_known_is_joined_by_way_of_a_cookie() {
    let mut world = World::new(234, Conditions::default());
    let a = world.machine();
    let bootstrap = vec![(a.identity().node_id(), a.endpoint)];
    let a = world.add(Machine { loaded: true, ..a });
    let b = Machine { bootstrap, ..world.machine() };
    let b = world.add(b);
    let took = world.run_until(Duration::from_secs(3), |world| agree(world, a, b));
    assert!(took.is_some_and(|took| took < Duration::from_millis(290)), "{took:?}");
    assert_eq!(world.host(a).drops(DropReason::RateLimited), 1, "one request was answered by a cookie");
}
