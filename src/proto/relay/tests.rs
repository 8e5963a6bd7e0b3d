use rand_core::SeedableRng;

use super::*;
use crate::proto::identity::Identity;

type TestRng = rand_chacha::ChaCha8Rng;

const T0: Instant = Instant::from_nanos(1_000_000_000);

fn node(n: u16) -> NodeId {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    Identity::from_seed(seed).node_id()
}

fn ip(a: u8, b: u8) -> IpAddr {
    IpAddr::from([20, a, b, 2])
}

fn rng() -> TestRng {
    TestRng::seed_from_u64(1)
}

fn with_own(own: &[u16]) -> Relay {
    Relay::new(Config { own: own.iter().map(|n| node(*n)).collect(), ..Config::default() })
}

#[test]
fn a_channel_leads_only_to_a_node_that_asked_for_it() {
    let mut relay = Relay::new(Config::default());
    assert!(relay.bind(T0, node(1), Slot(7), node(2), &mut rng()).is_none(), "no allocation");
    assert_eq!(relay.allocate(T0, node(2), ip(1, 1)), Service::Signals);
    let (far, service) = relay.bind(T0, node(1), Slot(7), node(2), &mut rng()).unwrap();
    assert_eq!((far.node, service), (node(2), Service::Signals));
    assert!(far.slot != Slot(7));
    assert_eq!(relay.bind(T0, node(1), Slot(7), node(2), &mut rng()), Some((far, service)), "again");
    assert_eq!(relay.channels().count(), 1);
    assert!(relay.bind(T0, node(3), Slot(7), node(2), &mut rng()).is_none(), "somebody else's slot");
    assert!(relay.bind(T0, node(3), far.slot, node(2), &mut rng()).is_none(), "the other end's slot");
    let near = End { node: node(1), slot: Slot(7) };
    assert_eq!(
        relay.bind(T0, node(2), far.slot, node(1), &mut rng()),
        Some((near, service)),
        "by the other end"
    );
    assert!(relay.bind(T0, node(2), Slot(8), node(2), &mut rng()).is_none(), "to oneself");
}

#[test]
fn data_is_carried_for_own_peers_and_for_strangers_only_if_the_owner_says_so() {
    let service = |mut relay: Relay, from: u16| {
        relay.allocate(T0, node(2), ip(1, 1));
        let (_, service) = relay.bind(T0, node(from), Slot(1), node(2), &mut rng()).unwrap();
        let quota = relay.channels().next().unwrap().quotas[0].clone();
        let carried = (0..4096).filter(|_| quota.take(T0, 1024)).count();
        (service, carried)
    };
    assert_eq!(service(with_own(&[]), 1), (Service::Signals, 32));
    let open = Relay::new(Config { strangers: true, ..Config::default() });
    assert_eq!(service(open, 1), (Service::Data, 1024));
    assert_eq!(service(with_own(&[1]), 1), (Service::Data, 4096));
    assert_eq!(service(with_own(&[2]), 1), (Service::Data, 4096));
}

#[test]
fn strangers_share_what_there_is_and_own_peers_always_find_room() {
    let mut relay = with_own(&[900]);
    let granted = |relay: &mut Relay, n: u16, ip| relay.allocate(T0, node(n), ip) != Service::None;
    let neighbours = (0..20).filter(|n| granted(&mut relay, *n, ip(9, 9))).count();
    assert_eq!(neighbours, STRANGERS_PER_PREFIX_MAX);
    let others = (20..400).filter(|n| granted(&mut relay, *n, ip(1, *n as u8))).count();
    assert_eq!(neighbours + others, STRANGERS_MAX);
    assert!(granted(&mut relay, 0, ip(9, 9)), "renewing is always possible");
    assert!(granted(&mut relay, 900, ip(9, 9)));
}

