//! What strangers and hostile peers may try: nothing is delivered, nothing is answered, everything is counted.

use std::cell::RefCell;
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::datapath::DropReason;
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::{Identity, Position};
use auramesh::proto::node::PEERS_MAX;
use auramesh::proto::policy::Rules;
use auramesh::proto::session::gate::UNPROVEN_PER_S;
use auramesh::proto::wire::VERSION;
use auramesh::proto::wire::announce::Announce;
use auramesh::proto::wire::control::{CloseReason, Contact, Control, Want};
use auramesh::proto::wire::envelope::{BODY_AT, Kind as SetupKind, RecipientKey};
use auramesh::proto::wire::handshake::{INITIATION_LEN_MIN, Initiation};
use auramesh::proto::wire::record::{Content, NodeRecord};
use auramesh::proto::wire::session::{Header, Kind, mask};
use rand_core::Rng as _;

use crate::attacker::{Attacker, public_key};
use crate::host::Machine;
use crate::network::Conditions;
use crate::packet;
use crate::pair::{pair, ping};
use crate::traffic::route;
use crate::world::{HostId, World};

fn noise(world: &mut World, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    world.rng.fill_bytes(&mut bytes);
    bytes
}

/// A setup packet with a valid mac1 and noise inside: anybody can make it, since the key is public.
fn junk(world: &mut World, key: &RecipientKey, kind: SetupKind, number: u32) -> Vec<u8> {
    let mut packet = Initiation::emit(number, INITIATION_LEN_MIN - BODY_AT - 4);
    let body = noise(world, packet.len() - BODY_AT - 4);
    packet[BODY_AT + 4..].copy_from_slice(&body);
    key.close(kind, None, [0; 16], &mut packet);
    packet
}

/// All that was dropped of what came in, whatever the reason.
fn refused(world: &World, host: HostId) -> u64 {
    DropReason::ALL.into_iter().map(|reason| world.host(host).drops(reason)).sum()
}

/// A settled pair with a live session.
fn settled(seed: u64) -> (World, HostId, HostId) {
    let mut world = World::new(seed, Conditions::default());
    let (a, b) = pair(&mut world);
    assert!(ping(&mut world, b, a, 0, Duration::from_secs(3)).is_some());
    world.run_for(Duration::from_secs(3));
    (world, a, b)
}

#[test]
fn random_bytes_of_every_length_are_never_answered() {
    let (mut world, a, b) = settled(101);
    let stranger: SocketAddr = "9.9.9.9:9".parse().unwrap();
    let (from_peer, before) = (world.endpoint(b), world.host(a).sent);
    for len in (0..=2048).chain([9000, 65_507]) {
        for first in [None, Some(0x40), Some(0xc0)] {
            let mut datagram = noise(&mut world, len);
            if let (Some(first), Some(byte)) = (first, datagram.first_mut()) {
                *byte = *byte & 0x3f | first;
            }
            world.deliver(a, stranger, datagram.clone());
            world.deliver(a, from_peer, datagram);
        }
    }
    assert_eq!(world.host(a).sent, before);
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(1)).is_some(), "the peer is still served");
}

