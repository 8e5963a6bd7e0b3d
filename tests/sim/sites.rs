//! Networks behind NATs: which address is where, and what a datagram goes through on its way out and in.
//!
//! The network behind NAT number R has the addresses 10.R.0.0/24, and 2a01:R:17::/64 when the NAT is a firewall. A NAT
//! stands in the public underlay or in the network behind another one, of which its outer address is then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use auramesh::proto::timer::Instant;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng as _};

use crate::nat::{Nat, NatId, NatKind};

/// A network: that behind a NAT, or the public underlay.
pub(crate) type Realm = Option<NatId>;

struct Site {
    nat: Nat,
    /// Where the NAT stands.
    outside: Realm,
    /// Addresses handed out behind it.
    machines: u8,
}

/// All NATs of a world.
#[derive(Default)]
pub(crate) struct Sites(Vec<Site>);

impl Sites {
    /// A NAT that stands in `outside`. Its outer address is `public`; of a firewall, that of the network behind it.
    pub(crate) fn add(&mut self, kind: NatKind, outside: Realm, public: Ipv4Addr) -> NatId {
        let is_firewall = kind == NatKind::Firewall;
        if let Some(outside) = outside {
            let is_in_v6 = self.nat(outside).kind() == NatKind::Firewall;
            assert_eq!(is_in_v6, is_firewall, "nothing translates between IPv4 and IPv6");
        }
        let id = NatId(self.0.len());
        let public = if is_firewall { inner_v6(id, 0) } else { public.into() };
        self.0.push(Site { nat: Nat::new(kind, public), outside, machines: 0 });
        id
    }

    pub(crate) fn nat(&self, id: NatId) -> &Nat {
        &self.0[id.0].nat
    }

    pub(crate) fn nat_mut(&mut self, id: NatId) -> &mut Nat {
        &mut self.0[id.0].nat
    }

    /// Where a NAT stands.
    pub(crate) fn outside(&self, id: NatId) -> Realm {
        self.0[id.0].outside
    }

    /// An address behind a NAT that was not handed out before.
    pub(crate) fn next_address(&mut self, id: NatId) -> IpAddr {
        let site = &mut self.0[id.0];
        site.machines += 1;
        // The first address is the router's.
        let n = site.machines + 1;
        if site.nat.kind() == NatKind::Firewall { inner_v6(id, n) } else { inner_v4(id, n) }
    }

    /// The network that an address belongs to.
    pub(crate) fn realm(&self, ip: IpAddr) -> Realm {
        if self.0.is_empty() {
            return None;
        }
        let n = match ip {
            IpAddr::V4(ip) => match ip.octets() {
                [10, low, high, _] => u16::from_be_bytes([high, low]),
                _ => return None,
            },
            IpAddr::V6(ip) => match ip.segments() {
                [0x2a01, n, 0x17, 0, ..] => n,
                _ => return None,
            },
        };
        let id = NatId(usize::from(n).checked_sub(1)?);
        let site = self.0.get(id.0)?;
        (ip.is_ipv6() == (site.nat.kind() == NatKind::Firewall)).then_some(id)
    }

    /// The address under which the public underlay knows a machine.
    pub(crate) fn public_address(&self, ip: IpAddr) -> IpAddr {
        let mut ip = ip;
        while let Some(id) = self.realm(ip).filter(|id| self.nat(*id).kind() != NatKind::Firewall) {
            ip = self.nat(id).public();
        }
        ip
    }

