//! The rules of sessions, one small simulation each.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::Identity;
use auramesh::proto::node::{Command, PingFailure, Target};
use auramesh::proto::session::transport::Session;
use auramesh::proto::wire::control::Contact;
use auramesh::proto::wire::envelope::Kind;

use crate::host::{Host, MTU, Machine};
use crate::network::Conditions;
use crate::packet;
use crate::pair::{pair, ping};
use crate::world::{HostId, Seen, World};

const SEEDS: std::ops::Range<u64> = 200..215;

fn route(world: &World, from: HostId, to: HostId) -> Option<Session> {
    let address = world.host(to).node.address();
    world.host(from).snapshot.routes.get(&address).map(|route| route.session.clone())
}

/// Both sides send on the same session.
fn agree(world: &World, a: HostId, b: HostId) -> bool {
    match (route(world, a, b), route(world, b, a)) {
        (Some(of_a), Some(of_b)) => of_a.local_index() == of_b.remote_index(),
        _ => false,
    }
}

/// Two machines that know each other's ID and endpoint and do not serve the DHT: no traffic but what the test makes.
fn quiet_pair(world: &mut World) -> (HostId, HostId) {
    let (mut a, mut b) = (world.machine(), world.machine());
    (a.mode, b.mode) = (Mode::Client, Mode::Client);
    a.bootstrap = vec![(b.identity().node_id(), b.endpoint)];
    b.bootstrap = vec![(a.identity().node_id(), a.endpoint)];
    (world.add(a), world.add(b))
}

fn log(world: &mut World) -> Rc<RefCell<Vec<Seen>>> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = seen.clone();
    world.filter(move |datagram| {
        log.borrow_mut().push(datagram.clone());
        true
    });
    seen
}

/// Sends a ping every `gap` for `time`; returns when each was sent and answered.
fn steady(
    world: &mut World,
    from: HostId,
    to: HostId,
    gap: Duration,
    time: Duration,
) -> Vec<(Duration, Option<Duration>)> {
    let (start, own, other) = (world.now, world.address(from), world.address(to));
    let id = world.next_number();
    let mut sent = Vec::new();
    for sequence in 0..(time.as_millis() / gap.as_millis()) as u16 {
        sent.push(world.now.saturating_since(start));
        let request = packet::echo_request(own, other, id, sequence, 56);
        world.send(from, &request);
        world.run_for(gap);
    }
    world.run_for(Duration::from_secs(1));
    let mut replies = vec![None; sent.len()];
    for (at, packet) in &world.host(from).delivered {
        if let Some((_, sequence)) = packet::is_echo_reply(packet).filter(|(of, _)| *of == id) {
            replies[usize::from(sequence)].get_or_insert(at.saturating_since(start));
        }
    }
    world.host_mut(from).delivered.clear();
    sent.into_iter().zip(replies).collect()
}

/// The longest time without a reply.
fn longest_gap(pings: &[(Duration, Option<Duration>)]) -> Duration {
    let mut replies: Vec<_> = pings.iter().filter_map(|(_, reply)| *reply).collect();
    replies.sort_unstable();
    let mut last = Duration::ZERO;
    let mut longest = Duration::ZERO;
    for reply in replies {
        longest = longest.max(reply - last);
        last = reply;
    }
    longest
}

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
fn everything_twice_and_out_of_order_is_delivered_once() {
    let conditions = Conditions { duplicated: 1.0, late: 0.2, ..Conditions::default() };
    let mut world = World::new(222, conditions);
    let (a, b) = pair(&mut world);
    assert!(ping(&mut world, b, a, 9999, Duration::from_secs(3)).is_some());
    world.run_for(Duration::from_secs(3));
    let before = world.host(a).delivered.len();
    let pings = steady(&mut world, b, a, Duration::from_millis(10), Duration::from_secs(10));
    assert!(pings.iter().all(|(_, reply)| reply.is_some()));
    assert_eq!(world.host(a).delivered.len(), before + pings.len());
    assert_eq!(world.host(a).snapshot.receivers.len(), 1);
}