#[test]
fn cut_and_flipped_packets_are_never_answered() {
    let (mut world, a, _) = settled(102);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9");
    let (_, initiation) = attacker.initiation(&world, a);
    attacker.connect(&mut world, a);
    let ping = attacker.seal(world.now, Kind::Control, &[1, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    world.run_for(Duration::from_secs(1));
    let stranger: SocketAddr = "9.8.8.8:8".parse().unwrap();
    world.tap(stranger);
    let before = world.host(a).sent;
    let usual = [DropReason::Unauthenticated, DropReason::Malformed];
    for packet in [initiation, ping] {
        let (all, of_these) = (refused(&world, a), usual.map(|reason| world.host(a).drops(reason)));
        for cut in 0..packet.len() {
            world.deliver(a, stranger, packet[..cut].to_vec());
            let mut flipped = packet.clone();
            flipped[cut] ^= 1 << (cut % 8);
            world.deliver(a, stranger, flipped);
        }
        let longer = [&packet[..], &[0; 7]].concat();
        world.deliver(a, stranger, longer);
        assert_eq!(refused(&world, a) - all, 2 * packet.len() as u64 + 1, "each is counted");
        for (reason, before) in usual.into_iter().zip(of_these) {
            assert!(world.host(a).drops(reason) > before, "{reason:?}");
        }
    }
    // mac2 counts under load only, so these are also replays of an initiation: the peer itself is asked, once.
    assert!(world.host(a).sent <= before + 1);
    world.run_for(Duration::from_secs(1));
    assert!(world.tapped(stranger).is_empty());
}

#[test]
fn replies_are_never_longer_than_what_they_answer() {
    let (mut world, a, _) = settled(103);
    for loaded in [false, true] {
        world.host_mut(a).machine.loaded = loaded;
        let peers = world.host(a).node.status(world.now).peers.len();
        for i in 0..200 {
            let mut attacker = Attacker::new(&mut world, &format!("9.9.{i}.9:{}", 9 + i));
            let (_, initiation) = attacker.initiation(&world, a);
            world.deliver(a, attacker.endpoint, initiation.clone());
            world.run_for(Duration::from_millis(500));
            let replies = world.tapped(attacker.endpoint);
            assert_eq!(replies.len(), 1);
            let kind = if loaded { None } else { Some(SetupKind::Response) };
            assert_eq!(replies[0].setup_kind(&attacker.identity.node_id()), kind);
            assert!(replies[0].datagram.len() <= initiation.len());
        }
        if loaded {
            assert_eq!(world.host(a).node.status(world.now).peers.len(), peers, "a cookie keeps no state");
        }
    }
}

#[test]
fn a_loaded_node_asks_for_a_cookie_before_it_looks_inside() {
    let (mut world, a, _) = settled(116);
    world.host_mut(a).machine.loaded = true;
    let (key, to) = (public_key(&world.id(a)), &DropReason::Handshake);
    for kind in [SetupKind::Initiation, SetupKind::Sealed] {
        let source: SocketAddr = "9.9.9.9:9".parse().unwrap();
        world.tap(source);
        let (opened, limited) = (world.host(a).drops(*to), world.host(a).drops(DropReason::RateLimited));
        let packet = junk(&mut world, &key, kind, 1);
        world.deliver(a, source, packet.clone());
        world.run_for(Duration::from_millis(500));
        let replies = world.tapped(source);
        assert_eq!(replies.len(), 1, "{kind:?}: a cookie");
        assert!(replies[0].datagram.len() <= packet.len());
        assert_eq!(world.host(a).drops(*to), opened, "{kind:?}: noise was taken to the curve");
        assert_eq!(world.host(a).drops(DropReason::RateLimited), limited + 1);
    }
}

#[test]
fn flood_of_initiations_in_the_name_of_a_peer_harms_nobody() {
    let (mut world, a, b) = settled(104);
    let (key, source) = (public_key(&world.id(a)), world.endpoint(b));
    // Some are noise behind a valid envelope, others copies of the peer's own first initiation.
    let copy = {
        let mut peer = Attacker::new(&mut world, "9.9.9.9:9");
        peer.identity = world.host(b).machine.identity();
        peer.initiation(&world, a).1
    };
    let (opened, limited) =
        (world.host(a).drops(DropReason::Handshake), world.host(a).drops(DropReason::RateLimited));
    let kinds = [SetupKind::Initiation, SetupKind::Response, SetupKind::CookieReply, SetupKind::Sealed];
    let mut answered = 0;
    for i in 0..3000u32 {
        let datagram = if i % 2 == 0 {
            copy.clone()
        } else {
            junk(&mut world, &key, kinds[i as usize / 2 % kinds.len()], i)
        };
        world.deliver(a, source, datagram);
        if i % 100 == 0 {
            let sequence = 100 + (i / 100) as u16;
            let request = packet::echo_request(world.address(b), world.address(a), 77, sequence, 56);
            world.send(b, &request);
        }
        world.run_for(Duration::from_millis(1));
    }
    world.run_for(Duration::from_secs(1));
    for sequence in 100..130 {
        answered += usize::from(world.host(b).echo_reply_at(77, sequence).is_some());
    }
    assert_eq!(answered, 30, "the session carries data through the flood");
    let (opened, limited) = (
        world.host(a).drops(DropReason::Handshake) - opened,
        world.host(a).drops(DropReason::RateLimited) - limited,
    );
    assert!(
        opened <= 4 * u64::from(UNPROVEN_PER_S),
        "{opened} of one address were taken to the curve in 3 s"
    );
    assert!(limited > 2_000, "{limited}");
}

#[test]
fn forged_packets_of_a_session_leave_it_as_it_was() {
    let (mut world, a, b) = settled(105);
    let (key, source) = (public_key(&world.id(a)), world.endpoint(b));
    let index = route(&world, b, a).expect("a session").remote_index();
    let before = world.host(a).drops(DropReason::Unauthenticated);
    for i in 0..10_000u64 {
        let counter = if i % 2 == 0 { i } else { 1_000_000 + i };
        let kind = if i % 3 == 0 { Kind::Control } else { Kind::Data };
        let header =
            Header { kind, epoch: i % 5 == 0, partial: false, slice: (0, 1), receiver_index: index, counter }
                .emit();
        let mut packet = [&header[..], &noise(&mut world, 80)].concat();
        mask(&key, &mut packet).unwrap();
        world.deliver(a, source, packet);
    }
    let host = world.host(a);
    let refused = host.drops(DropReason::Unauthenticated) + host.drops(DropReason::Replay) - before;
    assert_eq!(refused, 10_000);
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(1)).is_some());
    // What really came can not come again.
    let replayed = Rc::new(RefCell::new(Vec::new()));
    let copies = replayed.clone();
    world.filter(move |seen| {
        copies.borrow_mut().push(seen.clone());
        true
    });
    assert!(ping(&mut world, b, a, 2, Duration::from_secs(1)).is_some());
    world.unfilter();
    let (delivered, replays) = (world.host(a).delivered.len(), world.host(a).drops(DropReason::Replay));
    let to_a = world.endpoint(a);
    let copies: Vec<_> = replayed.borrow().iter().filter(|seen| seen.to == to_a).cloned().collect();
    for seen in &copies {
        world.deliver(a, seen.from, seen.datagram.clone());
    }
    assert_eq!(world.host(a).delivered.len(), delivered);
    assert!(!copies.is_empty());
    assert_eq!(world.host(a).drops(DropReason::Replay), replays + copies.len() as u64);
}

