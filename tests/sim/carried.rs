//! Relays that mean ill, and those who mean ill with a relay.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::identity::NodeId;
use auramesh::proto::relay::{CHANNELS_MAX, Config, SIGNALS_BURST_BYTES, SIGNALS_BYTES_PER_S, STRANGERS_MAX};
use auramesh::proto::wire::control::{Control, Service};
use auramesh::proto::wire::relay::{HOPS_MAX, Header, KIND, RELAY_OVERHEAD, Slot, seal};
use auramesh::proto::wire::session::mask;

use crate::attacker::{Attacker, public_key};
use crate::host::{Machine, ms};
use crate::nat::NatKind;
use crate::network::Conditions;
use crate::packet;
use crate::pair::ping;
use crate::world::{HostId, Seen, World};

const PATIENCE: Duration = Duration::from_secs(3);

fn conditions() -> Conditions {
    Conditions { duplicated: 0.0, late: 0.0, ..Conditions::default() }
}

/// A node behind a symmetric NAT that knows `first`.
fn behind(world: &mut World, first: HostId) -> HostId {
    let nat = world.nat(NatKind::Symmetric);
    let bootstrap = vec![(world.id(first), world.endpoint(first))];
    let machine = world.machine_behind(nat);
    world.add(Machine { bootstrap, ..machine })
}

/// A packet for a slot of a relay.
fn relayed(to: &NodeId, hop_limit: u8, slot: Slot, inner: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; RELAY_OVERHEAD];
    packet.extend(inner);
    seal(&public_key(to), Header { hop_limit, slot }, &mut packet).expect("long enough");
    packet
}

/// Asks for a channel; what the relay says it is good for.
fn bind(world: &mut World, from: &Attacker, relay: HostId, slot: u64, peer: NodeId) -> Option<Service> {
    from.say(world, relay, &Control::Bind { slot: Slot(slot), peer, datagram: vec![0x40; 64] });
    world.run_for(Duration::from_millis(120));
    from.hear(world).into_iter().find_map(|heard| {
        if let Control::Bound { slot: of, service } = heard {
            (of == Slot(slot)).then_some(service)
        } else {
            None
        }
    })
}

#[test]
fn a_relay_carries_only_to_those_who_asked_for_it() {
    let mut world = World::new(511, conditions());
    let machine = world.machine_v4();
    let relay = world.add(machine);
    let own = world.id(relay);
    let [mut a, mut b] = ["9.9.9.9:9999", "9.8.8.8:8888"].map(|at| Attacker::new(&mut world, at));
    a.connect(&mut world, relay);
    b.connect(&mut world, relay);
    world.run_for(Duration::from_secs(3));
    let is_invite = |heard: &Control| matches!(heard, Control::Invite { .. });
    b.hear(&mut world);
    let to_b = b.identity.node_id();
    assert_eq!(bind(&mut world, &a, relay, 1, to_b), Some(Service::None), "it did not ask");
    assert_eq!(bind(&mut world, &a, relay, 2, own), Some(Service::None), "the relay itself");
    assert_eq!(bind(&mut world, &a, relay, 3, NodeId([9; 32])), Some(Service::None), "nobody");
    assert!(!b.hear(&mut world).iter().any(is_invite));
    b.say(&mut world, relay, &Control::Allocate);
    world.run_for(Duration::from_millis(200));
    b.hear(&mut world);
    assert_eq!(bind(&mut world, &a, relay, 4, to_b), Some(Service::Signals));
    let far = b
        .hear(&mut world)
        .into_iter()
        .find_map(|heard| if let Control::Invite { slot, .. } = heard { Some(slot) } else { None });
    let far = far.expect("an invitation");
    assert_eq!(bind(&mut world, &a, relay, far.0, to_b), Some(Service::None), "the other side's slot");
    // Packets: from elsewhere, for no slot, at the end of their hops, for the other side's slot.
    let (a_at, b_at) = (a.endpoint, b.endpoint);
    let mut arrives = |from: SocketAddr, hop_limit, slot| {
        let datagram = relayed(&own, hop_limit, slot, &[0x41; 100]);
        world.deliver(relay, from, datagram);
        world.run_for(Duration::from_millis(200));
        world.tapped(b_at).iter().any(|seen| seen.datagram.len() == RELAY_OVERHEAD + 100)
    };
    assert!(arrives(a_at, HOPS_MAX, Slot(4)), "what is allowed");
    assert!(!arrives("9.7.7.7:7777".parse().unwrap(), HOPS_MAX, Slot(4)), "from elsewhere");
    assert!(!arrives(a_at, HOPS_MAX, Slot(77)), "for no slot");
    assert!(!arrives(a_at, HOPS_MAX, far), "for a slot of the other side");
    assert!(!arrives(a_at, 0, Slot(4)), "without hops");
}

