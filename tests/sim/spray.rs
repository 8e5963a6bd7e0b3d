//! Ports that have to be guessed: between a symmetric and a port-restricted NAT.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::identity::Identity;
use auramesh::proto::node::{SPRAY_AGAIN, SPRAYS_MAX};
use auramesh::proto::path::spray::{CHECKS_MAX, PROBES_MAX, SOCKETS_MAX, SOCKETS_MIN};
use auramesh::proto::session::loss::CUT_ABOVE_PER_MILLE;
use auramesh::proto::wire::control::{Control, SprayStep};
use auramesh::proto::wire::relay::{HOPS_MAX, Header, RELAY_OVERHEAD, Slot, seal};
use auramesh::proto::wire::session::{Kind, mask};

use crate::attacker::{Attacker, public_key};
use crate::host::{Machine, ms};
use crate::nat::{NatId, NatKind};
use crate::pair::ping;
use crate::relays::{GUESSED, Place, backbone, conditions, is_direct, is_relayed, peer, place};
use crate::traffic::steady;
use crate::world::{HostId, World};

const PATIENCE: Duration = Duration::from_secs(3);

/// From the first reply to the straight way at these seeds: without waiting for the next exchange of candidates.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A node behind a symmetric NAT and one behind a port-restricted one, with relays that carry data.
struct Pair {
    world: World,
    hard: HostId,
    hard_nat: NatId,
    easy: HostId,
    easy_nat: NatId,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed, conditions());
        let public = backbone(&mut world, 3, true);
        let (hard, hard_nat) = place(&mut world, Place::Behind(NatKind::Symmetric), public[1]);
        let (easy, easy_nat) = place(&mut world, Place::Behind(NatKind::PortRestricted), public[2]);
        world.run_for(Duration::from_secs(10));
        let [hard_nat, easy_nat] = [hard_nat, easy_nat].map(|nat| nat.expect("it has a NAT"));
        Self { world, hard, hard_nat, easy, easy_nat }
    }

    fn is_direct(world: &World, (a, b): (HostId, HostId)) -> bool {
        is_direct(world, a, b) && is_direct(world, b, a)
    }

    /// Waits for the straight way.
    fn direct(&mut self, patience: Duration) -> Option<Duration> {
        let pair = (self.hard, self.easy);
        self.world.run_until(patience, |world| Self::is_direct(world, pair))
    }

    /// From now on nothing passes straight between the two. What the hard side sent there, and the easy one.
    fn cut(&mut self) -> Rc<Cell<[usize; 2]>> {
        let hard = self.world.nat_mut(self.hard_nat).public();
        let counts = Rc::new(Cell::new([0; 2]));
        let counted = counts.clone();
        self.world.filter(move |seen| {
            let straight = [seen.from, seen.to].iter().all(is_behind);
            if straight {
                let mut counts = counted.get();
                counts[usize::from(seen.from.ip() != hard)] += 1;
                counted.set(counts);
            }
            !straight
        });
        counts
    }
}

/// True for endpoints of NATs.
fn is_behind(endpoint: &SocketAddr) -> bool {
    matches!(endpoint.ip(), IpAddr::V4(ip) if ip.octets()[0] == 12)
}

