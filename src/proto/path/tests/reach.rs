use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::path::reach::*;
use crate::proto::timer::Instant;

const T0: Instant = Instant::from_nanos(1_000_000_000);
const PEER: NodeId = NodeId([7; 32]);

/// A peer in network number `n`.
fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([20, n, 0, 2], 5747))
}

/// Asks peers of these networks one by one, who dial in vain if `dialled`; the time after the last one.
fn in_vain(reach: &mut Reach, mut now: Instant, networks: &[u8], dialled: bool) -> Instant {
    for (nonce, n) in networks.iter().enumerate() {
        assert!(reach.is_due(now) && reach.is_useful(at(*n)), "network {n}");
        reach.ask(now, PEER, at(*n), nonce as u64);
        if dialled {
            reach.handle_dialled(PEER, nonce as u64);
        }
        now += DIAL_PATIENCE;
        assert_eq!(reach.poll_timeout(), Some(now));
        reach.handle_timeout(now);
    }
    now
}

#[test]
fn what_comes_proves_that_we_are_reached() {
    let mut reach = Reach::default();
    assert!(reach.is_due(T0));
    reach.ask(T0, PEER, at(1), 5);
    assert!(!reach.handle_dial(T0, PEER, 6), "another nonce");
    assert!(!reach.handle_dial(T0, NodeId([8; 32]), 5), "another peer");
    assert!(reach.handle_dial(T0, PEER, 5));
    assert!(!reach.handle_dial(T0, PEER, 5), "again");
    assert_eq!(reach.verdict(), Verdict::Open);
    assert!(!reach.is_due(T0 + AGAIN_OPEN - Duration::from_secs(1)) && reach.is_due(T0 + AGAIN_OPEN));
}

#[test]
fn two_networks_that_dialled_in_vain_twice_prove_that_we_are_not() {
    let mut reach = Reach::default();
    let now = in_vain(&mut reach, T0, &[1, 1], true);
    assert!(!reach.is_useful(at(1)), "one network has one vote");
    let now = in_vain(&mut reach, now, &[2], true);
    assert_eq!(reach.verdict(), Verdict::Unknown, "it may have been lost");
    let now = in_vain(&mut reach, now, &[2], true);
    assert_eq!(reach.verdict(), Verdict::Closed);
    assert!(!reach.is_due(now));
    // The owner has opened the firewall.
    let later = now + AGAIN_CLOSED;
    assert!(reach.is_due(later));
    reach.ask(later, PEER, at(1), 9);
    assert!(reach.handle_dial(later, PEER, 9));
    assert_eq!(reach.verdict(), Verdict::Open);
}

#[test]
fn who_does_not_say_that_it_has_dialled_proves_nothing() {
    let mut reach = Reach::default();
    let now = in_vain(&mut reach, T0, &[1, 2, 3, 1, 2, 3], false);
    assert_eq!(reach.verdict(), Verdict::Unknown);
    reach.note_nobody(now);
    assert!(!reach.is_due(now) && reach.poll_timeout() > Some(now));
}

#[test]
fn no_more_networks_are_asked_than_there_is_room_for() {
    let mut reach = Reach::default();
    let mut now = T0;
    for n in 0..100 {
        if reach.is_useful(at(n)) {
            now = in_vain(&mut reach, now, &[n], false);
        }
    }
    assert!(now <= T0 + 8 * DIAL_PATIENCE, "{now:?}");
}
