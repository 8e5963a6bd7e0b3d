//! Regions cut from each other: nodes that bridge them carry for the others, by routes through several relays.

use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::identity::{Identity, NodeId};
use auramesh::proto::node::{Command, PeerState, PeerStatus, PingFailure};
use auramesh::proto::relay;
use auramesh::proto::timer::Instant;
use auramesh::proto::wire::control::{Control, Service, Want};
use auramesh::proto::wire::relay::{Header, Slot};
use auramesh::proto::wire::routing::Routing;
use auramesh::proto::wire::session::mask;

use crate::attacker::{Attacker, public_key};
use crate::host::{Machine, ms};
use crate::nat::NatKind;
use crate::network::Conditions;
use crate::packet;
use crate::world::{HostId, Seen, World};

/// From the cut, or the death of a bridge, until every pair talks.
const TALKS: Duration = Duration::from_secs(5);
/// From the end of the cut until every pair talks straight again.
const DIRECT: Duration = Duration::from_secs(60);
/// Time between two packets of a flow.
const GAP: Duration = Duration::from_millis(100);

/// No way through others is shorter than the straight one.
fn conditions() -> Conditions {
    let delay_spread = Duration::from_millis(10);
    Conditions { duplicated: 0.0, late: 0.0, delay_spread, ..Conditions::default() }
}

/// Public nodes that know the first one. All carry data for strangers if `open`, else the first two.
fn publics(world: &mut World, n: usize, open: bool) -> Vec<HostId> {
    let mut ids = Vec::<HostId>::new();
    for number in 0..n {
        let machine = world.machine_v4();
        let relay = relay::Config { strangers: open || number < 2, ..relay::Config::default() };
        let bootstrap = ids.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
        ids.push(world.add(Machine { relay, bootstrap, ..machine }));
    }
    ids
}

pub(crate) fn peer(world: &World, from: HostId, to: HostId) -> Option<PeerStatus> {
    let id = world.id(to);
    world.host(from).node.status(world.now).peers.into_iter().find(|peer| peer.node_id == id)
}

/// Nodes between `from` and `to`; `None` without a path.
fn relays(world: &World, from: HostId, to: HostId) -> Option<usize> {
    let peer = peer(world, from, to)?;
    peer.endpoint.map(|_| peer.beyond.len() + usize::from(peer.via.is_some()))
}

/// Flows between pairs: a packet now and then, and when the last reply came.
pub(crate) struct Flows {
    pairs: Vec<(HostId, HostId)>,
    /// Time between two packets.
    every: Duration,
    sequence: u16,
    answered: Vec<Instant>,
    started: Instant,
    /// The longest time without a reply.
    gap: Duration,
}

impl Flows {
    pub(crate) fn new(world: &World, pairs: Vec<(HostId, HostId)>) -> Self {
        let answered = vec![world.now; pairs.len()];
        Self { pairs, every: GAP, sequence: 0, answered, started: world.now, gap: Duration::ZERO }
    }

    /// The same, with another time between two packets.
    pub(crate) fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// Lets time pass while the flows go on; the longest time that one of them was without a reply meanwhile.
    pub(crate) fn run(&mut self, world: &mut World, duration: Duration) -> Duration {
        self.gap = Duration::ZERO;
        let end = world.now + duration;
        while world.now < end {
            self.step(world);
        }
        self.gap
    }

    /// A packet in every flow.
    pub(crate) fn step(&mut self, world: &mut World) {
        self.sequence = self.sequence.wrapping_add(1);
        for (n, (from, to)) in self.pairs.iter().enumerate() {
            let (source, destination) = (world.address(*from), world.address(*to));
            world.send(*from, &packet::echo_request(source, destination, n as u16, self.sequence, 56));
        }
        world.run_for(self.every);
        for (n, (from, _)) in self.pairs.iter().enumerate() {
            let delivered = &world.host(*from).delivered;
            let replies = delivered
                .iter()
                .filter(|(_, reply)| packet::is_echo_reply(reply).is_some_and(|(id, _)| id == n as u16));
            self.answered[n] = replies.map(|(at, _)| *at).fold(self.answered[n], Instant::max);
            self.gap = self.gap.max(world.now.saturating_since(self.answered[n]));
        }
        for id in world.running() {
            world.host_mut(id).delivered.clear();
        }
    }