#[test]
fn a_port_is_found_by_guessing_whoever_begins_and_only_its_socket_stays() {
    let (mut took, mut kept_sockets) = (Vec::new(), 0);
    for seed in 420..432 {
        let mut pair = Pair::new(seed);
        let (from, to) = if seed % 2 == 0 { (pair.hard, pair.easy) } else { (pair.easy, pair.hard) };
        assert!(ping(&mut pair.world, from, to, 1, PATIENCE).is_some(), "by a relay");
        let direct = pair.direct(GUESSED);
        assert!(direct.is_some_and(|took| took < AT_ONCE), "seed {seed}: {direct:?}");
        let [(checks, easy)] = pair.world.host(pair.easy).guessed[..] else { panic!("one spray") };
        let [(sockets, hard)] = pair.world.host(pair.hard).guessed[..] else { panic!("one spray") };
        println!("seed {seed}: {checks} checks, {}, hard side {}; direct {direct:?}", ms(easy), ms(hard));
        assert!(checks <= PROBES_MAX && sockets <= SOCKETS_MAX);
        let (open, kept) = pair.world.host(pair.hard).sockets();
        assert!(open == 0 && kept <= 1, "one socket stays");
        kept_sockets += kept;
        assert_eq!(pair.world.host(pair.easy).sockets(), (0, 0));
        for (sequence, (from, to)) in [(from, to), (to, from)].into_iter().enumerate() {
            let sequence = 2 + sequence as u16;
            assert!(ping(&mut pair.world, from, to, sequence, PATIENCE).is_some());
        }
        took.push(easy);
    }
    // Once in 257 times the port that is hit is that of the ordinary socket.
    assert!(kept_sockets >= 11, "{kept_sockets}");
    took.sort();
    println!("p50 {}, worst {}", ms(took[took.len() / 2]), ms(took[took.len() - 1]));
}

/// Without use for longer than the NAT keeps a mapping: a new one would have another port.
#[test]
fn the_port_stays_open_while_the_session_lives() {
    let mut pair = Pair::new(440);
    pair.world.nat_mut(pair.hard_nat).idle = Duration::from_secs(30);
    assert!(ping(&mut pair.world, pair.easy, pair.hard, 1, PATIENCE).is_some());
    assert!(pair.direct(GUESSED).is_some());
    pair.world.run_for(Duration::from_secs(100));
    let took = ping(&mut pair.world, pair.easy, pair.hard, 2, PATIENCE);
    assert!(took.is_some_and(|took| took < Duration::from_millis(200)), "{took:?}");
    assert!(pair.direct(Duration::ZERO).is_some(), "and still straight");
    // The session ends, and with it the socket.
    pair.world.run_for(Duration::from_secs(400));
    assert_eq!(pair.world.host(pair.hard).sockets(), (0, 0));
}

#[test]
fn a_way_that_is_lost_is_guessed_anew_while_data_flows() {
    let mut pair = Pair::new(441);
    assert!(ping(&mut pair.world, pair.easy, pair.hard, 1, PATIENCE).is_some());
    assert!(pair.direct(GUESSED).is_some());
    pair.world.run_for(Duration::from_secs(60));
    pair.world.nat_mut(pair.hard_nat).rebind();
    let (hard, easy) = (pair.hard, pair.easy);
    let mut missed = 0;
    let again = (0..200).find(|n| {
        let answered = ping(&mut pair.world, hard, easy, 100 + n, Duration::from_millis(500)).is_some();
        missed += usize::from(!answered);
        pair.world.host(easy).guessed.len() == 2 && Pair::is_direct(&pair.world, (hard, easy))
    });
    println!("straight again after {again:?} pings, {missed} without a reply");
    assert!(again.is_some() && missed <= 6, "{again:?}, {missed}");
    assert_eq!(pair.world.host(hard).sockets(), (0, 1));
}