    /// A datagram leaves its machine: the network in which it finds its destination, and the source that it has
    /// there. `None` when a NAT does not let it out.
    pub(crate) fn leave(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<(Realm, SocketAddr)> {
        let (mut realm, mut from) = (self.realm(from.ip()), from);
        let goal = self.realm(to.ip());
        while let Some(id) = realm.filter(|_| realm != goal) {
            let site = &mut self.0[id.0];
            from = site.nat.outgoing(now, rng, from, to)?;
            realm = site.outside;
        }
        Some((realm, from))
    }

    /// A datagram in `realm` comes to its destination: the endpoint at which a machine gets it. `None` when a NAT does
    /// not let it in, or the destination is in another network.
    pub(crate) fn enter(
        &self,
        now: Instant,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let (mut realm, mut to) = (realm, to);
        while let Some(id) = self.gate(realm, to.ip()) {
            to = self.nat(id).incoming(now, from, to)?;
            realm = Some(id);
        }
        (self.realm(to.ip()) == realm).then_some(to)
    }

    /// The NAT in `realm` that what is sent to an address has to pass.
    fn gate(&self, realm: Realm, ip: IpAddr) -> Realm {
        let stands_here = |(_, site): &(usize, &Site)| site.outside == realm && site.nat.public() == ip;
        let translating = self.0.iter().enumerate().find(stands_here).map(|(n, _)| NatId(n));
        translating.or_else(|| {
            let mut inner = self.realm(ip);
            while let Some(id) =
                inner.filter(|id| inner != realm && self.nat(*id).kind() == NatKind::Firewall)
            {
                if self.outside(id) == realm {
                    return Some(id);
                }
                inner = self.outside(id);
            }
            None
        })
    }
}

/// Address number `n` behind a NAT.
fn inner_v4(id: NatId, n: u8) -> IpAddr {
    let [high, low] = number(id).to_be_bytes();
    Ipv4Addr::new(10, low, high, n).into()
}

fn inner_v6(id: NatId, n: u8) -> IpAddr {
    Ipv6Addr::new(0x2a01, number(id), 0x17, 0, 0, 0, 0, n.into()).into()
}

fn number(id: NatId) -> u16 {
    u16::try_from(id.0 + 1).expect("fewer NATs than numbers")
}

/// A carrier's NAT, two homes behind it, and a machine in each.
fn homes(kind: NatKind) -> (Sites, NatId, [SocketAddr; 2]) {
    let mut sites = Sites::default();
    let carrier = sites.add(kind, None, Ipv4Addr::new(12, 0, 1, 7));
    let machines = [(); 2].map(|()| {
        let IpAddr::V4(public) = sites.next_address(carrier) else { panic!("a NAT for IPv4") };
        let home = sites.add(kind, Some(carrier), public);
        SocketAddr::new(sites.next_address(home), 5747)
    });
    (sites, carrier, machines)
}

#[test]
fn datagram_passes_all_nats_on_its_way() {
    let (mut sites, carrier, [a, b]) = homes(NatKind::PortRestricted);
    let (mut rng, now) = (ChaCha8Rng::seed_from_u64(1), Instant::from_nanos(0));
    let server = SocketAddr::new(Ipv4Addr::new(11, 0, 1, 7).into(), 5747);
    let (realm, of_a) = sites.leave(now, &mut rng, a, server).expect("all let it out");
    assert_eq!((realm, of_a.ip()), (None, sites.nat(carrier).public()));
    assert_eq!(sites.enter(now, None, server, of_a), Some(a));
    let (_, of_b) = sites.leave(now, &mut rng, b, server).expect("all let it out");
    assert_ne!(of_a, of_b);
    assert_eq!(sites.enter(now, None, server, of_b), Some(b));
    assert_eq!(sites.enter(now, None, server, a), None, "private addresses are not known outside");
    // From one home to the other it is the carrier that has to turn it back.
    assert_eq!(sites.leave(now, &mut rng, a, of_b), None);
    sites.nat_mut(carrier).hairpin = true;
    let turned = [(a, of_b), (b, of_a)].map(|(from, to)| (sites.leave(now, &mut rng, from, to), to));
    assert_eq!(turned.map(|(left, _)| left), [Some((None, of_a)), Some((None, of_b))]);
    assert_eq!(sites.enter(now, None, of_a, of_b), Some(b));
    assert_eq!(sites.enter(now, None, of_b, of_a), Some(a));
    // In the carrier's network the homes know each other by their addresses there.
    let home_of_b = sites.nat(sites.realm(b.ip()).expect("behind a NAT")).public();
    let home_of_b = SocketAddr::new(home_of_b, 5747);
    let (realm, from) = sites.leave(now, &mut rng, a, home_of_b).expect("all let it out");
    assert_eq!((realm, sites.realm(from.ip())), (Some(carrier), Some(carrier)));
    assert_eq!(sites.enter(now, realm, server, home_of_b), Some(b));
    assert_eq!(sites.enter(now, None, server, home_of_b), None, "the carrier's network is not known outside");
    assert_eq!(sites.public_address(a.ip()), sites.nat(carrier).public());
}
