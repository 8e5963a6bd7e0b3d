//! What a node says of the ways to its peers: how they changed and why, and why one leads through a relay.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use auramesh::proto::node::{Lost, PeerState, PeerStatus, Reason, Relayed, Silence, Way};
use auramesh::proto::relay;

use crate::host::Machine;
use crate::nat::NatKind;
use crate::network::Conditions;
use crate::pair::{pair, ping};
use crate::relays::{PATIENCE, Place, conditions, is_direct, peer, place};
use crate::traffic::{quiet_pair, steady};
use crate::world::{HostId, PORT, World};

/// Two nodes behind NATs, with three open relays on the internet.
fn behind(world: &mut World, a: NatKind, b: NatKind) -> (HostId, HostId) {
    // Only observers in different networks tell how a NAT maps.
    let mut public = Vec::<HostId>::new();
    for n in 0..3 {
        let relay = relay::Config { strangers: true, ..relay::Config::default() };
        let bootstrap = public.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
        let machine = world.machine_at(SocketAddr::from(([13 + n, 0, 0, 7], PORT)));
        public.push(world.add(Machine { relay, bootstrap, ..machine }));
    }
    let (a, _) = place(world, Place::Behind(a), public[1]);
    let (b, _) = place(world, Place::Behind(b), public[2]);
    world.run_for(Duration::from_secs(10));
    (a, b)
}

/// Loses what goes from one NAT to another; relays are not behind one.
fn cut_direct(world: &mut World) {
    let behind = |at: SocketAddr| matches!(at.ip(), IpAddr::V4(ip) if ip.octets()[0] == 12);
    world.filter(move |datagram| !(behind(datagram.from) && behind(datagram.to)));
}

fn is_relayed(way: &Option<Way>) -> bool {
    way.as_ref().is_some_and(|way| way.via.len() == 1 && way.endpoint.is_some())
}

fn reasons(peer: &PeerStatus) -> Vec<Reason> {
    peer.history.iter().map(|change| change.reason).collect()
}

#[test]
fn a_peer_tells_by_which_ways_it_was_reached_and_why_they_changed() {
    // No way round by a relay is shorter than the straight one.
    let near = Conditions { delay_spread: Duration::from_millis(5), ..conditions() };
    let mut world = World::new(811, near);
    let (a, b) = behind(&mut world, NatKind::PortRestricted, NatKind::PortRestricted);
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(1));
    let seen = peer(&world, a, b).unwrap();
    assert_eq!(reasons(&seen), [Reason::Checked, Reason::Handshake]);
    assert!(seen.history[1].from.is_none() && is_relayed(&seen.history[1].to));
    assert_eq!(seen.history[0].from, seen.history[1].to);
    assert_eq!(seen.history[0].to.as_ref().and_then(|way| way.endpoint), seen.endpoint);
    assert!(seen.relayed.is_none());

    world.run_for(Duration::from_secs(6));
    cut_direct(&mut world);
    steady(&mut world, a, b, Duration::from_millis(100), Duration::from_secs(5));
    let seen = peer(&world, a, b).unwrap();
    let silent = seen.history.iter().find(|change| matches!(change.reason, Reason::Silent(_) | Reason::Left));
    let change = silent.unwrap_or_else(|| panic!("{:?}", seen.history));
    assert!(is_relayed(&change.to) && !is_relayed(&change.from), "{change:?}");
    println!("{}", change.reason);
}

#[test]
fn a_session_that_ends_is_the_end_of_its_way() {
    let mut world = World::new(812, conditions());
    let (a, b) = behind(&mut world, NatKind::FullCone, NatKind::FullCone);
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(1));
    let id = world.id(b);
    world.kill(b);
    world.run_for(Duration::from_secs(600));
    let status = world.host(a).node.status(world.now);
    let seen = status.peers.iter().find(|peer| peer.node_id == id).unwrap();
    assert_eq!((seen.history[0].reason, &seen.history[0].to), (Reason::Lost(Lost::NoAnswer), &None));
    assert!(seen.relayed.is_none());
}

/// Losses and returns of `b` that were told at `a`, and those in its history, oldest first.
fn told(world: &World, a: HostId, b: HostId) -> (Vec<Option<Lost>>, Vec<Option<Lost>>) {
    let id = world.id(b);
    let told = world.host(a).told.iter().filter(|(of, _)| *of == id).map(|(_, lost)| *lost);
    let kept = peer(world, a, b).map(|peer| reasons(&peer)).unwrap_or_default().into_iter().rev();
    let kept = kept.filter_map(|reason| {
        let back = matches!(reason, Reason::Handshake | Reason::Returned).then_some(None);
        if let Reason::Lost(why) = reason { Some(Some(why)) } else { back }
    });
    (told.collect(), kept.collect())
}