#[test]
fn a_spray_that_finds_nothing_ends_and_is_not_repeated_soon() {
    let mut pair = Pair::new(442);
    let counts = pair.cut();
    let mut sequence = 0;
    let mut data = |pair: &mut Pair, seconds: u64| {
        let (mut open, mut missed) = (0, 0);
        for _ in 0..seconds {
            sequence += 1;
            missed += usize::from(ping(&mut pair.world, pair.easy, pair.hard, sequence, PATIENCE).is_none());
            pair.world.run_for(Duration::from_secs(1));
            open = open.max(pair.world.host(pair.hard).sockets().0);
        }
        assert!(missed < 10, "the relay does not carry it");
        open
    };
    let open = data(&mut pair, 30);
    let [checks, probes] = counts.get();
    println!("{checks} checks, {probes} probes, {open} sockets");
    assert_eq!(open, SOCKETS_MAX);
    assert!((SOCKETS_MAX..=CHECKS_MAX + 40).contains(&checks), "{checks}");
    assert!((1900..=PROBES_MAX + 40).contains(&probes), "{probes}");
    assert_eq!(pair.world.host(pair.hard).sockets(), (0, 0), "all are closed");
    assert!(is_relayed(&pair.world, pair.hard, pair.easy));
    counts.set([0, 0]);
    assert_eq!(data(&mut pair, 400), 0, "sockets opened again");
    // Not at another address either.
    for nat in [pair.easy_nat, pair.hard_nat] {
        pair.world.reboot_nat(nat);
    }
    assert_eq!(data(&mut pair, 100), 0, "sockets opened for another address");
    let [checks, probes] = counts.get();
    // Ordinary checks, no spray.
    assert!(checks < SOCKETS_MAX && probes < PROBES_MAX / 4, "{checks}, {probes}");
    assert_eq!(data(&mut pair, SPRAY_AGAIN.as_secs() - 400), SOCKETS_MAX, "and again after a while");
}

#[test]
fn without_descriptors_the_pair_stays_on_its_relay() {
    let mut pair = Pair::new(443);
    let hard = pair.hard;
    pair.world.host_mut(hard).sockets_free = SOCKETS_MIN - 1;
    let counts = pair.cut();
    assert!(ping(&mut pair.world, pair.easy, hard, 1, PATIENCE).is_some());
    assert!(pair.direct(GUESSED).is_none());
    let [checks, probes] = counts.get();
    assert!(checks < 50 && probes < 50, "guessed although no port is open: {checks}, {probes}");
    assert_eq!(pair.world.host(hard).sockets(), (0, 0));
    assert!(ping(&mut pair.world, hard, pair.easy, 2, PATIENCE).is_some(), "by a relay");
}

/// Large packets are cut on paths that lose much, which costs throughput: checks that hit nothing are no loss. A pair that
/// goes back to a faster relay meanwhile says nothing of that: what is under way by two ways arrives out of order.
#[test]
fn what_was_sent_to_find_the_way_does_not_make_it_a_bad_one() {
    for hard_first in [true, false] {
        let mut stayed = 0;
        for seed in 447..457 {
            let mut pair = Pair::new(seed);
            let (from, to) = if hard_first { (pair.hard, pair.easy) } else { (pair.easy, pair.hard) };
            assert!(ping(&mut pair.world, from, to, 1, PATIENCE).is_some());
            assert!(pair.direct(GUESSED).is_some());
            let mut worst = 0;
            for _ in 0..4 {
                steady(&mut pair.world, from, to, Duration::from_millis(4), Duration::from_secs(1));
                let losses =
                    [(from, to), (to, from)].map(|(a, b)| peer(&pair.world, a, b).unwrap().loss_per_mille);
                worst = losses.into_iter().flatten().fold(worst, u64::max);
            }
            let ways = [(from, to), (to, from)].map(|(a, b)| peer(&pair.world, a, b).unwrap().via);
            if ways == [None, None] {
                stayed += 1;
                assert!(worst < CUT_ABOVE_PER_MILLE, "{hard_first}, seed {seed}: {worst} of a thousand");
            }
        }
        assert!(stayed >= 3, "{hard_first}: only {stayed} of 10 stayed on the way that was found");
    }
}

/// The socket belongs to the endpoint: that the session of the old key ends does not close it.
#[test]
fn a_node_that_comes_back_under_another_key_keeps_its_way() {
    let mut pair = Pair::new(444);
    assert!(ping(&mut pair.world, pair.easy, pair.hard, 1, PATIENCE).is_some());
    assert!(pair.direct(GUESSED).is_some());
    pair.world.run_for(Duration::from_secs(15));
    pair.world.kill(pair.easy);
    let identity = pair.world.seed();
    let machine = Machine { identity, ..pair.world.disk(pair.easy).clone() };
    pair.easy = pair.world.add(machine);
    pair.world.run_for(Duration::from_secs(10));
    assert!(ping(&mut pair.world, pair.easy, pair.hard, 1, PATIENCE).is_some());
    assert!(pair.direct(GUESSED).is_some());
    for sequence in 2..300 {
        pair.world.run_for(Duration::from_secs(1));
        let took = ping(&mut pair.world, pair.easy, pair.hard, sequence, PATIENCE);
        assert!(took.is_some_and(|took| took < Duration::from_millis(300)), "{sequence}: {took:?}");
    }
    assert!(pair.direct(Duration::ZERO).is_some());
    assert_eq!(pair.world.host(pair.hard).sockets(), (0, 1));
}

