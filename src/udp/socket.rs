//! The socket that carries everything between nodes.
#![expect(unsafe_code, reason = "IP_MTU_DISCOVER has no safe call in nix or socket2")]

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use crate::proto::identity::in_mesh;

/// Bytes of receive buffer asked for: 50 ms at 600 Mbit/s while the reading thread waits for a core.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// Bytes of send buffer asked for: small, so that a slow link fills the interface's queue rather than ours.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Errors and unwanted datagrams skipped in one call before the caller gets its turn.
const SKIPPED_MAX: usize = 16;

/// A non-blocking UDP socket of one family. May be used by several threads at once.
#[derive(Debug)]
pub struct UdpSocket {
    socket: std::net::UdpSocket,
    local: SocketAddr,
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
        open(address).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Error::InUse { address },
            Some(libc::EADDRNOTAVAIL) => Error::NoSuchAddress { address },
            _ => Error::Io { address, source },
        })
    }

    /// Receives one datagram into `buffer`: its length and sender. What does not fit is cut off. An IPv6 link-local
    /// sender has its scope id; the flow label is left out, so that equal endpoints compare equal.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing (or nothing but what was skipped); others mean that the socket is broken.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        for _ in 0..SKIPPED_MAX {
            match self.socket.recv_from(buffer) {
                Ok((len, from)) if !is_mesh(&from) => return Ok((len, without_flow(from))),
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when the buffer is full; `InvalidInput` towards the mesh's own range; else whatever the network
    /// answers (unreachable, denied). None of them makes the socket unusable.
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

    /// Where it listens, with the port that it got.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    fragment_when_too_big(&socket, address.is_ipv6())?;
    // Best effort: the privileged call goes beyond net.core.rmem_max, the other one up to it.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    }
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let socket = std::net::UdpSocket::from(socket);
    let local = socket.local_addr()?;
    Ok(UdpSocket { socket, local })
}

/// Turns path MTU discovery off: larger datagrams are fragmented, by routers too in IPv4.
fn fragment_when_too_big(socket: &Socket, v6: bool) -> io::Result<()> {
    let (level, name, value) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    };
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option is an int that lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Errors of another datagram than the one we want: a signal, an ICMP answer to something sent before.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    ) || matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EPROTO | libc::ENOPROTOOPT))
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
