//! Where a device of a namespace is plugged in: a bridge, or a port of a router that is a subnet of its own.

use std::fs;
use std::net::IpAddr;

use crate::lab::line::{Line, Weather};
use crate::lab::{Underlay, inside, ip};

/// What something can be plugged into.
pub(crate) trait Provider {
    /// A free place, with the address that whoever takes it has there.
    fn outlet(&self, port: &str, underlay: Underlay) -> (Outlet, IpAddr);
}

/// The far end of a cable.
pub(crate) struct Outlet {
    /// The namespace that the far end is in.
    pub(crate) netns: String,
    /// The far end's name there.
    pub(crate) port: String,
    /// Where the default route leads.
    pub(crate) gateway: Option<IpAddr>,
    /// A subnet that is behind whoever takes the place.
    pub(crate) behind: Option<IpAddr>,
    /// The port belongs to the bridge `br0`; else it has the gateway's address.
    pub(crate) bridged: bool,
}

impl Outlet {
    /// Lays a veth pair from here to `device` in another namespace, and gives that its address.
    pub(crate) fn connect(&self, netns: &str, device: &str, address: IpAddr) {
        ip(&format!("-n {} link add {} type veth peer name {device} netns {netns}", self.netns, self.port));
        self.set_up(netns, device, address);
    }

    /// Lays a line with distance instead of the cable that is there.
    pub(crate) fn lengthen(
        &self,
        (netns, device): (&str, &str),
        address: IpAddr,
        weather: Weather,
        seed: u64,
    ) -> Line {
        ip(&format!("-n {netns} link del {device}"));
        let line = Line::new([(netns, device), (&self.netns, &self.port)], weather, seed);
        self.set_up(netns, device, address);
        line
    }

    /// Takes the far end of the cable over from another outlet, while the near end stays what it is.
    pub(crate) fn take_over(&self, from: &Self, netns: &str, device: &str, address: IpAddr) {
        ip(&format!("-n {} link set {} nomaster down", from.netns, from.port));
        ip(&format!("-n {} addr flush dev {} scope global", from.netns, from.port));
        ip(&format!("-n {} link set {} netns {} name {}", from.netns, from.port, self.netns, self.port));
        ip(&format!("-n {netns} addr flush dev {device} scope global"));
        self.attach(netns, device, address);
    }

    /// Gives the near end an address that is usable at once, and the default route.
    pub(crate) fn address(&self, netns: &str, device: &str, address: IpAddr) {
        ip(&format!("-n {netns} addr add {}", on(device, address)));
        if let Some(gateway) = self.gateway {
            ip(&format!("-n {netns} route replace default via {gateway} dev {device}"));
        }
    }

    fn set_up(&self, netns: &str, device: &str, address: IpAddr) {
        for (netns, device) in [(netns, device), (&self.netns, &self.port)] {
            inside(netns, || {
                fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_dad"), "0").unwrap();
                let off = if address.is_ipv4() { "1" } else { "0" };
                fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), off).unwrap();
            });
        }
        self.attach(netns, device, address);
    }

    fn attach(&self, netns: &str, device: &str, address: IpAddr) {
        let (far, port) = (&self.netns, &self.port);
        ip(&format!("-n {netns} link set {device} up"));
        if self.bridged {
            ip(&format!("-n {far} link set {port} master br0 up"));
        } else {
            ip(&format!("-n {far} link set {port} up"));
            ip(&format!("-n {far} addr add {}", on(port, self.gateway.unwrap())));
        }
        if let Some(behind) = self.behind {
            ip(&format!("-n {far} route add {behind}/64 via {address} dev {port}"));
        }
        self.address(netns, device, address);
    }
}

/// The words of `ip addr add` for a subnet of the usual size.
pub(crate) fn on(device: &str, address: IpAddr) -> String {
    let (length, flags) = if address.is_ipv4() { (24, "") } else { (64, " nodad") };
    format!("{address}/{length} dev {device}{flags}")
}
