//! The routers of the lab are what they claim to be, so that what a daemon does behind them means something.
//!
//! Mapping, filtering and hairpinning as RFC 4787 names them, found out by datagrams as RFC 5780 does.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::nat::{Nat, Router};
use crate::lab::{Lab, Machine, Underlay};

/// How long a datagram that is to arrive is waited for: a lost question for a neighbour is repeated after a second.
const PRESENT: Duration = Duration::from_secs(3);
/// And one that is to be absent, where others have come.
const ABSENT: Duration = Duration::from_millis(100);
/// Between two tries.
const PACE: Duration = Duration::from_millis(50);
/// How long two machines try to reach each other.
const PUNCHING: Duration = Duration::from_millis(600);

/// What of a remote endpoint a mapping or a filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Nothing,
    Address,
    AddressAndPort,
}

/// What a NAT does to UDP.
#[derive(Debug, PartialEq, Eq)]
struct Behaviour {
    mapping: By,
    keeps_port: bool,
    filtering: By,
    hairpin: bool,
}

/// Two machines on the internet with two sockets each: 1.1, 1.2, 2.1, 2.2.
struct Servers {
    sockets: [UdpSocket; 4],
    machines: [Machine; 2],
}

impl Servers {
    fn new(lab: &Lab, underlay: Underlay) -> Self {
        let machines = [lab.public_machine(underlay), lab.public_machine(underlay)];
        let sockets = [0, 0, 1, 1].map(|number: usize| bound(&machines[number], 0));
        Self { sockets, machines }
    }

    /// The endpoint from which a server socket sees what this socket sends, if anything arrives.
    fn observed(&self, server: usize, from: &UdpSocket) -> Option<SocketAddr> {
        self.observed_within(PRESENT, server, from)
    }

    fn observed_within(&self, limit: Duration, server: usize, from: &UdpSocket) -> Option<SocketAddr> {
        let server = &self.sockets[server];
        let token = local(from).to_string();
        let start = Instant::now();
        while start.elapsed() < limit {
            from.send_to(token.as_bytes(), local(server)).unwrap();
            if let Some((_, source)) = received(server, PACE, |text, _| text == token) {
                return Some(source);
            }
        }
        None
    }

    /// Whether an answer comes within `limit`.
    fn answers(&self, server: usize, to: SocketAddr, socket: &UdpSocket, limit: Duration) -> bool {
        self.sockets[server].send_to(b"answer", to).unwrap();
        received(socket, limit, |text, _| text == "answer").is_some()
    }
}

/// A socket inside a machine's network, at its underlay address.
fn bound(machine: &Machine, port: u16) -> UdpSocket {
    machine.inside(|| UdpSocket::bind((machine.ip, port)).unwrap())
}

fn local(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().unwrap()
}

/// The next datagram that is wanted, with its source.
fn received(
    socket: &UdpSocket,
    limit: Duration,
    wanted: impl Fn(&str, SocketAddr) -> bool,
) -> Option<(String, SocketAddr)> {
    let end = Instant::now() + limit;
    let mut buffer = [0; 100];
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).unwrap();
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if wanted(&text, source) {
                    return Some((text, source));
                }
            }
            Err(error) => {
                assert!([ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()), "{error}");
                return None;
            }
        }
    }
}

/// What happens to UDP between two machines of one LAN and the internet; nothing when none passes.
fn classify(servers: &Servers, one: &Machine, other: &Machine) -> Option<Behaviour> {
    let socket = bound(one, 0);
    let mapped: Vec<_> =
        (0..4).map(|server| servers.observed(server, &socket)).collect::<Option<Vec<_>>>()?;
    let mapping = if mapped.iter().all(|&endpoint| endpoint == mapped[0]) {
        By::Nothing
    } else if mapped[0] == mapped[1] && mapped[2] == mapped[3] {
        By::Address
    } else {
        By::AddressAndPort
    };
    let keeps_port = mapped.iter().all(|endpoint| endpoint.port() == local(&socket).port());
    Some(Behaviour {
        mapping,
        keeps_port,
        filtering: filtering(servers, one),
        hairpin: hairpin(servers, one, other),
    })
}

