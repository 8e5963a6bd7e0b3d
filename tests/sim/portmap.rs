//! Others are told of a port that a router maps only when they see the node at its address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use auramesh::proto::path::LocalNetwork;

use crate::nat::NatKind;
use crate::relays::{Place, conditions, place};
use crate::world::{HostId, World};

fn endpoints(world: &World, id: HostId) -> Vec<SocketAddr> {
    world.host(id).node.record().map(|record| record.content().endpoints.clone()).unwrap_or_default()
}

fn maps(world: &mut World, id: HostId, mapping: Option<SocketAddr>) {
    world.with(id, |host, now| {
        let wall = host.wall(now);
        host.node.handle_mapping(now, wall, mapping);
    });
}

#[test]
fn a_mapping_counts_where_others_see_us() {
    let mut world = World::new(831, conditions());
    let first = world.machine_v4();
    let public = world.add(first);
    let (node, nat) = place(&mut world, Place::Behind(NatKind::Symmetric), public);
    let outside = world.nat_mut(nat.unwrap()).public();
    world.run_for(Duration::from_secs(5));
    let check = |world: &mut World, ip: IpAddr, told: bool| {
        let mapping = SocketAddr::new(ip, 40_123);
        maps(world, node, Some(mapping));
        world.run_for(Duration::from_secs(10));
        assert_eq!(endpoints(world, node).contains(&mapping), told, "{mapping}");
        assert_eq!(world.host(node).node.status(world.now).port_mapping, Some((mapping, told)));
    };
    check(&mut world, outside, true);
    // Somebody else's, and addresses that lead nowhere.
    check(&mut world, IpAddr::from([20, 200, 0, 2]), false);
    check(&mut world, IpAddr::from([192, 168, 1, 1]), false);
    check(&mut world, IpAddr::from([0, 0, 0, 0]), false);
    check(&mut world, outside, true);
    assert_eq!(endpoints(&world, node)[0], SocketAddr::new(outside, 40_123), "others try it first");
    // Another address of the machine is no other router.
    world.with(node, |host, now| {
        let (wall, endpoint) = (host.wall(now), host.machine.endpoint);
        let another = LocalNetwork { ip: IpAddr::from([10, 200, 0, 1]), prefix_len: 24 };
        let local = vec![LocalNetwork { ip: endpoint.ip(), prefix_len: 24 }, another];
        host.node.handle_links(now, wall, local, vec![endpoint]);
    });
    world.run_for(Duration::from_secs(60));
    assert!(
        endpoints(&world, node).contains(&SocketAddr::new(outside, 40_123)),
        "{:?}",
        endpoints(&world, node)
    );
    maps(&mut world, node, None);
    world.run_for(Duration::from_secs(10));
    assert!(endpoints(&world, node).iter().all(|endpoint| endpoint.port() != 40_123));
}

#[test]
fn nobody_is_told_before_somebody_sees_us() {
    let mut world = World::new(832, conditions());
    let nat = world.nat(NatKind::Symmetric);
    let machine = world.machine_behind(nat);
    let node = world.add(machine);
    let mapping = SocketAddr::new(world.nat_mut(nat).public(), 40_123);
    maps(&mut world, node, Some(mapping));
    world.run_for(Duration::from_secs(10));
    assert!(!endpoints(&world, node).contains(&mapping));
}
