//! Many datagrams in one system call: `sendmmsg` and `recvmmsg` (Linux), with trains that the kernel cuts
//! (`UDP_SEGMENT`) or has put together (`UDP_GRO`, udp(7)) in each of their messages.
#![expect(unsafe_code, reason = "sendmmsg and recvmmsg with control messages and without allocation")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::null_mut;

use nix::poll::{PollFd, PollFlags, poll};

use super::UdpSocket;
use super::socket::is_mesh;
use crate::proto::datapath::Train;

/// Most messages of one call.
const MESSAGES_MAX: usize = 64;
/// Messages received in one call.
const RECEIVED_MAX: usize = 32;
/// Most bytes of one received message: what UDP can say.
const RECEIVED_LEN: usize = 65_536;
/// How long a full socket buffer may hold up the sender, in milliseconds; then the datagrams are dropped.
const SEND_WAIT_MS: u16 = 20;
/// Room for the control messages of one message.
const CONTROL_LEN: usize = 128;

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// So many were not taken.
    pub lost: usize,
    /// Larger than the link: to whom the last of them went, and its length in bytes.
    pub too_big: Option<(SocketAddr, usize)>,
    /// A packet filter of this machine refused some of them.
    pub filtered: bool,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);

/// Buffers of one sending thread.
pub struct TrainSender {
    messages: Box<[libc::mmsghdr]>,
    pieces: Box<[libc::iovec]>,
    names: Box<[socket2::SockAddr]>,
    controls: Box<[Control]>,
}

/// Buffers of one receiving thread.
pub struct TrainReceiver {
    messages: Box<[libc::mmsghdr]>,
    pieces: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    buffer: Box<[u8]>,
    /// Messages whose headers the kernel has written to.
    used: usize,
}

// SAFETY: the pointers inside are set before each call, to memory that the value itself or the call's arguments own.
unsafe impl Send for TrainSender {}
// SAFETY: as above; the pointers set at construction lead into boxes of the value itself.
unsafe impl Send for TrainReceiver {}

fn boxed<T>(n: usize, value: impl Fn() -> T) -> Box<[T]> {
    (0..n).map(|_| value()).collect()
}

fn empty_message() -> libc::mmsghdr {
    // SAFETY: all zero is a valid message header: no name, no pieces, no control.
    unsafe { zeroed() }
}

fn empty_piece() -> libc::iovec {
    libc::iovec { iov_base: null_mut(), iov_len: 0 }
}

impl TrainSender {
    /// Allocates the buffers.
    pub fn new() -> Self {
        Self {
            messages: boxed(MESSAGES_MAX, empty_message),
            pieces: boxed(MESSAGES_MAX, empty_piece),
            names: boxed(MESSAGES_MAX, || SocketAddr::from(([0; 4], 0)).into()),
            controls: boxed(MESSAGES_MAX, || Control([0; CONTROL_LEN])),
        }
    }

