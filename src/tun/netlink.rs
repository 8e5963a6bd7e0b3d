//! The few rtnetlink requests that an interface needs.
//!
//! A connection lives for one public operation: such operations are rare, and nothing is left open between them.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::proto::identity::{MESH_PREFIX, MESH_PREFIX_LEN};

/// A connection to the kernel; ends on drop.
pub(super) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) mtu: u32,
    /// Of a TUN: some program has a queue of it open.
    pub(super) carrier: bool,
    pub(super) kind: Kind,
}

/// What kind of interface it is, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tun {
        /// Made for several queues (`multi_queue`).
        shared: bool,
        /// Queues that programs have open, if it is shared and the kernel tells.
        queues: Option<u32>,
    },
    /// With its article, for a message.
    Other(String),
}

/// An IPv6 address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) ip: Ipv6Addr,
    pub(super) prefix_len: u8,
}

/// An IPv6 unicast route, or one that refuses packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Interface; 0 when it has none.
    pub(super) index: u32,
    pub(super) destination: Ipv6Addr,
    pub(super) prefix_len: u8,
    /// In the main table, where ours belongs.
    pub(super) main: bool,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    pub(super) async fn links(&self) -> io::Result<Vec<Link>> {
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(to_io)?;
        Ok(links.iter().map(link).collect())
    }

    pub(super) async fn addresses(&self) -> io::Result<Vec<Address>> {
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(to_io)?;
        Ok(messages.iter().flat_map(addresses).collect())
    }

    pub(super) async fn routes(&self) -> io::Result<Vec<Route>> {
        let every = RouteMessageBuilder::<Ipv6Addr>::new().table_id(0).build();
        let messages: Vec<_> = self.handle.route().get(every).execute().try_collect().await.map_err(to_io)?;
        Ok(messages.iter().filter_map(route).collect())
    }

    pub(super) async fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index);
        let message = if up { message.up() } else { message.down() };
        self.handle.link().set(message.build()).execute().await.map_err(to_io)
    }

    pub(super) async fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    /// Sets the length of the queue in packets, and of the largest packet that is left uncut in bytes.
    pub(super) async fn set_queue(&self, index: u32, packets: u32, packet_len: u32) -> io::Result<()> {
        let largest = LinkAttribute::GsoMaxSize(packet_len);
        let message =
            LinkUnspec::new_with_index(index).txqueuelen(packets).append_extra_attribute(largest).build();
        self.handle.link().set(message).execute().await.map_err(to_io)
    }

    pub(super) async fn delete_link(&self, index: u32) -> io::Result<()> {
        self.handle.link().del(index).execute().await.map_err(to_io)
    }

    /// Adds a /128 without duplicate address detection: the address follows from a key, so nobody else has it.
    pub(super) async fn add_address(&self, index: u32, ip: Ipv6Addr) -> io::Result<()> {
        let mut request = self.handle.address().add(index, IpAddr::V6(ip), 128);
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await.map_err(to_io)
    }

    pub(super) async fn delete_address(&self, address: Address) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.index = address.index;
        message.header.prefix_len = address.prefix_len;
        message.attributes.push(AddressAttribute::Local(address.ip.into()));
        message.attributes.push(AddressAttribute::Address(address.ip.into()));
        self.handle.address().del(message).execute().await.map_err(to_io)
    }

    pub(super) async fn add_route(&self, index: u32) -> io::Result<()> {
        self.handle.route().add(mesh_route(index)).execute().await.map_err(to_io)
    }

    pub(super) async fn delete_route(&self, index: u32) -> io::Result<()> {
        self.handle.route().del(mesh_route(index)).execute().await.map_err(to_io)
    }
}

fn mesh_route(index: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(MESH_PREFIX, MESH_PREFIX_LEN)
        .output_interface(index)
        .build()
}

/// The kernel's answer as an errno, where there is one.
fn to_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        return message.to_io();
    }
    io::Error::other(error)
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        carrier: false,
        kind: Kind::Other("an interface".into()),
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Carrier(carrier) = attribute {
            link.carrier = *carrier != 0;
        } else if let LinkAttribute::LinkInfo(info) = attribute {
            link.kind = kind(info);
        }
    }
    link
}

fn kind(info: &[LinkInfo]) -> Kind {
    let name = info.iter().find_map(|item| if let LinkInfo::Kind(kind) = item { Some(kind) } else { None });
    match name {
        Some(InfoKind::Tun) => {}
        Some(other) => return Kind::Other(format!("a {other} interface")),
        None => return Kind::Other("an interface".into()),
    }
    let data = info
        .iter()
        .find_map(|item| if let LinkInfo::Data(InfoData::Tun(data)) = item { Some(data) } else { None });
    // A kernel before 4.17 does not tell; opening it will.
    let Some(data) = data else { return Kind::Tun { shared: false, queues: None } };
    if tun_value(data, IFLA_TUN_TYPE).is_some_and(|value| i32::from(value) != libc::IFF_TUN) {
        return Kind::Other("a TAP interface (mode tap)".into());
    }
    let number = |kind| tun_bytes(data, kind)?.try_into().ok().map(u32::from_ne_bytes);
    let queues =
        number(IFLA_TUN_NUM_QUEUES).map(|open| open + number(IFLA_TUN_NUM_DISABLED_QUEUES).unwrap_or(0));
    Kind::Tun { shared: tun_value(data, IFLA_TUN_MULTI_QUEUE) == Some(1), queues }
}

// Attributes of a TUN's link info (linux/if_link.h): one byte each, numbers of queues four.
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

fn tun_bytes(data: &[InfoTun], kind: u16) -> Option<Vec<u8>> {
    let attribute = data.iter().find(|attribute| attribute.kind() == kind)?;
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    Some(value)
}

fn tun_value(data: &[InfoTun], kind: u16) -> Option<u8> {
    tun_bytes(data, kind)?.first().copied()
}

/// The local address, and the far end's of a point-to-point one.
fn addresses(message: &AddressMessage) -> Vec<Address> {
    let mut found: Vec<Address> = Vec::new();
    for attribute in &message.attributes {
        let (AddressAttribute::Local(IpAddr::V6(ip)) | AddressAttribute::Address(IpAddr::V6(ip))) = attribute
        else {
            continue;
        };
        let address = Address { index: message.header.index, ip: *ip, prefix_len: message.header.prefix_len };
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

fn route(message: &RouteMessage) -> Option<Route> {
    // Addresses bring local, anycast and multicast routes; those are looked at as addresses.
    if matches!(message.header.kind, RouteType::Local | RouteType::Anycast | RouteType::Multicast) {
        return None;
    }
    let mut route = Route {
        index: 0,
        destination: Ipv6Addr::UNSPECIFIED,
        prefix_len: message.header.destination_prefix_length,
        main: message.header.table == RouteHeader::RT_TABLE_MAIN,
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            route.index = *index;
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            route.index = hops.first().map_or(0, |hop| hop.interface_index);
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(ip)) = attribute {
            route.destination = *ip;
        }
    }
    Some(route)
}