/// A fresh socket sends to 1.1 only; then 1.2, 2.1 and, last, 1.1 send to where it was seen.
fn filtering(servers: &Servers, machine: &Machine) -> By {
    let socket = bound(machine, 0);
    let mapped = servers.observed(0, &socket).unwrap();
    for (server, name) in [(1, "port"), (2, "address"), (0, "last")] {
        servers.sockets[server].send_to(name.as_bytes(), mapped).unwrap();
    }
    let mut passed = BTreeSet::new();
    let mut limit = PRESENT;
    while let Some((name, source)) = received(&socket, limit, |_, _| true) {
        let server = ["last", "port", "address"].iter().position(|&other| other == name).unwrap();
        assert_eq!(source, local(&servers.sockets[server]), "sources outside stay what they are");
        if name == "last" {
            limit = ABSENT;
        }
        passed.insert(name);
    }
    match passed.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["address", "last", "port"] => By::Nothing,
        ["last", "port"] => By::Address,
        ["last"] => By::AddressAndPort,
        ref others => panic!("no filter of RFC 4787 lets through {others:?}"),
    }
}

/// Both machines send to where the other is seen from outside; what arrives comes from there as well.
fn hairpin(servers: &Servers, one: &Machine, other: &Machine) -> bool {
    let sockets = [bound(one, 0), bound(other, 0)];
    let mapped = [0, 1].map(|number: usize| servers.observed(0, &sockets[number]).unwrap());
    let mut heard = None;
    for _ in 0..3 {
        sockets[0].send_to(b"hairpin", mapped[1]).unwrap();
        sockets[1].send_to(b"hairpin", mapped[0]).unwrap();
        heard = heard.or(received(&sockets[0], PACE, |text, _| text == "hairpin"));
    }
    if let Some((_, source)) = &heard {
        assert_eq!(*source, mapped[1], "a hairpinned datagram shows its source's outside endpoint");
    }
    heard.is_some()
}

