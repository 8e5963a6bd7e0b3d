//! An internet of global addresses, and routers of many kinds on its edge.
//!
//! ```text
//!              ┌ p4 ══ eth0 ─ azPxCn4
//!   azPxCnet ──┤
//!              └ r1 ══ wan0 ─ azPxCr1 ─ br0 ┬ p5 ══ eth0 ─ azPxCn5
//!                                           └ r2 ══ wan0 ─ azPxCr2 ─ br0 ─ p6 ══ eth0 ─ azPxCn6
//! ```
//! What is plugged into the internet has a subnet of its own, 20.N.0.0/24 or 2a0f:N::/64: no two of them share a /16.
//! Behind router R is 192.168.R.0/24, or, without address translation, 2a0f:N:1::/64.

use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::lab::line::{Line, Weather};
use crate::lab::node::Node;
use crate::lab::plug::{Outlet, Provider, on};
use crate::lab::process::{Process, run};
use crate::lab::{Lab, Machine, Underlay, command, eventually, inside, ip, next};

/// The host part of the first address that a router gives to a machine behind it.
const FIRST_HOST: u8 = 2;
/// What changes in the host part of a router's address when it gets another one; a second time it has the first again.
const RENUMBERED: u8 = 64;

/// How a router treats what passes it. Mapping and filtering in the terms of RFC 4787.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    PortRestricted,
    /// What Linux does: as [`Self::PortRestricted`] as long as no two machines use one port.
    PlainConntrack,
    /// Address- and port-dependent mapping to random ports, and filtering.
    Symmetric,
    /// As [`Self::FullCone`], and machines behind it reach each other at their outside addresses.
    Hairpin,
    /// As [`Self::PlainConntrack`] for TCP; no UDP passes.
    UdpBlocked,
    /// No translation; address- and port-dependent filtering of IPv6.
    Ipv6Firewall,
}

impl Nat {
    /// Every kind.
    pub(crate) const ALL: [Self; 8] = [
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::PlainConntrack,
        Self::Symmetric,
        Self::Hairpin,
        Self::UdpBlocked,
        Self::Ipv6Firewall,
    ];

    /// The version of IP that it routes.
    pub(crate) const fn underlay(self) -> Underlay {
        match self {
            Self::Ipv6Firewall => Underlay::V6,
            Self::FullCone
            | Self::AddressRestricted
            | Self::PortRestricted
            | Self::PlainConntrack
            | Self::Symmetric
            | Self::Hairpin
            | Self::UdpBlocked => Underlay::V4,
        }
    }

    /// Rules for nft, with the outside address and the subnet inside.
    ///
    /// The router refuses what comes from outside to itself: it would else own the connection, and with that the
    /// port, when a peer's packet arrives before ours left.
    fn rules(self, outside: IpAddr, inside: IpAddr, seed: u32) -> String {
        if self == Self::Ipv6Firewall {
            return format!("table ip6 natlab {{ {CLOSED}; }}");
        }
        let hairpin = self == Self::Hairpin;
        let arriving = if hairpin { format!("ip daddr {outside}") } else { "iifname wan0".into() };
        let (mut map, mut turn) = (String::new(), String::new());
        if self.maps_endpoints() {
            map = format!(
                "{SETS}
                chain pre {{ type nat hook prerouting priority -100;
                    {arriving} meta l4proto udp dnat to udp dport map @inner;
                }}"
            );
        }
        if hairpin {
            // The kernel no longer says where it came from, only from whom.
            turn = format!("ip saddr {inside}/24 oifname br0 ct status dnat jump out;");
        }
        format!(
            "table ip natlab {{
                {map}
                chain input {{ type filter hook input priority 0; iifname wan0 ct state new drop; }}
                chain out {{ {}; }}
                chain post {{ type nat hook postrouting priority 100; oifname wan0 jump out; {turn} }}
                {}
            }}",
            self.translation(outside, seed),
            self.forwarding()
        )
    }

    /// What leaves gets the outside address; which port is the kind's business. With a `seed` other than 0 outside
    /// ports are a hash of the inside endpoint instead of its port.
    fn translation(self, outside: IpAddr, seed: u32) -> String {
        let hashed = format!(
            "meta l4proto udp snat to {outside}:jhash ip saddr . udp sport mod 60000 seed {seed} offset 2000;
            snat to {outside}"
        );
        if self == Self::Symmetric {
            format!("snat to {outside} fully-random")
        } else if seed != 0 {
            hashed
        } else if self.maps_endpoints() {
            format!("ip saddr . udp sport @kept snat to {outside}; {CLAIM} snat to {outside}; {hashed}")
        } else {
            format!("snat to {outside}")
        }
    }

    const fn forwarding(self) -> &'static str {
        match self {
            Self::FullCone | Self::Hairpin => "",
            Self::AddressRestricted => SEEN,
            Self::UdpBlocked => NO_UDP,
            Self::PortRestricted | Self::PlainConntrack | Self::Symmetric | Self::Ipv6Firewall => CLOSED,
        }
    }

    /// Whether an inside endpoint has one outside endpoint towards everybody.
    const fn maps_endpoints(self) -> bool {
        matches!(self, Self::FullCone | Self::AddressRestricted | Self::PortRestricted | Self::Hairpin)
    }
}

