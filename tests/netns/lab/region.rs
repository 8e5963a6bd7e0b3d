//! Two regions, a bridge each, and the one cable between them that can be cut.
//!
//! ```text
//!   azPxCn1 ─ eth0 ══ p1 ┐                                          ┌ p2 ══ eth0 ─ azPxCn2
//!                        ┤ br0 in azPxCwest ══ trunk ══ azPxCeast br0 ├
//!   azPxCn3 ─ eth0 ══ p3 ┘                                          └ q3 ══ eth1 ─ azPxCn3
//! ```
//! Machine N has 20.N.0.2/24 in the west and 20.(64+N).0.2/24 in the east; all of 20.0.0.0/8 is on the link.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};

use crate::lab::node::Node;
use crate::lab::plug::{Outlet, Provider};
use crate::lab::{Lab, Underlay, ip, next};

/// Added to the second octet of addresses in the east.
const EAST: u8 = 64;

/// Which region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    West,
    East,
}

/// Both regions.
pub(crate) struct Regions<'lab> {
    lab: &'lab Lab,
    netns: [String; 2],
    machines: Cell<u8>,
}

struct Place<'r> {
    regions: &'r Regions<'r>,
    side: Side,
}

impl Provider for Place<'_> {
    fn outlet(&self, port: &str, underlay: Underlay) -> (Outlet, IpAddr) {
        assert_eq!(underlay, Underlay::V4, "the regions have no other addresses");
        let netns = self.regions.netns[self.side as usize].clone();
        let outlet = Outlet { netns, port: port.into(), gateway: None, behind: None, bridged: true };
        (outlet, address(next(&self.regions.machines), self.side))
    }
}

fn address(number: u8, side: Side) -> IpAddr {
    let second = if side == Side::East { EAST + number } else { number };
    IpAddr::V4(Ipv4Addr::new(20, second, 0, 2))
}

impl<'lab> Regions<'lab> {
    pub(crate) fn new(lab: &'lab Lab) -> Self {
        let netns = ["west", "east"].map(|name| {
            let netns = lab.namespace(name);
            ip(&format!("-n {netns} link add br0 type bridge"));
            ip(&format!("-n {netns} link set br0 up"));
            netns
        });
        let [west, east] = &netns;
        ip(&format!("-n {west} link add trunk type veth peer name trunk netns {east}"));
        for netns in &netns {
            ip(&format!("-n {netns} link set trunk master br0 up"));
        }
        Self { lab, netns, machines: Cell::new(0) }
    }

    /// A machine in one region with an identity, its daemon not yet started.
    pub(crate) fn node(&self, side: Side) -> Node {
        let machine = self.lab.machine_from(&Place { regions: self, side }, Underlay::V4);
        machine.must("ip route add 20.0.0.0/8 dev eth0");
        Node::new(machine)
    }

    /// A machine with a device in each region.
    pub(crate) fn node_in_both(&self) -> Node {
        let machine = self.lab.machine_from(&Place { regions: self, side: Side::West }, Underlay::V4);
        let number = self.machines.get();
        let (outlet, _) =
            Place { regions: self, side: Side::East }.outlet(&format!("q{number}"), Underlay::V4);
        self.machines.set(number);
        // Each device answers for its own address only.
        machine.must("echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore");
        outlet.connect(&machine.netns, "eth1", address(number, Side::East));
        machine.must(&format!("ip route add 20.0.0.0/10 dev eth0 && ip route add 20.{EAST}.0.0/10 dev eth1"));
        Node::new(machine)
    }

    /// Cuts the cable.
    pub(crate) fn cut(&self) {
        ip(&format!("-n {} link set trunk down", self.netns[0]));
    }

    /// Mends it.
    pub(crate) fn mend(&self) {
        ip(&format!("-n {} link set trunk up", self.netns[0]));
    }
}
