//! The threads of the data path, two for each worker: what they share, how they start, wait and fail.

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
use super::duty;
use super::inbox::Inbox;
use super::kept::{Changed, KeptSockets, Published};
use super::outward::Outward;
use super::rungs::Rungs;
use super::wake::Wake;

// Of an IPv6 packet without extension headers (RFC 8200 §3).
const NEXT_HEADER_AT: usize = 6;
const PORTS_AT: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// 2^32 divided by the golden ratio (Knuth, TAOCP volume 3, §6.4).
const SPREAD: u32 = 0x9e37_79b1;

/// Nice values of the threads. A program that sends as fast as it can would else run while what it sent waits: the
/// packets of all others wait with it. What comes in goes first, because it waits for us in a buffer of megabytes; a
/// thread that went before every sender would get its packets one by one instead of many at a time. Not further ahead,
/// since strangers can keep the inward thread busy: what it leaves to the others of one processor is a tenth.
const NICE_INWARD: i32 = -10;
const NICE_OUTWARD: i32 = -5;

/// How long a thread that has nothing to do holds on to the snapshot that it saw last, and so to the keys in it.
pub(super) const SNAPSHOT_HELD_MAX: Duration = Duration::from_secs(60);

/// What both threads of a worker need.
#[derive(Clone)]
pub(super) struct Plane {
    /// Number of the worker, which is that of its sending thread in the counters of packets.
    pub(super) worker: u8,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) shared: Arc<Shared>,
    /// The worker's queue of the interface.
    pub(super) device: Arc<Device>,
    /// The queues of all workers.
    pub(super) devices: Arc<[Arc<Device>]>,
    pub(super) sockets: Sockets,
    /// Sockets for single endpoints.
    pub(super) kept: Published,
    /// Wakes the inward thread when there are others.
    pub(super) changed: Arc<Changed>,
    pub(super) inbox: Inbox,
    pub(super) rungs: Arc<Rungs>,
    /// What tells our probes of the interface's queues from other packets.
    pub(super) probe_secret: [u8; 32],
    pub(super) wake: Arc<Wake>,
}

/// Reports the first failure; a second has nobody to tell.
#[derive(Clone)]
struct Failure(Arc<Mutex<Option<oneshot::Sender<io::Error>>>>);

impl Drop for Failure {
    /// A thread that panics must not leave the others behind as half a data path.
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
    /// Starts the threads of all workers, or none of them.
    pub(super) fn start(
        planes: &[Self],
        failure: oneshot::Sender<io::Error>,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let failure = Failure(Arc::new(Mutex::new(Some(failure))));
        let mut threads = Vec::new();
        for plane in planes {
            if let Err(error) = plane.start_pair(&failure, &mut threads) {
                plane.wake.wake();
                threads.into_iter().for_each(|thread| drop(thread.join()));
                return Err(error);
            }
        }
        Ok(threads)
    }

    fn start_pair(&self, failure: &Failure, threads: &mut Vec<JoinHandle<()>>) -> io::Result<()> {
        let (inward, outward) = duty::ends(Outward::new(self))?;
        let run = move |plane: &Self| plane.run_outward(outward);
        threads.push(self.spawn("azora-out", NICE_OUTWARD, run, failure.clone())?);
        let run = move |plane: &Self| plane.run_inward(inward);
        threads.push(self.spawn("azora-in", NICE_INWARD, run, failure.clone())?);
        Ok(())
    }

    fn spawn(
        &self,
        name: &str,
        nice: i32,
        run: impl FnOnce(&Self) -> io::Result<()> + Send + 'static,
        failure: Failure,
    ) -> io::Result<JoinHandle<()>> {
        let name = match self.worker {
            0 => name.to_owned(),
            worker => format!("{name}-{worker}"),
        };
        let plane = self.clone();
        let run = move || {
            run_first(nice);
            run(&plane).unwrap_or_else(|error| failure.report(error));
        };
        thread::Builder::new().name(name).spawn(run)
    }

    /// The queue of the interface to write a packet to. The kernel sends the other direction of its flow to the same
    /// queue, so the flows of one peer are spread over the sending threads although all of them come in by one thread.
    pub(super) fn device_for(&self, head: &[u8]) -> &Device {
        let queues = self.devices.len();
        if queues == 1 {
            return &self.device;
        }
        flow(head).map_or(&self.device, |flow| &self.devices[flow % queues])
    }
}

/// A number for the flow of an IPv6 packet: the same for both directions, and all packets of the flow. None for packets
/// without ports.
pub(super) fn flow(head: &[u8]) -> Option<usize> {
    let (next_header, ports) = (*head.get(NEXT_HEADER_AT)?, head.get(PORTS_AT..PORTS_AT + 4)?);
    let ports = [u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])];
    // Programs are given even ports only, or odd ones only: all bits have to count.
    let spread = u32::from(ports[0] ^ ports[1]).wrapping_mul(SPREAD) >> u16::BITS;
    matches!(next_header, TCP | UDP).then_some(spread as usize)
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

/// The socket to send from: that of the endpoint, or one of the same family, bound to a fixed address only if there is no
/// other.
pub(super) fn socket_for<'s>(
    sockets: &'s [UdpSocket],
    kept: &'s KeptSockets,
    to: SocketAddr,
) -> Option<&'s UdpSocket> {
    let of_family = || sockets.iter().filter(|socket| socket.local_addr().is_ipv4() == to.is_ipv4());
    let ordinary = || of_family().find(|socket| socket.local_addr().ip().is_unspecified());
    kept.to(to).or_else(ordinary).or_else(|| of_family().next())
}

/// Waits until one of the descriptors is readable, at most for `limit`.
pub(super) fn wait<'fd>(fds: impl IntoIterator<Item = BorrowedFd<'fd>>, limit: Duration) -> io::Result<()> {
    // Called only when there is nothing to do: the allocation costs nothing that matters.
    let mut fds: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let limit = PollTimeout::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, limit) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
