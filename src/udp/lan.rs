//! Finding neighbours: small announcements to a link-local group.
//!
//! ```text
//! IPv6  ff02::617a          port 5748, hop limit 1    on every interface that was named
//! IPv4  239.255.97.122      port 5748, TTL 1          (RFC 2365 local scope; 97.122 is "az", as 617a is)
//! ```
//!
//! The port is shared (`SO_REUSEADDR`, `SO_REUSEPORT`) and the group loops back, so several daemons on one machine
//! hear each other; a node hears itself too and has to recognise that. Datagrams count only when they come from a
//! link-local address (IPv6) or were sent to the group (IPv4: the socket is bound to it), so nothing from beyond the
//! link gets in by unicast. Nothing here trusts the content: an announcement is a hint where to knock.
//!
//! Interfaces come and go: [`LanSocket::refresh`] takes the present ones.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::task::Poll;

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use super::Error;
use super::socket::without_flow;

/// The port of announcements, next to the mesh's own.
pub const LAN_PORT: u16 = 5748;
/// The IPv6 group, link-local scope, transient numbers free for anyone (RFC 4291 §2.7).
pub const LAN_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x617a);
/// The IPv4 group, local scope (RFC 2365 §6.1).
pub const LAN_GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 255, 97, 122);
/// Bytes of an announcement: one unfragmented datagram on any link. Longer ones are dropped.
pub const LAN_DATAGRAM_BYTES_MAX: usize = 1200;
/// Interfaces joined in each family; Linux allows 20 IPv4 memberships a socket (`net.ipv4.igmp_max_memberships`).
pub const LAN_INTERFACES_MAX: usize = 16;

/// The sockets of both families, as far as this machine has them.
#[derive(Debug)]
pub struct LanSocket {
    v6: Option<UdpSocket>,
    v4: Option<UdpSocket>,
    /// Indexes of the interfaces in the IPv6 group.
    joined_v6: BTreeSet<u32>,
    /// Indexes of the interfaces in the IPv4 group, and the address to send from.
    joined_v4: BTreeMap<u32, Ipv4Addr>,
}

