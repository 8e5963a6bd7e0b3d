//! Packets and pings that lead nowhere: their senders are told, and what waits is bounded.

use std::net::SocketAddr;
use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::identity::Identity;
use auramesh::proto::node::{BOOTSTRAP_MAX, Command, PingFailure, Target};

use crate::host::{MTU, Machine};
use crate::network::Conditions;
use crate::packet;
use crate::pair::ping;
use crate::traffic::quiet_pair;
use crate::world::{HostId, World};

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
    // Larger than the interface: refused without a session, carried in two datagrams with one.
    let b = nodes[5];
    world.host_mut(a).delivered.clear();
    world.send(a, &packet::udp(own, nobody.ipv6(), (1, 2), &vec![0; MTU]));
    assert_eq!(world.host(a).icmp_error().map(|(_, error)| error), Some((2, 0, MTU as u32)));
    assert!(ping(&mut world, a, b, 7, Duration::from_secs(2)).is_some());
    let big = packet::echo_request(own, world.address(b), 99, 1, MTU);
    world.send(a, &big);
    world.run_for(Duration::from_secs(1));
    assert!(world.host(b).delivered.iter().any(|(_, packet)| *packet == big));
    assert!(world.host(a).echo_reply_at(99, 1).is_some());
    // A known peer that is gone.
    let address = world.address(nodes[6]);
    world.kill(nodes[6]);
    world.run_for(Duration::from_secs(200));
    world.host_mut(a).delivered.clear();
    world.send(a, &packet::udp(own, address, (1, 2), b"x"));
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.host(a).icmp_error().map(|(_, error)| error), Some((1, 3, 0)), "address unreachable");
}

/// Nodes that start together have not met yet when the first packets come: those wait instead of being refused.
#[test]
fn packets_of_a_node_that_is_new_wait_until_it_has_met_the_others() {
    for seed in 250..270 {
        let mut world = World::new(seed, Conditions::default());
        let mut nodes = Vec::<HostId>::new();
        for _ in 0..6 {
            let before = nodes.last().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
            let machine = Machine { bootstrap: before, ..world.machine() };
            nodes.push(world.add(machine));
        }
        // Each knows the one before it only, and pings another one at once.
        let pairs: Vec<_> = (0..6).map(|n| (nodes[n], nodes[(n + 3) % 6])).collect();
        for (from, to) in &pairs {
            world.send(*from, &packet::echo_request(world.address(*from), world.address(*to), 5, 1, 56));
        }
        world.run_for(Duration::from_secs(5));
        for (from, to) in pairs {
            assert!(world.host(from).echo_reply_at(5, 1).is_some(), "seed {seed}: {from:?} to {to:?}");
        }
    }
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
fn a_lookup_of_the_node_itself_drops_nothing() {
    let mut world = World::new(239, Conditions::default());
    let nodes = world.add_mesh(3, Duration::from_millis(50));
    world.run_for(Duration::from_secs(10));
    let own = world.mesh_address(nodes[1]);
    world.command(nodes[1], |ticket| Command::Lookup(ticket, own));
    world.run_for(Duration::from_secs(5));
    assert_eq!(world.host(nodes[1]).drops(DropReason::Malformed), 0);
}

#[test]
fn an_endpoint_that_only_a_command_named_is_forgotten_unless_it_answers() {
    let mut world = World::new(240, Conditions::default());
    let nodes = world.add_mesh(3, Duration::from_millis(50));
    world.run_for(Duration::from_secs(10));
    let (a, b) = (nodes[1], nodes[2]);
    let (unknown, known) = (Identity::from_seed(world.seed()).node_id(), world.id(b));
    let wrong: SocketAddr = "9.9.9.9:9999".parse().unwrap();
    let of = |world: &World, id| {
        let peers = world.host(a).node.status(world.now).peers.into_iter();
        peers.filter(|peer| peer.node_id == id).map(|peer| peer.candidates).next()
    };
    for id in [unknown, known] {
        world.command(a, |ticket| Command::Ping(ticket, Target::Node(id, Some(wrong))));
        world.run_for(Duration::from_secs(1));
        assert!(of(&world, id).unwrap().contains(&wrong), "it is tried there");
    }
    world.run_for(Duration::from_secs(30));
    assert_eq!(of(&world, unknown), None);
    assert!(!of(&world, known).unwrap().contains(&wrong));

    let machine = world.machine();
    let (id, there) = (machine.identity().node_id(), machine.endpoint);
    world.add(machine);
    let ticket = world.command(a, |ticket| Command::Ping(ticket, Target::Node(id, Some(there))));
    world.run_for(Duration::from_secs(30));
    assert!(matches!(world.ping_outcome(a, ticket), Some(Ok(_))));
    assert!(of(&world, id).unwrap().contains(&there));
}

#[test]
fn configured_contacts_are_limited_and_a_refused_one_is_told() {
    let mut world = World::new(237, Conditions::default());
    let machine = world.machine();
    let a = world.add(machine);
    let mut add = |id, endpoint: &str| {
        let endpoint = endpoint.parse().unwrap();
        world.with(a, |host, now| host.node.add_peer(now, id, endpoint))
    };
    let stranger = |n: u16| {
        let mut seed = [9; 32];
        seed[..2].copy_from_slice(&n.to_be_bytes());
        Identity::from_seed(seed).node_id()
    };
    for n in 0..BOOTSTRAP_MAX as u16 {
        assert!(add(stranger(n), "9.9.9.9:5747"), "{n}");
    }
    assert!(!add(stranger(9999), "9.9.9.9:5747"), "one too many");
    assert!(add(stranger(5), "9.9.9.10:5747"), "another endpoint of a known one needs no room");
    assert!(!add(stranger(5), "[600::1]:5747"), "an endpoint inside the mesh");
    let mut remove = |id| world.with(a, |host, now| host.node.remove_peer(now, id));
    assert!(remove(stranger(5)));
    assert!(!remove(stranger(9999)), "whom nobody added");
}