#[test]
fn one_stranger_does_not_take_all_channels() {
    let mut relay = with_own(&[900]);
    for n in 0..200 {
        relay.allocate(T0, node(n), ip(n as u8, 1));
    }
    let opened = (1..200)
        .filter(|n| relay.bind(T0, node(500), Slot(1000 + u64::from(*n)), node(*n), &mut rng()).is_some())
        .count();
    assert_eq!(opened, CHANNELS_PER_NODE_MAX);
    assert!(relay.bind(T0, node(900), Slot(5), node(199), &mut rng()).is_some());
}

#[test]
fn nobody_keeps_others_from_a_client() {
    let mut relay = with_own(&[900]);
    relay.allocate(T0, node(0), ip(1, 1));
    let mut rng = rng();
    for slot in 0..100 {
        assert!(relay.bind(T0, node(1), Slot(slot), node(0), &mut rng).is_some());
    }
    assert_eq!(relay.channels().count(), 1, "a pair has one channel");
    assert!(relay.is_free(Slot(98)) && !relay.is_free(Slot(99)));
    for n in 0..2 * CHANNELS_PER_CLIENT_MAX as u16 {
        let now = T0 + Duration::from_secs(n.into());
        assert!(relay.bind(now, node(1000 + n), Slot(1000 + u64::from(n)), node(0), &mut rng).is_some());
    }
    assert_eq!(relay.channels().count(), CHANNELS_PER_CLIENT_MAX);
    assert!(relay.is_free(Slot(1000)), "the one that was not used for longest has given way");
    assert!(relay.bind(T0, node(900), Slot(5), node(0), &mut rng).is_some());
}

#[test]
fn strangers_leave_room_for_own_peers() {
    let mut relay = with_own(&[900]);
    let mut rng = rng();
    for client in 0..100 {
        relay.allocate(T0, node(client), ip(client as u8, 1));
    }
    let mut slot = 10_000;
    let mut open = |relay: &mut Relay, from: u16, to: u16| {
        slot += 1;
        relay.bind(T0, node(from), Slot(slot), node(to), &mut rng).is_some()
    };
    let opened: usize =
        (100..200u16).map(|from| (0..64u16).filter(|to| open(&mut relay, from, *to)).count()).sum();
    assert_eq!(opened, CHANNELS_MAX / 4 * 3);
    assert!(!open(&mut relay, 300, 1) && open(&mut relay, 900, 1));
}

#[test]
fn what_is_not_used_ends() {
    let mut relay = Relay::new(Config::default());
    relay.allocate(T0, node(2), ip(1, 1));
    relay.bind(T0, node(1), Slot(7), node(2), &mut rng()).unwrap();
    let end = relay.poll_timeout().unwrap();
    assert_eq!(end, T0 + ALLOCATION_LIFE);
    let used = T0 + CHANNEL_LIFE / 2;
    assert!(relay.channels().next().unwrap().quotas[1].take(used, 100));
    assert!(!relay.handle_timeout(end), "the channel was used");
    assert_eq!((relay.clients().count(), relay.channels().count()), (0, 1));
    assert!(relay.bind(end, node(3), Slot(9), node(2), &mut rng()).is_none(), "the allocation has ended");
    let later = relay.poll_timeout().unwrap();
    assert!(later > end && later < used + CHANNEL_LIFE + Duration::from_secs(1));
    assert!(relay.handle_timeout(later));
    assert_eq!((relay.channels().count(), relay.is_free(Slot(7))), (0, true));
    assert_eq!(relay.poll_timeout(), None);
}

