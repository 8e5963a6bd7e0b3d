use super::*;
use crate::proto::identity::Identity;
use crate::proto::wire::inner::{Fragment, Quoted};

fn t(s: u64) -> Instant {
    Instant::from_nanos(s * 1_000_000_000)
}

struct World {
    rules: Rules,
    flows: Flows,
    account: Account,
    peer: NodeId,
}

impl World {
    fn closed() -> Self {
        let peer = Identity::from_seed([1; 32]).node_id();
        Self { rules: Rules::default(), flows: Flows::new([3; 16]), account: Account::default(), peer }
    }

    fn packet(&self, traffic: Traffic, outbound: bool) -> Inner {
        let (us, them) = (Ipv6Addr::new(0x600, 0, 0, 0, 0, 0, 0, 1), self.peer.address().ipv6());
        let (source, destination) = if outbound { (us, them) } else { (them, us) };
        Inner { source, destination, len: 100, fragment: None, traffic }
    }

    fn send(&self, traffic: Traffic, now: Instant) {
        outbound(&self.rules, &self.flows, &self.peer, &self.packet(traffic, true), now);
    }

    fn enters(&self, traffic: Traffic, now: Instant) -> bool {
        let packet = self.packet(traffic, false);
        inbound(&self.rules, &self.flows, &self.account, &self.peer, &packet, now)
    }
}

const fn tcp(source: u16, destination: u16, opens: bool) -> Traffic {
    Traffic::Tcp { source, destination, opens }
}

const fn udp(source: u16, destination: u16) -> Traffic {
    Traffic::Udp { source, destination }
}

#[test]
fn nothing_enters_unasked() {
    let w = World::closed();
    for traffic in [
        tcp(1000, 22, true),
        tcp(1000, 22, false),
        udp(53, 53),
        Traffic::EchoReply(1),
        Traffic::Other(132),
        Traffic::Tail,
    ] {
        assert!(!w.enters(traffic, t(0)), "{traffic:?}");
    }
}

#[test]
fn replies_to_our_flows_enter_until_they_idle() {
    let w = World::closed();
    w.send(tcp(4000, 22, true), t(0));
    w.send(udp(4000, 53), t(0));
    w.send(Traffic::EchoRequest(7), t(0));
    assert!(w.enters(tcp(22, 4000, false), t(1)));
    assert!(w.enters(udp(53, 4000), t(299)));
    assert!(w.enters(udp(53, 4000), t(598)), "a reply keeps its flow alive");
    assert!(!w.enters(udp(53, 4000), t(899)), "idle for five minutes");
    assert!(w.enters(Traffic::EchoReply(7), t(59)));
    assert!(!w.enters(Traffic::EchoReply(8), t(59)));
    assert!(!w.enters(udp(54, 4000), t(1)), "another port is another flow");
    assert!(!w.enters(tcp(22, 4001, false), t(1)));
}

/// Threads that carry packets of one flow must not write the same line for each of them.
#[test]
fn a_flow_is_noted_once_a_second_and_idles_as_long_as_it_should() {
    let at = |ns: u64| Instant::from_nanos(ns);
    let second = 1_000_000_000;
    let w = World::closed();
    w.send(udp(4000, 53), at(0));
    let noted = w.flows.noted();
    w.send(udp(4000, 53), at(second / 2));
    assert!(w.enters(udp(53, 4000), at(second - 1)));
    assert_eq!(w.flows.noted(), noted, "not again within the second");
    assert!(w.enters(udp(53, 4000), at(second + 1)));
    assert!(w.flows.noted() > noted);
    assert!(w.enters(udp(53, 4000), at(301 * second)), "300 s idle is not too long");
    assert!(!w.enters(udp(53, 4000), at((301 + 301) * second)));
}

#[test]
fn nobody_opens_a_connection_through_a_flow_of_ours() {
    let w = World::closed();
    w.send(tcp(4000, 22, true), t(0));
    assert!(!w.enters(tcp(22, 4000, true), t(1)));
}

