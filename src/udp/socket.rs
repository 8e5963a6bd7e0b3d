//! The socket that carries everything between nodes.
#![expect(unsafe_code, reason = "options that have no safe call in nix or socket2")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;
use crate::proto::identity::in_mesh;

/// Bytes of receive buffer asked for: 50 ms at 600 Mbit/s while the reading thread waits for a core.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Bytes of send buffer asked for: small, so that a slow link fills the interface's queue rather than ours.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// A non-blocking UDP socket of one family. May be used by several threads at once.
#[derive(Debug)]
pub struct UdpSocket {
    socket: std::net::UdpSocket,
    local: SocketAddr,
    /// The kernel cuts trains, as far as we know.
    cuts_trains: AtomicBool,
}

impl UdpSocket {
    /// Opens a socket; port 0 is any free one. An IPv6 socket does not receive IPv4.
    ///
    /// # Errors
    /// When the address is taken, absent, or inside the mesh.
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        if is_mesh(&address) {
            return Err(Error::InMesh { address });
        }
        open(address, false).map_err(|source| Error::opening(address, source))
    }

    /// Another socket at the same address (`SO_REUSEPORT`, socket(7)): the kernel gives each one the datagrams of its
    /// share of senders, all of one sender to the same.
    ///
    /// The first one was bound alone, so an address that somebody else has is still refused. One that gave up trains
    /// has siblings without.
    ///
    /// # Errors
    /// When the kernel does not do that, or has no more descriptors.
    pub fn sibling(&self) -> io::Result<Self> {
        SockRef::from(&self.socket).set_reuse_port(true)?;
        let sibling = open(self.local, true)?;
        if !self.cuts_trains() {
            sibling.renounce_trains()?;
        }
        Ok(sibling)
    }

    /// Another socket at the same IP address, with a port of its own. One that gave up trains has others without.
    ///
    /// # Errors
    /// When there are no more descriptors or ports.
    pub fn other_port(&self) -> io::Result<Self> {
        let other = open(SocketAddr::new(self.local.ip(), 0), false)?;
        if !self.cuts_trains() {
            other.renounce_trains()?;
        }
        Ok(other)
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when the buffer is full; `InvalidInput` towards the mesh's own range; else whatever the network
    /// answers (unreachable, denied; [`is_too_big`]). None of them makes the socket unusable.
    pub fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        if is_mesh(&to) {
            return Err(ErrorKind::InvalidInput.into());
        }
        loop {
            match self.socket.send_to(datagram, to) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// True while trains need not be taken apart before they are sent.
    pub fn cuts_trains(&self) -> bool {
        self.cuts_trains.load(Ordering::Relaxed)
    }

    /// From now on they have to be: the link's device refused one (udp(7), `EIO`).
    pub fn stop_cutting_trains(&self) {
        self.cuts_trains.store(false, Ordering::Relaxed);
    }

    /// Gives up trains in both directions: datagrams are sent and received one by one.
    ///
    /// # Errors
    /// Whatever the kernel answers; [`UdpSocket::cuts_trains`] is false all the same.
    pub fn renounce_trains(&self) -> io::Result<()> {
        self.stop_cutting_trains();
        set_int(&self.socket, libc::SOL_UDP, libc::UDP_GRO, 0)
    }

    /// The socket, with its readiness told by tokio.
    ///
    /// # Errors
    /// When the runtime has no more descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn registered(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the socket is an open descriptor, owned by the `AsyncFd` for its whole life and never replaced.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// Where it listens, with the port that it got.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(address: SocketAddr, shares: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if shares {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    never_fragment(&socket, address.is_ipv6())?;
    // Best effort: the privileged call goes beyond net.core.rmem_max, the other one up to it.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    }
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    receive_trains(&socket, address.is_ipv6());
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let socket = std::net::UdpSocket::from(socket);
    let local = socket.local_addr()?;
    Ok(UdpSocket { socket, local, cuts_trains: AtomicBool::new(true) })
}

/// Asks for trains in one piece (udp(7), Linux 5.0) and the ECN codepoint of each datagram. Best effort: without, there
/// are single datagrams, and no congestion marks.
fn receive_trains(socket: &Socket, v6: bool) {
    let (level, name) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS) } else { (libc::IPPROTO_IP, libc::IP_RECVTOS) };
    let _ = set_int(socket, level, name, 1);
    let _ = set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
}

/// Nothing is fragmented, and the kernel's own path MTU, which anybody's ICMP can change, is not looked at: what exceeds
/// the local link is refused with EMSGSIZE, what exceeds a later one is lost. Path MTU discovery of ours relies on it.
fn never_fragment(socket: &Socket, v6: bool) -> io::Result<()> {
    let (level, name, value) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    };
    set_int(socket, level, name, value)
}

pub(super) fn set_int(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option is an int that lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True for the error of a datagram that is longer than the local link carries (`EMSGSIZE`).
pub fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// True when a packet filter of this machine refused to send a datagram (netfilter answers a dropped or rejected one with
/// `EPERM`).
pub fn is_filtered(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// True when this machine has no route to where a datagram was to go (ip(7)).
pub fn is_routeless(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENETUNREACH)
}

pub(super) fn is_mesh(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V6(ip) => in_mesh(&ip),
        IpAddr::V4(_) => false,
    }
}

/// The same endpoint with flow label 0.
pub(super) fn without_flow(mut address: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(v6) = &mut address {
        v6.set_flowinfo(0);
    }
    address
}