/// Who is behind an outside port, learnt from what leaves; and which ports somebody inside has for its own.
const SETS: &str = "
    map inner { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 65536; }
    set kept { type ipv4_addr . inet_service; flags dynamic; size 65536; }
    set taken { type inet_service; flags dynamic; size 65536; }
    chain learn { type filter hook postrouting priority 200;
        oifname wan0 meta l4proto udp ct direction original \
            update @inner { udp sport : ct original ip saddr . ct original proto-src };
        oifname wan0 meta l4proto udp ct direction reply \
            update @inner { udp sport : ct reply ip saddr . ct reply proto-src };
    }";

/// The first inside endpoint with this port keeps it outside.
const CLAIM: &str = "udp sport != @taken add @taken { udp sport } add @kept { ip saddr . udp sport }";

/// Nothing comes in but answers.
const CLOSED: &str = "chain forward { type filter hook forward priority 0;
    ct state established,related accept;
    iifname wan0 drop;
}";

/// Anything comes in from an address that was sent to.
const SEEN: &str = "
    set seen { type ipv4_addr . ipv4_addr . inet_service; flags dynamic,timeout; timeout 300s; size 65536; }
    chain forward { type filter hook forward priority 0;
        oifname wan0 meta l4proto udp update @seen { ip daddr . ip saddr . udp sport };
        iifname wan0 ip saddr . ip daddr . udp dport @seen accept;
        ct state established,related accept;
        iifname wan0 drop;
    }";

const NO_UDP: &str = "chain forward { type filter hook forward priority 0;
    meta l4proto udp drop;
    ct state established,related accept;
    iifname wan0 drop;
}";

/// How a router is asked for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapper {
    /// PCP and NAT-PMP.
    Pcp,
    /// UPnP and nothing else.
    Upnp,
}

impl Mapper {
    /// What miniupnpd logs when it can be asked.
    const fn listens(self) -> &'static str {
        match self {
            Self::Pcp => "traffic on port 5351",
            Self::Upnp => "HTTP listening on port",
        }
    }
}

/// The chains that miniupnpd fills, as its own scripts make them, without a policy of their own.
const MINIUPNPD_CHAINS: &str = "table inet filter {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain forward { type filter hook forward priority 0; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 90; jump postrouting_miniupnpd; }
}";

const MINIUPNPD_CONFIG: &str = "ext_ifname=wan0
listening_ip=br0
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

/// How long a router's daemon may take to start.
const STARTED: Duration = Duration::from_secs(5);

/// A router between a LAN and whatever it is plugged into.
pub(crate) struct Router<'lab> {
    lab: &'lab Lab,
    nat: Nat,
    number: u8,
    pub(crate) netns: String,
    /// Its address outside.
    pub(crate) ip: IpAddr,
    outlet: Outlet,
    hosts: Cell<u8>,
    /// How often it was made to forget its mappings.
    forgotten: u32,
}

impl<'lab> Router<'lab> {
    fn new(lab: &'lab Lab, provider: &dyn Provider, nat: Nat) -> Self {
        let number = next(&lab.routers);
        let netns = lab.namespace(&format!("r{number}"));
        let (outlet, address) = provider.outlet(&format!("r{number}"), nat.underlay());
        route_both(&netns);
        outlet.connect(&netns, "wan0", address);
        let router = Self {
            lab,
            nat,
            number,
            netns,
            ip: address,
            outlet,
            hosts: Cell::new(FIRST_HOST - 1),
            forgotten: 0,
        };
        ip(&format!("-n {} link add br0 type bridge", router.netns));
        ip(&format!("-n {} link set br0 up", router.netns));
        ip(&format!("-n {} addr add {}", router.netns, on("br0", router.inside_address(1))));
        router.load();
        router
    }

    /// A machine behind it.
    pub(crate) fn machine(&self) -> Machine {
        self.lab.machine_from(self, self.nat.underlay())
    }

    /// A machine behind it with an identity, its daemon not yet started.
    pub(crate) fn node(&self) -> Node {
        Node::new(self.machine())
    }

