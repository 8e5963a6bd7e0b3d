//! Pairs behind NATs: first by a relay, then straight where the NATs allow it.

use std::time::Duration;

use auramesh::proto::node::PeerStatus;
use auramesh::proto::relay;

use crate::host::{Machine, ms};
use crate::nat::{NatId, NatKind};
use crate::network::Conditions;
use crate::packet;
use crate::pair::ping;
use crate::traffic::steady;
use crate::world::{HostId, World};

/// Time for a first ping: lookup, handshake with a relay, handshake through it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// Time from the first ping to the straight way.
const DIRECT: Duration = Duration::from_secs(1);
/// And where one side has to guess a port of the other.
pub(crate) const GUESSED: Duration = Duration::from_secs(10);

/// What is before a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Public,
    Behind(NatKind),
}

const PLACES: [Place; 4] = [
    Place::Public,
    Place::Behind(NatKind::FullCone),
    Place::Behind(NatKind::PortRestricted),
    Place::Behind(NatKind::Symmetric),
];

pub(crate) fn conditions() -> Conditions {
    Conditions { duplicated: 0.0, late: 0.0, ..Conditions::default() }
}

/// Some public nodes that know the first one, which carry data for everybody if `open`.
pub(crate) fn backbone(world: &mut World, n: usize, open: bool) -> Vec<HostId> {
    let mut ids = Vec::<HostId>::new();
    for _ in 0..n {
        let machine = world.machine_v4();
        let relay = relay::Config { strangers: open, ..relay::Config::default() };
        let bootstrap = ids.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
        ids.push(world.add(Machine { relay, bootstrap, ..machine }));
    }
    ids
}

/// A node that knows `first`; its NAT, if it has one.
pub(crate) fn place(world: &mut World, place: Place, first: HostId) -> (HostId, Option<NatId>) {
    let (machine, nat) = match place {
        Place::Public => (world.machine_v4(), None),
        Place::Behind(kind) => {
            let nat = world.nat(kind);
            (world.machine_behind(nat), Some(nat))
        }
    };
    let bootstrap = vec![(world.id(first), world.endpoint(first))];
    (world.add(Machine { bootstrap, ..machine }), nat)
}

pub(crate) fn peer(world: &World, from: HostId, to: HostId) -> Option<PeerStatus> {
    let id = world.id(to);
    world.host(from).node.status(world.now).peers.into_iter().find(|peer| peer.node_id == id)
}

/// True when `from` sends straight to `to`.
pub(crate) fn is_direct(world: &World, from: HostId, to: HostId) -> bool {
    peer(world, from, to).is_some_and(|peer| peer.endpoint.is_some() && peer.via.is_none())
}

pub(crate) fn is_relayed(world: &World, from: HostId, to: HostId) -> bool {
    peer(world, from, to).is_some_and(|peer| peer.via.is_some())
}

#[test]
fn every_pair_of_places_is_connected_and_all_but_two_symmetric_nats_directly() {
    for a in PLACES {
        for b in PLACES {
            let mut world = World::new(401, conditions());
            let public = backbone(&mut world, 3, true);
            let (from, _) = place(&mut world, a, public[1]);
            let (to, _) = place(&mut world, b, public[2]);
            world.run_for(Duration::from_secs(10));
            let first = ping(&mut world, from, to, 1, PATIENCE);
            let symmetric = Place::Behind(NatKind::Symmetric);
            let restricted = Place::Behind(NatKind::PortRestricted);
            let hopeless = (a, b) == (symmetric, symmetric);
            let guessed = [(symmetric, restricted), (restricted, symmetric)].contains(&(a, b));
            let patience = if guessed || hopeless { GUESSED } else { DIRECT };
            let direct =
                world.run_until(patience, |world| is_direct(world, from, to) && is_direct(world, to, from));
            let again = ping(&mut world, from, to, 2, PATIENCE);
            let back = ping(&mut world, to, from, 3, PATIENCE);
            println!(
                "{a:?} to {b:?}: first reply {}, direct {}",
                first.map_or("never".into(), ms),
                direct.map_or("never".into(), ms)
            );
            assert!(first.is_some() && again.is_some() && back.is_some(), "{a:?} to {b:?}");
            assert_eq!(direct.is_none(), hopeless, "{a:?} to {b:?}");
            assert!(direct.is_some() || is_relayed(&world, from, to) && is_relayed(&world, to, from));
        }
    }
}

