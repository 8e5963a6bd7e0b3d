//! The threads that drive a node, and the handle by which others talk to it.
//!
//! ```text
//!  interface ──► outward thread ──datapath::Batch──────► sockets
//!  sockets   ──► inward thread  ──datapath::Reception──► interface
//!                     │ setup packets, control messages, notices, packets without a session
//!                     ▼ bounded inbox
//!               control task (tokio): owns the `Node`, its timers and commands
//!                     │ snapshot (arc-swap)
//!                     └──────────────► both threads
//! ```
//!
//! The threads block in `poll`; they hold no lock, make no allocation per packet and share with the control task
//! nothing but the snapshot, the counters and the inbox.

mod control;
mod handle;
mod inbox;
mod inward;
mod outward;
mod plane;
mod rungs;
mod wake;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

pub use handle::{AskError, Handle};
pub use inbox::{INBOX_LEN_MAX, LOADED_LEN, UNROUTED_LEN_MAX};
pub use rungs::Rungs;

use crate::proto::node::Node;
use crate::tun::Device;
use crate::udp::UdpSocket;

use wake::Wake;

/// Most requests of handles waiting for the control task.
pub const ASKS_MAX: usize = 256;

/// A running node.
#[derive(Debug)]
pub struct Engine {
    handle: Handle,
    rungs: Arc<Rungs>,
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
    control: tokio::task::JoinHandle<()>,
    failed: oneshot::Receiver<io::Error>,
}

/// The sockets of a node: one a family is used to send.
pub type Sockets = Arc<[UdpSocket]>;

impl Engine {
    /// Starts the threads and the control task.
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(mut node: Node, device: Arc<Device>, sockets: Sockets) -> io::Result<Self> {
        let wake = Arc::new(Wake::new()?);
        let (inbox, items) = inbox::inbox(node.shared());
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (failure, failed) = oneshot::channel();
        let snapshot = Arc::new(ArcSwap::new(node.snapshot()));
        let handle = Handle::new(asks, node.node_id());
        let rungs = Arc::new(Rungs::new(device.offloads(), sockets.clone()));
        let plane = plane::Plane {
            rungs: rungs.clone(),
            snapshot: snapshot.clone(),
            shared: node.shared(),
            device: device.clone(),
            sockets: sockets.clone(),
            inbox,
            wake: wake.clone(),
        };
        let threads = plane.start(failure)?;
        let control = control::Control::new(node, snapshot, device, sockets);
        let control = tokio::spawn(control.run(items, asked));
        Ok(Self { handle, rungs, wake, threads, control, failed })
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
        tokio::select! {
            failed = &mut self.failed => match failed {
                Ok(error) => error,
                Err(_) => io::Error::other("the threads of the data path have ended"),
            },
            _ = &mut self.control => io::Error::other("the control task has ended"),
        }
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
