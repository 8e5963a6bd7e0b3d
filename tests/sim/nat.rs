//! What a NAT or firewall does to UDP, in the terms of RFC 4787: time and chance are arguments, there is nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use auramesh::proto::timer::Instant;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng as _};

/// Names a NAT of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NatId(pub usize);

/// How long a mapping lives after the last packet from inside: the least that RFC 4787 REQ-5 allows.
pub(crate) const MAPPING_IDLE: Duration = Duration::from_secs(120);
/// Time between two looks for mappings that nobody uses any more.
const CLEANED_EVERY: Duration = Duration::from_secs(10);
/// Lowest port that is handed out where the own one cannot be kept (RFC 4787 REQ-3: none below).
const PORT_MIN: u16 = 1024;
/// Ports that can be handed out.
const PORTS: u16 = u16::MAX - PORT_MIN + 1;

/// How a NAT maps and filters (RFC 4787 §4.1 and §5; the names are those of RFC 3489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NatKind {
    /// One outer port for an inner endpoint, open to everybody.
    FullCone,
    /// One outer port for an inner endpoint, open to addresses that it sent to.
    AddressRestricted,
    /// One outer port for an inner endpoint, open to endpoints that it sent to.
    PortRestricted,
    /// A new outer port for every endpoint that is sent to, open to that endpoint.
    Symmetric,
    /// Addresses stay as they are; open to endpoints that were sent to (RFC 6092).
    Firewall,
}

/// A NAT or firewall.
#[derive(Debug)]
pub(crate) struct Nat {
    kind: NatKind,
    /// The outer address; of a firewall, that of the network behind it.
    public: IpAddr,
    /// How long a mapping and what it lets in live after the last packet from inside.
    pub(crate) idle: Duration,
    /// Machines inside reach each other at the outer address.
    pub(crate) hairpin: bool,
    /// Nothing passes.
    pub(crate) blocks_udp: bool,
    /// By outer endpoint.
    mappings: BTreeMap<SocketAddr, Mapping>,
    /// Outer endpoint of an inner one, and of its destination where that matters.
    outer: BTreeMap<(SocketAddr, Option<SocketAddr>), SocketAddr>,
    /// When what is as good as forgotten was taken away.
    cleaned: Instant,
}

#[derive(Debug)]
struct Mapping {
    inner: SocketAddr,
    /// The one destination that it is for, when that matters.
    only_to: Option<SocketAddr>,
    /// When something was sent last.
    used: Instant,
    /// Where to, and when last.
    destinations: BTreeMap<SocketAddr, Instant>,
}

impl Nat {
    pub(crate) const fn new(kind: NatKind, public: IpAddr) -> Self {
        Self {
            kind,
            public,
            idle: MAPPING_IDLE,
            hairpin: false,
            blocks_udp: false,
            mappings: BTreeMap::new(),
            outer: BTreeMap::new(),
            cleaned: Instant::from_nanos(0),
        }
    }

    pub(crate) const fn kind(&self) -> NatKind {
        self.kind
    }

    /// The address under which everything inside is seen; of a firewall, that of the network behind it.
    pub(crate) const fn public(&self) -> IpAddr {
        self.public
    }

    /// A datagram from inside: the source that it leaves with, `None` when it does not.
    pub(crate) fn outgoing(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        inner: SocketAddr,
        destination: SocketAddr,
    ) -> Option<SocketAddr> {
        let back = destination.ip() == self.public && !self.hairpin;
        if self.blocks_udp || back || destination.is_ipv4() != self.public.is_ipv4() {
            return None;
        }
        if now.saturating_since(self.cleaned) >= CLEANED_EVERY {
            self.clean(now);
        }
        let only_to = (self.kind == NatKind::Symmetric).then_some(destination);
        let known = self.outer.get(&(inner, only_to)).copied();
        let outer = match known.filter(|outer| self.is_mapped(now, outer)) {
            Some(outer) => outer,
            None => {
                let outer = self.choose(now, rng, inner)?;
                known.into_iter().chain([outer]).for_each(|stale| self.remove(stale));
                self.outer.insert((inner, only_to), outer);
                let destinations = BTreeMap::new();
                self.mappings.insert(outer, Mapping { inner, only_to, used: now, destinations });
                outer
            }
        };
        let mapping = self.mappings.get_mut(&outer)?;
        mapping.used = now;
        mapping.destinations.insert(destination, now);
        Some(outer)
    }

    /// True while packets from outside to this endpoint may get in.
    fn is_mapped(&self, now: Instant, outer: &SocketAddr) -> bool {
        self.mappings.get(outer).is_some_and(|mapping| now.saturating_since(mapping.used) < self.idle)
    }

    fn remove(&mut self, outer: SocketAddr) {
        if let Some(mapping) = self.mappings.remove(&outer) {
            self.outer.remove(&(mapping.inner, mapping.only_to));
        }
    }