#[test]
fn strangers_that_carry_no_data_still_bring_two_nodes_together() {
    let mut world = World::new(402, conditions());
    let public = backbone(&mut world, 3, false);
    let (a, _) = place(&mut world, Place::Behind(NatKind::PortRestricted), public[0]);
    let (b, _) = place(&mut world, Place::Behind(NatKind::PortRestricted), public[0]);
    world.run_for(Duration::from_secs(10));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    assert!(is_direct(&world, a, b) && is_direct(&world, b, a));

    let [c, d] = [(); 2].map(|()| place(&mut world, Place::Behind(NatKind::Symmetric), public[0]).0);
    world.run_for(Duration::from_secs(10));
    assert!(ping(&mut world, a, c, 2, GUESSED).is_some(), "the packet waits until the port is guessed");
    assert!(ping(&mut world, d, c, 3, Duration::from_secs(8)).is_none(), "no relay carries it");
    let error = world.host(d).icmp_error();
    assert!(error.is_some_and(|(_, (kind, ..))| kind == 1), "its sender is told: {error:?}");
}

#[test]
fn a_node_behind_a_nat_is_a_client_of_the_dht_and_says_who_relays_for_it() {
    let mut world = World::new(403, conditions());
    let public = backbone(&mut world, 3, true);
    let (a, nat) = place(&mut world, Place::Behind(NatKind::PortRestricted), public[0]);
    world.run_for(Duration::from_secs(10));
    let status = world.host(a).node.status(world.now);
    assert_eq!(status.mapped.map(|seen| seen.ip()), nat.map(|nat| world.nat_mut(nat).public()));
    assert_eq!(status.dht.mode, auramesh::proto::dht::Mode::Client);
    assert_eq!(status.relays.len(), 2);
    let record = world.host(a).node.record().unwrap().content().clone();
    assert_eq!((record.capabilities, record.relays.len()), (0, 2));
    for id in public {
        assert!(world.host(id).node.known().iter().all(|contact| contact.node_id != world.id(a)));
        let status = world.host(id).node.status(world.now);
        assert!(status.mapped.is_none() && status.relays.is_empty(), "a public node needs nobody");
    }
}

#[test]
fn a_relay_that_dies_is_replaced_and_the_session_goes_on() {
    let mut world = World::new(404, conditions());
    let public = backbone(&mut world, 5, true);
    let (a, _) = place(&mut world, Place::Behind(NatKind::Symmetric), public[0]);
    let (b, _) = place(&mut world, Place::Behind(NatKind::Symmetric), public[1]);
    world.run_for(Duration::from_secs(10));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    let (relay, _) = peer(&world, a, b).unwrap().via.unwrap();
    let victim = world.running().into_iter().find(|id| world.id(*id) == relay).unwrap();
    world.kill(victim);
    let answered = (0..10).position(|n| ping(&mut world, a, b, 10 + n, Duration::from_secs(1)).is_some());
    assert!(answered.is_some_and(|lost| lost < 5), "{answered:?}");
    assert!(peer(&world, a, b).unwrap().via.is_some_and(|(other, _)| other != relay));
    world.run_for(Duration::from_secs(60));
    let status = world.host(b).node.status(world.now);
    assert!(
        status.relays.len() == 2 && status.relays.iter().all(|(id, _)| *id != relay),
        "{:?}",
        status.relays
    );
}