/// An idle network is no outage, and an outage is not as old as the idleness before it.
#[test]
fn a_peer_that_nobody_used_may_answer_until_it_was_asked_in_vain() {
    let mut world = World::new(817, Conditions::default());
    let (a, b) = pair(&mut world);
    world.run_for(Duration::from_secs(2));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(60));
    world.cut_off(&[b]);
    assert!(ping(&mut world, a, b, 2, Duration::from_secs(6)).is_none());
    let unanswered = peer(&world, a, b).unwrap().unanswered().unwrap();
    assert!((5..=7).contains(&unanswered.as_secs()), "{unanswered:?}");
    world.reunite();
    assert!(ping(&mut world, a, b, 3, PATIENCE).is_some());

    let mut without_session = 0;
    for _ in 0..120 {
        world.run_for(Duration::from_secs(10));
        let seen = peer(&world, a, b).unwrap();
        without_session += usize::from(seen.state == PeerState::Known);
        assert!(seen.may_answer(), "{seen:?}");
    }
    assert!(without_session > 0, "no session ended");
    world.cut_off(&[b]);
    world.run_for(Duration::from_secs(200));
    assert!(ping(&mut world, a, b, 4, Duration::from_secs(20)).is_none());
    assert!(!peer(&world, a, b).unwrap().may_answer());
}

#[test]
fn a_peer_that_is_silent_for_a_while_is_told_to_be_lost_and_back_once() {
    let mut world = World::new(816, Conditions::default());
    let (a, b) = pair(&mut world);
    world.run_for(Duration::from_secs(2));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(2));
    let silent = world.endpoint(b);
    world.filter(move |datagram| datagram.from != silent && datagram.to != silent);
    for n in 0..2 {
        assert!(ping(&mut world, a, b, 2 + n, Duration::from_secs(20)).is_none());
    }
    let lost = vec![None, Some(Lost::NoAnswer)];
    assert_eq!(told(&world, a, b), (lost.clone(), lost));
    assert_eq!(peer(&world, a, b).unwrap().history[0].to, None);

    world.unfilter();
    assert!(ping(&mut world, b, a, 1, PATIENCE).is_some());
    // That it is heard does not show that it hears us.
    world.run_for(Duration::from_secs(1));
    let back = vec![None, Some(Lost::NoAnswer), None];
    assert_eq!(told(&world, a, b), (back.clone(), back));
    let seen = peer(&world, a, b).unwrap();
    assert_eq!((seen.history[0].reason, &seen.history[0].from), (Reason::Returned, &None));
    assert_eq!(seen.history[0].to.as_ref().and_then(|way| way.endpoint), seen.endpoint);
}

/// What goes to a peer is lost, and what comes from it is not: nothing that it sends shows that it is reached.
#[test]
fn a_deaf_peer_is_told_as_such_and_neither_lost_nor_back_again_and_again() {
    let mut world = World::new(819, Conditions::default());
    let (a, b) = pair(&mut world);
    world.run_for(Duration::from_secs(2));
    for (from, to) in [(a, b), (b, a)] {
        assert!(ping(&mut world, from, to, 1, PATIENCE).is_some());
    }
    let deaf = world.endpoint(b);
    world.filter(move |datagram| datagram.to != deaf);
    let mut unheard = Duration::ZERO;
    for second in 0..240 {
        for (from, to) in [(a, b), (b, a)] {
            assert!(ping(&mut world, from, to, 2 + second, Duration::from_millis(500)).is_none());
        }
        // Its handshakes show by and by that it does not hear; nothing else may.
        match peer(&world, a, b).unwrap().silence {
            Some(Silence::Deaf(since)) if second >= 40 => {
                assert!(since > unheard, "{since:?} after {unheard:?}");
                unheard = since;
            }
            seen => assert!(second < 40, "{seen:?} after {second} s"),
        }
        let seen = peer(&world, b, a).unwrap().silence;
        assert!(second < 5 || matches!(seen, Some(Silence::NoAnswer(_))), "{seen:?} after {second} s");
    }
    let (told_of_b, _) = told(&world, a, b);
    assert!(told_of_b.len() <= 2, "{told_of_b:?}");

    world.unfilter();
    assert!(ping(&mut world, b, a, 1000, Duration::from_secs(20)).is_some());
    world.run_for(Duration::from_secs(1));
    for (from, to) in [(a, b), (b, a)] {
        let seen = peer(&world, from, to).unwrap();
        assert_eq!((seen.silence, seen.state), (None, PeerState::Flowing));
    }
}