    /// Takes away what is as good as forgotten.
    fn clean(&mut self, now: Instant) {
        let idle = self.idle;
        let is_fresh = |at: Instant| now.saturating_since(at) < idle;
        self.mappings.retain(|_, mapping| is_fresh(mapping.used));
        self.outer.retain(|_, outer| self.mappings.contains_key(outer));
        for mapping in self.mappings.values_mut() {
            mapping.destinations.retain(|_, at| is_fresh(*at));
        }
        self.cleaned = now;
    }

    /// A datagram from outside to an outer endpoint: the inner one that gets it, `None` when none does.
    pub(crate) fn incoming(&self, now: Instant, source: SocketAddr, outer: SocketAddr) -> Option<SocketAddr> {
        let is_fresh = |at: &Instant| now.saturating_since(*at) < self.idle;
        let mapping = self.mappings.get(&outer).filter(|_| self.is_mapped(now, &outer))?;
        let mut sent_to = mapping.destinations.iter().filter(|(_, at)| is_fresh(at)).map(|(to, _)| *to);
        let is_let_in = match self.kind {
            NatKind::FullCone => true,
            NatKind::AddressRestricted => sent_to.any(|to| to.ip() == source.ip()),
            NatKind::PortRestricted | NatKind::Symmetric | NatKind::Firewall => {
                sent_to.any(|to| to == source)
            }
        };
        let is_alike = source.is_ipv4() == self.public.is_ipv4();
        (is_let_in && is_alike && !self.blocks_udp).then_some(mapping.inner)
    }

    /// Forgets all mappings.
    pub(crate) fn rebind(&mut self) {
        self.mappings.clear();
        self.outer.clear();
    }

    /// Starts anew with another outer address.
    pub(crate) fn reboot(&mut self, public: IpAddr) {
        assert_ne!(self.kind, NatKind::Firewall, "the machines behind it would have to move");
        self.public = public;
        self.rebind();
    }

    /// A free outer endpoint for a new mapping.
    fn choose(&self, now: Instant, rng: &mut impl Rng, inner: SocketAddr) -> Option<SocketAddr> {
        if self.kind == NatKind::Firewall {
            return Some(inner);
        }
        let is_free = |port: &u16| !self.is_mapped(now, &SocketAddr::new(self.public, *port));
        let kept = Some(inner.port()).filter(|port| self.kind != NatKind::Symmetric && is_free(port));
        let port = kept.or_else(|| {
            let start = (rng.next_u32() % u32::from(PORTS)) as u16;
            (start..PORTS).chain(0..start).map(|port| PORT_MIN + port).find(is_free)
        })?;
        Some(SocketAddr::new(self.public, port))
    }
}

/// On what a mapping, or a filter, depends (RFC 4787 §4.1 and §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

const TRANSLATING: [NatKind; 4] =
    [NatKind::FullCone, NatKind::AddressRestricted, NatKind::PortRestricted, NatKind::Symmetric];

fn at(ms: u64) -> Instant {
    Instant::from_nanos(1_000_000_000) + Duration::from_millis(ms)
}

/// Number `n` of NATs of a kind.
fn nat(kind: NatKind, n: u8) -> Nat {
    let public = if kind == NatKind::Firewall { format!("2a01:{n}:17::") } else { format!("12.0.{n}.7") };
    Nat::new(kind, public.parse().expect("an address"))
}

/// Endpoint number `n` behind NAT number `of`.
fn inner(kind: NatKind, of: u8, n: u8) -> SocketAddr {
    let is_firewall = kind == NatKind::Firewall;
    let text = if is_firewall { format!("[2a01:{of}:17::{n}]:5747") } else { format!("10.{of}.0.{n}:5747") };
    text.parse().expect("an endpoint")
}

/// Endpoint of host number `n` on the internet of a NAT's family.
fn outer(kind: NatKind, n: u8, port: u16) -> SocketAddr {
    let is_firewall = kind == NatKind::Firewall;
    let text = if is_firewall { format!("[2a00::{n}]:{port}") } else { format!("11.0.{n}.7:{port}") };
    text.parse().expect("an endpoint")
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(1)
}