#[test]
fn a_relay_that_carries_data_is_found_among_others_that_do_not() {
    let mut world = World::new(405, conditions());
    let mut public = backbone(&mut world, 6, false);
    let (a, _) = place(&mut world, Place::Behind(NatKind::Symmetric), public[0]);
    let (b, _) = place(&mut world, Place::Behind(NatKind::Symmetric), public[1]);
    world.run_for(Duration::from_secs(10));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_none(), "nobody carries data yet");
    let relay = relay::Config { strangers: true, ..relay::Config::default() };
    let bootstrap = vec![(world.id(public[0]), world.endpoint(public[0]))];
    let machine = Machine { relay, bootstrap, ..world.machine_v4() };
    public.push(world.add(machine));
    world.run_for(Duration::from_secs(10));
    let open = world.id(public[6]);
    for node in [a, b] {
        assert!(ping(&mut world, node, public[6], 5, PATIENCE).is_some());
    }
    world.run_for(Duration::from_secs(150));
    for node in [a, b] {
        let relays = world.host(node).node.status(world.now).relays;
        assert!(relays.contains(&(open, true)) && relays.len() <= 3, "{relays:?}");
    }
    assert!(ping(&mut world, a, b, 2, Duration::from_secs(5)).is_some());
    assert_eq!(peer(&world, a, b).unwrap().via, Some((open, true)));
}

/// Pings each `gap` for some time; the longest time without an answer.
fn longest_gap(world: &mut World, from: HostId, to: HostId, first: u16, gap: Duration, n: u16) -> Duration {
    let start = world.now;
    for sequence in first..first + n {
        let request = packet::echo_request(world.address(from), world.address(to), 77, sequence, 56);
        world.send(from, &request);
        world.run_for(gap);
    }
    let mut answers: Vec<_> =
        (first..first + n).filter_map(|sequence| world.host(from).echo_reply_at(77, sequence)).collect();
    answers.sort_unstable();
    let times: Vec<_> = std::iter::once(start).chain(answers).chain([world.now]).collect();
    times.windows(2).map(|pair| pair[1].saturating_since(pair[0])).max().unwrap_or_default()
}

#[test]
fn a_straight_way_that_is_cut_soon_after_a_pause_is_left_within_a_second() {
    let cases = [(5, 50), (1, 50), (8, 400)];
    for (seed, (pause, gap)) in (450..460).flat_map(|seed| cases.map(|case| (seed, case))) {
        // No way round by a relay is shorter than the straight one.
        let near = Conditions { delay_spread: Duration::from_millis(15), ..conditions() };
        let mut world = World::new(seed, near);
        let public = backbone(&mut world, 3, true);
        let nats = [(); 2].map(|()| world.nat(NatKind::PortRestricted));
        let [a, b] = [0, 1].map(|n| {
            let bootstrap = vec![(world.id(public[n]), world.endpoint(public[n]))];
            let machine = Machine { bootstrap, ..world.machine_behind(nats[n]) };
            world.add(machine)
        });
        world.run_for(Duration::from_secs(10));
        assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
        world.run_until(DIRECT, |world| is_direct(world, a, b) && is_direct(world, b, a)).unwrap();
        world.run_for(Duration::from_secs(pause));
        let gap = Duration::from_millis(gap);
        let before = longest_gap(&mut world, a, b, 100, gap, (2000 / gap.as_millis()) as u16);
        let outside = nats.map(|nat| world.nat_mut(nat).public());
        world.filter(move |seen| !(outside.contains(&seen.from.ip()) && outside.contains(&seen.to.ip())));
        let after = longest_gap(&mut world, a, b, 1000, gap, (4000 / gap.as_millis()) as u16);
        println!(
            "seed {seed}: after a pause of {pause} s: {} before the cut, {} after",
            ms(before),
            ms(after)
        );
        assert!(is_relayed(&world, a, b));
        assert!(after < Duration::from_millis(600) + 2 * gap, "{after:?}");
    }
}

