use rand_core::SeedableRng;

use super::*;
use crate::proto::identity::Identity;

const T0: Instant = Instant::from_nanos(1_000_000_000);

fn node(n: u16) -> NodeId {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    Identity::from_seed(seed).node_id()
}

fn rng() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(1)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Node 0, which searches for node 9 and has asked nodes 1 and 2.
fn searching() -> (Routes, u64) {
    let mut routes = Routes::new(node(0), T0);
    assert!(routes.begin(T0, node(9)));
    let ring = routes.poll_ring(T0, node(9), &mut rng()).unwrap();
    routes.asked(&node(9), &[node(1), node(2)]);
    (routes, ring.nonce)
}

#[test]
fn rings_grow_and_a_search_in_vain_is_repeated_more_and_more_seldom() {
    let mut routes = Routes::new(node(0), T0);
    let mut rng = rng();
    let mut begins = Vec::new();
    let mut now = T0;
    while begins.len() < 9 {
        if routes.begin(now, node(9)) {
            begins.push(now);
            let mut rings = Vec::new();
            while let Some(at) = routes.poll_timeout(&node(9)) {
                now = at;
                let ring = routes.poll_ring(now, node(9), &mut rng);
                rings.extend(ring.map(|ring| (ring.ttl, now.saturating_since(begins[begins.len() - 1]))));
            }
            assert_eq!(rings, [(1, ms(0)), (2, ms(300)), (3, ms(900))]);
        }
        now += ms(100);
    }
    let waits: Vec<_> =
        begins.windows(2).map(|pair| pair[1].saturating_since(pair[0]).as_secs_f64().round()).collect();
    assert_eq!(waits, [4.0, 5.0, 7.0, 11.0, 19.0, 35.0, 63.0, 63.0]);
}

#[test]
fn a_route_that_carries_data_ends_the_search_and_is_kept() {
    let (mut routes, nonce) = searching();
    let answer = routes.handle_sought(T0, node(1), nonce, Service::Signals, vec![node(3)]);
    assert!(matches!(answer, Answer::Found(target, _) if target == node(9)));
    let answer = routes.handle_sought(T0, node(2), nonce, Service::Data, vec![node(4), node(5)]);
    let Answer::Found(_, route) = answer else { panic!("{answer:?}") };
    assert_eq!(route.relays, [node(2), node(4), node(5)]);
    let again = routes.handle_sought(T0, node(2), nonce, Service::Data, vec![node(6)]);
    assert_eq!(again, Answer::Refused, "one answer of each neighbour");
    let ring = routes.poll_ring(T0 + ms(300), node(9), &mut rng());
    assert!(ring.is_some(), "it may be a lie: the rings go on until the target answers");
    assert_eq!(routes.known(T0, &node(9))[0], route, "the best is the first");
    assert_eq!(routes.known(T0 + ROUTE_LIFE, &node(9)), []);
    routes.end(T0, node(9));
    let late = routes.handle_sought(T0, node(1), ring.unwrap().nonce, Service::Data, vec![node(7)]);
    assert_eq!(late, Answer::Refused, "nobody searches any more");
    assert!(!routes.begin(T0, node(9)), "there is a route");
    routes.forget(T0, &node(9), &route.relays);
    assert!(routes.begin(T0, node(9)), "there is none any more");
}

#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let check = |from: u16, nonce: Option<u64>, service, hops: &[u16]| {
        let (mut routes, own) = searching();
        let hops = hops.iter().map(|n| node(*n)).collect();
        let answer = routes.handle_sought(T0, node(from), nonce.unwrap_or(own), service, hops);
        assert_eq!(answer, Answer::Refused, "{from} {nonce:?} {service:?}");
        assert_eq!(routes.known(T0, &node(9)), []);
    };
    check(1, Some(77), Service::Data, &[]);
    check(3, None, Service::Data, &[]);
    check(1, None, Service::None, &[]);
    check(1, None, Service::Data, &[0]);
    check(1, None, Service::Data, &[9]);
    check(1, None, Service::Data, &[1]);
    check(1, None, Service::Data, &[3, 4, 3]);
    check(1, None, Service::Data, &[3, 4, 5, 6]);
}

#[test]
fn a_question_is_taken_part_in_once_and_answered_to_its_neighbour() {
    let mut routes = Routes::new(node(0), T0);
    assert!(routes.handle_seek(T0, node(1), 7, node(9)));
    assert!(
        !routes.handle_seek(T0, node(1), 7, node(9)) && !routes.handle_seek(T0, node(2), 7, node(9)),
        "a loop"
    );
    assert!(routes.pass(T0, 7, node(9), node(3), false));
    let sought = |routes: &mut Routes, from: u16, hops: &[u16]| {
        let hops = hops.iter().map(|n| node(*n)).collect();
        routes.handle_sought(T0, node(from), 7, Service::Data, hops)
    };
    assert_eq!(sought(&mut routes, 4, &[]), Answer::Refused, "it was not passed on to that one");
    assert_eq!(sought(&mut routes, 3, &[0]), Answer::Refused, "we are on the way already");
    assert_eq!(sought(&mut routes, 3, &[1]), Answer::Refused, "so is who asks");
    assert_eq!(sought(&mut routes, 3, &[4, 5, 6]), Answer::Refused, "too long with us in front");
    let hops = vec![node(3), node(4)];
    assert_eq!(sought(&mut routes, 3, &[4]), Answer::Back { to: node(1), nonce: 7, hops });
    assert_eq!(sought(&mut routes, 3, &[5]), Answer::Refused, "one answer of each neighbour");
    let others: Vec<_> = (10..20).filter(|n| routes.pass(T0, 7, node(9), node(*n), false)).collect();
    let more = others.iter().filter(|n| sought(&mut routes, **n, &[4]) != Answer::Refused).count();
    assert_eq!((others.len(), more), (PASSED_MAX - 1, ANSWERS_MAX - 1));
    assert!(routes.handle_seek(T0, node(2), 7, node(8)), "the nonce alone is not the question");

    let (mut routes, own) = searching();
    assert!(!routes.handle_seek(T0, node(1), own, node(9)), "our own comes back");
}