#[test]
fn a_rule_opens_exactly_what_it_names() {
    let mut w = World::closed();
    let other = Identity::from_seed([2; 32]).node_id();
    w.rules.allow = vec![Rule { protocol: Some(Protocol::Tcp), port: Some(80), peer: Some(w.peer) }];
    assert!(w.enters(tcp(1000, 80, true), t(0)));
    assert!(!w.enters(tcp(1000, 81, true), t(0)));
    assert!(!w.enters(udp(1000, 80), t(0)));
    assert!(!w.enters(Traffic::Other(132), t(0)));
    w.rules.allow[0].peer = Some(other);
    assert!(!w.enters(tcp(1000, 80, true), t(0)));
    for (rule, enters) in [
        (Rule { protocol: Some(Protocol::Tcp), ..Rule::default() }, false),
        (Rule { port: Some(80), ..Rule::default() }, false),
        (Rule { peer: Some(other), ..Rule::default() }, false),
        (Rule { peer: Some(w.peer), ..Rule::default() }, true),
    ] {
        w.rules.allow = vec![rule];
        assert_eq!(w.enters(Traffic::Other(132), t(0)), enters, "{rule:?}");
    }
}

#[test]
fn a_connection_in_its_middle_is_taken_up() {
    let w = World::closed();
    w.send(tcp(4000, 22, false), t(0));
    assert!(w.enters(tcp(22, 4000, false), t(1)));
}

#[test]
fn what_a_rule_let_in_ends_with_it_and_our_own_connections_do_not() {
    let ssh = Rule { protocol: Some(Protocol::Tcp), port: Some(22), peer: None };
    let opened = [
        Rules { allow: vec![ssh], ..Rules::default() },
        Rules { allow_all: true, ..Rules::default() },
        Rules { allow: vec![ssh, Rule::default()], ..Rules::default() },
    ];
    for rules in opened {
        let mut w = World::closed();
        w.rules = rules;
        assert!(w.enters(tcp(1000, 22, true), t(0)));
        w.send(tcp(22, 1000, false), t(0));
        w.send(tcp(4000, 80, true), t(0));
        w.send(tcp(4000, 80, false), t(7000));
        w.rules = Rules::default().in_place_of(&w.rules);
        for s in 8000..8004 {
            w.send(tcp(22, 1000, false), t(s));
            w.send(tcp(4000, 80, false), t(s));
            assert!(!w.enters(tcp(1000, 22, false), t(s)), "what the server still sends holds nothing open");
            assert!(w.enters(tcp(80, 4000, false), t(s)), "a connection that we opened");
        }
        w.send(tcp(4000, 80, false), t(14_000));
        assert!(w.enters(tcp(80, 4000, false), t(21_000)), "what we send keeps it alive");
        assert!(!w.enters(tcp(80, 4000, false), t(90_000)), "idle for long");
        w.send(tcp(4000, 80, false), t(90_000));
        assert!(w.enters(tcp(80, 4000, false), t(90_000)), "and we go on with it");
        w.rules = Rules::default().in_place_of(&w.rules);
        w.send(tcp(22, 1000, false), t(90_000));
        assert!(!w.enters(tcp(1000, 22, false), t(90_000)), "nor after the next change");
    }
}

#[test]
fn a_rule_more_takes_nothing_back() {
    let one = Rules { allow: vec![Rule::default()], ..Rules::default() };
    let all = Rules { allow_all: true, ..Rules::default() };
    assert!(!one.clone().in_place_of(&Rules::default()).strict);
    assert!(!all.in_place_of(&one).strict);
    assert!(Rules::default().in_place_of(&one).strict);
}

#[test]
fn an_open_port_fills_no_flow_table() {
    let mut w = World::closed();
    w.rules.allow = vec![Rule { protocol: Some(Protocol::Udp), port: Some(53), peer: None }];
    w.send(udp(53, 9999), t(0));
    w.rules.allow.clear();
    assert!(!w.enters(udp(9999, 53), t(0)));
}

#[test]
fn echo_requests_enter_at_a_limited_rate() {
    let w = World::closed();
    let burst = (0..2000).filter(|_| w.enters(Traffic::EchoRequest(1), t(10))).count();
    assert_eq!(burst as u64, ECHO_BURST);
    let next = (0..2000).filter(|_| w.enters(Traffic::EchoRequest(1), t(11))).count();
    assert_eq!(next as u64, ECHO_RATE_PER_S);
}