/// A node behind a NAT that translates IPv4, or at a firewall for IPv6, knows it and has relays.
#[test]
fn a_node_behind_a_firewall_finds_out_that_nobody_reaches_it() {
    let mut world = World::new(407, conditions());
    let mut public = Vec::<HostId>::new();
    for _ in 0..4 {
        let relay = relay::Config { strangers: true, ..relay::Config::default() };
        let bootstrap = public.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
        let machine = Machine { relay, bootstrap, ..world.machine() };
        public.push(world.add(machine));
    }
    let nats = [(); 2].map(|()| world.nat(NatKind::Firewall));
    let [a, b] = [0, 1].map(|n: usize| {
        let bootstrap = vec![(world.id(public[n]), world.endpoint(public[n]))];
        let machine = Machine { bootstrap, ..world.machine_behind(nats[n]) };
        world.add(machine)
    });
    world.run_for(Duration::from_secs(15));
    for id in &public {
        let status = world.host(*id).node.status(world.now);
        assert_eq!((status.dht.mode, status.relays.len()), (auramesh::proto::dht::Mode::Server, 0));
    }
    for id in [a, b] {
        let status = world.host(id).node.status(world.now);
        assert_eq!((status.dht.mode, status.relays.len()), (auramesh::proto::dht::Mode::Client, 2));
    }
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(1));
    assert!(is_direct(&world, a, b) && is_direct(&world, b, a), "both open their firewalls");
}

/// Whoever asks on all ways now and then must not make the other side ask, which makes the first one ask again.
#[test]
fn a_flow_on_a_settled_way_leads_to_few_questions() {
    const TIME: Duration = Duration::from_secs(120);
    const GAP: Duration = Duration::from_millis(200);
    for seed in 420..450 {
        let mut world = World::new(seed, conditions());
        let public = backbone(&mut world, 3, true);
        let (a, _) = place(&mut world, Place::Behind(NatKind::PortRestricted), public[1]);
        let (b, _) = place(&mut world, Place::Behind(NatKind::PortRestricted), public[2]);
        world.run_for(Duration::from_secs(10));
        assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
        steady(&mut world, a, b, GAP, Duration::from_secs(20));
        let before = [a, b].map(|id| world.host(id).sent);
        let replies = steady(&mut world, a, b, GAP, TIME);
        assert!(replies.iter().all(|(_, reply)| reply.is_some()), "a packet was lost");
        for (id, before) in [a, b].into_iter().zip(before) {
            let more = world.host(id).sent - before - replies.len() as u64;
            println!("seed {seed}: {more} datagrams beside the flow in {TIME:?}");
            assert!(more <= 200, "seed {seed}: {more}");
        }
    }
}

/// Over a relay that both know of, with the record at hand: a handshake through the relay, then the packet.
#[test]
fn the_first_packet_arrives_after_one_and_a_half_round_trips_by_the_relay() {
    let mut in_round_trips = Vec::new();
    for seed in 430..450 {
        let mut world = World::new(seed, conditions());
        let public = backbone(&mut world, 3, true);
        let (a, _) = place(&mut world, Place::Behind(NatKind::Symmetric), public[1]);
        let (b, _) = place(&mut world, Place::Behind(NatKind::Symmetric), public[2]);
        world.run_for(Duration::from_secs(10));
        let start = world.now;
        let ticket = world.look_up(a, world.mesh_address(b));
        world.run_until(Duration::from_secs(2), |world| world.lookup_outcome(a, ticket).is_some());
        let lookup = world.now.saturating_since(start);
        let start = world.now;
        world.send(a, &packet::echo_request(world.address(a), world.address(b), 7, 1, 56));
        let arrived = |world: &World| !world.host(b).delivered.is_empty();
        assert!(world.run_until(PATIENCE, arrived).is_some());
        let first = world.now.saturating_since(start);
        let round_trip = ping(&mut world, a, b, 2, PATIENCE).unwrap();
        let share = first.as_secs_f64() / round_trip.as_secs_f64();
        println!("seed {seed}: lookup {}, then {} or {share:.2} round trips", ms(lookup), ms(first));
        in_round_trips.push(share);
    }
    in_round_trips.sort_by(f64::total_cmp);
    let [median, p95, worst] = [10, 18, 19].map(|n| in_round_trips[n]);
    println!("the first packet arrives after {median:.2} round trips, p95 {p95:.2}, worst {worst:.2}");
    // The round trip that it is compared with has jitter of its own.
    assert!(median <= 1.6, "{median:.2}");
}
