//! Two nodes: the first packets between them.

use std::time::Duration;

use auramesh::proto::datapath::DropReason;

use crate::host::Machine;
use crate::network::Conditions;
use crate::packet::{self, SYN, SYN_ACK};
use crate::world::{HostId, World};

/// Two machines; the second knows ID and endpoint of the first.
pub(crate) fn pair(world: &mut World) -> (HostId, HostId) {
    let first = world.machine();
    let bootstrap = vec![(first.identity().node_id(), first.endpoint)];
    let a = world.add(first);
    let second = Machine { bootstrap, ..world.machine() };
    let b = world.add(second);
    (a, b)
}

/// A ping from `from` to `to`; how long until the reply, if one comes within `patience`.
pub(crate) fn ping(
    world: &mut World,
    from: HostId,
    to: HostId,
    sequence: u16,
    patience: Duration,
) -> Option<Duration> {
    let request = packet::echo_request(world.address(from), world.address(to), 77, sequence, 56);
    world.send(from, &request);
    world.run_until(patience, |world| world.host(from).echo_reply_at(77, sequence).is_some())
}

#[test]
fn ping_by_key_derived_address() {
    let mut world = World::new(1, Conditions::default());
    let (a, b) = pair(&mut world);
    let joined = world.run_until(Duration::from_secs(2), |world| {
        world.host(a).node.status(world.now).dht.contacts == 1
            && world.host(b).node.status(world.now).dht.contacts == 1
    });
    assert!(joined.is_some(), "the two do not know each other after 2 s");
    for (sequence, (from, to)) in [(a, b), (b, a)].into_iter().enumerate() {
        let took = ping(&mut world, from, to, sequence as u16, Duration::from_secs(1));
        assert!(took.is_some_and(|took| took < Duration::from_millis(120)), "{took:?}");
    }
}

#[test]
fn first_packet_is_carried_while_the_session_opens() {
    let mut world = World::new(2, Conditions::default());
    let (a, b) = pair(&mut world);
    let took = ping(&mut world, b, a, 1, Duration::from_secs(3));
    assert!(took.is_some_and(|took| took < Duration::from_secs(1)), "{took:?}");
}

#[test]
fn tcp_is_refused_by_default_and_replies_pass() {
    let mut world = World::new(3, Conditions::default());
    let (a, b) = pair(&mut world);
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(3)).is_some());
    let (to_a, to_b) = (world.address(a), world.address(b));
    let before = world.host(a).delivered.len();
    world.send(b, &packet::tcp(to_b, to_a, (40_000, 22), SYN));
    world.send(b, &packet::udp(to_b, to_a, (40_000, 53), b"x"));
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.host(a).delivered.len(), before, "closed by default");
    assert_eq!(world.host(a).drops(DropReason::Policy), 2);
    // Of a connection that we open, the answer passes, and nothing else.
    world.send(a, &packet::tcp(to_a, to_b, (50_000, 80), SYN));
    world.run_for(Duration::from_secs(1));
    world.send(b, &packet::tcp(to_b, to_a, (80, 50_000), SYN_ACK));
    world.send(b, &packet::tcp(to_b, to_a, (81, 50_000), SYN_ACK));
    world.send(b, &packet::tcp(to_b, to_a, (80, 50_000), SYN));
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.host(a).delivered.len(), before + 1, "one reply");
    assert_eq!(world.host(a).drops(DropReason::Policy), 4);
}

#[test]
fn underlay_may_be_ipv4() {
    let mut world = World::new(4, Conditions::default());
    let first = world.machine_v4();
    let bootstrap = vec![(first.identity().node_id(), first.endpoint)];
    let a = world.add(first);
    let second = Machine { bootstrap, ..world.machine_v4() };
    let b = world.add(second);
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(3)).is_some());
}