#[test]
fn errors_enter_when_they_are_about_packets_of_ours() {
    let w = World::closed();
    let us = Ipv6Addr::new(0x600, 0, 0, 0, 0, 0, 0, 1);
    let them = w.peer.address().ipv6();
    let about = |ports| Quoted { source: us, destination: them, protocol: 17, ports };
    let error = |mtu, ports| Traffic::Error { mtu, about: about(ports) };
    w.send(udp(4000, 53), t(0));
    assert!(w.enters(error(None, (4000, 53)), t(1)));
    assert!(!w.enters(error(None, (4000, 54)), t(1)));
    assert!(w.enters(error(Some(1280), (4000, 53)), t(1)));
    for mtu in [0, 1, 68, 1279] {
        assert!(!w.enters(error(Some(mtu), (4000, 53)), t(1)), "a forged MTU of {mtu}");
    }
    let other = Identity::from_seed([2; 32]).node_id().address().ipv6();
    let elsewhere = Quoted { destination: other, ..about((4000, 53)) };
    let error = Traffic::Error { mtu: None, about: elsewhere };
    assert!(!w.enters(error, t(1)), "about a packet to somebody else");
}

#[test]
fn later_fragments_follow_a_first_that_entered() {
    let w = World::closed();
    w.send(udp(4000, 53), t(0));
    let fragment = |traffic, id| Inner { fragment: Some(Fragment { id }), ..w.packet(traffic, false) };
    let enters = |packet| inbound(&w.rules, &w.flows, &w.account, &w.peer, &packet, t(1));
    assert!(!enters(fragment(Traffic::Tail, 9)));
    assert!(enters(fragment(udp(53, 4000), 9)));
    assert!(enters(fragment(Traffic::Tail, 9)));
    assert!(!enters(fragment(Traffic::Tail, 10)));
    assert!(!enters(fragment(udp(53, 4001), 11)));
    assert!(!enters(fragment(Traffic::Tail, 11)));
}

#[test]
fn a_full_table_forgets_the_oldest_and_lets_nobody_in() {
    let w = World::closed();
    for port in 0..=u16::MAX {
        w.send(udp(port, 1), t(u64::from(port) / 1000));
        w.send(udp(port, 2), t(u64::from(port) / 1000));
    }
    let kept = (0..=u16::MAX).filter(|port| w.enters(udp(1, *port), t(70))).count();
    assert!(kept > 20_000, "{kept} of 131,072 flows for 65,536 places");
    assert!((0..=u16::MAX).all(|port| !w.enters(udp(3, port), t(70))));
}

#[test]
fn refused_flows_are_listed_by_protocol_and_port_the_last_first() {
    let w = World::closed();
    for (traffic, at) in [(tcp(4000, 22, true), 1), (udp(4000, 53), 2), (Traffic::Other(132), 3)] {
        assert!(!w.enters(traffic, t(at)));
    }
    assert!(!w.enters(tcp(4001, 22, true), t(4)), "another port of theirs, the same of ours");
    for ended in [tcp(4000, 23, false), Traffic::EchoReply(1), Traffic::Tail] {
        assert!(!w.enters(ended, t(5)));
    }
    assert!(w.enters(Traffic::EchoRequest(1), t(5)));
    let refused = |protocol, port, times, at| Refused { protocol, port, times, last: t(at) };
    let expected = [refused(6, Some(22), 2, 4), refused(132, None, 1, 3), refused(17, Some(53), 1, 2)];
    assert_eq!(w.account.refusals.list(), expected, "late segments start no flow");
}

#[test]
fn of_more_refused_ports_than_are_remembered_the_last_ones_stay() {
    let w = World::closed();
    assert!(!w.enters(tcp(4000, u16::MAX, true), t(100)));
    for port in 1..=200 {
        assert!(!w.enters(udp(4000, port), t(port.into())));
    }
    let ports: Vec<_> = w.account.refusals.list().iter().map(|refused| refused.port.unwrap()).collect();
    assert_eq!(ports, (193..=200).rev().collect::<Vec<_>>());
    assert_eq!(ports.len(), REFUSED_MAX);
}