#[test]
fn a_part_of_a_route_needs_no_allocation_and_is_renewed_and_ended_from_both_sides() {
    let mut relay = Relay::new(Config { strangers: true, ..Config::default() });
    let mut rng = rng();
    let near = End { node: node(1), slot: Slot(7) };
    let bind = |relay: &mut Relay, near, to: u16, ends: (u16, u16), rng: &mut TestRng| {
        relay.bind_route(T0, near, node(to), (node(ends.0), node(ends.1)), rng)
    };
    let (far, service) = bind(&mut relay, near, 2, (1, 3), &mut rng).unwrap();
    assert_eq!((far.node, service), (node(2), Service::Data));
    assert_eq!(bind(&mut relay, near, 2, (1, 3), &mut rng), Some((far, service)), "again");
    assert_eq!(bind(&mut relay, far, 1, (3, 1), &mut rng), Some((near, service)), "from the other side");
    assert_eq!(bind(&mut relay, near, 4, (1, 3), &mut rng), None, "it leads elsewhere");
    let foreign = End { node: node(5), slot: Slot(7) };
    assert_eq!(bind(&mut relay, foreign, 2, (5, 3), &mut rng), None, "somebody else's slot");
    let other = End { node: node(1), slot: Slot(8) };
    assert!(bind(&mut relay, other, 2, (6, 3), &mut rng).is_some(), "another route by the same two");
    assert!(
        bind(&mut relay, End { node: node(1), slot: Slot(9) }, 1, (1, 3), &mut rng).is_none(),
        "to itself"
    );
    assert_eq!(relay.channels().count(), 2);
    assert_eq!(relay.route_ends(T0).collect::<BTreeSet<_>>(), BTreeSet::from([node(1), node(2)]));
    assert_eq!(relay.route_ends(T0 + ROUTE_USED).count(), 0, "not used any more");
    relay.close(foreign);
    assert_eq!(relay.across(near), Some((far, service)));
    relay.close(far);
    assert_eq!((relay.across(near), relay.channels().count()), (None, 1));
}

#[test]
fn a_peer_that_is_removed_stays_our_own_when_the_configuration_names_it() {
    let mut relay = with_own(&[1]);
    let check =
        |relay: &mut Relay, n, expected| assert_eq!(relay.allocate(T0, node(n), ip(1, 1)), expected, "{n}");
    check(&mut relay, 2, Service::Signals);
    relay.set_own(node(2), true);
    relay.set_own(node(1), true);
    check(&mut relay, 1, Service::Data);
    check(&mut relay, 2, Service::Data);
    relay.set_own(node(1), false);
    relay.set_own(node(2), false);
    check(&mut relay, 1, Service::Data);
    check(&mut relay, 2, Service::Signals);
}

#[test]
fn strangers_get_no_more_by_routes_than_by_a_relay_and_nothing_to_whom_does_not_answer() {
    let mut relay = with_own(&[2]);
    let mut rng = rng();
    let ends = |n: u16| (node(n), node(2));
    for n in 0..100u16 {
        let near = End { node: node(1), slot: Slot(u64::from(n)) };
        assert!(relay.bind_route(T0, near, node(2), ends(100 + n), &mut rng).is_some());
    }
    assert_eq!(relay.channels().count(), ROUTES_PER_PAIR_MAX);
    let quotas = relay.channels().next().unwrap().quotas.clone();
    let carried = quotas.each_ref().map(|quota| (0..4096).filter(|_| quota.take(T0, 1024)).count());
    assert_eq!(carried, [1024, 4096], "our peer sends what it likes, a stranger does not");
    let used = relay.channels().next().unwrap().ends[0].slot;
    let end = relay.poll_timeout().unwrap();
    assert_eq!(end, T0 + WANTED_WITHIN);
    assert!(relay.handle_timeout(end));
    assert_eq!(relay.channels().map(|channel| channel.ends[0].slot).collect::<Vec<_>>(), [used]);
}

#[test]
fn one_bind_is_answered_once() {
    let mut relay = Relay::new(Config { strangers: true, ..Config::default() });
    let near = End { node: node(1), slot: Slot(7) };
    let bind =
        |relay: &mut Relay| relay.bind_route(T0, near, node(2), (node(1), node(3)), &mut rng()).unwrap().0;
    let far = bind(&mut relay);
    assert_eq!(relay.answer(far), Some((near, Service::Data)));
    assert_eq!(relay.answer(far), None, "nobody asked again");
    bind(&mut relay);
    assert!(relay.answer(far).is_some());
}