    /// Which flows had a reply.
    pub(crate) fn have_answered(&self) -> Vec<bool> {
        self.answered.iter().map(|at| *at > self.started).collect()
    }

    /// Goes on with those flows only.
    fn keep(&mut self, keep: &[bool]) {
        let mut kept = keep.iter();
        self.pairs.retain(|_| kept.next() == Some(&true));
        let mut kept = keep.iter();
        self.answered.retain(|_| kept.next() == Some(&true));
    }

    /// Goes on with the flows that had a reply.
    pub(crate) fn keep_answered(&mut self) {
        self.keep(&self.have_answered());
    }

    /// Goes on with the flows whose ends run.
    pub(crate) fn keep_running(&mut self, world: &World) {
        let keep: Vec<_> =
            self.pairs.iter().map(|(a, b)| world.is_running(*a) && world.is_running(*b)).collect();
        self.keep(&keep);
    }

    /// So many flows had a reply since then.
    pub(crate) fn answered_since(&self, start: Instant) -> usize {
        self.answered.iter().filter(|at| **at > start).count()
    }

    pub(crate) const fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Flows without a reply for a second.
    fn silent(&self, world: &World) -> Vec<(HostId, HostId)> {
        let late = |at: &Instant| world.now.saturating_since(*at) > Duration::from_secs(1);
        self.pairs.iter().zip(&self.answered).filter(|(_, at)| late(at)).map(|(pair, _)| *pair).collect()
    }

    /// Lets the flows go on until all are answered and `is_done`; how long it took, at most `patience`.
    fn until(
        &mut self,
        world: &mut World,
        patience: Duration,
        is_done: impl Fn(&World) -> bool,
    ) -> Option<Duration> {
        let start = world.now;
        while world.now < start + patience {
            self.step(world);
            if self.answered.iter().all(|at| *at > start) && is_done(world) {
                return Some(world.now.saturating_since(start));
            }
        }
        None
    }
}

/// Every node of one side with every node of the other.
fn across(left: &[HostId], right: &[HostId]) -> Vec<(HostId, HostId)> {
    left.iter().flat_map(|a| right.iter().map(|b| (*a, *b))).collect()
}

fn all_direct(world: &World, pairs: &[(HostId, HostId)]) -> bool {
    pairs.iter().all(|(a, b)| relays(world, *a, *b) == Some(0) && relays(world, *b, *a) == Some(0))
}

#[test]
fn a_node_in_both_regions_carries_for_all_others_and_another_one_takes_its_place() {
    for seed in 501..505 {
        let mut world = World::new(seed, conditions());
        let nodes = publics(&mut world, 8, false);
        let (bridges, others) = nodes.split_at(2);
        let (left, right) = others.split_at(3);
        world.run_for(Duration::from_secs(10));
        let pairs = across(left, right);
        let mut flows = Flows::new(&world, pairs.clone());
        flows.run(&mut world, Duration::from_secs(5));
        assert!(all_direct(&world, &pairs));

        world.place_in(left, 1);
        world.place_in(right, 2);
        world.place_in(&bridges[1..], 1);
        let cut = flows.until(&mut world, TALKS, |_| true);
        assert!(cut.is_some(), "seed {seed}: {:?} after the cut", flows.silent(&world));
        // The cut ends at another moment of the search for a straight way with every seed.
        let calm = flows.run(&mut world, Duration::from_secs(20 + 13 * (seed - 501)));
        world.kill(bridges[0]);
        world.place_in(&bridges[1..], 3);
        let dead = flows.until(&mut world, TALKS, |_| true);
        assert!(dead.is_some(), "seed {seed}: {:?} after the death", flows.silent(&world));
        let calm = calm.max(flows.run(&mut world, Duration::from_secs(30)));
        for (a, b) in &pairs {
            let via = peer(&world, *a, *b).and_then(|peer| peer.via);
            assert_eq!(via, Some((world.id(bridges[1]), true)), "seed {seed}");
        }
        world.reunite();
        let direct = flows.until(&mut world, DIRECT, |world| all_direct(world, &pairs));
        println!(
            "seed {seed}: all talk {} after the cut, {} after the death of the bridge, straight {} after the end; \
             longest gap meanwhile {}, at the end {}",
            cut.map_or("never".into(), ms),
            dead.map_or("never".into(), ms),
            direct.map_or("never".into(), ms),
            ms(calm),
            ms(flows.gap)
        );
        assert!(direct.is_some());
        assert!(calm < Duration::from_secs(2) && flows.gap < Duration::from_secs(2));
    }
}

