//! Paths of any MTU: what is found, how soon, and what a change of it costs.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::datapath::{Arrival, Inbound, inbound};
use auramesh::proto::node::Command;
use auramesh::proto::path::pmtu::{self, BASE_DATAGRAM_LEN, PMTU_RAISE_TIMER, State};
use auramesh::proto::policy::Rules;
use auramesh::proto::session::transport::Session;
use auramesh::proto::wire::control::{CONTROL_LEN_MAX, Control};
use auramesh::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD};

use crate::host::Machine;
use crate::network::{Conditions, packet_len};
use crate::packet;
use crate::pair::{pair, ping};
use crate::traffic::quiet_pair;
use crate::world::{HostId, World};

/// Time between two packets of a transfer.
const GAP: Duration = Duration::from_millis(5);

fn conditions(mtu: usize, interface_mtu: usize) -> Conditions {
    Conditions { mtu, interface_mtu, ..Conditions::default() }
}

/// The largest datagram that `from` knows to reach `to`, and whether the search for it has ended.
fn found(world: &World, from: HostId, to: HostId) -> (usize, bool) {
    let found = world.host(from).node.path_mtu(&world.mesh_address(to));
    found.map_or((0, false), |(len, state)| (len, matches!(state, State::Found { .. })))
}

/// What the data path would fill its datagrams up to.
fn datagram_len(world: &World, from: HostId, to: HostId) -> usize {
    world.host(from).snapshot.routes.get(&world.mesh_address(to)).expect("a route").datagram_len
}

/// Packets as large as one datagram carries, one way, until `is_done`; how long that took, and how many arrived.
fn transfer(
    world: &mut World,
    from: HostId,
    to: HostId,
    patience: Duration,
    mut is_done: impl FnMut(&World, usize) -> bool,
) -> (Option<Duration>, usize) {
    let (start, own, other) = (world.now, world.address(from), world.address(to));
    let (mut arrived, mut sequence) = (0, 0u16);
    while world.now.saturating_since(start) < patience {
        // Fills a datagram, as a slice of a superframe does, as far as the interface of the simulation allows.
        let route = world.host(from).snapshot.routes.get(&world.mesh_address(to)).cloned();
        let len = route.map_or(56, |route| route.datagram_len - OVERHEAD - 48);
        sequence = sequence.wrapping_add(1);
        world.send(from, &packet::udp(own, other, (9, 9), &vec![1; len]));
        if sequence % 20 == 1 {
            // The other way there is little, as with a download: acknowledgements.
            world.send(from, &packet::echo_request(own, other, 5, sequence, 8));
        }
        world.run_for(GAP);
        let host = world.host_mut(to);
        let came = host.delivered.iter().filter(|(_, packet)| packet.len() == len + 48).count();
        host.delivered.clear();
        world.host_mut(from).delivered.clear();
        arrived += came;
        if is_done(world, came) {
            return (Some(world.now.saturating_since(start)), arrived);
        }
    }
    (None, arrived)
}

fn open(seed: u64, conditions: Conditions, v4: bool) -> (World, HostId, HostId) {
    let mut world = World::new(seed, conditions);
    let (a, b) = if v4 {
        let first = world.machine_v4();
        let bootstrap = vec![(first.identity().node_id(), first.endpoint)];
        let a = world.add(first);
        let second = Machine { bootstrap, ..world.machine_v4() };
        (a, world.add(second))
    } else {
        pair(&mut world)
    };
    for host in [a, b] {
        world.with(host, |host, now| {
            let rules = Rules { allow_all: true, ..host.machine.rules.clone() };
            let wall = host.wall(now);
            host.node.handle_command(now, wall, Command::SetRules(rules));
        });
    }
    let answered = (0..10).any(|i| ping(&mut world, b, a, i, Duration::from_secs(3)).is_some());
    assert!(answered);
    (world, a, b)
}

#[test]
fn what_the_path_carries_is_found_within_seconds_of_traffic() {
    for v4 in [false, true] {
        for (mtu, interface_mtu, limit_s) in [
            (1280, 1280, 2),
            (1400, 1400, 2),
            (1500, 1500, 1),
            (9000, 9000, 2),
            // Silent: the own link carries more than the path.
            (1280, 1500, 10),
            (1300, 1500, 10),
            (1400, 1500, 10),
            (1492, 1500, 5),
            (1500, 9000, 15),
            (4096, 9000, 10),
        ] {
            let (mut world, a, b) = open(500, conditions(mtu, interface_mtu), v4);
            let (took, _) =
                transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
            let (len, _) = found(&world, b, a);
            let packet = packet_len(world.endpoint(a), len);
            println!(
                "link {interface_mtu}, path {mtu}, v4 {v4}: {len} bytes, a packet of {packet}, in {took:?}"
            );
            let took = took.expect("the search ends");
            assert!(took <= Duration::from_secs(limit_s), "{took:?}");
            assert_eq!(datagram_len(&world, b, a), len, "the data path is told");
            let tolerance = if mtu <= 1500 { pmtu::GAIN_MIN } else { mtu / pmtu::GAIN_MIN_PART };
            assert!(packet <= mtu && packet + tolerance > mtu, "{packet} bytes on a path of {mtu}");
        }
    }
}

