//! Nodes behind NATs and firewalls, and the networks there.

use std::time::Duration;

use crate::host::Machine;
use crate::nat::{NatId, NatKind};
use crate::network::Conditions;
use crate::pair::ping;
use crate::traffic::log;
use crate::world::{HostId, World};

const KINDS: [NatKind; 5] = [
    NatKind::FullCone,
    NatKind::AddressRestricted,
    NatKind::PortRestricted,
    NatKind::Symmetric,
    NatKind::Firewall,
];
/// Time for a ping, with a handshake before it.
const PATIENCE: Duration = Duration::from_secs(3);

/// A machine that knows where `first` is.
fn knowing(world: &World, first: HostId, machine: Machine) -> Machine {
    Machine { bootstrap: vec![(world.id(first), world.endpoint(first))], ..machine }
}

/// A public node, and one behind `nat` that knows it.
fn public_and_behind(world: &mut World, nat: NatId, kind: NatKind) -> (HostId, HostId) {
    let first = if kind == NatKind::Firewall { world.machine() } else { world.machine_v4() };
    let public = world.add(first);
    let behind = world.machine_behind(nat);
    let behind = knowing(world, public, behind);
    (public, world.add(behind))
}

/// Pings until one is answered, at most for three seconds; how many it took. A peer that has moved gets its first
/// answers where it was before.
fn pings_until_answered(world: &mut World, from: HostId, to: HostId, first: u16) -> Option<u16> {
    (1..=3).find(|n| ping(world, from, to, first + n, Duration::from_secs(1)).is_some())
}

#[test]
fn node_behind_any_nat_joins_and_is_reached_while_its_session_is_used() {
    for kind in KINDS {
        let mut world = World::new(301, Conditions::default());
        let nat = world.nat(kind);
        let (public, behind) = public_and_behind(&mut world, nat, kind);
        let seen = log(&mut world);
        assert!(ping(&mut world, behind, public, 1, PATIENCE).is_some(), "{kind:?}: from inside");
        assert!(ping(&mut world, public, behind, 2, PATIENCE).is_some(), "{kind:?}: to inside");
        assert_eq!(world.host(behind).node.status(world.now).dht.contacts, 1, "{kind:?} has not joined");
        let (outside, inner) = (world.endpoint(public), world.endpoint(behind));
        let inner_seen = seen.borrow().iter().any(|seen| seen.from == inner && seen.to == outside);
        assert_eq!(inner_seen, kind == NatKind::Firewall, "{kind:?}: what leaves is not translated");
        // Nothing comes in when the NAT has forgotten, until the node sends again; then all is as before.
        world.nat_mut(nat).rebind();
        let sent = world.host(behind).sent;
        let lost = ping(&mut world, public, behind, 3, Duration::from_millis(200));
        assert_eq!(world.host(behind).sent, sent, "{kind:?}: the moment is badly chosen");
        assert!(lost.is_none(), "{kind:?}: past the NAT");
        assert!(pings_until_answered(&mut world, behind, public, 10).is_some(), "{kind:?}: after rebinding");
        assert!(ping(&mut world, public, behind, 5, PATIENCE).is_some(), "{kind:?}: after rebinding");
        if kind != NatKind::Firewall {
            world.reboot_nat(nat);
            assert!(
                pings_until_answered(&mut world, behind, public, 20).is_some(),
                "{kind:?}: after a reboot"
            );
            assert!(ping(&mut world, public, behind, 7, PATIENCE).is_some(), "{kind:?}: after a reboot");
            let last = seen.borrow().iter().rfind(|seen| seen.to == outside).map(|seen| seen.from.ip());
            assert_eq!(last, Some(world.nat_mut(nat).public()), "{kind:?}: the new address is not used");
        }
        world.nat_mut(nat).blocks_udp = true;
        assert!(ping(&mut world, behind, public, 8, PATIENCE).is_none(), "{kind:?}: blocked");
    }
}

#[test]
fn machines_behind_one_nat_reach_each_other_without_it() {
    for kind in KINDS {
        let mut world = World::new(302, Conditions::default());
        let nat = world.nat(kind);
        world.nat_mut(nat).blocks_udp = true;
        let first = world.machine_behind(nat);
        let a = world.add(first);
        let second = world.machine_behind(nat);
        let second = knowing(&world, a, second);
        let b = world.add(second);
        let seen = log(&mut world);
        for (sequence, (from, to)) in [(b, a), (a, b)].into_iter().enumerate() {
            let took = ping(&mut world, from, to, sequence as u16, PATIENCE);
            assert!(took.is_some(), "{kind:?}");
        }
        let took = ping(&mut world, a, b, 9, PATIENCE);
        assert!(
            took.is_some_and(|took| took < Duration::from_millis(1)),
            "{kind:?}: {took:?} is no local way"
        );
        let inside = [world.endpoint(a).ip(), world.endpoint(b).ip()];
        assert!(seen.borrow().iter().all(|seen| inside.contains(&seen.from.ip())), "{kind:?}: translated");
    }
}

