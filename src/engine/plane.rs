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

use crate::host::priority;
use crate::proto::datapath::{Shared, Snapshot};
use crate::tun::Device;
use crate::udp::UdpSocket;

use super::Sockets;
use super::inbox::Inbox;
use super::rungs::Rungs;
use super::wake::Wake;

/// Nice values of the threads. A program that sends as fast as it can would else run while what it sent waits: the
/// packets of all others wait with it, 1.5 ms instead of 0.35 ms in the middle on two cores. What comes in goes first,
/// because it waits for us in a buffer of megabytes; a thread that went before every sender would get its packets one by
/// one instead of many at a time.
const NICE_INWARD: i32 = -20;
const NICE_OUTWARD: i32 = -10;

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
        let run = move || {
            run_first(NICE_OUTWARD);
            outward.run_outward().unwrap_or_else(|error| reports.report(error));
        };
        let outward = thread::Builder::new().name("azora-out".into()).spawn(run)?;
        let run = move || {
            run_first(NICE_INWARD);
            self.run_inward().unwrap_or_else(|error| failure.report(error));
        };
        Ok(vec![outward, thread::Builder::new().name("azora-in".into()).spawn(run)?])
    }
}

/// Lets the calling thread run before ordinary programs, where that is allowed.
fn run_first(nice: i32) {
    if let Err(error) = priority::set_nice(nice) {
        let thread = thread::current();
        tracing::info!(
            thread = thread.name().unwrap_or_default(),
            "packets wait for a processor like any program's work ({error}): on a busy machine they take longer; \
             CAP_SYS_NICE or a limit for it (LimitNICE=-20 in a unit) lets them go first"
        );
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