#[test]
fn a_relayed_packet_inside_of_a_relayed_packet_goes_nowhere() {
    let mut world = World::new(512, conditions());
    let relays: Vec<_> = (0..2)
        .map(|_| {
            let machine = world.machine_v4();
            world.add(Machine { relay: Config { strangers: true, ..Config::default() }, ..machine })
        })
        .collect();
    let client = behind(&mut world, relays[0]);
    world.run_for(Duration::from_secs(8));
    let mut a = Attacker::new(&mut world, "9.9.9.9:9999");
    a.connect(&mut world, relays[0]);
    world.run_for(Duration::from_secs(2));
    let to = world.id(client);
    assert_eq!(bind(&mut world, &a, relays[0], 4, to), Some(Service::Data));
    world.run_for(Duration::from_secs(4));
    let (sent, dropped) = (world.host(client).sent, |world: &World| {
        let host = world.host(client);
        host.drops(DropReason::Relay)
            + host.drops(DropReason::Unauthenticated)
            + host.drops(DropReason::UnknownSession)
    });
    let before = dropped(&world);
    for slot in 0..50 {
        // Whatever slot the client knows the channel by: the inner one is never looked at.
        let inner = relayed(&to, HOPS_MAX, Slot(slot), &[0x41; 64]);
        let packet = relayed(&world.id(relays[0]), HOPS_MAX, Slot(4), &inner);
        world.deliver(relays[0], a.endpoint, packet);
    }
    world.run_for(Duration::from_millis(300));
    // It may have something of its own to say meanwhile.
    assert!(world.host(client).sent < sent + 10, "it went on");
    assert!(dropped(&world) >= before + 50);
}

/// What a relay does to the packets that it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evil {
    Flips,
    Drops,
    Delays,
    Reorders,
    Replays,
}