/// How often each class of spoofed packets is sent.
const SPOOFED: u64 = 10_000;

#[test]
fn spoofed_inner_packets_are_never_delivered() {
    let mut world = World::new(106, Conditions::default());
    let open = Rules { allow_all: true, ..Rules::default() };
    let machine = Machine { rules: open, ..world.machine() };
    let victim = world.add(machine);
    let other = world.machine().identity().address().ipv6();
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9");
    attacker.connect(&mut world, victim);
    let (own, to) = (attacker.identity.address().ipv6(), world.address(victim));
    let lan: Ipv6Addr = "fd12::5".parse().unwrap();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let mut ipv4 = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1];
    ipv4.extend([0, 53, 0, 53, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let udp = |source, destination| packet::udp(source, destination, (53, 53), b"spoofed");
    let classes = [
        ("source of another peer", udp(other, to), DropReason::Source),
        ("source of the victim", udp(to, to), DropReason::Source),
        ("source of the LAN", udp(lan, to), DropReason::Source),
        ("source multicast", udp(all_nodes, to), DropReason::Source),
        ("source unspecified", udp(Ipv6Addr::UNSPECIFIED, to), DropReason::Source),
        ("destination in the LAN", udp(own, lan), DropReason::Destination),
        ("destination ff02::1", udp(own, all_nodes), DropReason::Destination),
        ("destination another node", udp(own, other), DropReason::Destination),
        ("an IPv4 packet", ipv4, DropReason::NotIpv6),
    ];
    for (class, packet, reason) in classes {
        let before = world.host(victim).drops(reason);
        for _ in 0..SPOOFED {
            let datagram = attacker.seal(world.now, Kind::Data, &packet);
            world.deliver(victim, attacker.endpoint, datagram);
        }
        assert_eq!(world.host(victim).delivered.len(), 0, "{class}");
        assert_eq!(world.host(victim).drops(reason), before + SPOOFED, "{class}");
    }
    // RFC 2675: payload length 0, and the real one in a hop-by-hop option.
    let jumbo = {
        let mut packet = packet::ipv6(own, to, 0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]);
        packet[4..6].fill(0);
        packet
    };
    let before = world.host(victim).drops(DropReason::NotIpv6);
    let odd = [&[][..], &[0x60], &udp(own, to)[..45], &jumbo];
    for bytes in odd {
        let datagram = attacker.seal(world.now, Kind::Data, bytes);
        world.deliver(victim, attacker.endpoint, datagram);
    }
    assert_eq!(world.host(victim).delivered.len(), 0);
    assert_eq!(world.host(victim).drops(DropReason::NotIpv6), before + odd.len() as u64);
    let datagram = attacker.seal(world.now, Kind::Data, &udp(own, to));
    world.deliver(victim, attacker.endpoint, datagram);
    assert_eq!(world.host(victim).delivered.len(), 1, "what is not spoofed comes through");
}

