//! The two threads of the data path. Each runs every packet to completion.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use arc_swap::{ArcSwap, Cache};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use crate::host::clock;
use crate::proto::datapath::{self, DropReason, INNER_LEN_MAX, Inbound, Outbound, Shared, Snapshot};
use crate::proto::wire::DATAGRAM_LEN_MAX;
use crate::proto::wire::inner::{IcmpError, icmp_error};
use crate::proto::wire::session::{HEADER_LEN, OVERHEAD, PADDING_MULTIPLE};
use crate::tun::{self, Device};
use crate::udp::UdpSocket;

use super::Sockets;
use super::inbox::{Inbox, Item};
use super::wake::Wake;

/// Largest packet read from the interface, in bytes: its MTU may be raised under us.
const INTERFACE_READ_MAX: usize = 65_536;
/// Datagrams read from one socket before the others get their turn.
const TURN: usize = 64;
/// How long a full socket buffer may hold up the outward thread, in milliseconds; then the packet is dropped.
const SEND_WAIT_MS: u16 = 20;

/// What both threads need.
#[derive(Clone)]
pub(super) struct Plane {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) shared: Arc<Shared>,
    pub(super) device: Arc<Device>,
    pub(super) sockets: Sockets,
    pub(super) inbox: Inbox,
    pub(super) wake: Arc<Wake>,
}

/// Reports the first failure; a second has nobody to tell.
#[derive(Clone)]
struct Failure(Arc<Mutex<Option<oneshot::Sender<io::Error>>>>);

impl Drop for Failure {
    /// A thread that panics must not leave the other one behind as half a data path.
    fn drop(&mut self) {
        if thread::panicking() {
            self.report(io::Error::other("a thread of the data path has panicked"));
        }
    }
}

impl Failure {
    fn report(&self, error: io::Error) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = sender.send(error);
        }
    }
}

impl Plane {
    pub(super) fn start(self, failure: oneshot::Sender<io::Error>) -> io::Result<Vec<JoinHandle<()>>> {
        let failure = Failure(Arc::new(Mutex::new(Some(failure))));
        let (outward, reports) = (self.clone(), failure.clone());
        let run = move || outward.run_outward().unwrap_or_else(|error| reports.report(error));
        let outward = thread::Builder::new().name("azora-out".into()).spawn(run)?;
        let run = move || self.run_inward().unwrap_or_else(|error| failure.report(error));
        Ok(vec![outward, thread::Builder::new().name("azora-in".into()).spawn(run)?])
    }

    /// Interface to sockets, until told to stop or the interface is gone.
    fn run_outward(self) -> io::Result<()> {
        let mut cache = Cache::new(self.snapshot.clone());
        let mut buffer = vec![0; HEADER_LEN + INTERFACE_READ_MAX + OVERHEAD + PADDING_MULTIPLE];
        while !self.wake.is_set() {
            match self.device.recv(&mut buffer[HEADER_LEN..HEADER_LEN + INTERFACE_READ_MAX]) {
                Ok(len) => self.outward(cache.load(), &mut buffer, len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(&[self.device.as_fd(), self.wake.as_fd()])?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted || tun::is_down(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn outward(&self, snapshot: &Snapshot, buffer: &mut [u8], len: usize) {
        let (verdict, notice) = datapath::outbound(snapshot, &self.shared, buffer, len, clock::now());
        let packet = HEADER_LEN..HEADER_LEN + len;
        match verdict {
            Outbound::Send { len, to } => self.send(&buffer[..len], to),
            Outbound::Queue if len <= INNER_LEN_MAX => self.inbox.put_unrouted(&buffer[packet]),
            Outbound::Queue => {
                self.answer(snapshot, IcmpError::TooBig(INNER_LEN_MAX as u32), &buffer[packet])
            }
            Outbound::TooBig(mtu) => self.answer(snapshot, IcmpError::TooBig(mtu), &buffer[packet]),
            Outbound::Drop(_) => {}
        }
        self.inbox.notify(snapshot, notice);
    }

    fn answer(&self, snapshot: &Snapshot, error: IcmpError, packet: &[u8]) {
        if let Some(answer) = icmp_error(error, &snapshot.own.ipv6(), packet) {
            self.deliver(&answer);
        }
    }

    fn deliver(&self, packet: &[u8]) {
        if self.device.send(packet).is_err() {
            self.shared.drops.count(DropReason::Io);
        }
    }

    fn send(&self, datagram: &[u8], to: SocketAddr) {
        let Some(socket) = socket_for(&self.sockets, to) else {
            return self.shared.drops.count(DropReason::Io);
        };
        let sent = match socket.send_to(datagram, to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The interface's queue fills up meanwhile: that is where a backlog belongs.
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, SEND_WAIT_MS);
                socket.send_to(datagram, to)
            }
            sent => sent,
        };
        if sent.is_err() {
            self.shared.drops.count(DropReason::Io);
        }
    }

    /// Sockets to interface, until told to stop.
    fn run_inward(self) -> io::Result<()> {
        let mut cache = Cache::new(self.snapshot.clone());
        // One byte more than is allowed, so that what is too long can be told from what just fits.
        let mut buffer = [0; DATAGRAM_LEN_MAX + 1];
        let mut fds: Vec<_> = self.sockets.iter().map(|socket| socket.as_fd()).collect();
        fds.push(self.wake.as_fd());
        while !self.wake.is_set() {
            let mut quiet = true;
            for socket in self.sockets.iter() {
                for _ in 0..TURN {
                    let Ok((len, source)) = socket.recv_from(&mut buffer) else { break };
                    quiet = false;
                    self.inward(cache.load(), source, &mut buffer[..len]);
                }
            }
            if quiet {
                wait(&fds)?;
            }
        }
        Ok(())
    }

    fn inward(&self, snapshot: &Snapshot, source: SocketAddr, datagram: &mut [u8]) {
        let len = datagram.len();
        let (verdict, notice) = datapath::inbound(snapshot, &self.shared, source, datagram, clock::now());
        // The notice goes first: it may be what makes the session known that the messages came by.
        self.inbox.notify(snapshot, notice);
        match verdict {
            Inbound::Deliver(packet) => self.deliver(packet),
            Inbound::Control { local_index, messages } => {
                self.inbox.put(Item::Messages { local_index, plaintext: messages.to_vec() });
            }
            Inbound::Setup => self.inbox.put(Item::Setup { source, packet: datagram[..len].to_vec() }),
            Inbound::Reply => self.inbox.put(Item::Reply { source, packet: datagram[..len].to_vec() }),
            Inbound::Drop(_) => {}
        }
    }
}

/// The socket to send from: of the same family, bound to a fixed address only if there is no other.
pub(super) fn socket_for(sockets: &[UdpSocket], to: SocketAddr) -> Option<&UdpSocket> {
    let of_family = || sockets.iter().filter(|socket| socket.local_addr().is_ipv4() == to.is_ipv4());
    of_family().find(|socket| socket.local_addr().ip().is_unspecified()).or_else(|| of_family().next())
}

/// Waits until one of the descriptors is readable.
fn wait(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    // Called only when there is nothing to do: the allocation costs nothing that matters.
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