/// Eight peers at once that cannot be hit: two of them are tried at a time, the others later.
#[test]
fn few_are_sprayed_at_once() {
    let mut pair = Pair::new(445);
    let first = pair.world.running()[0];
    let place_one = |world: &mut World| place(world, Place::Behind(NatKind::PortRestricted), first).0;
    let others: Vec<_> = (0..8).map(|_| place_one(&mut pair.world)).collect();
    pair.world.run_for(Duration::from_secs(10));
    pair.cut();
    for (n, other) in (0..).zip(&others) {
        assert!(ping(&mut pair.world, *other, pair.hard, n, PATIENCE).is_some());
    }
    let mut most = 0;
    for _ in 0..200 {
        pair.world.run_for(Duration::from_millis(50));
        most = most.max(pair.world.host(pair.hard).sockets().0);
    }
    assert_eq!(most, SPRAYS_MAX * SOCKETS_MAX);
}

/// What relays grant us in requests a second is not for strangers to spend.
#[test]
fn relays_are_asked_for_few_peers_at_once() {
    let mut pair = Pair::new(446);
    let mut liars = Vec::new();
    for n in 0..24 {
        liars.push(Liar::new(&mut pair.world, pair.hard, &format!("9.{}.9.9:9999", n + 10)));
        pair.world.run_for(Duration::from_secs(1));
    }
    pair.world.run_for(Duration::from_secs(20));
    let hard = pair.world.nat_mut(pair.hard_nat).public();
    let sent = Rc::new(Cell::new(0));
    let counted = sent.clone();
    pair.world.filter(move |seen| {
        let asks = seen.from.ip() == hard && matches!(seen.to.ip(), IpAddr::V4(ip) if ip.octets()[0] == 11);
        counted.set(counted.get() + usize::from(asks));
        true
    });
    pair.world.run_for(Duration::from_secs(3));
    let without = sent.replace(0);
    for liar in &liars {
        let endpoints = vec!["9.8.7.6:5000".parse().unwrap()];
        liar.say(&mut pair.world, &Control::Candidates { answer: true, dependent: false, endpoints });
    }
    pair.world.run_for(Duration::from_secs(3));
    println!("{} datagrams to relays for {} liars, {without} before", sent.get(), liars.len());
    assert!(sent.get() < without + ASKED_DATAGRAMS_MAX, "{}", sent.get());
}

/// Of eight peers, and of what all of them are answered by way of their relays.
const ASKED_DATAGRAMS_MAX: usize = 650;

/// Speaks the protocol by way of all relays of a node, and lies about where it is.
struct Liar {
    /// With each relay of the victim, under one key.
    relays: Vec<(HostId, Attacker)>,
    session: Attacker,
    /// How it names its channels.
    slot: Slot,
}