#[test]
fn path_that_shrinks_under_traffic_carries_again_within_seconds() {
    for (seed, before, after) in [(510, 1500, 1400), (511, 1500, 1280), (512, 9000, 1500), (513, 1500, 1300)]
    {
        let (mut world, a, b) = open(seed, conditions(before, 9000), false);
        transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
        let (len, _) = found(&world, b, a);
        assert!(packet_len(world.endpoint(a), len) > after, "{len}");
        transfer(&mut world, b, a, Duration::from_secs(7), |_, _| false);
        world.network.conditions.mtu = after;
        // Packets that fill the datagram vanish until the black hole is noticed; then they are short enough.
        let (gap, _) =
            transfer(&mut world, b, a, Duration::from_secs(30), |world, _| datagram_len(world, b, a) < len);
        let (rest, _) = transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
        let (len, _) = found(&world, b, a);
        let packet = packet_len(world.endpoint(a), len);
        println!(
            "path {before} -> {after}: goes on after {gap:?}, a packet of {packet} found {rest:?} later"
        );
        assert!(gap.is_some_and(|gap| gap <= Duration::from_secs(4)), "{gap:?}");
        assert!(rest.is_some_and(|rest| rest <= Duration::from_secs(10)), "{rest:?}");
        assert!(packet <= after && packet + pmtu::GAIN_MIN.max(after / pmtu::GAIN_MIN_PART) > after);
    }
}

#[test]
fn one_way_traffic_into_a_black_hole_is_noticed_within_three_seconds() {
    for seed in 520..530 {
        let (mut world, a, b) = open(seed, conditions(1500, 1500), false);
        transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
        transfer(&mut world, b, a, Duration::from_secs(6), |_, _| false);
        world.network.conditions.mtu = 1400;
        let start = world.now;
        let (own, other) = (world.address(b), world.address(a));
        while datagram_len(&world, b, a) == 1452
            && world.now.saturating_since(start) < Duration::from_secs(30)
        {
            // A bulk flow whose every packet is lost: nothing comes back but acknowledgements of control packets.
            world.send(b, &packet::udp(own, other, (9, 9), &[1; 1300]));
            world.run_for(Duration::from_millis(50));
        }
        let took = world.now.saturating_since(start);
        println!("seed {seed}: noticed after {took:?}");
        assert!(took <= Duration::from_secs(3), "{took:?}");
    }
}

#[test]
fn path_that_grows_is_used_after_the_raise_timer_and_not_before() {
    let (mut world, a, b) = open(530, conditions(1400, 1500), false);
    transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
    let (before, _) = found(&world, b, a);
    let start = world.now;
    world.network.conditions.mtu = 1500;
    let steady = |world: &mut World, time: Duration| {
        let end = world.now + time;
        while world.now < end && found(world, b, a).0 == before {
            ping(world, b, a, 7, Duration::from_millis(500));
            world.host_mut(b).delivered.clear();
            world.host_mut(a).delivered.clear();
            world.run_for(Duration::from_millis(500));
        }
    };
    steady(&mut world, PMTU_RAISE_TIMER + Duration::from_secs(10));
    let took = world.now.saturating_since(start);
    assert_eq!(found(&world, b, a).0, 1452);
    assert!(took >= PMTU_RAISE_TIMER && took < PMTU_RAISE_TIMER + Duration::from_secs(3), "{took:?}");
}

/// Lengths of the datagrams sent since.
fn lengths(world: &mut World) -> Rc<RefCell<Vec<usize>>> {
    let lengths = Rc::new(RefCell::new(Vec::new()));
    let log = lengths.clone();
    world.filter(move |seen| {
        log.borrow_mut().push(seen.datagram.len());
        true
    });
    lengths
}

fn sent_by(world: &World, host: HostId) -> u64 {
    world.host(host).sent
}

#[test]
fn path_without_data_is_not_probed() {
    let mut world = World::new(540, conditions(1500, 1500));
    let nodes = world.add_mesh(5, Duration::from_millis(100));
    let lengths = lengths(&mut world);
    world.run_for(Duration::from_secs(60));
    // Questions and answers of the DHT are control messages.
    assert!(!lengths.borrow().is_empty());
    let longest = lengths.borrow().iter().max().copied();
    assert!(longest <= Some(BASE_DATAGRAM_LEN), "{longest:?}");
    assert!(nodes.iter().all(|id| sent_by(&world, *id) > 0));
}

