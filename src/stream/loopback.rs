//! The node's side of a stream: a UDP socket on the loopback, and trains to and from the node.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::unix::AsyncFd;

use crate::proto::datapath::Train;
use crate::udp::{Received, TrainReceiver, TrainSender, UdpSocket};

const SOURCE_CONTEXT: &str = "auramesh v1 loopback address of a stream";

/// Buffers that all streams share: they are handled one at a time.
#[derive(Default)]
pub(super) struct Buffers {
    receiver: TrainReceiver,
    sender: TrainSender,
}

/// Where the node is, seen from this machine.
pub(super) struct Loopback {
    node: Option<SocketAddr>,
}

/// One stream's socket.
pub(super) struct Socket {
    udp: AsyncFd<UdpSocket>,
    node: SocketAddr,
}

impl Loopback {
    /// The first IPv4 address that the node listens at, else the first one; as it is reached from here.
    pub(super) fn new(listen: &[SocketAddr]) -> Self {
        let v4 = listen.iter().find(|address| address.is_ipv4());
        let node = v4.or(listen.first()).map(|address| {
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                named @ (IpAddr::V4(_) | IpAddr::V6(_)) => named,
            };
            SocketAddr::new(ip, address.port())
        });
        Self { node }
    }

    /// A socket for a connection with `remote`.
    pub(super) fn bind(&self, remote: IpAddr) -> io::Result<Socket> {
        let node = self.node.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let ip = if node.is_ipv4() { of_source(remote).into() } else { Ipv6Addr::LOCALHOST.into() };
        let udp = UdpSocket::bind(SocketAddr::new(ip, 0)).map_err(io::Error::other)?;
        Ok(Socket { udp: udp.registered()?, node })
    }
}

/// An address of the loopback for a source: the same /24 for those of one IPv4 /24 or IPv6 /48, and most likely another
/// one for others, so that limits for each prefix hold.
fn of_source(remote: IpAddr) -> Ipv4Addr {
    let remote = remote.to_canonical();
    let prefix = match remote {
        IpAddr::V4(ip) => u128::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => ip.to_bits() >> 80,
    };
    let hash = |said: &[u8]| blake3::derive_key(SOURCE_CONTEXT, said);
    let [a, b, ..] = hash(&[&[u8::from(remote.is_ipv6())][..], &prefix.to_be_bytes()].concat());
    let [c, ..] = hash(remote.to_string().as_bytes());
    // Not 127.0.0.x, where other programs of this machine are.
    Ipv4Addr::new(127, a | 1, b, c.clamp(1, 254))
}

impl Socket {
    /// How the node knows the stream.
    pub(super) fn endpoint(&self) -> SocketAddr {
        self.udp.get_ref().local_addr()
    }

    /// Hands over what the node has sent; false when there is nothing just now.
    pub(super) fn poll_receive(
        &self,
        buffers: &mut Buffers,
        cx: &mut std::task::Context<'_>,
        mut take: impl FnMut(usize, &[u8]),
    ) -> io::Result<bool> {
        let std::task::Poll::Ready(guard) = self.udp.poll_read_ready(cx) else { return Ok(false) };
        let mut guard = guard?;
        let received = buffers.receiver.receive(self.udp.get_ref(), |train| {
            let Received { source, datagram_len, bytes, .. } = train;
            // Other programs of this machine reach the socket, too.
            if source == self.node && !bytes.is_empty() {
                take(datagram_len, bytes);
            }
        });
        match received {
            Ok(true) => {}
            Ok(false) => guard.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Gives the node what has come.
    pub(super) fn send(&self, buffers: &mut Buffers, datagram_len: usize, bytes: &[u8]) {
        let train = Train { to: self.node, ecn: 0, datagram_len, bytes };
        // What finds no room is lost, as everywhere in a network.
        buffers.sender.send(self.udp.get_ref(), &[train]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_keep_apart_as_their_prefixes_do() {
        let of = |ip: &str| of_source(ip.parse().unwrap()).octets();
        let (one, other, far) = (of("203.0.113.7"), of("203.0.113.8"), of("203.0.114.7"));
        assert_eq!((one[0], one[..3] == other[..3]), (127, true));
        assert_ne!(one[..3], far[..3]);
        assert_ne!(one, other);
        assert_eq!(of("::ffff:203.0.113.7"), one);
        assert_eq!(of("2001:db8:7::1")[..3], of("2001:db8:7:8::9")[..3]);
        assert_ne!(of("2001:db8:7::1")[..3], of("2001:db8:8::1")[..3]);
        for n in 0..=u16::MAX {
            let ip = of_source(Ipv4Addr::from(u32::from(n) << 13).into());
            assert!(ip.is_loopback() && ip.octets()[1] != 0 && !matches!(ip.octets()[3], 0 | 255), "{ip}");
        }
    }

    #[test]
    fn the_node_is_where_it_listens_seen_from_here() {
        let node = |listen: &[&str]| {
            let listen: Vec<_> = listen.iter().map(|address| address.parse().unwrap()).collect();
            Loopback::new(&listen).node.map(|node| node.to_string())
        };
        assert_eq!(node(&["[::]:7", "0.0.0.0:5"]).unwrap(), "127.0.0.1:5");
        assert_eq!(node(&["[::]:7"]).unwrap(), "[::1]:7");
        assert_eq!(node(&["192.0.2.1:7"]).unwrap(), "192.0.2.1:7");
        assert_eq!(node(&[]), None);
    }
}
