//! The two threads of the data path: what they share, how they start, wait and fail.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use crate::proto::datapath::{Shared, Snapshot};
use crate::tun::Device;
use crate::udp::UdpSocket;

use super::Sockets;
use super::inbox::Inbox;
use super::rungs::Rungs;
use super::wake::Wake;

/// What both threads need.
#[derive(Clone)]
pub(super) struct Plane {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) shared: Arc<Shared>,
    pub(super) device: Arc<Device>,
    pub(super) sockets: Sockets,
    pub(super) inbox: Inbox,
    pub(super) rungs: Arc<Rungs>,
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
}

/// The socket to send from: of the same family, bound to a fixed address only if there is no other.
pub(super) fn socket_for(sockets: &[UdpSocket], to: SocketAddr) -> Option<&UdpSocket> {
    let of_family = || sockets.iter().filter(|socket| socket.local_addr().is_ipv4() == to.is_ipv4());
    of_family().find(|socket| socket.local_addr().ip().is_unspecified()).or_else(|| of_family().next())
}

/// Waits until one of the descriptors is readable, at most for `limit`.
pub(super) fn wait(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    // Called only when there is nothing to do: the allocation costs nothing that matters.
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let limit = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, limit) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