#[test]
fn restart_of_one_end_costs_at_most_three_seconds() {
    for seed in SEEDS {
        let mut world = World::exact(seed, Conditions::default());
        let (a, b) = quiet_pair(&mut world);
        // What restarts knows nobody: all depends on the other one.
        world.host_mut(b).machine.bootstrap.clear();
        for (gap_ms, sender) in [(100, a), (1000, a), (1700, a)] {
            steady(&mut world, sender, b, Duration::from_millis(gap_ms), Duration::from_secs(5));
            world.kill(b);
            world.start(b);
            let pings = steady(&mut world, sender, b, Duration::from_millis(gap_ms), Duration::from_secs(6));
            let first = pings.iter().filter_map(|(sent, reply)| reply.map(|_| *sent)).min();
            let limit = Duration::from_millis(3000 + if gap_ms > 1000 { gap_ms } else { 0 });
            assert!(first.is_some_and(|first| first <= limit), "seed {seed}, every {gap_ms} ms: {first:?}");
        }
    }
}

#[test]
fn frozen_peer_is_back_within_five_seconds() {
    let mut world = World::new(223, Conditions::default());
    let (a, b) = pair(&mut world);
    steady(&mut world, a, b, Duration::from_millis(200), Duration::from_secs(4));
    for frozen_s in [60, 400] {
        world.cut_off(&[b]);
        let lost = steady(&mut world, a, b, Duration::from_millis(200), Duration::from_secs(frozen_s));
        assert!(lost.iter().all(|(_, reply)| reply.is_none()));
        world.reunite();
        let pings = steady(&mut world, a, b, Duration::from_millis(200), Duration::from_secs(8));
        let first = pings.iter().find_map(|(_, reply)| *reply);
        assert!(first.is_some_and(|first| first <= Duration::from_secs(5)), "{frozen_s} s: {first:?}");
    }
}

#[test]
fn moved_peer_is_followed_at_its_next_packet() {
    let mut world = World::new(224, Conditions::default());
    let (a, b) = pair(&mut world);
    steady(&mut world, a, b, Duration::from_millis(100), Duration::from_secs(4));
    for (port, told) in [(6000, false), (6001, true)] {
        let endpoint = SocketAddr::new("2a00:9999::7".parse().unwrap(), port);
        world.move_to(b, endpoint, told);
        // Told of the change, the node says so by itself; otherwise its next packet does.
        if !told {
            // The answer to the very first one may still go to where it was.
            ping(&mut world, b, a, port, Duration::from_millis(200));
            assert!(ping(&mut world, b, a, port + 1000, Duration::from_millis(200)).is_some());
        }
        let pings = steady(&mut world, a, b, Duration::from_millis(50), Duration::from_secs(3));
        let late = pings.iter().filter(|(sent, _)| *sent >= Duration::from_secs(1));
        assert!(late.clone().count() > 10);
        assert!(late.clone().all(|(_, reply)| reply.is_some()), "{pings:?}");
    }
}

#[test]
fn unanswered_packets_lead_to_a_handshake_and_then_to_quiet() {
    let mut world = World::new(225, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(3)).is_some());
    world.run_for(Duration::from_secs(5));
    let (address, to) = (world.address(b), world.id(b));
    world.kill(b);
    let seen = log(&mut world);
    let request = packet::echo_request(world.address(a), address, 77, 2, 56);
    world.send(a, &request);
    world.run_for(Duration::from_secs(3));
    let initiations =
        |seen: &[Seen]| seen.iter().filter(|s| s.setup_kind(&to) == Some(Kind::Initiation)).count();
    assert!(initiations(&seen.borrow()) >= 1, "a handshake within 3 s");
    world.run_for(Duration::from_secs(30));
    let n = seen.borrow().len();
    assert!(n < 60, "{n} datagrams about one lost packet");
}

#[test]
fn two_idle_nodes_do_not_answer_each_other_for_ever() {
    let mut world = World::new(226, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(3)).is_some());
    world.run_for(Duration::from_secs(5));
    let seen = log(&mut world);
    world.run_for(Duration::from_secs(60));
    assert!(seen.borrow().len() <= 4, "{}", seen.borrow().len());
}