/// Whether a machine gets a TCP connection to a server.
fn tcp_passes(servers: &Servers, machine: &Machine) -> bool {
    let server = &servers.machines[0];
    let listener = server.inside(|| TcpListener::bind((server.ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    machine.inside(|| TcpStream::connect_timeout(&address, PRESENT).is_ok())
}

/// What a router of each kind does to UDP; nothing when none passes.
const fn claim(nat: Nat) -> Option<Behaviour> {
    let (mapping, filtering) = match nat {
        Nat::FullCone | Nat::Hairpin => (By::Nothing, By::Nothing),
        Nat::AddressRestricted => (By::Nothing, By::Address),
        Nat::PortRestricted | Nat::PlainConntrack | Nat::Ipv6Firewall => (By::Nothing, By::AddressAndPort),
        Nat::Symmetric => (By::AddressAndPort, By::AddressAndPort),
        Nat::UdpBlocked => return None,
    };
    // Without translation the outside address of a neighbour is its own.
    let hairpin = matches!(nat, Nat::Hairpin | Nat::Ipv6Firewall);
    Some(Behaviour { mapping, keeps_port: !matches!(nat, Nat::Symmetric), filtering, hairpin })
}

fn check(name: &str, servers: &Servers, router: &Router<'_>, claimed: Option<Behaviour>) {
    let machines = [router.machine(), router.machine()];
    let start = Instant::now();
    let found = classify(servers, &machines[0], &machines[1]);
    println!("{name}: {found:?} in {:?}", start.elapsed());
    assert_eq!(found, claimed, "{name}");
    assert!(tcp_passes(servers, &machines[0]), "{name}: TCP passes");
}

#[test]
fn each_nat_is_what_it_claims() {
    let lab = Lab::new();
    let [over_v4, over_v6] = [Underlay::V4, Underlay::V6].map(|underlay| Servers::new(&lab, underlay));
    for nat in Nat::ALL {
        let servers = if nat.underlay() == Underlay::V4 { &over_v4 } else { &over_v6 };
        check(&format!("{nat:?}"), servers, &lab.router(nat), claim(nat));
    }
    let public = [lab.public_machine(Underlay::V4), lab.public_machine(Underlay::V4)];
    let open = Behaviour { mapping: By::Nothing, keeps_port: true, filtering: By::Nothing, hairpin: true };
    assert_eq!(classify(&over_v4, &public[0], &public[1]), Some(open), "nothing is between public machines");
}

/// Of two in a row each datagram passes both.
#[test]
fn a_router_behind_a_router_is_as_strict_as_both() {
    let lab = Lab::new();
    let servers = Servers::new(&lab, Underlay::V4);
    for (carrier, home, as_strict_as) in [
        (Nat::FullCone, Nat::FullCone, Nat::FullCone),
        (Nat::AddressRestricted, Nat::FullCone, Nat::AddressRestricted),
        (Nat::FullCone, Nat::PortRestricted, Nat::PortRestricted),
        (Nat::Symmetric, Nat::FullCone, Nat::Symmetric),
    ] {
        let carrier_router = lab.router(carrier);
        let home_router = carrier_router.router(home);
        check(&format!("{home:?} behind {carrier:?}"), &servers, &home_router, claim(as_strict_as));
    }
}

/// As two daemons do that have the same port. Each first sends elsewhere than the other, when plain connection tracking
/// gives both the same endpoint outside.
#[test]
fn two_machines_behind_one_nat_that_use_one_port_are_kept_apart() {
    let lab = Lab::new();
    let servers = Servers::new(&lab, Underlay::V4);
    for nat in [Nat::FullCone, Nat::AddressRestricted, Nat::PortRestricted, Nat::PlainConntrack] {
        let router = lab.router(nat);
        let sockets = [router.machine(), router.machine()].map(|machine| bound(&machine, 5747));
        let seen = |server, socket: usize| servers.observed(server, &sockets[socket]).unwrap();
        let mapped = [seen(0, 0), seen(2, 1)];
        assert_eq!(mapped[0].port(), 5747, "{nat:?}: the first keeps it");
        assert_eq!(mapped[0] == mapped[1], nat == Nat::PlainConntrack, "{nat:?}: each its own");
        if nat != Nat::PlainConntrack {
            assert_eq!([seen(2, 0), seen(0, 1)], mapped, "{nat:?}: towards everybody");
        }
        assert!(servers.answers(0, mapped[0], &sockets[0], PRESENT), "{nat:?}: answers find back");
        assert!(servers.answers(2, mapped[1], &sockets[1], PRESENT), "{nat:?}: to each");
    }
}

#[test]
fn a_running_router_forgets_is_renumbered_moves_and_is_cut_off() {
    let lab = Lab::new();
    let servers = Servers::new(&lab, Underlay::V4);
    let carrier = lab.router(Nat::FullCone);
    for nat in [Nat::FullCone, Nat::PlainConntrack, Nat::Symmetric] {
        let mut router = lab.router(nat);
        let machine = router.machine();
        let socket = bound(&machine, 5747);
        let mut last = servers.observed(0, &socket).unwrap();
        assert!(servers.answers(0, last, &socket, PRESENT));
        let mut changed = |step: &str, outside: Option<IpAddr>| {
            assert!(!servers.answers(0, last, &socket, ABSENT), "{nat:?} {step}: the old mapping is dead");
            let now = servers.observed(0, &socket).unwrap();
            println!("{nat:?} {step}: {last} is now {now}");
            // What is drawn may be what it was.
            assert!(nat == Nat::Symmetric || now.port() != last.port(), "{nat:?} {step}");
            assert!(outside.is_none_or(|ip| now.ip() == ip), "{nat:?} {step}: {now}, not {outside:?}");
            assert!(servers.answers(0, now, &socket, PRESENT), "{nat:?} {step}");
            last = now;
        };
        router.forget();
        changed("forgot", Some(router.ip));
        let before = router.ip;
        router.renumber();
        assert_ne!(router.ip, before);
        changed("was renumbered", Some(router.ip));
        router.move_to(&lab);
        assert_ne!(router.ip, before);
        changed("moved", Some(router.ip));
        router.move_to(&carrier);
        changed("moved behind a carrier", Some(carrier.ip));

        router.cut(machine.ip, servers.machines[0].ip);
        assert_eq!(servers.observed_within(ABSENT, 0, &socket), None, "{nat:?}: cut off");
        assert!(servers.observed(2, &socket).is_some(), "{nat:?}: from one only");
        router.mend();
        assert!(servers.observed(0, &socket).is_some(), "{nat:?}: and no more");
    }
}

#[test]
fn public_addresses_are_cut_off_from_each_other_and_machines_move() {
    let lab = Lab::new();
    for underlay in [Underlay::V4, Underlay::V6] {
        let servers = Servers::new(&lab, underlay);
        let mut machine = lab.public_machine(underlay);
        let observed = |server, machine: &Machine| {
            let socket = bound(machine, 0);
            let seen = servers.observed(server, &socket).unwrap();
            assert!(servers.answers(server, seen, &socket, PRESENT), "{seen}: and answers find back");
            seen.ip()
        };
        assert_eq!(observed(0, &machine), machine.ip);
        lab.cut(machine.ip, servers.machines[0].ip);
        assert_eq!(servers.observed_within(ABSENT, 0, &bound(&machine, 0)), None);
        assert_eq!(observed(2, &machine), machine.ip);
        lab.mend();
        assert_eq!(observed(0, &machine), machine.ip);

        let router =
            lab.router(if underlay == Underlay::V4 { Nat::PortRestricted } else { Nat::Ipv6Firewall });
        machine.move_to(&router);
        let outside = if underlay == Underlay::V4 { router.ip } else { machine.ip };
        assert_eq!(observed(0, &machine), outside);
        let before = machine.ip;
        machine.move_to(&lab);
        assert_ne!(machine.ip, before);
        assert_eq!(observed(0, &machine), machine.ip);
        let neighbour = match machine.ip {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip) + 1)),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) + 1)),
        };
        machine.roam(neighbour);
        assert_eq!(observed(0, &machine), neighbour);
    }
}

