//! What the data path hands over to the control task: a bounded queue that never makes the data path wait.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::proto::datapath::{self, DropReason, Notice, Shared, Snapshot};

/// Most items waiting.
pub const INBOX_LEN_MAX: usize = 1024;
/// From this many on, senders of setup packets have to prove their address (WireGuard paper §5.3: "under load").
pub const LOADED_LEN: usize = 128;

/// One thing handed over.
#[derive(Debug)]
pub(super) enum Item {
    /// An unmasked setup packet.
    Setup { source: SocketAddr, packet: Vec<u8> },
    /// Perhaps a cookie reply.
    Reply { source: SocketAddr, packet: Vec<u8> },
    /// Control messages of a session.
    Messages { local_index: u32, plaintext: Vec<u8> },
    /// Something to know.
    Notice(Notice),
    /// A packet from the interface without a session.
    Unrouted(Vec<u8>),
}

/// The data path's end.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    items: mpsc::Sender<Item>,
    shared: Arc<Shared>,
}

/// A new inbox and where its items come out.
pub(super) fn inbox(shared: Arc<Shared>) -> (Inbox, mpsc::Receiver<Item>) {
    let (items, out) = mpsc::channel(INBOX_LEN_MAX);
    (Inbox { items, shared }, out)
}

impl Inbox {
    /// Hands an item over; counts it when there is no room.
    pub(super) fn put(&self, item: Item) {
        if self.items.try_send(item).is_err() {
            self.shared.drops.count(DropReason::QueueFull);
        }
    }

    /// Hands a notice over; without room the next packet will raise it again.
    pub(super) fn notify(&self, snapshot: &Snapshot, notice: Option<Notice>) {
        if let Some(notice) = notice
            && self.items.try_send(Item::Notice(notice)).is_err()
        {
            datapath::notice_lost(snapshot, notice);
        }
    }
}