    /// A router behind it, so that what is behind that is translated twice.
    pub(crate) fn router(&self, nat: Nat) -> Self {
        assert_eq!((nat.underlay(), self.nat.underlay()), (Underlay::V4, Underlay::V4));
        Router::new(self.lab, self, nat)
    }

    /// Forgets every connection, and with them who may come in; outside ports stay what they are, but for those that are
    /// drawn.
    pub(crate) fn forget_connections(&self) {
        forget_connections(&self.netns);
    }

    /// Forgets every connection and mapping; from now on outside ports are others than before.
    pub(crate) fn forget(&mut self) {
        self.forgotten += 1;
        self.load();
        forget_connections(&self.netns);
    }

    /// Gets another address in the same subnet outside, as after a restart.
    pub(crate) fn renumber(&mut self) {
        let IpAddr::V4(old) = self.ip else {
            panic!("a router without translation would renumber all behind it")
        };
        let [a, b, c, host] = old.octets();
        let new = IpAddr::V4(Ipv4Addr::new(a, b, c, host ^ RENUMBERED));
        ip(&format!("-n {} addr del {old}/24 dev wan0", self.netns));
        self.outlet.address(&self.netns, "wan0", new);
        self.ip = new;
        self.forget();
    }

    /// Is plugged in elsewhere: at another place of the internet, or behind another router.
    pub(crate) fn move_to(&mut self, provider: &dyn Provider) {
        assert!(self.ip.is_ipv4(), "a router without translation would renumber all behind it");
        let (outlet, address) = provider.outlet(&format!("r{}", self.number), Underlay::V4);
        outlet.take_over(&self.outlet, &self.netns, "wan0", address);
        (self.outlet, self.ip) = (outlet, address);
        self.forget();
    }

    /// Lays a line with distance to the outside, which lasts as long as the lab.
    pub(crate) fn lengthen(&self, weather: Weather, seed: u64) -> Rc<Line> {
        self.lab.keep(self.outlet.lengthen((&self.netns, "wan0"), self.ip, weather, seed))
    }

    /// Its address inside.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.inside_address(1)
    }

    /// Maps ports to machines behind it that ask, until the value is dropped: miniupnpd, as many routers
    /// have it. Not for kinds that redirect what comes in by themselves.
    pub(crate) fn maps_ports(&self, by: Mapper) -> Process {
        assert!(
            !self.nat.maps_endpoints(),
            "what a {:?} router lets in would be more than it maps",
            self.nat
        );
        nft(&self.netns, &format!("insert rule ip natlab forward ct status dnat accept; {MINIUPNPD_CHAINS}"));
        let dir = self.lab.dir.path().join(format!("r{}", self.number));
        fs::create_dir(&dir).unwrap();
        let file = dir.join("miniupnpd.conf");
        let protocol = match by {
            Mapper::Pcp => "enable_natpmp=yes\nenable_upnp=no\n",
            Mapper::Upnp => "enable_natpmp=no\nenable_upnp=yes\n",
        };
        fs::write(&file, protocol.to_owned() + MINIUPNPD_CONFIG).unwrap();
        let mut line = command(&self.netns, "miniupnpd");
        line.arg("-d").arg("-f").arg(&file).arg("-P").arg(dir.join("pid"));
        let daemon = Process::spawn(&mut line, &dir.join("miniupnpd.log"));
        eventually(STARTED, "miniupnpd listens", || daemon.log().contains(by.listens()).then_some(()));
        daemon
    }

    /// Drops what one address sends to the other, both as seen inside where they are inside; the internet goes on.
    pub(crate) fn cut(&self, one: IpAddr, other: IpAddr) {
        cut(&self.netns, one, other);
    }

    /// Undoes every cut.
    pub(crate) fn mend(&self) {
        mend(&self.netns);
    }

    /// Lets no UDP through any more; flows that stand end with it.
    pub(crate) fn block_udp(&self) {
        let chain = "chain forward { type filter hook forward priority -20; meta l4proto udp drop; }";
        nft(&self.netns, &format!("table inet noudp {{ {chain}; }}"));
    }

    /// Undoes [`Router::block_udp`].
    pub(crate) fn let_udp(&self) {
        nft(&self.netns, "add table inet noudp; delete table inet noudp");
    }

    fn load(&self) {
        let family = family(self.ip);
        let rules = self.nat.rules(self.ip, self.inside_address(0), self.forgotten);
        nft(&self.netns, &format!("add table {family} natlab; delete table {family} natlab; {rules}"));
    }

    fn inside_address(&self, host: u8) -> IpAddr {
        match self.ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 168, self.number, host)),
            IpAddr::V6(ip) => {
                let [provider, subscriber, ..] = ip.segments();
                IpAddr::V6(Ipv6Addr::new(provider, subscriber, 1, 0, 0, 0, 0, host.into()))
            }
        }
    }
}