/// How a NAT maps and filters, found out from both sides of it.
fn classify(nat: &mut Nat) -> (Class, Class) {
    let (kind, mut rng) = (nat.kind(), rng());
    let [one, same_address, other] = [(1, 1111), (1, 2222), (2, 1111)].map(|(n, port)| outer(kind, n, port));
    let mut map = |to| nat.outgoing(at(0), &mut rng, inner(kind, 1, 1), to).expect("it lets all out");
    let mapped = [one, same_address, other].map(&mut map);
    let mapping = match mapped {
        [a, b, c] if a == b && b == c => Class::EndpointIndependent,
        [a, b, c] if a == b && b != c => Class::AddressDependent,
        _ => Class::AddressAndPortDependent,
    };
    let fresh = inner(kind, 1, 2);
    let mapped = nat.outgoing(at(0), &mut rng, fresh, one).expect("it lets all out");
    let lets_in = |source| nat.incoming(at(0), source, mapped).inspect(|to| assert_eq!(*to, fresh)).is_some();
    assert!(lets_in(one), "{kind:?} lets no answer in");
    let filtering = match [same_address, other].map(lets_in) {
        [true, true] => Class::EndpointIndependent,
        [true, false] => Class::AddressDependent,
        _ => Class::AddressAndPortDependent,
    };
    (mapping, filtering)
}

#[test]
fn every_kind_maps_and_filters_as_its_name_says() {
    use Class::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    for (kind, expected) in [
        (NatKind::FullCone, (EndpointIndependent, EndpointIndependent)),
        (NatKind::AddressRestricted, (EndpointIndependent, AddressDependent)),
        (NatKind::PortRestricted, (EndpointIndependent, AddressAndPortDependent)),
        (NatKind::Symmetric, (AddressAndPortDependent, AddressAndPortDependent)),
        (NatKind::Firewall, (EndpointIndependent, AddressAndPortDependent)),
    ] {
        assert_eq!(classify(&mut nat(kind, 1)), expected, "mapping and filtering of {kind:?}");
    }
}

#[test]
fn ports_are_kept_where_free_and_drawn_where_symmetric() {
    for kind in TRANSLATING {
        let (mut nat, to) = (nat(kind, 1), outer(kind, 1, 1111));
        let mut ports = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            [1, 2, 3].map(|n| {
                let mapped = nat.outgoing(at(0), &mut rng, inner(kind, 1, n), to).expect("it lets all out");
                assert_eq!(mapped.ip(), nat.public());
                assert_eq!(nat.incoming(at(0), to, mapped), Some(inner(kind, 1, n)));
                mapped.port()
            })
        };
        let first = ports(1);
        assert_eq!(first[0] == 5747, kind != NatKind::Symmetric, "{kind:?}: {first:?}");
        assert!(first[1..].iter().all(|port| *port >= PORT_MIN && *port != 5747), "{kind:?}: {first:?}");
        assert_eq!(ports(2), first, "a mapping in use stays");
        nat.rebind();
        let mut again = |n| nat.outgoing(at(0), &mut ChaCha8Rng::seed_from_u64(2), inner(kind, 1, n), to);
        again(1);
        assert_ne!(again(2).map(|mapped| mapped.port()), Some(first[1]), "{kind:?} does not draw its ports");
    }
}

#[test]
fn firewall_leaves_addresses_alone() {
    let (mut nat, to) = (nat(NatKind::Firewall, 1), outer(NatKind::Firewall, 1, 1111));
    for n in 1..3 {
        let inner = inner(NatKind::Firewall, 1, n);
        assert_eq!(nat.incoming(at(0), to, inner), None, "nobody asked");
        assert_eq!(nat.outgoing(at(0), &mut rng(), inner, to), Some(inner));
        assert_eq!(nat.incoming(at(0), to, inner), Some(inner));
    }
}

#[test]
fn only_what_is_sent_from_inside_keeps_a_mapping() {
    for kind in TRANSLATING.into_iter().chain([NatKind::Firewall]) {
        let (mut nat, mut rng) = (nat(kind, 1), rng());
        let (inner, a, b) = (inner(kind, 1, 1), outer(kind, 1, 1111), outer(kind, 2, 1111));
        let mut send =
            |nat: &mut Nat, ms, to| nat.outgoing(at(ms), &mut rng, inner, to).expect("it lets all out");
        let first = send(&mut nat, 0, a);
        assert_eq!(nat.incoming(at(119_999), a, first), Some(inner), "{kind:?}");
        assert_eq!(nat.incoming(at(120_000), a, first), None, "{kind:?}: kept by an answer");
        assert_eq!(send(&mut nat, 60_000, a), first);
        assert_eq!(nat.incoming(at(179_999), a, first), Some(inner), "{kind:?}: not kept");
        // What is sent elsewhere keeps the port, but lets in only its own destination.
        assert_eq!(send(&mut nat, 170_000, b) == first, kind != NatKind::Symmetric);
        let answer = nat.incoming(at(180_000), a, first);
        assert_eq!(answer.is_some(), kind == NatKind::FullCone, "{kind:?}");
        let later = send(&mut nat, 400_000, a);
        assert_eq!(later == first, kind != NatKind::Symmetric, "{kind:?}: the port after a pause");
        nat.idle = Duration::from_secs(30);
        assert_eq!(nat.incoming(at(429_999), a, later), Some(inner));
        assert_eq!(nat.incoming(at(430_000), a, later), None);
    }
}

