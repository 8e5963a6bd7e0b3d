//! A packet of our own through the interface's queue: how long does a packet wait there?

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};

use crate::proto::timer::Instant;
use crate::proto::wire::inner::IPV6_HEADER_LEN;

/// The discard port (RFC 863).
const PORT: u16 = 9;
const UDP_HEADER_LEN: usize = 8;
const SECRET_LEN: usize = 32;
/// Secret, number of the sender, time of sending.
const PAYLOAD_LEN: usize = SECRET_LEN + 1 + 8;

/// Sends probes to an address in the mesh that nobody has, and knows them when the daemon reads them.
#[derive(Debug)]
pub struct QueueProbe {
    own: Ipv6Addr,
    to: Ipv6Addr,
    secret: [u8; SECRET_LEN],
    sender: u8,
    socket: Option<UdpSocket>,
}

/// A probe that came out of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Sent at this time by who reads it.
    Own(Instant),
    /// Sent for another queue of the interface.
    Stray,
}

impl QueueProbe {
    /// For the interface with the address `own`. All who read its queues have one `secret`, which keeps the packets of
    /// other programs apart, and each a number.
    pub fn new(own: Ipv6Addr, secret: [u8; SECRET_LEN], sender: u8) -> Self {
        // The first half is the mesh's prefix and most of what tells us from others; nobody's key hashes to the rest.
        let to = Ipv6Addr::from_bits(own.to_bits() ^ u128::from(u64::MAX));
        Self { own, to, secret, sender, socket: None }
    }

    /// Sends one. A probe that cannot be sent is a probe that got lost.
    pub fn send(&mut self, now: Instant) {
        if self.socket.is_none() {
            self.socket = self.open().ok();
        }
        let mut payload = [0; PAYLOAD_LEN];
        let (secret, rest) = payload.split_at_mut(SECRET_LEN);
        secret.copy_from_slice(&self.secret);
        rest[0] = self.sender;
        rest[1..].copy_from_slice(&now.as_nanos().to_be_bytes());
        if let Some(socket) = &self.socket {
            let _ = socket.send(&payload);
        }
    }

    /// Sends the next one from another port. Of several queues the kernel chooses one by the ports of a flow, so that
    /// sooner or later it is the sender's.
    pub fn renew(&mut self) {
        self.socket = None;
    }

    /// Reads a packet; `None` for those that are no probes of this interface.
    pub fn read(&self, packet: &[u8]) -> Option<Probe> {
        let destination = packet.get(24..IPV6_HEADER_LEN)?;
        if destination != self.to.octets() {
            return None;
        }
        let payload: &[u8; PAYLOAD_LEN] = packet.get(IPV6_HEADER_LEN + UDP_HEADER_LEN..)?.first_chunk()?;
        let (secret, rest) = payload.split_at(SECRET_LEN);
        let (&sender, sent_at) = rest.split_first()?;
        let sent_at = Instant::from_nanos(u64::from_be_bytes(*sent_at.first_chunk()?));
        let probe = if sender == self.sender { Probe::Own(sent_at) } else { Probe::Stray };
        (secret == self.secret).then_some(probe)
    }

    fn open(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddrV6::new(self.own, 0, 0, 0))?;
        // Whatever else is sent to its port is refused by the kernel.
        socket.connect(SocketAddrV6::new(self.to, PORT, 0, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}
