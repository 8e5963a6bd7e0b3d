//! What a peer may have us send to, by the candidates that it names.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::node::{Command, Target};
use auramesh::proto::path::checks::{ADDRESSES_MAX, UNANSWERED_MAX};
use auramesh::proto::wire::control::{CANDIDATES_MAX, Control};
use auramesh::proto::wire::session::Kind;

use crate::attacker::Attacker;
use crate::network::Conditions;
use crate::world::{HostId, World};

/// A node at a public address, a peer of it that means ill, and what goes to anybody else from then on.
fn offered(seed: u64) -> (World, HostId, Attacker, Rc<RefCell<Vec<SocketAddr>>>) {
    let mut world = World::new(seed, Conditions::default());
    let machine = world.machine_at("11.1.1.1:5747".parse().expect("an endpoint"));
    let node = world.add(machine);
    let mut peer = Attacker::new(&mut world, "9.9.9.9:9999");
    peer.connect(&mut world, node);
    world.run_for(Duration::from_secs(1));
    let sent = Rc::new(RefCell::new(Vec::new()));
    let (log, known) = (sent.clone(), peer.endpoint);
    world.filter(move |seen| {
        if seen.to != known {
            log.borrow_mut().push(seen.to);
        }
        true
    });
    (world, node, peer, sent)
}

fn offer(endpoints: Vec<SocketAddr>) -> Control {
    Control::Candidates { answer: false, dependent: false, endpoints }
}

#[test]
fn ten_thousand_candidates_get_no_more_than_a_few_packets() {
    let (mut world, node, peer, sent) = offered(501);
    // All that fit into one message: more than it may hold.
    let mut one = vec![13, 0, 0, 0];
    for n in 0..100u8 {
        one.extend([4, 20, 0, n, 1, 0x16, 0x73]);
    }
    let len = (one.len() - 3) as u16;
    one[1..3].copy_from_slice(&len.to_be_bytes());
    let malformed = world.host(node).drops(DropReason::Malformed);
    let datagram = peer.seal(world.now, Kind::Control, &one);
    world.deliver(node, peer.endpoint, datagram);
    assert_eq!(world.host(node).drops(DropReason::Malformed), malformed + 1);
    let limited = world.host(node).drops(DropReason::RateLimited);
    // One address of somebody with many ports, and thousands of others.
    for n in 0..10_000 / CANDIDATES_MAX as u16 {
        let [high, low] = n.to_be_bytes();
        let victim = SocketAddr::from(([20, 1, 1, 1], 2000 + n));
        let others = (1..CANDIDATES_MAX as u8).map(|k| SocketAddr::from(([21 + k, high, low, 1], 5747)));
        peer.say(&mut world, node, &offer(std::iter::once(victim).chain(others).collect()));
        world.run_for(Duration::from_millis(40));
    }
    assert!(world.host(node).drops(DropReason::RateLimited) > limited + 100, "offers are limited");
    let mut packets = BTreeMap::<IpAddr, usize>::new();
    sent.borrow().iter().for_each(|to| *packets.entry(to.ip()).or_default() += 1);
    let most = packets.values().copied().max().unwrap_or_default();
    println!("{} addresses, at most {most} packets to one", packets.len());
    assert!((1..=ADDRESSES_MAX).contains(&packets.len()), "{} addresses", packets.len());
    assert!(most <= UNANSWERED_MAX as usize, "{most} packets");
}

#[test]
fn candidates_at_special_addresses_are_never_tried() {
    let (mut world, node, peer, sent) = offered(502);
    let honest: SocketAddr = "20.7.7.7:5747".parse().unwrap();
    let special = [
        "0.0.0.0:5747",
        "[::]:5747",
        "127.0.0.1:5747",
        "[::1]:5747",
        "169.254.169.254:80",
        "169.254.169.254:5747",
        "100.64.0.1:5747",
        "10.0.0.1:5747",
        "192.168.1.1:5747",
        "224.0.0.1:5747",
        "255.255.255.255:5747",
        "[fe80::1]:5747",
        "[fd00::1]:5747",
        "[ff02::1]:5747",
        "[600::1]:5747",
        "[64:ff9b::a00:1]:5747",
        "[64:ff9b::1414:1414]:5747",
        "20.7.7.7:22",
        "11.1.1.1:5747",
    ]
    .map(|endpoint| endpoint.parse::<SocketAddr>().unwrap());
    for chunk in special.chunks(CANDIDATES_MAX - 1) {
        let named = chunk.iter().copied().chain([honest]).collect();
        peer.say(&mut world, node, &offer(named));
        world.run_for(Duration::from_secs(5));
    }
    // A second spelling of an IPv4 address is no endpoint at all.
    let mapped = [&[13, 0, 20, 0, 6][..], &[0; 10], &[0xff, 0xff, 10, 0, 0, 1, 0x16, 0x73]].concat();
    let malformed = world.host(node).drops(DropReason::Malformed);
    let datagram = peer.seal(world.now, Kind::Control, &mapped);
    world.deliver(node, peer.endpoint, datagram);
    assert_eq!(world.host(node).drops(DropReason::Malformed), malformed + 1);
    world.run_for(Duration::from_secs(5));
    let sent = sent.borrow();
    assert!(sent.contains(&honest), "others are tried");
    for endpoint in special {
        assert!(!sent.contains(&endpoint), "{endpoint} was tried");
    }
}

#[test]
fn an_offer_that_is_replayed_or_dated_ahead_is_refused() {
    let (mut world, node, peer, sent) = offered(503);
    let [first, fresh, old, ahead] = [20, 21, 22, 23].map(|net| SocketAddr::from(([net, 7, 7, 7], 5747)));
    let mut plaintext = Vec::new();
    offer(vec![first]).emit(&mut plaintext);
    let datagram = peer.seal(world.now, Kind::Control, &plaintext);
    world.deliver(node, peer.endpoint, datagram.clone());
    world.run_for(Duration::from_secs(20));
    let tried = sent.borrow().len();
    assert!(sent.borrow().contains(&first), "an honest offer is tried");
    // By the peer's own address, and by that of somebody else.
    let replays = world.host(node).drops(DropReason::Replay);
    for from in [peer.endpoint, "9.9.9.8:9999".parse().unwrap()] {
        world.deliver(node, from, datagram.clone());
        world.run_for(Duration::from_secs(20));
    }
    assert_eq!(world.host(node).drops(DropReason::Replay), replays + 2);
    assert_eq!(sent.borrow().len(), tried, "a replayed offer moves nothing");
    // A record offers endpoints too: one of a year ahead, one that a newer one has replaced, and an honest one.
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let now = world.now;
    let (stale, honest) = (peer.record_at(now, old), peer.record_at(now + Duration::from_secs(1), fresh));
    for record in [honest, stale, peer.record_at(now + YEAR, ahead)] {
        peer.say(&mut world, node, &Control::Hello { record: record.bytes().to_vec() });
    }
    // The session has ended, and a new one is tried wherever the peer may be.
    world.run_for(Duration::from_secs(300));
    let id = peer.identity.node_id();
    world.command(node, |ticket| Command::Ping(ticket, Target::Node(id, None)));
    world.run_for(Duration::from_secs(20));
    let sent = sent.borrow();
    assert!(sent.contains(&fresh), "an honest record is believed");
    assert!(!sent.contains(&old), "a record that was replaced is not");
    assert!(!sent.contains(&ahead), "one dated ahead is not");
}