#[test]
fn after_the_search_a_quiet_path_costs_nothing() {
    let mut world = World::new(541, conditions(1500, 1500));
    let (a, b) = quiet_pair(&mut world);
    world.run_for(Duration::from_secs(1));
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(3)).is_some());
    world.run_for(Duration::from_secs(5));
    assert_eq!((found(&world, b, a), found(&world, a, b)), ((1452, true), (1452, true)));
    let wakeups = world.host(b).wakeups;
    let lengths = lengths(&mut world);
    world.run_for(Duration::from_secs(100));
    assert_eq!(*lengths.borrow(), Vec::<usize>::new());
    // Once a minute somebody looks whether the configured contacts are there.
    assert!(world.host(b).wakeups - wakeups <= 2);
}

#[test]
fn search_stops_with_the_data_and_goes_on_with_it() {
    let (mut world, a, b) = open(542, conditions(1300, 1500), false);
    // One packet has begun it. Nothing follows, and the path loses all from now on.
    world.network.conditions.loss = 1.0;
    world.run_for(Duration::from_secs(20));
    let quiet = |world: &mut World| {
        let lengths = lengths(world);
        world.run_for(Duration::from_secs(60));
        lengths.borrow().iter().filter(|len| **len > BASE_DATAGRAM_LEN).count()
    };
    assert_eq!(quiet(&mut world), 0, "probes without data");
    world.unfilter();
    world.network.conditions.loss = 0.0;
    assert!(!found(&world, b, a).1);
    let (took, _) = transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
    assert!(took.is_some_and(|took| took < Duration::from_secs(12)), "{took:?}");
}

#[test]
fn outage_does_not_look_like_a_black_hole() {
    for seed in 550..555 {
        let (mut world, a, b) = open(seed, conditions(1500, 1500), false);
        transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
        transfer(&mut world, b, a, Duration::from_secs(6), |_, _| false);
        world.network.conditions.loss = 1.0;
        transfer(&mut world, b, a, Duration::from_secs(5), |_, _| false);
        world.network.conditions.loss = 0.0;
        let (_, arrived) = transfer(&mut world, b, a, Duration::from_secs(6), |_, _| false);
        assert_eq!(found(&world, b, a).0, 1452, "seed {seed}");
        assert!(arrived > 500, "seed {seed}: {arrived}");
    }
}

#[test]
fn peer_at_another_endpoint_is_searched_anew() {
    let (mut world, a, b) = open(560, conditions(1500, 1500), false);
    transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
    assert_eq!(found(&world, b, a).0, 1452);
    world.network.conditions.mtu = 1400;
    world.move_to(a, "[2a00:99::1]:5747".parse().unwrap(), true);
    let (took, _) = transfer(&mut world, b, a, Duration::from_secs(10), |world, _| {
        found(world, b, a).0 < 1400 && found(world, b, a).1
    });
    assert!(took.is_some_and(|took| took <= Duration::from_secs(10)), "{took:?}");
    assert_eq!(found(&world, b, a).0, 1352);
}

#[test]
fn own_link_that_becomes_narrow_is_noticed_at_once() {
    let (mut world, a, b) = open(561, conditions(1500, 1500), false);
    transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
    world.network.conditions.interface_mtu = 1400;
    let (took, _) =
        transfer(&mut world, b, a, Duration::from_secs(10), |world, _| found(world, b, a) == (1352, true));
    assert!(took.is_some_and(|took| took <= Duration::from_secs(1)), "{took:?}");
    // Two packets of the old length: the one that was refused, and one behind it.
    assert!(world.host(b).refused <= 60, "{}", world.host(b).refused);
}

/// The session of `from` towards `to`.
fn session(world: &World, from: HostId, to: HostId) -> Session {
    world.host(from).snapshot.routes.get(&world.mesh_address(to)).expect("a route").session.clone()
}

/// A control packet sealed by the peer, as a modified program would send it.
fn forged(world: &World, from: HostId, to: HostId, messages: &[Control]) -> Vec<u8> {
    let mut plaintext = Vec::new();
    messages.iter().for_each(|message| message.emit(&mut plaintext));
    let mut packet = vec![0; HEADER_LEN];
    packet.extend(&plaintext);
    packet.resize(packet.len() + OVERHEAD, 0);
    let session = session(world, from, to);
    let len = session.seal(Kind::Control, &mut packet, plaintext.len(), plaintext.len(), world.now);
    let len = len.expect("the session is in use");
    packet.truncate(len);
    packet
}