#[test]
fn what_is_behind_another_nat_is_not_reached_unasked() {
    for kind in KINDS {
        let mut world = World::new(303, Conditions::default());
        let (one, other) = (world.nat(kind), world.nat(kind));
        let first = world.machine_behind(one);
        let a = world.add(first);
        let second = world.machine_behind(other);
        let second = knowing(&world, a, second);
        let b = world.add(second);
        let seen = log(&mut world);
        assert!(ping(&mut world, b, a, 1, PATIENCE).is_none(), "{kind:?}");
        assert!(!seen.borrow().is_empty(), "{kind:?}: nobody tried");
        assert_eq!(world.host(a).node.status(world.now).dht.contacts, 0, "{kind:?}");
    }
}

#[test]
fn node_behind_two_nats_joins_and_neighbours_are_close() {
    for kind in KINDS {
        let mut world = World::new(304, Conditions::default());
        let carrier = world.nat(kind);
        let [one, other] = [(); 2].map(|()| world.nat_behind(carrier, kind));
        let (public, a) = public_and_behind(&mut world, one, kind);
        let b = world.machine_behind(other);
        let b = knowing(&world, public, b);
        let b = world.add(b);
        let seen = log(&mut world);
        for (sequence, inside) in [a, b].into_iter().enumerate() {
            let sequence = 2 * sequence as u16;
            assert!(ping(&mut world, inside, public, sequence, PATIENCE).is_some(), "{kind:?}: from inside");
            assert!(
                ping(&mut world, public, inside, sequence + 1, PATIENCE).is_some(),
                "{kind:?}: to inside"
            );
        }
        let outside = world.endpoint(public);
        let sources: Vec<_> =
            seen.borrow().iter().filter(|seen| seen.to == outside).map(|seen| seen.from.ip()).collect();
        let inner = [world.endpoint(a).ip(), world.endpoint(b).ip()];
        let carriers = world.nat_mut(carrier).public();
        let is_expected = |ip| if kind == NatKind::Firewall { inner.contains(ip) } else { *ip == carriers };
        assert!(sources.iter().all(is_expected), "{kind:?}: {sources:?}");
        // The inner NAT's mapping alone is not enough.
        world.nat_mut(carrier).rebind();
        assert!(
            ping(&mut world, public, a, 9, Duration::from_millis(200)).is_none(),
            "{kind:?}: past the outer"
        );
    }
}

#[test]
fn split_keeps_a_nat_and_all_behind_it_on_one_side() {
    for kind in [NatKind::PortRestricted, NatKind::Firewall] {
        let mut world = World::new(305, Conditions::default());
        let nat = world.nat(kind);
        let (public, a) = public_and_behind(&mut world, nat, kind);
        let b = world.machine_behind(nat);
        let b = knowing(&world, a, b);
        let b = world.add(b);
        assert!(ping(&mut world, a, public, 1, PATIENCE).is_some());
        world.cut_off(&[a]);
        assert!(ping(&mut world, a, public, 2, PATIENCE).is_none(), "the split is no split");
        assert!(ping(&mut world, a, b, 3, PATIENCE).is_some(), "cut off from its own network");
        world.reunite();
        assert!(ping(&mut world, a, public, 4, PATIENCE).is_some());
    }
}

#[test]
fn node_that_moves_behind_a_nat_stays_in_touch() {
    for kind in KINDS {
        let mut world = World::new(306, Conditions::default());
        let nats = [(); 2].map(|()| world.nat(kind));
        let (public, a) = public_and_behind(&mut world, nats[0], kind);
        assert!(ping(&mut world, a, public, 1, PATIENCE).is_some(), "{kind:?}");
        let inner = world.endpoint_behind(nats[1]);
        world.move_to(a, inner, true);
        // Of the old NAT nothing is used any more.
        world.nat_mut(nats[0]).blocks_udp = true;
        assert!(pings_until_answered(&mut world, a, public, 10).is_some(), "{kind:?}: from inside");
        assert!(ping(&mut world, public, a, 2, PATIENCE).is_some(), "{kind:?}: to inside");
    }
}