/// One side of an attempt: sends every 50 ms to where the other was seen and to whoever was heard. Whether it got a
/// datagram of the other that had got one itself.
fn punch(socket: &UdpSocket, other: SocketAddr) -> bool {
    let mut targets = BTreeSet::from([other]);
    let mut heard = false;
    let mut both = false;
    let start = Instant::now();
    for round in 1.. {
        for &target in &targets {
            let text = if heard { "heard" } else { "probe" };
            socket.send_to(text.as_bytes(), target).unwrap();
        }
        if both || start.elapsed() >= PUNCHING {
            break;
        }
        let next = start + PACE * round;
        while !both
            && let Some((text, source)) =
                received(socket, next.saturating_duration_since(Instant::now()), |_, _| true)
        {
            heard = true;
            targets.insert(source);
            both = text == "heard";
        }
    }
    both
}

/// All but the pairs where one side guesses the other's port and is itself heard from the guessed port only.
#[test]
fn simultaneous_probes_open_every_pair_but_those_with_a_port_to_guess() {
    const KINDS: [Option<Nat>; 6] = [
        None,
        Some(Nat::FullCone),
        Some(Nat::AddressRestricted),
        Some(Nat::PortRestricted),
        Some(Nat::PlainConntrack),
        Some(Nat::Symmetric),
    ];
    let lab = Lab::new();
    let servers = Servers::new(&lab, Underlay::V4);
    let side = || {
        KINDS.map(|kind| match kind {
            None => lab.public_machine(Underlay::V4),
            Some(nat) => lab.router(nat).machine(),
        })
    };
    let sides = [side(), side()];
    let name = |kind: Option<Nat>| kind.map_or("none".into(), |nat| format!("{nat:?}"));
    for (row, one) in KINDS.into_iter().enumerate() {
        let mut line = String::new();
        for (column, other) in KINDS.into_iter().enumerate() {
            let sockets = [bound(&sides[0][row], 0), bound(&sides[1][column], 0)];
            let mapped = [0, 1].map(|number: usize| servers.observed(0, &sockets[number]).unwrap());
            let opened = thread::scope(|scope| {
                let first = scope.spawn(|| punch(&sockets[0], mapped[1]));
                (punch(&sockets[1], mapped[0]), first.join().unwrap())
            });
            assert_eq!(opened.0, opened.1, "{one:?} and {other:?}: both ways or none");
            line.push_str(if opened.0 { "  yes" } else { "   no" });
            let strict =
                |kind| matches!(kind, Some(Nat::PortRestricted | Nat::PlainConntrack | Nat::Symmetric));
            let guessed = [one, other].contains(&Some(Nat::Symmetric));
            let possible = !(guessed && strict(one) && strict(other));
            assert_eq!(opened.0, possible, "{} and {}", name(one), name(other));
        }
        println!("{:>18}{line}", name(one));
    }
}

/// The daemon takes machines behind a NAT for what they are: it needs nothing else than they have.
#[test]
fn a_daemon_behind_a_nat_joins_through_a_public_one() {
    let lab = Lab::new();
    let public = lab.public(Underlay::V4).started();
    let router = lab.router(Nat::Symmetric);
    let behind = router.node().knows(&public).started();
    behind.reaches(&public, Duration::from_secs(5));
    public.reaches(&behind, Duration::from_secs(5));
    let seen: SocketAddr =
        public.peer(&behind).unwrap()["path"]["endpoint"].as_str().unwrap().parse().unwrap();
    assert_eq!(seen.ip(), router.ip);
    assert_ne!(seen.port(), behind.endpoint().port(), "its port is the router's choice");
}