#[test]
fn a_relay_that_harms_what_it_carries_is_left_and_learns_nothing() {
    for evil in [Evil::Flips, Evil::Drops, Evil::Delays, Evil::Reorders, Evil::Replays] {
        let mut world = World::new(513, conditions());
        let mut relays = Vec::<HostId>::new();
        for _ in 0..3 {
            let relay = Config { strangers: true, ..Config::default() };
            let bootstrap =
                relays.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
            let machine = world.machine_v4();
            relays.push(world.add(Machine { relay, bootstrap, ..machine }));
        }
        let (a, b) = (behind(&mut world, relays[0]), behind(&mut world, relays[1]));
        world.run_for(Duration::from_secs(10));
        assert!(ping(&mut world, a, b, 1, PATIENCE).is_some(), "{evil:?}");
        let via = |world: &World, from: HostId, to: HostId| {
            let id = world.id(to);
            let peers = world.host(from).node.status(world.now).peers;
            peers.into_iter().find(|peer| peer.node_id == id)?.via.map(|(relay, _)| relay)
        };
        let relay = via(&world, a, b).expect("by a relay");
        let relay = relays.iter().copied().find(|id| world.id(*id) == relay).expect("one of the three");
        let at = world.endpoint(relay);
        let carried = Rc::new(RefCell::new(Vec::<u8>::new()));
        let (log, keys) = (carried.clone(), [a, b].map(|id| public_key(&world.id(id))));
        let mut count = 0;
        world.forge(move |seen: &Seen| {
            let is_carried = |key| {
                let mut copy = seen.datagram.clone();
                mask(key, &mut copy).is_ok() && copy[0] & 0x3f == KIND
            };
            let whole = seen.datagram.clone();
            if seen.to == at {
                log.borrow_mut().extend(&whole);
            }
            if seen.from != at || !keys.iter().any(is_carried) {
                return vec![(Duration::ZERO, whole)];
            }
            count += 1;
            match evil {
                Evil::Flips => {
                    let mut flipped = whole;
                    let middle = flipped.len() - 1 - count % 40;
                    flipped[middle] ^= 1;
                    vec![(Duration::ZERO, flipped)]
                }
                Evil::Drops => Vec::new(),
                Evil::Delays => vec![(Duration::from_secs(3), whole)],
                Evil::Reorders => vec![(Duration::from_millis(count as u64 % 2 * 60), whole)],
                Evil::Replays => [0, 40, 1000].map(|ms| (Duration::from_millis(ms), whole.clone())).into(),
            }
        });
        let start = world.now;
        let n = 80;
        for sequence in 100..100 + n {
            let request = packet::echo_request(world.address(a), world.address(b), 77, sequence, 56);
            world.send(a, &request);
            world.run_for(Duration::from_millis(100));
        }
        let mut answers: Vec<_> =
            (100..100 + n).filter_map(|sequence| world.host(a).echo_reply_at(77, sequence)).collect();
        answers.sort_unstable();
        let times: Vec<_> =
            std::iter::once(start).chain(answers.iter().copied()).chain([world.now]).collect();
        let gap = times.windows(2).map(|pair| pair[1].saturating_since(pair[0])).max().unwrap_or_default();
        let now_via = via(&world, a, b);
        println!(
            "{evil:?}: {} of {n} answered, longest gap {}, {}",
            answers.len(),
            ms(gap),
            if now_via == Some(world.id(relay)) { "still there" } else { "another way" }
        );
        let mut delivered = BTreeMap::<Vec<u8>, usize>::new();
        for (_, packet) in world.host(b).delivered.iter().filter(|(at, _)| *at >= start) {
            *delivered.entry(packet.clone()).or_default() += 1;
        }
        assert!(delivered.values().all(|times| *times == 1), "{evil:?}: delivered twice");
        match evil {
            Evil::Flips | Evil::Drops | Evil::Delays => {
                assert!(gap < Duration::from_millis(1500), "{evil:?}: {gap:?}");
                assert!(now_via != Some(world.id(relay)), "{evil:?}: it is still used");
            }
            Evil::Reorders | Evil::Replays => {
                assert!(answers.len() as u16 >= n - 4, "{evil:?}: {}", answers.len())
            }
        }
        let secrets =
            [a, b].map(|id| (world.address(id).octets(), world.host(id).machine.identity().x25519_public()));
        let carried = carried.borrow();
        assert!(carried.len() > 1000, "{evil:?}: nothing was seen");
        for (address, key) in secrets {
            assert!(
                !carried.windows(16).any(|bytes| bytes == address),
                "{evil:?}: an inner address in clear"
            );
            assert!(!carried.windows(32).any(|bytes| bytes == key), "{evil:?}: a key in clear");
        }
    }
}