#[test]
fn contacts_that_name_victims_are_never_contacted() {
    let mut world = World::new(107, Conditions::default());
    let machine = world.machine_at("11.1.1.1:5747".parse().unwrap());
    let victim = world.add(machine);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9999");
    attacker.connect(&mut world, victim);
    let sent = Rc::new(RefCell::new(Vec::new()));
    let log = sent.clone();
    world.filter(move |seen| {
        log.borrow_mut().push(seen.to);
        true
    });
    let own = world.endpoint(victim);
    let forbidden: Vec<SocketAddr> = [
        "127.0.0.1:5747",
        "[::1]:5747",
        "192.168.1.1:5747",
        "10.0.0.1:5747",
        "172.16.3.4:5747",
        "169.254.169.254:5747",
        "100.64.0.1:5747",
        "9.9.9.8:0",
        "9.9.9.8:22",
        "0.0.0.0:5747",
        "[::]:5747",
        "224.0.0.1:5747",
        "255.255.255.255:5747",
        "[ff02::1]:5747",
        "[fe80::1]:5747",
        "[fd00::1]:5747",
        "[600::1]:5747",
        "[::ffff:10.0.0.1]:5747",
        "[64:ff9b::a00:1]:5747",
    ]
    .into_iter()
    .map(|endpoint| endpoint.parse().unwrap())
    .chain([own])
    .collect();
    let honest: SocketAddr = "9.7.7.7:5747".parse().unwrap();
    let named: Vec<_> = forbidden.iter().chain([&honest]).copied().collect();
    let mut answers = named.chunks(5).cycle();
    for _ in 0..40 {
        let unknown = Identity::from_seed(world.seed()).address();
        world.look_up(victim, unknown);
        world.run_for(Duration::from_millis(250));
        for message in attacker.hear(&mut world) {
            let Control::Find { request, .. } = message else { continue };
            let contact = |endpoint: &SocketAddr| {
                let identity = Identity::from_seed(world.seed());
                let (node_id, x25519) = (identity.node_id(), identity.x25519_public());
                Contact { node_id, x25519, endpoint: *endpoint }
            };
            let contacts = answers.next().unwrap_or_default().iter().map(contact).collect();
            attacker.say(&mut world, victim, &Control::Found { request, record: None, contacts });
        }
    }
    world.run_for(Duration::from_secs(5));
    let sent = sent.borrow();
    assert!(sent.contains(&honest), "the victim does ask whom its peer names");
    for endpoint in &forbidden {
        assert!(!sent.contains(endpoint), "{endpoint} was contacted");
    }
}

