//! The threads that drive a node, and the handle by which others talk to it.
//!
//! ```text
//!  interface ──► outward thread ──datapath::Batch──────► sockets      ┐ a pair of threads for each worker
//!  sockets   ──► inward thread  ──datapath::Reception──► interface    ┘
//!                     │ setup packets, control messages, notices, packets without a session
//!                     ▼ bounded inbox
//!               control task (tokio): owns the `Node`, its timers and commands
//!                     │ snapshot (arc-swap)
//!                     └──────────────► all threads
//! ```
//!
//! The threads block in `poll`; they hold no lock, make no allocation per packet and share with the control task
//! nothing but the snapshot, the counters and the inbox. While there is little to do, the inward thread reads the
//! interface too (`duty`).
//!
//! With several workers, the interface has a queue and every address a socket for each. The kernel keeps a flow on one
//! queue and a peer on one socket, so that no flow is spread over threads; one that we open may change its queue once, with
//! its first reply, and again after seconds in which nothing came. No two workers write
//! the same cache line for every packet: keys and counters of sessions are per sending thread, a session receives in one
//! thread, the snapshot is read only, drops are counted when something is dropped, and a flow is noted again at most
//! once a second.
//!
//! Behind a NAT whose ports had to be guessed, a peer has a socket of its own (`kept`); while they are guessed, the control
//! task reads hundreds of them (`sprays`).

mod control;
mod duty;
mod handle;
mod inbox;
mod inward;
mod kept;
mod outward;
mod plane;
mod rungs;
mod sprays;
mod wake;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

pub use handle::{AskError, Handle};
pub use inbox::{INBOX_LEN_MAX, LOADED_LEN, UNROUTED_LEN_MAX};
pub use rungs::Rungs;

use crate::host::entropy;
use crate::proto::node::{Node, StreamWanted};
use crate::proto::wire::handshake::THREADS_MAX;
use crate::tun::Device;
use crate::udp::UdpSocket;

use wake::Wake;

/// Most requests of handles waiting for the control task.
pub const ASKS_MAX: usize = 256;

/// Most wishes of the node waiting to be carried out.
pub const WISHES_MAX: usize = 64;

/// What the node wants of whoever opens streams.
#[derive(Debug)]
pub enum Wish {
    /// A stream to somebody.
    Open(StreamWanted),
    /// The end of the stream behind this endpoint.
    HangUp(SocketAddr),
}

/// A running node.
#[derive(Debug)]
pub struct Engine {
    handle: Handle,
    rungs: Arc<Rungs>,
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
    control: tokio::task::JoinHandle<()>,
    /// Without it the control task would end with the threads, before it has said goodbye.
    _inbox: inbox::Inbox,
    failed: oneshot::Receiver<io::Error>,
}

/// The sockets of a node: one a family is used to send.
pub type Sockets = Arc<[UdpSocket]>;

/// Most workers: what a session has sending threads ([`THREADS_MAX`]).
pub const WORKERS_MAX: usize = THREADS_MAX as usize;

/// What a pair of threads has of its own.
#[derive(Clone)]
pub struct Worker {
    /// Its queue of the interface.
    pub device: Arc<Device>,
    /// Its sockets, one for each address.
    pub sockets: Sockets,
}

impl Engine {
    /// Starts the threads and the control task; the wishes are for the one who opens streams.
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime, and unless there are 1 to [`WORKERS_MAX`] workers.
    pub fn start(mut node: Node, workers: &[Worker]) -> io::Result<(Self, mpsc::Receiver<Wish>)> {
        assert!((1..=WORKERS_MAX).contains(&workers.len()), "the number of workers is within its limits");
        let wake = Arc::new(Wake::new()?);
        let (inbox, items) = inbox::inbox(node.shared());
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (failure, failed) = oneshot::channel();
        let snapshot = Arc::new(ArcSwap::new(node.snapshot()));
        let handle = Handle::new(asks, node.node_id());
        let rungs = Arc::new(Rungs::new(workers));
        let probe_secret = entropy::seed();
        let kept = kept::Published::default();
        let changed =
            workers.iter().map(|_| kept::Changed::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
        let keeper = kept::Keeper::new(kept.clone(), changed.clone());
        let devices: Arc<[_]> = workers.iter().map(|worker| worker.device.clone()).collect();
        let plane = |((number, worker), changed): ((u8, &Worker), &Arc<kept::Changed>)| plane::Plane {
            worker: number,
            rungs: rungs.clone(),
            snapshot: snapshot.clone(),
            shared: node.shared(),
            device: worker.device.clone(),
            devices: devices.clone(),
            sockets: worker.sockets.clone(),
            kept: kept.clone(),
            changed: changed.clone(),
            inbox: inbox.clone(),
            wake: wake.clone(),
            probe_secret,
        };
        let planes: Vec<_> = (0..).zip(workers).zip(&changed).map(plane).collect();
        let threads = plane::Plane::start(&planes, failure)?;
        let Worker { device, sockets } = workers[0].clone();
        let (wanted, wishes) = mpsc::channel(WISHES_MAX);
        let control = control::Control::new(node, snapshot, device, sockets, keeper, wanted);
        let control = tokio::spawn(control.run(items, asked));
        Ok((Self { handle, rungs, wake, threads, control, _inbox: inbox, failed }, wishes))
    }

    /// A way to talk to the node.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// How much work the kernel takes off our hands.
    pub fn rungs(&self) -> Arc<Rungs> {
        self.rungs.clone()
    }

    /// Waits until there is no going on: the interface was deleted ([`crate::tun::is_deleted`]), or a thread or the
    /// control task has ended.
    pub async fn failure(&mut self) -> io::Error {
        cause(&mut self.failed, &mut self.control).await
    }

    /// Says goodbye to the peers and ends threads and task.
    pub async fn stop(self) {
        self.handle.stop().await;
        self.wake.wake();
        for thread in self.threads {
            // A panic of the thread was reported when it happened.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.control.abort();
    }
}

/// What ended first. The control task may end with the threads: they know the cause.
async fn cause(
    failed: &mut oneshot::Receiver<io::Error>,
    control: &mut tokio::task::JoinHandle<()>,
) -> io::Error {
    tokio::select! {
        biased;
        failed = failed => match failed {
            Ok(error) => error,
            Err(_) => io::Error::other("the threads of the data path have ended"),
        },
        ended = control => match ended {
            Ok(()) => io::Error::other("the control task has ended"),
            Err(panicked) => io::Error::other(panicked),
        },
    }
}

#[cfg(test)]
mod tests;