#[test]
fn a_peer_found_dead_after_its_session_has_ended_is_told_to_be_lost_in_both() {
    let mut world = World::new(817, Conditions::default());
    let (a, b) = quiet_pair(&mut world);
    world.run_for(Duration::from_secs(2));
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(2));
    let dead = world.endpoint(b);
    world.filter(move |datagram| datagram.from != dead && datagram.to != dead);
    let idle = |world: &World| reasons(&peer(world, a, b).unwrap())[0] == Reason::Idle;
    assert!(world.run_until(Duration::from_secs(300), idle).is_some(), "nobody asked it anything");
    assert_eq!(told(&world, a, b), (vec![None], vec![None]), "nothing is known of it");
    ping(&mut world, a, b, 2, Duration::from_secs(30));
    let lost = vec![None, Some(Lost::NoAnswer)];
    assert_eq!(told(&world, a, b), (lost.clone(), lost));
}

#[test]
fn totals_of_a_peer_outlive_its_sessions() {
    let mut world = World::new(818, Conditions::default());
    let (a, b) = pair(&mut world);
    world.run_for(Duration::from_secs(2));
    let mut before = (0, 0);
    let mut look = |world: &World| {
        let seen = peer(world, a, b).unwrap();
        let bytes = (seen.bytes_received, seen.bytes_sent);
        assert!(bytes.0 >= before.0 && bytes.1 >= before.1, "{bytes:?} after {before:?}");
        assert!(seen.last_heard.is_some());
        before = bytes;
        seen.session_age
    };
    for n in 0..20 {
        assert!(ping(&mut world, a, b, n, PATIENCE).is_some());
        world.run_for(Duration::from_secs(20));
        look(&world);
    }
    let dead = world.endpoint(b);
    world.filter(move |datagram| datagram.from != dead && datagram.to != dead);
    world.run_for(Duration::from_secs(400));
    assert_eq!(look(&world), None, "the session has ended");
}

#[test]
fn a_relayed_peer_says_why() {
    use NatKind::{PortRestricted, Symmetric};
    for (one, other) in [(Symmetric, Symmetric), (Symmetric, PortRestricted), (PortRestricted, Symmetric)] {
        let mut world = World::new(813, conditions());
        let (a, b) = behind(&mut world, one, other);
        assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
        world.run_for(Duration::from_secs(30));
        let mut why = peer(&world, a, b).unwrap().relayed;
        // Ports are guessed for seconds, and perhaps once more.
        let end = world.now + Duration::from_secs(15);
        while why == Some(Relayed::Trying) && world.now < end {
            world.run_for(Duration::from_millis(100));
            why = peer(&world, a, b).unwrap().relayed;
        }
        println!("{one:?} to {other:?}: {why:?} at {:?}", world.now);
        let right = match (one, other) {
            (Symmetric, Symmetric) => why == Some(Relayed::BothDependent),
            _ if is_direct(&world, a, b) => why.is_none(),
            _ if matches!(why, Some(Relayed::Better(by_relay, straight)) if by_relay < straight) => true,
            (Symmetric, _) => matches!(why, Some(Relayed::DependentHere(n)) if n >= 10),
            _ => matches!(why, Some(Relayed::DependentThere(n)) if n >= 10),
        };
        assert!(right, "{one:?} to {other:?}: {why:?}");
    }
}

#[test]
fn checks_that_nobody_answers_are_told_with_their_endpoints() {
    let mut world = World::new(814, conditions());
    let (a, b) = behind(&mut world, NatKind::PortRestricted, NatKind::PortRestricted);
    cut_direct(&mut world);
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(30));
    let why = peer(&world, a, b).unwrap().relayed;
    let Some(Relayed::NoAnswer(checks, endpoints)) = &why else { panic!("{why:?}") };
    assert!(*checks >= 10 && endpoints.len() == 1, "{why:?}");
}

#[test]
fn the_owner_may_have_a_direct_way_looked_for_again() {
    let mut world = World::new(815, conditions());
    let (a, b) = behind(&mut world, NatKind::PortRestricted, NatKind::PortRestricted);
    cut_direct(&mut world);
    assert!(ping(&mut world, a, b, 1, PATIENCE).is_some());
    world.run_for(Duration::from_secs(30));
    world.unfilter();
    // Those who did not answer get no more for a minute.
    world.run_for(Duration::from_secs(60));
    assert!(!is_direct(&world, a, b), "nobody looks while there is no data");
    let (now, address) = (world.now, world.mesh_address(b));
    world.with(a, |host, _| host.node.seek_direct(now, address));
    world.run_for(Duration::from_secs(1));
    assert!(is_direct(&world, a, b) && is_direct(&world, b, a));
}