#[test]
fn one_address_with_many_identities_gets_few_places() {
    let mut world = World::new(108, Conditions::default());
    let machine = world.machine();
    let victim = world.add(machine);
    for i in 0..150 {
        let mut attacker = Attacker::new(&mut world, &format!("9.9.9.9:{}", 2000 + i));
        attacker.connect(&mut world, victim);
    }
    let status = world.host(victim).node.status(world.now).dht;
    assert!((1..=10).contains(&status.contacts), "{}", status.contacts);
    assert!(status.buckets.iter().all(|bucket| bucket.contacts <= 2));
    assert!(status.counters.crowded > 100);
}

#[test]
fn handshakes_that_nobody_confirms_do_not_push_out_sessions() {
    let (mut world, a, b) = settled(109);
    let before = world.host(a).snapshot.routes.len();
    for i in 0..PEERS_MAX + 100 {
        let mut stranger = Attacker::new(&mut world, &format!("9.{}.{}.9:2000", i / 250, i % 250));
        let (_, initiation) = stranger.initiation(&world, a);
        world.deliver(a, stranger.endpoint, initiation);
        world.run_for(Duration::from_millis(1));
    }
    assert_eq!(world.host(a).snapshot.routes.len(), before);
    let setups = Rc::new(RefCell::new(0));
    let count = setups.clone();
    world.filter(move |seen| {
        *count.borrow_mut() += usize::from(!seen.is_session());
        true
    });
    assert!(ping(&mut world, b, a, 1, Duration::from_secs(1)).is_some());
    assert_eq!(*setups.borrow(), 0, "on the session that stood before");
}

#[test]
fn peer_that_names_another_endpoint_gets_nothing_sent_there_but_a_question() {
    let (mut world, a, _) = settled(110);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9999");
    attacker.connect(&mut world, a);
    let find = |request| Control::Find { request, want: Want::Contacts, target: Position([7; 32]) };
    attacker.say(&mut world, a, &find(4));
    world.run_for(Duration::from_secs(3));
    assert!(attacker.hear(&mut world).iter().any(|heard| matches!(heard, Control::Found { request: 4, .. })));
    let third: SocketAddr = "9.8.8.8:8888".parse().unwrap();
    world.tap(third);
    let mut plaintext = Vec::new();
    (0..15).for_each(|nonce| Control::Ping { nonce }.emit(&mut plaintext));
    find(8).emit(&mut plaintext);
    let mut sent = 0;
    for _ in 0..100 {
        let datagram = attacker.seal(world.now, Kind::Control, &plaintext);
        sent += datagram.len();
        world.deliver(a, third, datagram);
        world.run_for(Duration::from_millis(50));
    }
    let received: usize = world.tapped(third).iter().map(|seen| seen.datagram.len()).sum();
    assert!(received > 0 && received <= sent, "{received} bytes for {sent}");
    // Whoever has really moved says so and is served again.
    attacker.endpoint = "9.7.7.7:7777".parse().unwrap();
    world.tap(attacker.endpoint);
    attacker.say(&mut world, a, &find(12));
    world.run_for(Duration::from_secs(1));
    for heard in attacker.hear(&mut world) {
        assert!(!matches!(heard, Control::Found { .. }), "answered before it was asked");
        if let Control::Ping { nonce } = heard {
            attacker.say(&mut world, a, &Control::Pong { nonce, observed: attacker.endpoint });
        }
    }
    attacker.say(&mut world, a, &find(16));
    world.run_for(Duration::from_secs(1));
    let heard = attacker.hear(&mut world);
    assert!(heard.iter().any(|heard| matches!(heard, Control::Found { request: 16, .. })));
}