impl Liar {
    fn new(world: &mut World, victim: HostId, endpoint: &str) -> Self {
        let seed = world.seed();
        let one = |world: &mut World| {
            let mut attacker = Attacker::new(world, endpoint);
            attacker.identity = Identity::from_seed(seed);
            attacker
        };
        let relays = world.host(victim).node.status(world.now).relays;
        let relays: Vec<_> = world
            .running()
            .into_iter()
            .filter(|id| relays.iter().any(|(relay, _)| *relay == world.id(*id)))
            .collect();
        let relays = relays.into_iter().map(|relay| {
            let mut attacker = one(world);
            attacker.connect(world, relay);
            // The relay has to know that it receives where it says.
            world.run_for(Duration::from_millis(300));
            for heard in attacker.hear(world) {
                if let Control::Ping { nonce } = heard {
                    let observed = world.endpoint(relay);
                    attacker.say(world, relay, &Control::Pong { nonce, observed });
                }
            }
            (relay, attacker)
        });
        let relays: Vec<_> = relays.collect();
        let session = one(world);
        let slot = Slot(world.next_number().into());
        let mut liar = Self { relays, session, slot };
        // The victim may be about to open a session with it, as one of the DHT, and answers later then.
        for _ in 0..5 {
            liar.meet(world, victim);
            if liar.session.session.is_some() {
                break;
            }
        }
        assert!(liar.session.session.is_some(), "the victim answers an honest handshake");
        let hello = Control::Hello { record: liar.session.record(world.now).bytes().to_vec() };
        liar.say(world, &hello);
        liar
    }

    /// Opens a session with the victim through its relays.
    fn meet(&mut self, world: &mut World, victim: HostId) {
        let (mut initiator, packet) = self.session.initiation(world, victim);
        let peer = world.id(victim);
        for (relay, attacker) in &self.relays {
            let bind = Control::Bind { slot: self.slot, peer, datagram: packet.clone() };
            attacker.say(world, *relay, &bind);
        }
        world.run_for(Duration::from_millis(600));
        let own = public_key(&self.session.identity.node_id());
        for seen in world.tapped(self.session.endpoint) {
            let mut datagram = seen.datagram;
            let header = mask(&own, &mut datagram).ok().and_then(|()| Header::parse(datagram.first_chunk()?));
            let Some(Ok(_)) = header else { continue };
            if let Ok(envelope) = own.open(&mut datagram[RELAY_OVERHEAD..])
                && let Ok(established) = initiator.finish(&envelope, world.now)
            {
                self.session.session = Some(established.session);
            }
        }
    }

    /// Tells the victim something.
    fn say(&self, world: &mut World, message: &Control) {
        let mut plaintext = Vec::new();
        message.emit(&mut plaintext);
        let mut packet = vec![0; RELAY_OVERHEAD];
        packet.extend(self.session.seal(world.now, Kind::Control, &plaintext));
        let (relay, _) = &self.relays[0];
        let header = Header { hop_limit: HOPS_MAX, slot: self.slot };
        seal(&public_key(&world.id(*relay)), header, &mut packet).expect("long enough");
        world.deliver(*relay, self.session.endpoint, packet);
    }

    /// Does all that it takes to be sprayed at an endpoint, for as long as it takes, with the help of others that vouch
    /// for it. What arrived there.
    fn lure(&self, world: &mut World, dependent: bool, at: SocketAddr, others: &[&Self]) -> usize {
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        world.filter(move |seen| {
            counted.set(counted.get() + usize::from(is_behind(&seen.from) && seen.to.ip() == at.ip()));
            true
        });
        for n in 0..100 {
            if n % 20 == 0 {
                self.say(world, &Control::Candidates { answer: true, dependent, endpoints: vec![at] });
            }
            let (peer, port) = (self.session.identity.node_id(), if dependent { 0 } else { at.port() });
            for other in others {
                let endpoint = SocketAddr::new(at.ip(), port);
                other.say(world, &Control::Vouch { answer: Some(true), peer, endpoint });
            }
            let step = if dependent { SprayStep::Open } else { SprayStep::Ready };
            self.say(world, &Control::Spray { step });
            world.run_for(Duration::from_millis(100));
        }
        world.run_for(Duration::from_secs(10));
        count.get()
    }
}

/// Checks of ordinary kind that an address gets which does not answer, for each key of a stranger.
const STRANGER_MAX: usize = 40;