#[test]
fn a_route_leads_through_as_many_relays_as_it_has_to() {
    for bridges in 1..=4 {
        let mut world = World::new(511, conditions());
        let nodes = publics(&mut world, 2 + bridges, true);
        let (ends, between) = nodes.split_at(2);
        world.run_for(Duration::from_secs(10));
        let pairs = vec![(ends[0], ends[1])];
        let mut flows = Flows::new(&world, pairs);
        flows.run(&mut world, Duration::from_secs(3));
        // A chain of regions, with a node in each two neighbouring ones.
        world.place_in(&ends[..1], 1);
        for (n, bridge) in between.iter().enumerate() {
            world.place_in(&[*bridge], 3 << n);
        }
        world.place_in(&ends[1..], 1 << bridges);
        let took = flows.until(&mut world, TALKS, |_| true);
        let path = peer(&world, ends[0], ends[1]).map(|peer| (peer.via, peer.beyond));
        println!("{bridges} relays: {}", took.map_or("never".into(), ms));
        assert_eq!(took.is_some(), bridges < 4, "{bridges}: {path:?}");
        if bridges < 4 {
            let expected: Vec<_> = between.iter().map(|id| world.id(*id)).collect();
            for (from, to, there) in [(0, 1, true), (1, 0, false)] {
                let peer = peer(&world, ends[from], ends[to]).unwrap();
                let mut via: Vec<_> = peer.via.map(|(id, _)| id).into_iter().chain(peer.beyond).collect();
                if !there {
                    via.reverse();
                }
                assert_eq!(via, expected);
            }
            let gap = flows.run(&mut world, Duration::from_secs(400));
            assert!(gap < Duration::from_secs(1), "a route lasts: {gap:?}");
        }
    }
}

/// What a relay does to packets that it carries, while it does all else as it should.
#[derive(Clone, Copy, Debug)]
enum Malice {
    Drop,
    Corrupt,
    Delay,
}

#[test]
fn a_relay_of_a_route_that_harms_what_it_carries_is_left() {
    for malice in [Malice::Drop, Malice::Corrupt, Malice::Delay] {
        let mut world = World::new(521, conditions());
        let nodes = publics(&mut world, 4, false);
        let (bridges, ends) = nodes.split_at(2);
        world.run_for(Duration::from_secs(10));
        let mut flows = Flows::new(&world, vec![(ends[0], ends[1])]);
        flows.run(&mut world, Duration::from_secs(3));
        world.place_in(&ends[..1], 1);
        world.place_in(&ends[1..], 2);
        world.place_in(bridges, 3);
        assert!(flows.until(&mut world, TALKS, |_| true).is_some());
        flows.run(&mut world, Duration::from_secs(5));
        let (bad, _) = peer(&world, ends[0], ends[1]).and_then(|peer| peer.via).unwrap();
        let from = bridges.iter().find(|id| world.id(**id) == bad).map(|id| world.endpoint(*id)).unwrap();
        let keys = [0, 1].map(|n| (world.endpoint(ends[n]), public_key(&world.id(ends[n]))));
        let relayed = move |seen: &Seen| {
            let key = keys.iter().find(|(to, _)| seen.from == from && *to == seen.to).map(|(_, key)| key);
            let mut datagram = seen.datagram.clone();
            key.is_some_and(|key| {
                seen.is_session()
                    && mask(key, &mut datagram).is_ok()
                    && datagram.first_chunk().is_some_and(|header| Header::parse(header).is_some())
            })
        };
        let harmed = relayed.clone();
        match malice {
            Malice::Drop => world.filter(move |seen| !relayed(seen)),
            Malice::Corrupt | Malice::Delay => world.tamper(move |seen| {
                if !harmed(seen) {
                    return Duration::ZERO;
                }
                if matches!(malice, Malice::Delay) {
                    return Duration::from_secs(3);
                }
                let last = seen.datagram.len() - 1;
                seen.datagram[last] ^= 1;
                Duration::ZERO
            }),
        }
        let gap = flows.run(&mut world, Duration::from_secs(6));
        let now = peer(&world, ends[0], ends[1]).and_then(|peer| peer.via);
        println!("{malice:?}: left after {}", ms(gap));
        assert!(now.is_some_and(|(other, _)| other != bad), "{malice:?}: {now:?}");
        assert!(gap < Duration::from_secs(3), "{malice:?}: {gap:?}");
    }
}