    /// Sends trains in their order; waits for room in the socket's buffer, but not for long. A socket whose device
    /// cannot cut trains is given single datagrams from then on.
    pub fn send(&mut self, socket: &UdpSocket, trains: &[Train<'_>]) -> Sent {
        self.send_all(socket, trains, true)
    }

    /// The same, but what finds no room in the socket's buffer is lost at once: for a thread that has other things to do
    /// than to wait for somebody else's packets.
    pub fn send_at_once(&mut self, socket: &UdpSocket, trains: &[Train<'_>]) -> Sent {
        self.send_all(socket, trains, false)
    }

    fn send_all(&mut self, socket: &UdpSocket, trains: &[Train<'_>], waits: bool) -> Sent {
        let mut sent = Sent::default();
        for trains in trains.chunks(MESSAGES_MAX) {
            self.send_some(socket, trains, waits, &mut sent);
        }
        sent
    }

    fn send_some(&mut self, socket: &UdpSocket, mut trains: &[Train<'_>], waits: bool, sent: &mut Sent) {
        let mut waited = !waits;
        while let Some(first) = trains.first() {
            if !socket.cuts_trains() && first.bytes.len() > first.datagram_len {
                self.send_singly(socket, first, waits, sent);
                trains = &trains[1..];
                continue;
            }
            let whole = trains.iter().position(|t| !socket.cuts_trains() && t.bytes.len() > t.datagram_len);
            let error = match self.call(socket, &trains[..whole.unwrap_or(trains.len())]) {
                Ok(taken) => {
                    trains = &trains[taken..];
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) if !waited => {
                    waited = true;
                    // The interface's queue fills up meanwhile: that is where a backlog belongs.
                    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    let _ = poll(&mut fds, SEND_WAIT_MS);
                    continue;
                }
                Some(libc::EIO | libc::EINVAL) if first.bytes.len() > first.datagram_len => {
                    socket.stop_cutting_trains();
                    continue;
                }
                Some(libc::EMSGSIZE) => sent.too_big = Some((first.to, first.datagram_len)),
                Some(libc::EPERM) => sent.filtered = true,
                _ => {}
            }
            sent.lost += first.bytes.len().div_ceil(first.datagram_len.max(1));
            trains = &trains[1..];
        }
    }

    fn send_singly(&mut self, socket: &UdpSocket, train: &Train<'_>, waits: bool, sent: &mut Sent) {
        let mut singles = [Train { bytes: &[], ..*train }; MESSAGES_MAX];
        for datagrams in train.bytes.chunks(train.datagram_len * MESSAGES_MAX) {
            let mut used = 0;
            for (single, datagram) in singles.iter_mut().zip(datagrams.chunks(train.datagram_len)) {
                single.bytes = datagram;
                used += 1;
            }
            self.send_some(socket, &singles[..used], waits, sent);
        }
    }

    /// One system call; how many of the trains it took.
    fn call(&mut self, socket: &UdpSocket, trains: &[Train<'_>]) -> io::Result<usize> {
        if trains.first().is_some_and(|train| is_mesh(&train.to)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut used = 0;
        for train in trains.iter().take_while(|train| !is_mesh(&train.to)) {
            self.names[used] = train.to.into();
            let name = &self.names[used];
            let piece = &mut self.pieces[used];
            (piece.iov_base, piece.iov_len) = (train.bytes.as_ptr().cast_mut().cast(), train.bytes.len());
            let header = &mut self.messages[used].msg_hdr;
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
            header.msg_iov = piece;
            header.msg_iovlen = 1;
            set_controls(header, &mut self.controls[used], train);
            used += 1;
        }
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: the first `used` headers point to names, pieces and controls of this value and to the bytes of
        // `trains`, all of which outlive the call; the kernel does not write to the pieces.
        let taken = unsafe { libc::sendmmsg(fd, self.messages.as_mut_ptr(), used as u32, 0) };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }
}

impl Default for TrainSender {
    fn default() -> Self {
        Self::new()
    }
}

fn set_controls(header: &mut libc::msghdr, control: &mut Control, train: &Train<'_>) {
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_LEN as _;
    let mut len = 0;
    // SAFETY: `msg_control` leads to CONTROL_LEN bytes, more than the two messages need; CMSG_FIRSTHDR and CMSG_DATA
    // stay inside of what CMSG_SPACE reserves for each.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        if train.bytes.len() > train.datagram_len {
            (*message).cmsg_level = libc::SOL_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(train.datagram_len as u16);
            let space = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
            len += space;
            message = message.byte_add(space);
        }
        if train.ecn != 0 {
            let v6 = train.to.is_ipv6();
            (*message).cmsg_level = if v6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
            (*message).cmsg_type = if v6 { libc::IPV6_TCLASS } else { libc::IP_TOS };
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as _;
            libc::CMSG_DATA(message).cast::<libc::c_int>().write_unaligned(train.ecn.into());
            len += libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as usize;
        }
    }
    header.msg_controllen = len as _;
    if len == 0 {
        header.msg_control = null_mut();
    }
}

/// One received message.
#[derive(Debug)]
pub struct Received<'a> {
    /// Its sender; an IPv6 link-local one has its scope id, the flow label is left out so that equal endpoints compare
    /// equal.
    pub source: SocketAddr,
    /// ECN codepoint of the IP header.
    pub ecn: u8,
    /// Length of every datagram but the last, in bytes.
    pub datagram_len: usize,
    /// The datagrams, one behind the other. Nothing for what is of no use, which still counts: an empty datagram, one
    /// that was cut off, one that came through the mesh itself.
    pub bytes: &'a mut [u8],
}

impl TrainReceiver {
    /// Allocates the buffers.
    pub fn new() -> Self {
        let mut buffer = vec![0; RECEIVED_MAX * RECEIVED_LEN].into_boxed_slice();
        // SAFETY: an all-zero address is one of no family.
        let names = boxed(RECEIVED_MAX, || unsafe { zeroed() });
        let mut pieces = boxed(RECEIVED_MAX, empty_piece);
        for (piece, room) in pieces.iter_mut().zip(buffer.chunks_mut(RECEIVED_LEN)) {
            (piece.iov_base, piece.iov_len) = (room.as_mut_ptr().cast(), room.len());
        }
        let messages = boxed(RECEIVED_MAX, empty_message);
        let controls = boxed(RECEIVED_MAX, || Control([0; CONTROL_LEN]));
        Self { messages, pieces, names, controls, buffer, used: RECEIVED_MAX }
    }

    /// Receives what is there, without waiting, and hands each message to `take`; true when there may be more.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; others mean that the socket is broken.
    pub fn receive(&mut self, socket: &UdpSocket, mut take: impl FnMut(Received<'_>)) -> io::Result<bool> {
        for at in 0..std::mem::take(&mut self.used) {
            let header = &mut self.messages[at].msg_hdr;
            header.msg_name = (&raw mut self.names[at]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            header.msg_iov = &raw mut self.pieces[at];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[at].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN as _;
        }
        let (fd, messages) = (socket.as_fd().as_raw_fd(), self.messages.as_mut_ptr());
        // SAFETY: all headers point to names, pieces and controls of this value, which outlive the call, with their true
        // lengths.
        let n = unsafe { libc::recvmmsg(fd, messages, RECEIVED_MAX as u32, libc::MSG_DONTWAIT, null_mut()) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        let n = n as usize;
        self.used = n;
        for (at, room) in self.buffer.chunks_mut(RECEIVED_LEN).enumerate().take(n) {
            let message = &self.messages[at];
            let Some(source) = address(&self.names[at]) else { continue };
            let unusable = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 || is_mesh(&source);
            let len = if unusable { 0 } else { (message.msg_len as usize).min(RECEIVED_LEN) };
            let bytes = &mut room[..len];
            let (datagram_len, ecn) = controls(&message.msg_hdr);
            let datagram_len = datagram_len.filter(|len| *len > 0).unwrap_or(len.max(1));
            take(Received { source, ecn, datagram_len, bytes });
        }
        Ok(n == RECEIVED_MAX)
    }
}

impl Default for TrainReceiver {
    fn default() -> Self {
        Self::new()
    }
}

/// Length of the train's datagrams if it is one, and the ECN codepoint.
fn controls(header: &libc::msghdr) -> (Option<usize>, u8) {
    let (mut datagram_len, mut ecn) = (None, 0);
    // SAFETY: the kernel has written the control messages and their total length; the macros stay inside of it, and
    // each message has the length that its type has in ip(7), ipv6(7) and udp(7).
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    datagram_len = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => ecn = data.read() & 3,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    ecn = (data.cast::<libc::c_int>().read_unaligned() & 3) as u8;
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    (datagram_len, ecn)
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let storage: *const libc::sockaddr_storage = storage;
    // SAFETY: a sockaddr_storage is large enough and aligned for both families, and the family says which it is.
    unsafe {
        match libc::c_int::from((*storage).ss_family) {
            libc::AF_INET => {
                let v4 = &*storage.cast::<libc::sockaddr_in>();
                let ip = u32::from_be(v4.sin_addr.s_addr).into();
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6 = &*storage.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}