#[test]
fn who_waits_for_a_node_is_told_once_and_in_time() {
    let mut routes = Routes::new(node(0), T0);
    assert!(routes.handle_seek(T0, node(1), 7, node(9)));
    routes.wait_for((7, node(9)), node(9));
    routes.wait_for((7, node(9)), node(8));
    assert!(routes.awaits(&node(9)) && !routes.awaits(&node(3)));
    assert_eq!(routes.handle_seen(T0, node(9)), [(node(1), 7, node(9))]);
    assert_eq!(routes.handle_seen(T0, node(9)), []);
    assert_eq!(routes.handle_seen(T0 + QUESTION_LIFE, node(8)), [], "too late");
}

#[test]
fn relays_of_the_target_are_asked_beside_the_neighbours() {
    let mut routes = Routes::new(node(0), T0);
    assert!(routes.handle_seek(T0, node(1), 7, node(9)));
    let passed = |routes: &mut Routes, is_relay| {
        (100..200).filter(|n| routes.pass(T0, 7, node(9), node(*n), is_relay)).count()
    };
    // Those that are known to be there come first.
    assert_eq!(passed(&mut routes, true), RELAYS_PASSED_MAX);
    assert_eq!(passed(&mut routes, false), PASSED_MAX);
    assert!(routes.handle_seek(T0, node(1), 8, node(9)));
    assert!(
        routes.pass(T0, 8, node(9), node(5), true) && !routes.pass(T0, 8, node(9), node(5), false),
        "once each"
    );
}

#[test]
fn what_one_neighbour_asks_is_bounded_and_so_is_what_all_of_them_make_us_send() {
    let mut routes = Routes::new(node(0), T0);
    let mut sent = 0;
    for neighbour in 1..100 {
        let mut taken = 0;
        for n in 0..1000 {
            let nonce = u64::from(neighbour) * 10_000 + n;
            if routes.handle_seek(T0, node(neighbour), nonce, node(999)) {
                taken += 1;
                let passed =
                    (200..300).filter(|to| routes.pass(T0, nonce, node(999), node(*to), false)).count();
                assert!(passed <= PASSED_MAX);
                sent += passed;
            }
        }
        assert!(taken <= QUESTIONS_PER_NODE_MAX);
    }
    assert_eq!(routes.questions.len(), QUESTIONS_MAX);
    assert_eq!(sent, PASSED_BURST as usize);
    let later = T0 + QUESTION_LIFE;
    assert!(routes.handle_seek(later, node(1), 1, node(999)), "the old ones are forgotten");
    assert_eq!(routes.questions.len(), 1);
}

#[test]
fn our_own_searches_are_bounded() {
    let mut routes = Routes::new(node(0), T0);
    let begun = (1..1000).filter(|n| routes.begin(T0, node(*n))).count();
    assert_eq!(begun, SEARCHES_BURST as usize);
    let mut now = T0;
    for n in 1000..2000 {
        now += Duration::from_secs(1);
        routes.begin(now, node(n));
        routes.end(now, node(n));
        let route = Route { relays: vec![node(1)], service: Service::Data, until: now + ROUTE_LIFE };
        for relay in 1..10 {
            routes.keep(now, node(n), &Route { relays: vec![node(relay)], ..route.clone() });
        }
    }
    assert_eq!((routes.searches.len(), routes.routes.len()), (SEARCHES_MAX, TARGETS_MAX));
    assert!(routes.routes.values().all(|routes| routes.len() <= ROUTES_MAX));
}

#[test]
fn a_question_goes_to_those_who_knew_a_route_lately_to_those_near_the_target_and_to_others() {
    let now = T0 + SOUGHT_LATELY * 2;
    let target = node(9);
    let mut neighbours: Vec<_> = (100..200).map(|n| (node(n), None)).collect();
    for (n, (_, sought)) in neighbours.iter_mut().enumerate().skip(60).take(20) {
        *sought = Some(now - ms(n as u64));
    }
    neighbours[99].1 = Some(T0);
    let chosen_now = chosen(now, &neighbours, &target, 16);
    assert_eq!(chosen_now[..8], neighbours[60..68].iter().map(|(id, _)| *id).collect::<Vec<_>>());
    let mut near: Vec<_> = neighbours.iter().map(|(id, _)| *id).collect();
    near.sort_by_key(|id| id.position().distance(&target.position()));
    near.retain(|id| !chosen_now[..8].contains(id));
    assert_eq!(chosen_now[8..12], near[..4]);
    let others = neighbours.iter().map(|(id, _)| *id).filter(|id| !chosen_now[..12].contains(id));
    assert_eq!(chosen_now[12..], others.take(4).collect::<Vec<_>>());
    // An old answer is none, and few are asked all.
    assert!(!chosen_now.contains(&neighbours[99].0));
    assert_eq!(chosen(now, &neighbours[..5], &target, 16).len(), 5);
}
