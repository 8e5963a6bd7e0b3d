//! Sockets towards the underlay.
//!
//! [`UdpSocket`] carries everything between nodes, in trains of datagrams ([`TrainSender`], [`TrainReceiver`]):
//! non-blocking, one per listen address and worker, IPv4 and IPv6 apart, so a v4-mapped address never appears.
//! [`LanSocket`] finds neighbours by link-local multicast. [`ReadySet`] watches many sockets at once.
//!
//! - **No tunnel in itself**: nothing is sent to or taken from addresses inside the mesh's own range.
//! - **Nothing that a stranger sends stops reception**: unconnected UDP sockets are not told of ICMP errors (the
//!   kernel reports them only to `IP_RECVERR` sockets, udp(7)); transient errors are skipped all the same.
//! - **Nothing is fragmented** (`IP_PMTUDISC_PROBE`, ip(7)): what exceeds the local link is refused ([`is_too_big`]), what
//!   exceeds a later one is lost. `path::pmtu` finds out what fits; ICMP "too big", which can be forged, is not believed.

mod lan;
mod ready;
mod socket;
mod train;

pub use lan::{LAN_DATAGRAM_BYTES_MAX, LAN_GROUP_V4, LAN_GROUP_V6, LAN_INTERFACES_MAX, LAN_PORT, LanSocket};
pub use ready::ReadySet;
pub use socket::{UdpSocket, is_filtered, is_routeless, is_too_big};
pub use train::{Received, Sent, TrainReceiver, TrainSender};

use std::io;
use std::net::SocketAddr;

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port is taken.
    #[error(
        "UDP {address} is taken by another program (see `ss -ulpn`): stop it, or listen elsewhere: --listen '[::]:0' --listen 0.0.0.0:0"
    )]
    InUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The address belongs to no interface of this machine.
    #[error(
        "UDP {address} cannot be opened: this machine does not have that address; try --listen with one of `ip address`"
    )]
    NoSuchAddress {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The address lies inside the mesh.
    #[error(
        "UDP {address} is an address inside the mesh, and a mesh cannot be its own underlay: choose another for --listen"
    )]
    InMesh {
        /// What was asked for.
        address: SocketAddr,
    },
    /// A port that not everybody may have.
    #[error(
        "UDP {address} cannot be opened: ports below 1024 need CAP_NET_BIND_SERVICE; start with it, or choose a port from 1024 on with --listen"
    )]
    NotPermitted {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("UDP {address} cannot be opened: {source} (choose another with --listen)")]
    Io {
        /// What was asked for.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// What the kernel's answer means.
    fn opening(address: SocketAddr, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::InUse { address },
            Some(libc::EADDRNOTAVAIL) => Self::NoSuchAddress { address },
            Some(libc::EACCES) => Self::NotPermitted { address },
            _ => Self::Io { address, source },
        }
    }

    /// True when this machine does not speak the family of the address at all.
    pub fn is_missing_family(&self) -> bool {
        let code = match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::InUse { .. }
            | Self::NoSuchAddress { .. }
            | Self::InMesh { .. }
            | Self::NotPermitted { .. } => None,
        };
        code == Some(libc::EAFNOSUPPORT)
    }
}

#[cfg(test)]
mod tests;