impl LanSocket {
    /// Opens the sockets; no interface is joined yet.
    ///
    /// # Errors
    /// When neither family works.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (v6, v4) = match (open_v6(), open_v4()) {
            (Err(_), Err(source)) => {
                return Err(Error::Io { address: SocketAddrV4::new(LAN_GROUP_V4, LAN_PORT).into(), source });
            }
            (v6, v4) => (v6.ok(), v4.ok()),
        };
        Ok(Self { v6, v4, joined_v6: BTreeSet::new(), joined_v4: BTreeMap::new() })
    }

    /// Joins the groups on exactly these interfaces, each named by its index and one of its addresses; to be called
    /// again when links or addresses have changed. Addresses inside the mesh are passed over, and so are interfaces
    /// that refuse and those beyond [`LAN_INTERFACES_MAX`]. Returns the memberships held now, both families counted.
    pub fn refresh(&mut self, interfaces: &[(u32, IpAddr)]) -> usize {
        let (mut v6, mut v4) = (BTreeSet::new(), BTreeMap::new());
        for (index, ip) in interfaces {
            match ip {
                // Only a link-local address can be the source of what is sent to a link-local group.
                IpAddr::V6(ip) if ip.is_unicast_link_local() && v6.len() < LAN_INTERFACES_MAX => {
                    v6.insert(*index);
                }
                IpAddr::V4(ip) if !ip.is_unspecified() && v4.len() < LAN_INTERFACES_MAX => {
                    v4.entry(*index).or_insert(*ip);
                }
                IpAddr::V6(_) | IpAddr::V4(_) => {}
            }
        }
        self.refresh_v6(v6);
        self.refresh_v4(v4);
        self.joined_v6.len() + self.joined_v4.len()
    }

    fn refresh_v6(&mut self, wanted: BTreeSet<u32>) {
        let Some(socket) = self.v6.as_ref().map(SockRef::from) else { return };
        for gone in self.joined_v6.difference(&wanted) {
            // Fails when the interface is gone altogether, and the membership with it.
            let _ = socket.leave_multicast_v6(&LAN_GROUP_V6, *gone);
        }
        let joins = |index: &u32| joined(socket.join_multicast_v6(&LAN_GROUP_V6, *index));
        self.joined_v6 = wanted.into_iter().filter(joins).collect();
    }

    fn refresh_v4(&mut self, wanted: BTreeMap<u32, Ipv4Addr>) {
        let Some(socket) = self.v4.as_ref().map(SockRef::from) else { return };
        for gone in self.joined_v4.keys().filter(|index| !wanted.contains_key(index)) {
            let _ = socket.leave_multicast_v4_n(&LAN_GROUP_V4, &InterfaceIndexOrAddress::Index(*gone));
        }
        let joins = |(index, _): &(u32, Ipv4Addr)| {
            joined(socket.join_multicast_v4_n(&LAN_GROUP_V4, &InterfaceIndexOrAddress::Index(*index)))
        };
        self.joined_v4 = wanted.into_iter().filter(joins).collect();
    }

    /// Waits for the next announcement, our own included: its bytes and its sender, an IPv6 one with the scope id of
    /// the interface where it arrived. Nothing is lost when the future is dropped.
    pub async fn recv(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; LAN_DATAGRAM_BYTES_MAX + 1];
        poll_fn(|cx| {
            for socket in [&self.v6, &self.v4].into_iter().flatten() {
                let mut buffer = ReadBuf::new(&mut buffer);
                // An error belongs to something else, and reading it has cleared it.
                while let Poll::Ready(received) = socket.poll_recv_from(cx, &mut buffer) {
                    if let Some(from) = received.ok().filter(|from| is_neighbour(from, buffer.filled().len()))
                    {
                        return Poll::Ready((buffer.filled().to_vec(), without_flow(from)));
                    }
                    buffer.clear();
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Sends an announcement to both groups on every joined interface; returns how many copies went out. An
    /// interface that cannot send just now is passed over.
    pub fn announce(&self, datagram: &[u8]) -> usize {
        let mut sent = 0;
        // Straight to the kernel: tokio's own calls refuse until its reactor has seen the socket once.
        if let Some(socket) = self.v6.as_ref().map(SockRef::from) {
            for index in &self.joined_v6 {
                let group = SocketAddrV6::new(LAN_GROUP_V6, LAN_PORT, 0, *index);
                sent += usize::from(socket.send_to(datagram, &group.into()).is_ok());
            }
        }
        if let Some(socket) = self.v4.as_ref().map(SockRef::from) {
            let group = SocketAddrV4::new(LAN_GROUP_V4, LAN_PORT);
            for address in self.joined_v4.values() {
                let chosen = socket.set_multicast_if_v4(address);
                sent += usize::from(chosen.is_ok() && socket.send_to(datagram, &group.into()).is_ok());
            }
        }
        sent
    }
}

/// Joined now, or before.
fn joined(result: io::Result<()>) -> bool {
    result.map_or_else(|error| error.kind() == io::ErrorKind::AddrInUse, |()| true)
}

/// From this link, and not too long.
pub(super) fn is_neighbour(from: &SocketAddr, len: usize) -> bool {
    let on_link = match from {
        SocketAddr::V6(v6) => v6.ip().is_unicast_link_local() && v6.scope_id() != 0,
        SocketAddr::V4(v4) => !v4.ip().is_unspecified() && !v4.ip().is_multicast() && !v4.ip().is_broadcast(),
    };
    on_link && (1..=LAN_DATAGRAM_BYTES_MAX).contains(&len)
}

fn open_v6() -> io::Result<UdpSocket> {
    let socket = shared(Domain::IPV6)?;
    socket.set_only_v6(true)?;
    socket.set_multicast_all_v6(false)?;
    socket.set_multicast_loop_v6(true)?;
    socket.set_multicast_hops_v6(1)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, LAN_PORT, 0, 0).into())?;
    UdpSocket::from_std(socket.into())
}

fn open_v4() -> io::Result<UdpSocket> {
    let socket = shared(Domain::IPV4)?;
    socket.set_multicast_all_v4(false)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_multicast_ttl_v4(1)?;
    socket.bind(&SocketAddrV4::new(LAN_GROUP_V4, LAN_PORT).into())?;
    UdpSocket::from_std(socket.into())
}

fn shared(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