#[test]
fn record_of_somebody_else_introduces_nobody() {
    let (mut world, a, _) = settled(112);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9999");
    attacker.connect(&mut world, a);
    let other = Attacker::new(&mut world, "9.8.8.8:8888");
    let before = world.host(a).drops(DropReason::Malformed);
    let hello = Control::Hello { record: other.record(world.now).bytes().to_vec() };
    attacker.say(&mut world, a, &hello);
    let status = world.host(a).node.status(world.now);
    assert!(status.peers.iter().all(|peer| peer.node_id != other.identity.node_id()));
    assert_eq!(world.host(a).drops(DropReason::Malformed), before + 1);
}

#[test]
fn goodbye_in_an_old_session_does_not_end_the_new_one() {
    let (mut world, a, _) = settled(113);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9999");
    attacker.connect(&mut world, a);
    let old = attacker.session.take();
    world.run_for(Duration::from_secs(2));
    attacker.connect(&mut world, a);
    let close = Control::Close { reason: CloseReason::Stopping };
    let address = attacker.identity.address();
    let current = std::mem::replace(&mut attacker.session, old);
    attacker.say(&mut world, a, &close);
    assert!(world.host(a).snapshot.routes.contains_key(&address), "a late goodbye");
    attacker.session = current;
    attacker.say(&mut world, a, &close);
    assert!(!world.host(a).snapshot.routes.contains_key(&address), "a goodbye");
}

#[test]
fn requests_of_one_peer_are_limited() {
    let (mut world, a, _) = settled(114);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9999");
    attacker.connect(&mut world, a);
    let ask = |world: &mut World, n| {
        attacker.hear(world);
        for request in 0..n {
            let find = Control::Find { request, want: Want::Contacts, target: Position([7; 32]) };
            attacker.say(world, a, &find);
        }
        world.run_for(Duration::from_millis(500));
        attacker.hear(world).iter().filter(|heard| matches!(heard, Control::Found { .. })).count()
    };
    let at_once = ask(&mut world, 300);
    assert!((55..=60).contains(&at_once), "{at_once} answers at once");
    world.run_for(Duration::from_millis(500));
    let later = ask(&mut world, 300);
    assert!((15..=25).contains(&later), "{later} answers a second later");
    assert!(world.host(a).drops(DropReason::RateLimited) > 500);
}

/// Whoever speaks another version of the format is not answered; the same node with ours is.
#[test]
fn packets_of_other_versions_are_dropped_and_counted() {
    let (mut world, a, _) = settled(115);
    let mut attacker = Attacker::new(&mut world, "9.9.9.9:9999");
    let key = public_key(&world.id(a));
    let (_, genuine) = attacker.initiation(&world, a);
    let before = world.host(a).drops(DropReason::Handshake);
    for version in (0..=u8::MAX).filter(|version| *version != VERSION) {
        let mut packet = genuine.clone();
        key.open(&mut packet).expect("ours");
        packet[BODY_AT] = version;
        key.close(SetupKind::Initiation, None, [0; 16], &mut packet);
        world.deliver(a, attacker.endpoint, packet);
        world.run_for(Duration::from_millis(50));
    }
    assert!(world.tapped(attacker.endpoint).is_empty());
    assert_eq!(world.host(a).drops(DropReason::Handshake), before + 255);
    attacker.connect(&mut world, a);
}

