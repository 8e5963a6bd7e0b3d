//! A packet of our own through the interface's queue: how long does a packet wait there?

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};

use crate::proto::timer::Instant;
use crate::proto::wire::inner::IPV6_HEADER_LEN;

/// The discard port (RFC 863).
const PORT: u16 = 9;
const UDP_HEADER_LEN: usize = 8;
/// Secret, time of sending.
const PAYLOAD_LEN: usize = 32 + 8;

/// Sends probes to an address in the mesh that nobody has, and knows them when the daemon reads them.
#[derive(Debug)]
pub struct QueueProbe {
    socket: UdpSocket,
    to: Ipv6Addr,
    secret: [u8; 32],
}

impl QueueProbe {
    /// For the interface with the address `own`, which is up. `seed` keeps the probes of other programs out.
    ///
    /// # Errors
    /// When there is no route to the mesh.
    pub fn new(own: Ipv6Addr, seed: [u8; 32]) -> io::Result<Self> {
        // The first half is the mesh's prefix and most of what tells us from others; nobody's key hashes to the rest.
        let to = Ipv6Addr::from_bits(own.to_bits() ^ u128::from(u64::MAX));
        let socket = UdpSocket::bind(SocketAddrV6::new(own, 0, 0, 0))?;
        // Whatever else is sent to its port is refused by the kernel.
        socket.connect(SocketAddrV6::new(to, PORT, 0, 0))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to, secret: seed })
    }

    /// Sends one. A probe that cannot be sent is a probe that got lost.
    pub fn send(&self, now: Instant) {
        let mut payload = [0; PAYLOAD_LEN];
        payload[..32].copy_from_slice(&self.secret);
        payload[32..].copy_from_slice(&now.as_nanos().to_be_bytes());
        let _ = self.socket.send(&payload);
    }

    /// When the packet was sent, if it is one of ours.
    pub fn sent_at(&self, packet: &[u8]) -> Option<Instant> {
        let destination = packet.get(24..IPV6_HEADER_LEN)?;
        if destination != self.to.octets() {
            return None;
        }
        let payload = packet.get(IPV6_HEADER_LEN + UDP_HEADER_LEN..)?;
        let (secret, sent_at) = payload.split_first_chunk()?;
        let sent_at = sent_at.first_chunk().filter(|_| *secret == self.secret)?;
        Some(Instant::from_nanos(u64::from_be_bytes(*sent_at)))
    }
}
