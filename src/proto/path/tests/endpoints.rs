use std::net::SocketAddr;

use crate::proto::path::*;
use crate::proto::wire::relay::Slot;

const T0: Instant = Instant::from_nanos(1_000_000_000);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_stranger_cannot_make_us_send_anywhere() {
    let local = [
        LocalNetwork { ip: "192.168.1.5".parse().unwrap(), prefix_len: 24 },
        LocalNetwork { ip: "fd00:1::5".parse().unwrap(), prefix_len: 64 },
    ];
    let check = |text: &str, expected: bool| assert_eq!(is_admissible(&at(text), &local), expected, "{text}");
    check("203.0.113.7:5747", true);
    check("[2001:db8::1]:5747", true);
    check("192.168.1.77:5747", true);
    check("[fd00:1::77]:5747", true);
    check("203.0.113.7:443", true);
    for refused in [
        "203.0.113.7:0",
        "203.0.113.7:53",
        "127.0.0.1:5747",
        "[::1]:5747",
        "0.0.0.0:5747",
        "[::]:5747",
        "224.0.0.1:5747",
        "[ff02::1]:5747",
        "255.255.255.255:5747",
        "169.254.169.254:5747",
        "100.64.0.1:5747",
        "10.0.0.1:5747",
        "192.168.2.1:5747",
        "[fd00:2::1]:5747",
        "[fe80::1]:5747",
        "[::ffff:203.0.113.7]:5747",
        "[64:ff9b::c000:201]:5747",
        "[600::1]:5747",
        "192.168.1.5:5747",
        "[fd00:1::5]:5747",
        "198.18.0.1:5747",
        "240.0.0.1:5747",
    ] {
        check(refused, false);
    }
}

#[test]
fn the_owner_may_configure_private_endpoints_but_no_tunnel_in_itself() {
    assert!(is_possible(&at("10.0.0.1:53")));
    assert!(is_possible(&at("127.0.0.1:5747")));
    assert!(!is_possible(&at("[612:3456::1]:5747")));
}

#[test]
fn only_heard_packets_set_the_way_in_use() {
    let mut path = Path::default();
    path.learn(at("203.0.113.1:1024"));
    assert_eq!(path.current(), None);
    let heard = Hop::Direct(at("203.0.113.2:1024"));
    assert_eq!(path.handle_heard(T0, heard), Heard::Moved);
    assert_eq!(path.handle_heard(T0, heard), Heard::InUse);
    path.learn(at("203.0.113.3:1024"));
    assert_eq!(path.current(), Some(heard));
    assert_eq!(path.handle_heard(T0, Hop::Direct(at("203.0.113.4:1024"))), Heard::Moved, "it roams");
}

#[test]
fn each_side_chooses_for_itself_between_a_relay_and_an_endpoint() {
    let (relayed, direct) = (Hop::Relayed(Slot(1)), Hop::Direct(at("203.0.113.2:1024")));
    let mut path = Path::default();
    path.handle_heard(T0, relayed);
    assert_eq!((path.handle_heard(T0, direct), path.current()), (Heard::Elsewhere, Some(relayed)));
    assert_eq!(path.heard(), Some(direct));
    path.switch(direct);
    assert_eq!((path.handle_heard(T0, relayed), path.current()), (Heard::Elsewhere, Some(direct)));
    path.switch(relayed);
    let other = Hop::Relayed(Slot(2));
    assert_eq!(
        (path.handle_heard(T0, other), path.current()),
        (Heard::Elsewhere, Some(relayed)),
        "another channel"
    );
}

#[test]
fn a_peer_that_uses_another_way_that_we_know_takes_nobody_along() {
    let [v4, other, v6] = ["203.0.113.2:1024", "203.0.113.3:1024", "[2001:db8::2]:1024"]
        .map(|endpoint| Hop::Direct(at(endpoint)));
    let mut path = Path::default();
    path.handle_heard(T0, v4);
    assert_eq!(path.handle_heard(T0, v6), Heard::Elsewhere, "it has both families");
    let rtt = Duration::from_millis(5);
    path.choice.handle_answer(T0, path.current(), other, rtt, |_| true);
    assert_eq!((path.handle_heard(T0, other), path.current()), (Heard::Elsewhere, Some(v4)), "it has both");
    let later = T0 + choice::KNOWN_FOR;
    assert_eq!((path.handle_heard(later, other), path.current()), (Heard::Moved, Some(other)));
}

#[test]
fn every_candidate_gets_its_turn_and_their_number_is_bounded() {
    let mut path = Path::default();
    path.learn_more((1..=20).map(|i| at(&format!("203.0.113.{i}:1024"))));
    assert_eq!(path.candidates().len(), CANDIDATES_MAX);
    let heard = Hop::Direct(at("198.51.100.1:1024"));
    path.handle_heard(T0, heard);
    let mut seen: Vec<_> = (0..CANDIDATES_MAX as u32).flat_map(|attempt| path.targets(attempt)).collect();
    assert!(path.targets(0).len() == TARGETS_MAX && path.targets(0)[0] == heard);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), CANDIDATES_MAX);
}
