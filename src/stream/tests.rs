use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::places::{PENDING_MAX, PENDING_PER_PREFIX_MAX, PLACES_MAX, PLACES_PER_PREFIX_MAX, Places};
use super::queue::{QUEUE_BYTES_MAX, QUEUE_BYTES_MIN, QUEUE_TIME_MAX, Queue};

fn ip(network: usize, host: usize) -> std::net::IpAddr {
    std::net::Ipv4Addr::from((20 << 24 | network << 8 | host) as u32).into()
}

#[test]
fn connections_that_ask_for_nothing_give_way_to_newer_ones() {
    let mut places = Places::default();
    let crowd: Vec<_> = (0..PENDING_PER_PREFIX_MAX + 5).map(|host| places.admit(ip(1, host))).collect();
    let mut ended = crowd.into_iter().map(|(_, mut evicted)| evicted.try_recv() == Ok(()));
    assert!((0..5).all(|_| ended.next() == Some(true)), "the oldest");
    assert!(ended.all(|ended| !ended), "not the others");

    let mut places = Places::default();
    let (_, mut first) = places.admit(ip(0, 1));
    let others: Vec<_> = (1..=PENDING_MAX).map(|network| places.admit(ip(network, 1))).collect();
    assert_eq!(first.try_recv(), Ok(()), "of all networks");
    assert_eq!((places.take_evicted(), places.take_evicted()), (1, 0));
    drop(others);
}

#[test]
fn streams_are_limited_and_those_without_an_answer_give_way() {
    let mut places = Places::default();
    let stream = |places: &mut Places, network, host| {
        let (number, evicted) = places.admit(ip(network, host));
        (places.upgrade(number), number, evicted)
    };
    let mut held = Vec::new();
    for host in 0..PLACES_PER_PREFIX_MAX {
        let (taken, number, evicted) = stream(&mut places, 0, host);
        assert!(taken);
        places.prove(number);
        held.push(evicted);
    }
    assert!(!stream(&mut places, 0, 200).0, "one network has had its share");
    let networks = PLACES_MAX / PLACES_PER_PREFIX_MAX;
    for host in 0..PLACES_MAX - PLACES_PER_PREFIX_MAX {
        let (taken, _, evicted) = stream(&mut places, 1 + host % (networks * 2), host);
        assert!(taken, "{host}");
        held.push(evicted);
    }
    let (taken, number, evicted) = stream(&mut places, 99, 1);
    assert!(taken, "in place of one that nobody answered");
    held.push(evicted);
    assert_eq!(held[PLACES_PER_PREFIX_MAX].try_recv(), Ok(()));
    assert_eq!(held[0].try_recv(), Err(TryRecvError::Empty), "who has authenticated stays");
    places.leave(number);
    assert!(stream(&mut places, 98, 1).0);
}

#[test]
fn the_oldest_is_dropped_when_more_waits_than_may() {
    let now = Instant::now();
    let message = |first: u8| Bytes::from(vec![first; QUEUE_BYTES_MAX / 4]);
    let mut queue = Queue::default();
    (0..6).for_each(|first| queue.push(now, message(first)));
    assert_eq!((queue.take_dropped(), queue.take_dropped()), (2, 0));
    assert_eq!(queue.pop(now).unwrap()[0], 2);

    let late = now + QUEUE_TIME_MAX + Duration::from_millis(1);
    queue.push(late, message(9));
    assert_eq!(queue.pop(late).unwrap()[0], 9, "what is too old is not worth sending");
    assert_eq!(queue.take_dropped(), 3);
    queue.push(now, Bytes::from(vec![1; QUEUE_BYTES_MIN]));
    assert_eq!(queue.pop(late).unwrap()[0], 1, "but a slow line has something to send");
    assert_eq!(queue.pop(late), None);
}