/// A bridge that carries data for everybody, a node that has a session with it, and somebody who means ill.
fn beset(seed: u64) -> (World, HostId, HostId, Attacker) {
    let mut world = World::new(seed, conditions());
    let nodes = publics(&mut world, 3, true);
    world.run_for(Duration::from_secs(10));
    let mut attacker = Attacker::new(&mut world, "13.0.0.1:5747");
    attacker.connect(&mut world, nodes[0]);
    world.run_for(Duration::from_secs(1));
    // It answers the question whether it is where it says.
    for heard in attacker.hear(&mut world) {
        if let Control::Ping { nonce } = heard {
            let observed = world.endpoint(nodes[0]);
            attacker.say(&mut world, nodes[0], &Control::Pong { nonce, observed });
        }
    }
    world.run_for(Duration::from_secs(1));
    attacker.hear(&mut world);
    (world, nodes[0], nodes[1], attacker)
}

fn services(heard: &[Control]) -> Vec<Service> {
    let bound =
        |heard: &Control| if let Control::Bound { service, .. } = heard { Some(*service) } else { None };
    heard.iter().filter_map(bound).collect()
}

#[test]
fn routes_with_loops_or_in_the_name_of_others_are_refused() {
    let (mut world, bridge, end, attacker) = beset(531);
    let (own, bridge_id, end_id) = (attacker.identity.node_id(), world.id(bridge), world.id(end));
    let unknown = Identity::from_seed([9; 32]).node_id();
    let other = world.id(HostId(2));
    let good = Routing::Bind {
        slot: Slot(1),
        origin: own,
        peer: end_id,
        service: Service::Data,
        next: Vec::new(),
        passed: Vec::new(),
        datagram: Vec::new(),
    };
    let with = |origin, peer, next: &[NodeId], passed: &[NodeId]| {
        let (next, passed) = (next.to_vec(), passed.to_vec());
        let (slot, service, datagram) = (Slot(2), Service::Data, Vec::new());
        Routing::Bind { slot, origin, peer, service, next, passed, datagram }
    };
    let refused = [
        with(own, bridge_id, &[], &[]),
        with(own, own, &[], &[]),
        with(own, end_id, &[bridge_id], &[]),
        with(own, end_id, &[other, other], &[]),
        with(own, end_id, &[other, bridge_id], &[]),
        with(own, end_id, &[end_id], &[]),
        with(own, end_id, &[own], &[]),
        with(own, end_id, &[unknown], &[]),
        with(own, unknown, &[], &[]),
        with(other, end_id, &[], &[]),
        with(other, end_id, &[], &[unknown]),
        with(other, end_id, &[], &[other, own, other]),
    ];
    // What is refused is refused here, and not by whom it would be passed on to.
    world.kill(HostId(2));
    for bind in refused {
        attacker.say(&mut world, bridge, &Control::Routing(bind.clone()));
        world.run_for(Duration::from_secs(1));
        assert_eq!(services(&attacker.hear(&mut world)), [Service::None], "{bind:?}");
        assert_eq!(world.host(bridge).node.status(world.now).channels, 0, "{bind:?}");
    }
    attacker.say(&mut world, bridge, &Control::Routing(good));
    world.run_for(Duration::from_secs(1));
    assert_eq!(services(&attacker.hear(&mut world)), [Service::Data], "the honest one");
    assert_eq!(world.host(bridge).node.status(world.now).channels, 1);
}

