use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::path::observed::*;
use crate::proto::path::reach::Verdict;
use crate::proto::timer::Instant;

const T0: Instant = Instant::from_nanos(1_000_000_000);

/// Votes of observers in different networks, for what they see.
fn seen(votes: &[&str]) -> Observed {
    let mut observed = Observed::default();
    for (n, vote) in votes.iter().enumerate() {
        let observer = format!("20.{n}.0.1:5747").parse().unwrap();
        observed.vote(T0, observer, vote.parse().unwrap());
    }
    observed
}

fn is_mapped(votes: &[&str], own: &str) -> bool {
    seen(votes).is_mapped(T0, &[own.parse::<IpAddr>().unwrap()], |_| Verdict::Unknown)
}

#[test]
fn a_private_address_is_behind_a_nat_as_soon_as_anybody_outside_answers() {
    assert!(!is_mapped(&[], "192.168.1.5"));
    assert!(is_mapped(&["21.0.0.1:40000"], "192.168.1.5"));
    assert!(is_mapped(&["21.0.0.1:1"], "10.0.0.1"), "whatever it says");
}

#[test]
fn few_liars_do_not_talk_a_public_node_out_of_the_dht() {
    let own = "21.0.0.1";
    let (true_one, lie) = ("21.0.0.1:5747", "66.0.0.1:1024");
    assert!(!is_mapped(&[true_one], own));
    assert!(!is_mapped(&[lie], own), "one");
    assert!(!is_mapped(&[lie, lie], own), "two");
    assert!(!is_mapped(&[lie, lie, lie, true_one, true_one, true_one, true_one], own), "the minority");
    assert!(is_mapped(&[lie, lie, lie], own), "three networks that agree");
}

#[test]
fn one_network_has_one_vote_and_only_for_its_time() {
    let mut observed = Observed::default();
    for host in 1..100 {
        let observer = format!("20.0.{host}.1:5747").parse().unwrap();
        observed.vote(T0, observer, "21.0.0.1:1".parse().unwrap());
    }
    assert_eq!(observed.endpoint(T0, true).map(|(_, votes)| votes), Some(1));
    assert_eq!(observed.endpoint(T0 + VOTE_LIFE, true), None);
    assert_eq!(observed.endpoint(T0, false), None, "of the other family");
    for n in 0..200u8 {
        let observer = format!("{}.{n}.0.1:5747", 20 + n % 4).parse().unwrap();
        observed.vote(T0 + Duration::from_secs(n.into()), observer, "21.0.0.1:1".parse().unwrap());
    }
    assert_eq!(observed.endpoint(T0, true).map(|(_, votes)| votes), Some(VOTES_MAX));
}

#[test]
fn the_mapping_is_told_by_the_ports_that_several_see() {
    let mapping =
        |votes: &[&str]| seen(votes).mapping(T0, true, |ip| ip == "99.0.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(mapping(&[]), Mapping::Unknown);
    assert_eq!(mapping(&["21.0.0.1:1"]), Mapping::Unknown);
    assert_eq!(mapping(&["99.0.0.1:1"]), Mapping::None);
    assert_eq!(mapping(&["21.0.0.1:1", "21.0.0.1:1"]), Mapping::Independent);
    assert_eq!(mapping(&["21.0.0.1:1", "21.0.0.1:2"]), Mapping::Dependent);
    assert_eq!(mapping(&["21.0.0.1:1", "21.0.0.1:1", "66.0.0.1:1"]), Mapping::Independent, "one lies");
}

#[test]
fn who_sees_us_from_inside_or_says_nothing_is_left_out() {
    let mut observed = Observed::default();
    for (observer, seen) in [
        ("192.168.1.9:5747", "192.168.1.5:5747"),
        ("20.0.0.1:5747", "0.0.0.0:0"),
        ("20.0.0.1:5747", "192.168.1.5:5747"),
        ("20.0.0.1:5747", "[2001:db8::1]:5747"),
    ] {
        observed.vote(T0, observer.parse().unwrap(), seen.parse().unwrap());
    }
    assert_eq!((observed.endpoint(T0, true), observed.endpoint(T0, false)), (None, None));
}

#[test]
fn one_network_that_changes_its_mind_changes_no_others_votes() {
    let (old, new) = ("21.0.0.1:1", "21.0.0.2:1");
    let mut observed = seen(&[old, old, old, old]);
    let vote = |observed: &mut Observed, n: u8, text: &str| {
        let now = T0 + Duration::from_secs(1);
        observed.vote(now, format!("20.{n}.0.1:5747").parse().unwrap(), text.parse().unwrap());
    };
    for _ in 0..3 {
        vote(&mut observed, 0, new);
        vote(&mut observed, 0, old);
    }
    vote(&mut observed, 0, new);
    assert_eq!(observed.endpoint(T0, true), Some((old.parse().unwrap(), 3)));
    assert_eq!(observed.latest(T0, true), Some(new.parse().unwrap()));
    vote(&mut observed, 1, new);
    assert_eq!(observed.endpoint(T0, true), Some((new.parse().unwrap(), 2)), "two see a new one");
}

#[test]
fn a_firewall_counts_as_a_nat_and_an_open_address_as_none() {
    let v4 = |octets: [u8; 4]| IpAddr::from(octets);
    let v6: IpAddr = "2a0f:1::2".parse().unwrap();
    let mut observed = Observed::default();
    observed.vote(T0, "[2a0f:9::2]:5747".parse().unwrap(), SocketAddr::new(v6, 5747));
    let is_mapped = |observed: &Observed, own: &[IpAddr], v6| {
        observed.is_mapped(T0, own, |v4| if v4 { Verdict::Unknown } else { v6 })
    };
    assert!(!is_mapped(&observed, &[v6], Verdict::Unknown) && !is_mapped(&observed, &[v6], Verdict::Open));
    assert!(is_mapped(&observed, &[v6], Verdict::Closed));
    // And a NAT for IPv4.
    observed.vote(T0, "20.9.0.2:5747".parse().unwrap(), "21.0.0.1:5747".parse().unwrap());
    let own = [v4([192, 168, 1, 5]), v6];
    assert!(is_mapped(&observed, &own, Verdict::Closed));
    assert!(is_mapped(&observed, &own, Verdict::Unknown), "nobody has come in yet");
    assert!(!is_mapped(&observed, &own, Verdict::Open));
}