#[test]
fn rekey_under_load_and_loss_leaves_no_gap() {
    for loss in [0.0, 0.2] {
        let mut world = World::new(227, Conditions::default().with_loss(loss));
        let (a, b) = pair(&mut world);
        assert!(world.run_until(Duration::from_secs(20), |world| agree(world, a, b)).is_some());
        world.run_for(Duration::from_secs(1));
        let first = route(&world, a, b).unwrap();
        let pings = steady(&mut world, a, b, Duration::from_millis(20), Duration::from_secs(500));
        let gap = longest_gap(&pings);
        println!("loss {loss}: longest gap {gap:?}");
        assert!(gap < Duration::from_secs(1), "{gap:?}");
        let last = route(&world, a, b).unwrap();
        assert_ne!(first.local_index(), last.local_index(), "the session was renewed");
        if loss == 0.0 {
            assert!(pings.iter().all(|(_, reply)| reply.is_some()), "no packet is lost by renewing");
        }
        assert!(world.host(a).snapshot.receivers.len() <= 3, "old sessions are forgotten");
    }
}

#[test]
fn one_way_traffic_is_rekeyed_too() {
    let mut world = World::new(228, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(3)).is_some());
    world.run_for(Duration::from_secs(2));
    // Policy drops these at the receiver; that they open there is what counts.
    let datagram = packet::udp(world.address(a), world.address(b), (1, 2), b"one way");
    let before = world.host(b).drops(DropReason::Policy);
    for _ in 0..4000 {
        world.send(a, &datagram);
        world.run_for(Duration::from_millis(100));
    }
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.host(b).drops(DropReason::Policy) - before, 4000);
}

#[test]
fn unused_session_is_erased() {
    let mut world = World::new(229, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    assert!(ping(&mut world, a, b, 1, Duration::from_secs(3)).is_some());
    let indices = |host: &Host| -> Vec<u32> {
        host.snapshot.routes.values().map(|route| route.session.local_index()).collect()
    };
    let (of_a, of_b) = (indices(world.host(a)), indices(world.host(b)));
    world.run_for(Duration::from_secs(190));
    assert!(of_a.iter().all(|index| !world.host(a).snapshot.receivers.contains_key(index)));
    assert!(of_b.iter().all(|index| !world.host(b).snapshot.receivers.contains_key(index)));
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
    assert!(took.is_some_and(|took| took < Duration::from_millis(800)), "{took:?}");
    assert_eq!(world.host(a).drops(DropReason::RateLimited), 1, "one initiation was answered by a cookie");
}

#[test]
fn packets_for_nobody_are_answered_by_icmp_and_bounded() {
    let mut world = World::new(234, Conditions::default());
    let nodes = world.add_mesh(8, Duration::from_millis(50));
    world.run_for(Duration::from_secs(10));
    let (a, own) = (nodes[3], world.address(nodes[3]));
    let nobody = Identity::from_seed(world.seed()).address();
    world.send(a, &packet::udp(own, nobody.ipv6(), (1, 2), b"x"));
    let took = world.run_until(Duration::from_secs(15), |world| world.host(a).icmp_error().is_some());
    assert_eq!(world.host(a).icmp_error().map(|(_, error)| error), Some((1, 0, 0)), "no route");
    println!("no route after {took:?}");
    // Known to be nobody's for a while: answered at once.
    world.host_mut(a).delivered.clear();
    world.send(a, &packet::udp(own, nobody.ipv6(), (1, 2), b"x"));
    assert_eq!(world.host(a).icmp_error().map(|(_, error)| error), Some((1, 0, 0)));
    // Too big, before and with a session.
    let b = nodes[5];
    for _ in 0..2 {
        world.host_mut(a).delivered.clear();
        let big = vec![0; MTU - 47];
        world.send(a, &packet::udp(own, world.address(b), (1, 2), &big));
        assert_eq!(world.host(a).icmp_error().map(|(_, error)| error), Some((2, 0, MTU as u32)));
        assert!(ping(&mut world, a, b, 7, Duration::from_secs(2)).is_some());
    }
    // A known peer that is gone.
    let address = world.address(nodes[6]);
    world.kill(nodes[6]);
    world.run_for(Duration::from_secs(200));
    world.host_mut(a).delivered.clear();
    world.send(a, &packet::udp(own, address, (1, 2), b"x"));
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.host(a).icmp_error().map(|(_, error)| error), Some((1, 3, 0)), "address unreachable");
}