#[test]
fn rebinding_and_rebooting_forget_all() {
    for kind in TRANSLATING {
        let (mut nat, mut rng) = (nat(kind, 1), rng());
        let (inner, a) = (inner(kind, 1, 1), outer(kind, 1, 1111));
        let first = nat.outgoing(at(0), &mut rng, inner, a).expect("it lets all out");
        nat.rebind();
        assert_eq!(nat.incoming(at(0), a, first), None, "{kind:?}: bound after rebinding");
        let second = nat.outgoing(at(0), &mut rng, inner, a).expect("it lets all out");
        assert_eq!(second.ip(), first.ip());
        nat.reboot("12.0.9.7".parse().expect("an address"));
        assert_eq!(nat.incoming(at(0), a, second), None, "{kind:?}: bound after a reboot");
        let moved = SocketAddr::new(nat.public(), second.port());
        assert_eq!(nat.incoming(at(0), a, moved), None, "{kind:?}: bound after a reboot");
        let third = nat.outgoing(at(0), &mut rng, inner, a).expect("it lets all out");
        assert_eq!(third.ip().to_string(), "12.0.9.7");
        assert_eq!(nat.incoming(at(0), a, third), Some(inner));
    }
}

#[test]
fn hairpin_is_off_until_switched_on() {
    let kind = NatKind::FullCone;
    let (mut nat, mut rng) = (nat(kind, 1), rng());
    let [one, other] = [1, 2].map(|n| inner(kind, 1, n));
    let mapped = nat.outgoing(at(0), &mut rng, one, outer(kind, 1, 1111)).expect("it lets all out");
    assert_eq!(nat.outgoing(at(0), &mut rng, other, mapped), None);
    nat.hairpin = true;
    let source = nat.outgoing(at(0), &mut rng, other, mapped).expect("it lets this out, too");
    assert_eq!(source.ip(), nat.public(), "seen from outside (RFC 4787 REQ-9)");
    assert_eq!(nat.incoming(at(0), source, mapped), Some(one));
}

#[test]
fn nothing_passes_where_udp_is_blocked() {
    for kind in TRANSLATING.into_iter().chain([NatKind::Firewall]) {
        let (mut nat, mut rng) = (nat(kind, 1), rng());
        let (inner, a) = (inner(kind, 1, 1), outer(kind, 1, 1111));
        let mapped = nat.outgoing(at(0), &mut rng, inner, a).expect("it lets all out");
        nat.blocks_udp = true;
        assert_eq!(nat.incoming(at(0), a, mapped), None, "{kind:?}");
        assert_eq!(nat.outgoing(at(0), &mut rng, inner, a), None, "{kind:?}");
    }
}

/// One side of a punch.
struct Puncher {
    nat: Nat,
    inner: SocketAddr,
    /// Where the other side was seen.
    targets: Vec<SocketAddr>,
}

/// Both sides send to where a third one, or they themselves, saw the other, at the same time and again and again. True
/// when both hear of each other.
fn punch(a: NatKind, b: NatKind) -> bool {
    let mut rng = rng();
    let mut sides = [(a, 1), (b, 2)].map(|(kind, n)| {
        let (nat, inner) = (nat(kind, n), inner(kind, n, 1));
        Puncher { nat, inner, targets: Vec::new() }
    });
    for (own, other) in [(0, 1), (1, 0)] {
        let Puncher { nat, inner, .. } = &mut sides[own];
        let meeting_point = outer(nat.kind(), 1, 1111);
        let seen = nat.outgoing(at(0), &mut rng, *inner, meeting_point).expect("it lets all out");
        sides[other].targets.push(seen);
    }
    let mut heard = [false; 2];
    for round in 1..=5 {
        let mut under_way = Vec::new();
        for (own, side) in sides.iter_mut().enumerate() {
            for to in &side.targets {
                let from = side.nat.outgoing(at(round * 100), &mut rng, side.inner, *to);
                under_way.push((1 - own, from.expect("it lets all out"), *to));
            }
        }
        for (to_whom, from, to) in under_way {
            let side = &mut sides[to_whom];
            if side.nat.incoming(at(round * 100 + 50), from, to) == Some(side.inner) {
                heard[to_whom] = true;
                if !side.targets.contains(&from) {
                    side.targets.push(from);
                }
            }
        }
    }
    heard == [true; 2]
}

#[test]
fn simultaneous_probes_punch_all_but_symmetric_with_port_filters() {
    use NatKind::{Firewall, PortRestricted, Symmetric};
    for a in TRANSLATING {
        for b in TRANSLATING {
            let fails =
                matches!((a, b), (Symmetric, PortRestricted | Symmetric) | (PortRestricted, Symmetric));
            assert_eq!(punch(a, b), !fails, "{a:?} and {b:?}");
        }
    }
    assert!(punch(Firewall, Firewall));
}