/// Its neighbours do not know that; if they vouched for it, a search would find nothing but relays of before the cut.
#[test]
fn a_relay_that_has_lost_the_target_is_no_answer() {
    let (mut world, bridge, relay, attacker) = beset(536);
    let knows = (world.id(relay), world.endpoint(relay));
    let machine = world.machine_v4();
    let target = world.add(Machine { bootstrap: vec![knows], ..machine });
    world.run_for(Duration::from_secs(5));
    // Only the relay reaches it.
    let nodes = world.running();
    world.place_in(&nodes, 1);
    world.place_in(&[target], 2);
    world.place_in(&[relay], 3);
    world.run_for(Duration::from_secs(3));
    let (relay_id, target_id) = (world.id(relay), world.id(target));
    let answers = |world: &mut World, nonce| {
        let relays = vec![relay_id];
        let seek = Routing::Seek { nonce, ttl: 1, target: target_id, relays };
        attacker.say(world, bridge, &Control::Routing(seek));
        world.run_for(Duration::from_secs(2));
        let heard = attacker.hear(world).into_iter();
        let sought = heard.filter_map(|message| {
            let Control::Routing(Routing::Sought { nonce: of, hops, .. }) = message else { return None };
            (of == nonce).then_some(hops)
        });
        sought.collect::<Vec<_>>()
    };
    assert_eq!(answers(&mut world, 1), [vec![relay_id]]);
    world.kill(target);
    world.run_for(Duration::from_secs(3));
    assert_eq!(answers(&mut world, 2), Vec::<Vec<NodeId>>::new(), "the relay is there, the target is not");
}

/// Who asks has an old record of the target, or none: it names no relay, and we hold the target's newest.
#[test]
fn a_relay_that_only_our_record_of_the_target_names_is_asked() {
    let (mut world, bridge, relay, attacker) = beset(537);
    let knows = (world.id(relay), world.endpoint(relay));
    let nat = world.nat(NatKind::Symmetric);
    let machine = world.machine_behind(nat);
    let target = world.add(Machine { bootstrap: vec![knows], ..machine });
    world.run_for(Duration::from_secs(30));
    let (relay_id, target_id) = (world.id(relay), world.id(target));
    let record = world.host(target).node.record().expect("it has one");
    assert!(record.content().relays.iter().any(|named| named.node_id == relay_id));
    // Only the relay reaches it.
    let nodes = world.running();
    world.place_in(&nodes, 1);
    world.place_in(&[target], 2);
    world.place_in(&[relay], 3);
    world.run_for(Duration::from_secs(3));
    attacker.hear(&mut world);
    let seek = Routing::Seek { nonce: 1, ttl: 1, target: target_id, relays: Vec::new() };
    attacker.say(&mut world, bridge, &Control::Routing(seek));
    world.run_for(Duration::from_secs(2));
    let heard = attacker.hear(&mut world).into_iter();
    let by_relay = heard.filter(|message| {
        matches!(message, Control::Routing(Routing::Sought { nonce: 1, hops, .. }) if *hops == [relay_id])
    });
    assert_eq!(by_relay.count(), 1);
}

#[test]
fn floods_of_questions_and_answers_set_little_in_motion() {
    let (mut world, bridge, end, attacker) = beset(532);
    let (end_id, unknown) = (world.id(end), world.seed());
    let unknown = Identity::from_seed(unknown).node_id();
    let before = world.host(bridge).sent;
    for nonce in 0..1000 {
        let target = if nonce % 2 == 0 { end_id } else { unknown };
        let seek = Routing::Seek { nonce, ttl: 3, target, relays: Vec::new() };
        attacker.say(&mut world, bridge, &Control::Routing(seek));
    }
    world.run_for(Duration::from_secs(1));
    let sent = world.host(bridge).sent - before;
    println!("1000 questions at once: {sent} datagrams");
    // A burst of 32 questions; each is answered, and passed on to the two others.
    assert!(sent > 16 && sent <= 32 * 4, "{sent}");
    assert!(world.host(bridge).drops(DropReason::RateLimited) >= 900);
    attacker.hear(&mut world);
    let dropped = world.host(bridge).drops(DropReason::Relay);
    let before = world.host(bridge).sent;
    for nonce in 0..1000 {
        let (service, hops) = (Service::Data, vec![end_id]);
        attacker.say(&mut world, bridge, &Control::Routing(Routing::Sought { nonce, service, hops }));
    }
    assert_eq!(world.host(bridge).drops(DropReason::Relay), dropped + 1000);
    assert!(world.host(bridge).sent <= before + 2, "answers that nobody asked for are not passed on");
}