impl Provider for Router<'_> {
    fn outlet(&self, port: &str, underlay: Underlay) -> (Outlet, IpAddr) {
        assert_eq!(underlay, self.nat.underlay(), "a {:?} router has no such address", self.nat);
        let outlet = Outlet {
            netns: self.netns.clone(),
            port: port.into(),
            gateway: Some(self.inside_address(1)),
            behind: None,
            bridged: true,
        };
        (outlet, self.inside_address(next(&self.hosts)))
    }
}

/// The internet, made with the first thing that is plugged into it.
impl Provider for Lab {
    fn outlet(&self, port: &str, underlay: Underlay) -> (Outlet, IpAddr) {
        let netns = self.internet();
        let number = next(&self.subscribers);
        let v4 = |host| IpAddr::V4(Ipv4Addr::new(20, number, 0, host));
        let v6 = |subnet, host: u8| {
            IpAddr::V6(Ipv6Addr::new(0x2a0f, number.into(), subnet, 0, 0, 0, 0, host.into()))
        };
        let (gateway, address, behind) = match underlay {
            Underlay::V4 => (v4(1), v4(FIRST_HOST), None),
            Underlay::V6 => (v6(0, 1), v6(0, FIRST_HOST), Some(v6(1, 0))),
        };
        let outlet = Outlet { netns, port: port.into(), gateway: Some(gateway), behind, bridged: false };
        (outlet, address)
    }
}

impl Lab {
    /// A machine on the internet.
    pub(crate) fn public_machine(&self, underlay: Underlay) -> Machine {
        self.machine_from(self, underlay)
    }

    /// A machine on the internet with an identity, its daemon not yet started.
    pub(crate) fn public(&self, underlay: Underlay) -> Node {
        Node::new(self.public_machine(underlay))
    }

    /// A router on the internet.
    pub(crate) fn router(&self, nat: Nat) -> Router<'_> {
        Router::new(self, self, nat)
    }

    /// Drops what two public addresses send to each other.
    pub(crate) fn cut(&self, one: IpAddr, other: IpAddr) {
        cut(&self.internet(), one, other);
    }

    /// Undoes every cut of the internet.
    pub(crate) fn mend(&self) {
        mend(&self.internet());
    }

    /// The namespace that routes between all that is public.
    pub(crate) fn internet(&self) -> String {
        if !self.has_internet.replace(true) {
            route_both(&self.namespace("net"));
        }
        format!("{}net", self.prefix)
    }
}

/// Forwards IPv4 and IPv6 in a namespace.
fn route_both(netns: &str) {
    inside(netns, || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
}

/// How nft calls the version of IP.
const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

fn cut(netns: &str, one: IpAddr, other: IpAddr) {
    let family = family(one);
    let drop =
        |from, to| format!("add rule inet cuts forward {family} saddr {from} {family} daddr {to} drop");
    nft(
        netns,
        &format!(
            "add table inet cuts; add chain inet cuts forward {{ type filter hook forward priority -10; }};
            {}; {}",
            drop(one, other),
            drop(other, one)
        ),
    );
}

fn mend(netns: &str) {
    nft(netns, "add table inet cuts; delete table inet cuts");
}

/// Loads rules in a namespace, all or none.
fn nft(netns: &str, rules: &str) {
    let ran = run(command(netns, "nft").arg(rules));
    assert_eq!(ran.code, 0, "nft in {netns}: {}\n{rules}", ran.err);
}

/// Deletes every connection that a namespace tracks, as `conntrack -F` does.
fn forget_connections(netns: &str) {
    /// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`; without attributes it means all.
    const DELETE: u16 = 1 << 8 | 2;
    /// `NLM_F_REQUEST | NLM_F_ACK`.
    const FLAGS: u16 = 1 | 4;
    const LENGTH: u32 = 20;
    let mut message = Vec::from(LENGTH.to_ne_bytes());
    message.extend([DELETE.to_ne_bytes(), FLAGS.to_ne_bytes()].as_flattened());
    message.resize(LENGTH as usize, 0);
    let answer = inside(netns, || {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
        let kernel = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        send(kernel.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
        let mut answer = [0; 64];
        let length = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        answer[..length].to_vec()
    });
    // nlmsghdr, then the error of nlmsgerr.
    assert_eq!(answer[16..20], [0; 4], "connections of {netns} cannot be deleted: {answer:?}");
}