#[test]
fn waiting_packets_are_bounded_in_bytes() {
    let mut world = World::new(235, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    world.cut_off(&[b]);
    let body = vec![0; 1000];
    let packet = packet::udp(world.address(a), world.address(b), (1, 2), &body);
    for _ in 0..5000 {
        world.send(a, &packet);
    }
    let dropped = world.host(a).drops(DropReason::QueueFull);
    assert!(dropped >= 5000 - 256 * 1024 / packet.len() as u64, "{dropped}");
    world.reunite();
    world.run_for(Duration::from_secs(10));
    let arrived = world.host(b).drops(DropReason::Policy);
    assert!((200..=256).contains(&arrived), "{arrived} waited");
}

#[test]
fn ping_command_ends_one_way_or_the_other() {
    let mut world = World::new(236, Conditions::default());
    let nodes = world.add_mesh(5, Duration::from_millis(50));
    world.run_for(Duration::from_secs(10));
    let (a, b) = (nodes[1], nodes[2]);
    let target = Target::Address(world.mesh_address(b));
    let ours = Target::Address(world.mesh_address(a));
    let nobody = Target::Address(Identity::from_seed(world.seed()).address());
    let answered = world.command(a, |ticket| Command::Ping(ticket, target));
    let ourselves = world.command(a, |ticket| Command::Ping(ticket, ours));
    let unknown = world.command(a, |ticket| Command::Ping(ticket, nobody));
    world.run_for(Duration::from_secs(12));
    assert!(matches!(world.ping_outcome(a, answered), Some(Ok(reply)) if reply.node_id == world.id(b)));
    assert_eq!(world.ping_outcome(a, ourselves), Some(Err(PingFailure::Ourselves)));
    assert_eq!(world.ping_outcome(a, unknown), Some(Err(PingFailure::NotFound)));
    world.kill(b);
    let dead = world.command(a, |ticket| Command::Ping(ticket, target));
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.ping_outcome(a, dead), Some(Err(PingFailure::NoAnswer)));
}

#[test]
fn peer_at_another_endpoint_than_we_know_is_found_through_the_network() {
    let mut world = World::new(237, Conditions::default());
    let nodes = world.add_mesh(4, Duration::from_millis(50));
    let first = (world.id(nodes[0]), world.endpoint(nodes[0]));
    let (target, mut asker) = (world.machine(), world.machine());
    let old: SocketAddr = "9.9.9.9:9999".parse().unwrap();
    asker.bootstrap = vec![(target.identity().node_id(), old)];
    let [target, asker] = [target, asker].map(|mut machine| {
        machine.mode = Mode::Client;
        machine.bootstrap.push(first);
        world.add(machine)
    });
    // Only the configured endpoint is known, and nothing answers there.
    world.run_for(Duration::from_secs(20));
    assert!(ping(&mut world, asker, target, 0, Duration::from_secs(10)).is_some());
    // The key is known, and the peer has moved since.
    world.kill(target);
    world.run_for(Duration::from_secs(200));
    world.disk(target).endpoint = "9.8.8.8:8888".parse().unwrap();
    world.start(target);
    world.run_for(Duration::from_secs(15));
    let wanted = Target::Address(world.mesh_address(target));
    let ticket = world.command(asker, |ticket| Command::Ping(ticket, wanted));
    world.run_for(Duration::from_secs(10));
    assert!(
        matches!(world.ping_outcome(asker, ticket), Some(Ok(_))),
        "{:?}",
        world.ping_outcome(asker, ticket)
    );
}

#[test]
fn contact_configured_with_two_endpoints_is_tried_at_both() {
    let dead: SocketAddr = "9.9.9.9:9999".parse().unwrap();
    for dead_first in [false, true] {
        let mut world = World::new(238, Conditions::default());
        let (a, mut b) = (world.machine(), world.machine());
        let id = a.identity().node_id();
        b.bootstrap = vec![(id, a.endpoint), (id, dead)];
        if dead_first {
            b.bootstrap.reverse();
        }
        let (a, b) = (world.add(a), world.add(b));
        world.run_for(Duration::from_secs(5));
        assert!(route(&world, b, a).is_some(), "dead first: {dead_first}");
        assert_eq!(world.host(b).node.status(world.now).configured, 1);
    }
}
