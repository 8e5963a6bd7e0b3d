//! Peers that are not where they were said to be.

use std::net::SocketAddr;
use std::time::Duration;

use auramesh::proto::dht::Mode;
use auramesh::proto::node::{Command, Target};

use crate::network::Conditions;
use crate::pair::ping;
use crate::traffic::route;
use crate::world::World;

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