#[test]
fn strangers_who_fill_the_table_do_not_keep_us_from_going_out() {
    let mut world = World::new(111, Conditions::default());
    let nodes = world.add_mesh(4, Duration::from_millis(50));
    let target = Machine {
        mode: Mode::Client,
        bootstrap: vec![(world.id(nodes[0]), world.endpoint(nodes[0]))],
        ..world.machine()
    };
    let (a, from, to) = (nodes[1], target.endpoint, world.endpoint(nodes[1]));
    // The two have never met.
    world.filter(move |seen| (seen.from, seen.to) != (from, to));
    let target = world.add(target);
    world.run_for(Duration::from_secs(20));
    let mut strangers: Vec<_> = (0..PEERS_MAX + 10)
        .map(|i| {
            let mut stranger = Attacker::new(&mut world, &format!("9.{}.{}.9:2000", i / 250, i % 250));
            let (initiator, packet) = stranger.initiation(&world, a);
            world.deliver(a, stranger.endpoint, packet);
            world.run_for(Duration::from_millis(1));
            (stranger, initiator)
        })
        .collect();
    world.run_for(Duration::from_millis(600));
    for (stranger, initiator) in &mut strangers {
        stranger.confirm(&mut world, a, initiator);
    }
    assert_eq!(world.host(a).snapshot.routes.len(), PEERS_MAX, "the table is full of strangers");
    world.unfilter();
    assert!(ping(&mut world, a, target, 0, Duration::from_secs(5)).is_some());
}

/// On the LAN anybody hears announcements, and may send them again with another port or from elsewhere.
#[test]
fn only_a_newer_record_of_our_key_is_a_second_machine() {
    let (mut world, a, b) = settled(77);
    let neighbour: SocketAddr = "192.0.2.99:5747".parse().unwrap();
    let announce =
        |bytes: &[u8], port| Announce { port, record: NodeRecord::parse(bytes).unwrap().bytes() }.emit();
    let record = |world: &mut World, sequence_more: u64| {
        let identity = world.host(a).machine.identity();
        let own = world.with(a, |host, _| host.node.announcement(5747).unwrap());
        let content = NodeRecord::parse(Announce::parse(&own).unwrap().record).unwrap().content().clone();
        let sequence = content.sequence - 1 + sequence_more;
        NodeRecord::sign(&identity, Content { sequence, ..content }).bytes().to_vec()
    };
    let hear = |world: &mut World, packet: &[u8]| {
        world.with(a, |host, now| {
            let answers = host.node.handle_announce(now, host.wall(now), neighbour, packet);
            (answers, host.node.status(now).twin)
        })
    };
    let twin = |world: &mut World, packet: Vec<u8>| hear(world, &packet).1;
    let (older, own, newer) = (record(&mut world, 0), record(&mut world, 1), record(&mut world, 2));
    assert_eq!(twin(&mut world, announce(&older, 5747)), None, "sent again");
    assert_eq!(twin(&mut world, announce(&own, 5747)), None, "our own, come back");
    assert_eq!(twin(&mut world, announce(&own, 5748)), None, "with another port, which is not signed");
    let others = world.with(b, |host, _| host.node.announcement(5747).unwrap());
    assert_eq!(twin(&mut world, others.clone()), None, "another node");
    let newer = announce(&newer, 5747);
    assert_eq!(hear(&mut world, &newer), (true, Some(neighbour.ip())), "the other machine is to hear of us");
    assert_eq!(twin(&mut world, newer), Some(neighbour.ip()));
    let newest = record(&mut world, 2);
    let answers = |world: &mut World| hear(world, &announce(&newest, 5747)).0;
    assert!(!answers(&mut world), "not for every announcement of its");
    world.run_for(Duration::from_secs(50));
    let newest = record(&mut world, 2);
    assert!(hear(&mut world, &announce(&newest, 5747)).0, "but again before the other machine forgets us");
    // Its clock may be ahead: what we answer is newer all the same.
    world.run_for(Duration::from_secs(50));
    let ahead = record(&mut world, 3_600_000);
    assert!(hear(&mut world, &announce(&ahead, 5747)).0);
    world.run_for(Duration::from_secs(50));
    assert!(!hear(&mut world, &announce(&ahead, 5747)).0, "and the same record, sent again, says nothing");
    world.run_for(Duration::from_secs(200));
    assert_eq!(twin(&mut world, others), None, "gone");
}