#[test]
fn a_relay_that_was_not_asked_opens_few_routes_to_us() {
    let (mut world, victim, _, attacker) = beset(533);
    let own = attacker.identity.node_id();
    for n in 0..200 {
        let origin = Identity::from_seed(world.seed()).node_id();
        let invite = |slot, passed| Routing::Invite {
            slot: Slot(slot),
            peer: origin,
            service: Service::Data,
            passed,
            datagram: Vec::new(),
        };
        attacker.say(&mut world, victim, &Control::Routing(invite(n, vec![own])));
        let dropped = world.host(victim).drops(DropReason::Relay);
        attacker.say(&mut world, victim, &Control::Routing(invite(1000 + n, vec![own, origin])));
        assert_eq!(world.host(victim).drops(DropReason::Relay), dropped + 1, "it is not the last one");
        world.run_for(Duration::from_millis(100));
    }
    assert_eq!(world.host(victim).snapshot.slots.len(), 64);
}

#[test]
fn every_relay_of_a_route_is_measured_and_a_silent_one_is_said_to_be() {
    let mut world = World::new(541, conditions());
    let nodes = publics(&mut world, 5, true);
    let (ends, between) = nodes.split_at(2);
    world.run_for(Duration::from_secs(10));
    let mut flows = Flows::new(&world, vec![(ends[0], ends[1])]);
    flows.run(&mut world, Duration::from_secs(3));
    world.place_in(&ends[..1], 1);
    for (n, bridge) in between.iter().enumerate() {
        world.place_in(&[*bridge], 3 << n);
    }
    world.place_in(&ends[1..], 8);
    assert!(flows.until(&mut world, TALKS, |_| true).is_some());
    let peers = [world.id(ends[1]), world.id(ends[0])];
    let mut trace = |world: &mut World, from: usize, hop: u8| {
        let ticket = world.command(ends[from], |ticket| Command::Trace(ticket, peers[from], hop));
        flows.run(world, Duration::from_secs(1));
        world.ping_outcome(ends[from], ticket)
    };
    for from in [0, 1] {
        let mut before = Duration::ZERO;
        for hop in 0..3u8 {
            let reply = trace(&mut world, from, hop).and_then(Result::ok).expect("it answers");
            let at = usize::from(if from == 0 { hop } else { 2 - hop });
            assert_eq!(reply.node_id, world.id(between[at]), "{from} {hop}");
            assert!(reply.rtt > before, "the way is longer");
            before = reply.rtt;
        }
        assert_eq!(trace(&mut world, from, 3), None, "that is the peer itself, and it is no relay");
    }
    assert!(matches!(trace(&mut world, 0, 4), Some(Err(PingFailure::NotFound))));
    // The last relay answers nothing any more.
    let last = world.endpoint(between[2]);
    world.filter(move |seen| seen.from != last);
    let first = trace(&mut world, 0, 0).and_then(Result::ok);
    assert!(first.is_some());
    assert_eq!(trace(&mut world, 0, 2), None);
}

