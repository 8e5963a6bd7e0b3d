//! The addresses of this machine's interfaces.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// Name of the interface.
    pub interface: String,
    /// Index of the interface; the scope id of its link-local addresses.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix_len: u8,
    /// The interface is up and has a carrier.
    pub up: bool,
    /// The interface is the loopback.
    pub loopback: bool,
    /// The interface can send to a group (false for a point-to-point link without multicast).
    pub multicast: bool,
}

/// Every IPv4 and IPv6 address of this machine, in order of interface name, then address.
///
/// # Errors
/// When the kernel cannot be asked (no descriptors left).
pub fn local() -> io::Result<Vec<LocalAddress>> {
    let mut indexes = BTreeMap::new();
    let mut found = Vec::new();
    for entry in getifaddrs()? {
        let Some(address) = entry.address else { continue };
        let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (_, Some(v6)) => v6.ip().into(),
            _ => continue,
        };
        let name = entry.interface_name;
        // Gone between the two calls: index 0, which no interface has.
        let index = *indexes
            .entry(name.clone())
            .or_insert_with_key(|name| if_nametoindex(name.as_str()).unwrap_or(0));
        if index == 0 {
            continue;
        }
        let flags = entry.flags;
        let mask = entry.netmask.as_ref();
        let prefix_len = match (mask.and_then(|m| m.as_sockaddr_in()), mask.and_then(|m| m.as_sockaddr_in6()))
        {
            (Some(v4), _) => v4.ip().to_bits().leading_ones(),
            (_, Some(v6)) => v6.ip().to_bits().leading_ones(),
            // Without a mask: an address that is alone.
            _ => 128,
        };
        found.push(LocalAddress {
            interface: name,
            index,
            ip,
            prefix_len: prefix_len as u8,
            up: flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
            loopback: flags.contains(InterfaceFlags::IFF_LOOPBACK),
            multicast: flags.contains(InterfaceFlags::IFF_MULTICAST),
        });
    }
    found.sort();
    Ok(found)
}