#[test]
fn acknowledgement_of_what_was_never_sent_changes_nothing() {
    let (mut world, a, b) = open(570, conditions(1300, 1500), false);
    transfer(&mut world, b, a, Duration::from_millis(1500), |_, _| false);
    assert!(!found(&world, b, a).1, "probes are on the way");
    let from = world.endpoint(a);
    for token in 0..200 {
        for datagram_len in [1452, 8952, 65_507, u16::MAX] {
            let packet = forged(&world, a, b, &[Control::MtuAck { token, datagram_len }]);
            world.deliver(b, from, packet);
        }
    }
    assert!(datagram_len(&world, b, a) <= 1300);
}

#[test]
fn answer_to_a_probe_is_no_longer_than_it_and_one_a_packet() {
    let (mut world, a, b) = open(571, conditions(1500, 1500), false);
    world.run_for(Duration::from_secs(5));
    let probe = Control::MtuProbe { token: 1, datagram_len: u16::MAX };
    let from = world.endpoint(a);
    for n in [1, 16] {
        let packet = forged(&world, a, b, &vec![probe.clone(); n]);
        let (len, sent, sent_bytes) = (packet.len() as u64, world.host(b).sent, world.host(b).sent_bytes);
        world.deliver(b, from, packet);
        assert_eq!(world.host(b).sent - sent, 1, "{n} probes in one packet");
        assert!(world.host(b).sent_bytes - sent_bytes <= len.next_multiple_of(16));
    }
}

#[test]
fn probes_do_not_go_where_the_peer_has_not_shown_that_it_receives() {
    let (mut world, a, b) = open(572, conditions(9000, 9000), false);
    world.run_for(Duration::from_secs(5));
    // The peer writes somebody else's address onto its packets.
    let victim = "[2a00:dead::1]:5747".parse().unwrap();
    world.tap(victim);
    let packet = forged(&world, a, b, &[Control::Ping { nonce: 1 }]);
    let end = world.now + Duration::from_secs(3);
    world.deliver(b, victim, packet);
    let own = (world.address(b), world.address(a));
    // What a sends itself would bring its endpoint back.
    let silent = world.endpoint(a);
    world.filter(move |seen| seen.from != silent);
    while world.now < end {
        world.send(b, &packet::echo_request(own.0, own.1, 3, 3, 56));
        world.run_for(Duration::from_millis(100));
    }
    let tapped = world.tapped(victim);
    assert!(!tapped.is_empty(), "the peer has moved, as far as we know");
    let longest = tapped.iter().map(|seen| seen.datagram.len()).max();
    assert!(longest <= Some(BASE_DATAGRAM_LEN), "{longest:?} bytes to somebody who did not ask");
}

#[test]
fn lossy_path_is_found_too() {
    for seed in 580..590 {
        let (mut world, a, b) = open(seed, conditions(1500, 1500).with_loss(0.05), false);
        let (took, _) = transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
        assert!(took.is_some(), "seed {seed}");
        transfer(&mut world, b, a, Duration::from_secs(60), |_, _| false);
        assert!(found(&world, b, a).0 >= 1412, "seed {seed}: {:?}", found(&world, b, a));
    }
}

#[test]
fn padding_of_a_probe_takes_no_place_in_the_inbox() {
    let (world, a, b) = open(573, conditions(9000, 9000), false);
    let mut packet = vec![0; HEADER_LEN];
    Control::MtuProbe { token: 1, datagram_len: 60_000 }.emit(&mut packet);
    packet.resize(60_000, 0);
    let len = packet.len() - OVERHEAD;
    session(&world, a, b).seal(Kind::Control, &mut packet, len, len, world.now).unwrap();
    let (host, from) = (world.host(b), world.endpoint(a));
    let Arrival { verdict, .. } = inbound(&host.snapshot, &host.shared, from, 0, &mut packet, world.now);
    let Inbound::Control { messages, .. } = verdict else { panic!("{verdict:?}") };
    assert!(messages.len() <= CONTROL_LEN_MAX, "{}", messages.len());
    assert_eq!(Control::parse_all(messages).unwrap().len(), 1);
}

#[test]
fn packet_that_fits_no_datagram_goes_in_two() {
    let (mut world, a, b) = open(574, conditions(1400, 1500), false);
    transfer(&mut world, b, a, Duration::from_secs(30), |world, _| found(world, b, a).1);
    let (own, other) = (world.address(b), world.address(a));
    for (len, datagrams) in [(1320, 1), (1321, 2), (1401, 2)] {
        let sent = world.host(b).sent;
        world.send(b, &packet::echo_request(own, other, 9, len as u16, len - 48));
        assert_eq!(world.host(b).sent - sent, datagrams, "{len} bytes");
        world.run_for(Duration::from_secs(1));
        assert!(world.host(b).echo_reply_at(9, len as u16).is_some(), "{len} bytes");
    }
}