#[test]
fn nobody_can_have_somebody_else_sprayed() {
    for kind in [NatKind::Symmetric, NatKind::PortRestricted] {
        let mut pair = Pair::new(450);
        let victim = if kind == NatKind::Symmetric { pair.hard } else { pair.easy };
        let dependent = kind != NatKind::Symmetric;
        let liar = Liar::new(&mut pair.world, victim, "9.9.9.9:9999");
        let bystander = "9.8.7.6:5000".parse().unwrap();
        let accomplice = Liar::new(&mut pair.world, victim, "9.9.9.8:9999");
        let got = liar.lure(&mut pair.world, dependent, bystander, &[&liar, &accomplice]);
        assert!(got <= STRANGER_MAX, "{kind:?}: a bystander got {got}");
        assert_eq!(pair.world.host(victim).sockets(), (0, 0));

        // At itself, once, whatever it says and whoever it says it is.
        let own = liar.session.endpoint;
        let got = liar.lure(&mut pair.world, dependent, own, &[]);
        println!("{kind:?}: itself {got}");
        let most = if dependent { PROBES_MAX } else { CHECKS_MAX } + STRANGER_MAX;
        assert!((SOCKETS_MAX..=most).contains(&got), "{kind:?}: it got {got}, so the test shows nothing");
        let got = liar.lure(&mut pair.world, dependent, own, &[]);
        assert!(got <= STRANGER_MAX, "{kind:?}: a second time, {got}");
        let other = Liar::new(&mut pair.world, victim, "9.9.9.9:9999");
        let got = other.lure(&mut pair.world, dependent, own, &[]);
        assert!(got <= 2 * STRANGER_MAX, "{kind:?}: under another key, {got}");
        pair.world.unfilter();
        let (from, to) = (pair.hard, pair.easy);
        assert!(ping(&mut pair.world, from, to, 1, PATIENCE).is_some());
        assert!(pair.direct(GUESSED).is_some(), "{kind:?}: others are sprayed all the same");
    }
}

/// Where a node is learns only who has a channel to it, and only whether a guess was right.
#[test]
fn a_relay_vouches_for_what_it_sees_and_to_those_who_know_the_node() {
    let mut pair = Pair::new(451);
    let (world, easy) = (&mut pair.world, pair.easy);
    let seen = world.host(easy).node.status(world.now).mapped.unwrap();
    let relay = world.host(easy).node.status(world.now).relays[0].0;
    let relay = world.running().into_iter().find(|id| world.id(*id) == relay).unwrap();
    let peer = world.id(easy);
    let ask = |world: &mut World, attacker: &Attacker, endpoint: SocketAddr| {
        attacker.hear(world);
        attacker.say(world, relay, &Control::Vouch { answer: None, peer, endpoint });
        world.run_for(Duration::from_millis(300));
        let heard = attacker.hear(world);
        let answers = heard.into_iter().filter_map(|message| {
            let Control::Vouch { answer, peer: of, endpoint: at } = message else { return None };
            answer.filter(|_| of == peer && at == endpoint)
        });
        answers.collect::<Vec<_>>()
    };
    let mut stranger = Attacker::new(world, "9.9.9.9:9999");
    stranger.connect(world, relay);
    assert_eq!(ask(world, &stranger, seen), [false], "it has no channel");
    let liar = Liar::new(world, easy, "9.9.9.8:9999");
    let (_, attacker) = liar.relays.iter().find(|(id, _)| *id == relay).unwrap();
    let any = SocketAddr::new(seen.ip(), 0);
    let port = SocketAddr::new(seen.ip(), seen.port() + 1);
    let elsewhere = "12.9.9.9:5747".parse().unwrap();
    for (endpoint, right) in [(seen, true), (any, true), (port, false), (elsewhere, false)] {
        assert_eq!(ask(world, attacker, endpoint), [right], "{endpoint}");
    }
    let asked = (0..200).filter(|_| {
        attacker.say(world, relay, &Control::Vouch { answer: None, peer, endpoint: elsewhere });
        world.run_for(Duration::from_millis(1));
        true
    });
    let asked = asked.count();
    world.run_for(Duration::from_millis(300));
    let answered = attacker.hear(world).len();
    assert!(answered < asked / 2, "{answered} of {asked} answered");
}