#[test]
fn a_record_in_the_other_region_is_found_by_way_of_who_names_its_holders() {
    let mut world = World::new(551, conditions());
    let nodes = publics(&mut world, 60, false);
    world.run_for(Duration::from_secs(60));
    let (bridge, others) = (nodes[0], &nodes[1..]);
    let (left, right) = others.split_at(10);
    world.place_in(left, 1);
    world.place_in(right, 2);
    world.place_in(&[bridge], 3);
    let mut found = 0;
    let mut newcomers = 0;
    while newcomers < 4 {
        let known = (world.id(right[0]), world.endpoint(right[0]));
        let machine = Machine { bootstrap: vec![known], ..world.machine_v4() };
        // One whose record the bridge does not hold itself.
        let position = machine.identity().node_id().position();
        let distance = |id: &HostId| world.id(*id).position().distance(&position);
        let nearer = right.iter().filter(|id| distance(id) < distance(&bridge)).count();
        if nearer < 2 * auramesh::proto::dht::K {
            continue;
        }
        newcomers += 1;
        let newcomer = world.add(machine);
        world.place_in(&[newcomer], 2);
        world.run_for(Duration::from_secs(20));
        let address = world.mesh_address(newcomer);
        // As packets that wait would have it: again, when nobody was found.
        let took = (0..3).find_map(|_| {
            let ticket = world.look_up(left[newcomers], address);
            world.run_for(Duration::from_secs(4));
            let outcome = world.lookup_outcome(left[newcomers], ticket)?;
            outcome.record.is_some().then_some(outcome.elapsed)
        });
        println!("found in {}", took.map_or("never".into(), ms));
        found += usize::from(took.is_some());
    }
    assert_eq!(found, newcomers);
}

#[test]
fn floods_of_questions_for_others_are_asked_once_each_and_not_of_strangers() {
    let (mut world, bridge, end, attacker) = beset(552);
    let (end_id, unknown) = (world.id(end), Identity::from_seed(world.seed()).node_id());
    let forward = |request, to| {
        let (want, target) = (Want::Contacts, end_id.position());
        Control::Routing(Routing::Forward { request, to, want, target })
    };
    let before = world.host(bridge).sent;
    for request in 0..10 {
        attacker.say(&mut world, bridge, &forward(request, unknown));
    }
    assert_eq!(world.host(bridge).sent, before, "nobody has answered there");
    world.run_for(Duration::from_secs(5));
    let before = world.host(bridge).sent;
    for request in 0..1000 {
        attacker.say(&mut world, bridge, &forward(request, end_id));
    }
    world.run_for(Duration::from_millis(500));
    let sent = world.host(bridge).sent - before;
    println!("1000 questions at once: {sent} datagrams");
    // A burst of 60, a question and an answer for each.
    assert!((60..=140).contains(&sent), "{sent}");
    let found = attacker.hear(&mut world);
    let found = found.iter().filter(|heard| matches!(heard, Control::Found { .. })).count();
    assert!((30..=61).contains(&found), "{found}");
}

/// Whoever asks after a dead node has others ask it; they do not look for it themselves, or it would go round for ever.
#[test]
fn the_dead_are_not_looked_for_without_end() {
    let mut world = World::new(521, conditions());
    let nodes = publics(&mut world, 24, true);
    world.run_for(Duration::from_secs(10));
    let mut flows = Flows::new(&world, across(&nodes[..12], &nodes[12..]));
    flows.run(&mut world, Duration::from_secs(5));
    let packets: Vec<_> = across(&nodes[..12], &nodes[12..])
        .into_iter()
        .map(|(a, b)| (a, packet::echo_request(world.address(a), world.address(b), 1, 1, 56)))
        .collect();
    let dead: Vec<_> = nodes[12..].iter().map(|id| world.id(*id)).collect();
    nodes[12..].iter().for_each(|id| world.kill(*id));
    // Programs notice too, a second later.
    for _ in 0..10 {
        packets.iter().for_each(|(from, packet)| world.send(*from, packet));
        world.run_for(GAP);
    }
    world.run_for(Duration::from_secs(20));
    let sent = |world: &World| nodes[..12].iter().map(|id| world.host(*id).sent).sum::<u64>();
    let before = sent(&world);
    world.run_for(Duration::from_secs(60));
    let each = (sent(&world) - before) / 12;
    println!("{each} datagrams of each survivor in a minute");
    assert!(each < 600, "{each} datagrams of each survivor in a minute");
    for alive in &nodes[..12] {
        let peers = world.host(*alive).node.status(world.now).peers;
        for peer in peers.iter().filter(|peer| dead.contains(&peer.node_id)) {
            assert_eq!((peer.state, peer.endpoint), (PeerState::Known, None), "shown as if it were there");
        }
    }
}