#[test]
fn five_hundred_clients_that_idle_hoard_or_never_read_leave_a_relay_to_its_own_peers() {
    const CLIENTS: usize = 500;
    let mut world = World::new(514, conditions());
    let nats = [(); 2].map(|()| world.nat(NatKind::Symmetric));
    let inside = nats.map(|nat| world.machine_behind(nat));
    let own = inside.iter().map(|machine| machine.identity().node_id()).collect();
    let machine = world.machine_v4();
    let relay = world.add(Machine { relay: Config { own, ..Config::default() }, ..machine });
    let bootstrap = vec![(world.id(relay), world.endpoint(relay))];
    let [a, b] = inside.map(|machine| world.add(Machine { bootstrap: bootstrap.clone(), ..machine }));
    world.run_for(Duration::from_secs(8));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some(), "own peers use it");
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let mut client = Attacker::new(&mut world, &format!("9.{}.{}.9:2000", n / 250, n % 250));
            let (initiator, packet) = client.initiation(&world, relay);
            world.deliver(relay, client.endpoint, packet);
            world.run_for(Duration::from_millis(2));
            (client, initiator)
        })
        .collect();
    world.run_for(Duration::from_millis(500));
    for (client, initiator) in &mut clients {
        client.confirm(&mut world, relay, initiator);
    }
    // They answer what they are asked, once: who does not gets nothing at all.
    world.run_for(Duration::from_millis(300));
    for (client, _) in &clients {
        for heard in client.hear(&mut world) {
            if let Control::Ping { nonce } = heard {
                client.say(&mut world, relay, &Control::Pong { nonce, observed: client.endpoint });
            }
        }
        client.say(&mut world, relay, &Control::Allocate);
    }
    world.run_for(Duration::from_millis(300));
    let granted: Vec<_> = clients
        .iter()
        .filter(|(client, _)| {
            let is_granted = |heard: &Control| {
                matches!(heard, Control::Allocated { service, .. } if *service != Service::None)
            };
            client.hear(&mut world).iter().any(is_granted)
        })
        .map(|(client, _)| client.identity.node_id())
        .collect();
    println!("{} of {CLIENTS} strangers got an allocation", granted.len());
    assert!((1..=STRANGERS_MAX).contains(&granted.len()));
    // Some hoard channels, some flood them; nobody reads.
    let status = |world: &World| world.host(relay).node.status(world.now);
    let slot = |client: usize, n: usize| Slot((client * 1000 + n) as u64 + 1);
    let mut sequence = 100;
    for round in 0..3 {
        for (number, (client, _)) in clients.iter().enumerate().filter(|(number, _)| number % 10 == 1) {
            for n in round * 30..(round + 1) * 30 {
                let peer = granted[(number + n) % granted.len()];
                let message = Control::Bind { slot: slot(number, n), peer, datagram: Vec::new() };
                client.say(&mut world, relay, &message);
            }
        }
        for (number, (client, _)) in clients.iter().enumerate().filter(|(number, _)| number % 10 == 2) {
            let peer = granted[(number + 7) % granted.len()];
            let message = Control::Bind { slot: slot(number, 0), peer, datagram: Vec::new() };
            client.say(&mut world, relay, &message);
        }
        world.run_for(Duration::from_millis(200));
        let before = world.host(relay).sent_bytes;
        let start = world.now;
        let flooders: Vec<_> = clients.iter().enumerate().filter(|(number, _)| number % 10 == 2).collect();
        for (number, (client, _)) in &flooders {
            for _ in 0..60 {
                let packet = relayed(&world.id(relay), HOPS_MAX, slot(*number, 0), &[0x41; 1200]);
                world.deliver(relay, client.endpoint, packet);
            }
        }
        for _ in 0..10 {
            sequence += 1;
            let took = ping(&mut world, a, b, sequence, Duration::from_millis(500));
            assert!(took.is_some(), "own peers are cut off in round {round}");
            world.run_for(Duration::from_millis(50));
        }
        let seconds = world.now.saturating_since(start).as_secs_f64();
        let per_channel = SIGNALS_BURST_BYTES as f64 + SIGNALS_BYTES_PER_S as f64 * seconds;
        let carried = (world.host(relay).sent_bytes - before) as f64;
        println!("round {round}: {carried} bytes carried, {} channels", status(&world).channels);
        assert!(carried <= flooders.len() as f64 * per_channel + 400_000.0, "{carried} bytes");
    }
    let channels = status(&world).channels;
    assert!(channels <= CHANNELS_MAX / 4 * 3, "{channels}");
    assert!(status(&world).relayed.len() <= STRANGERS_MAX + 2);
    for id in [a, b] {
        assert_eq!(world.host(id).node.status(world.now).relays.len(), 1, "own peers keep their relay");
    }
}
