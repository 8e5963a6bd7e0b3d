//! What the data path hands over to the control task: a bounded queue that never makes the data path wait.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::proto::datapath::{self, DropReason, Notice, Shared, Snapshot};
use crate::proto::wire::relay::Hop;

/// Most items waiting.
pub const INBOX_LEN_MAX: usize = 1024;
/// Most packets without a session waiting. They have a queue of their own: a local program that floods unknown
/// addresses neither crowds out handshakes nor makes strangers prove their addresses.
pub const UNROUTED_LEN_MAX: usize = 256;
/// From this many on, senders of setup packets have to prove their address (WireGuard paper §5.3: "under load").
pub const LOADED_LEN: usize = 128;

/// One thing handed over.
#[derive(Debug)]
pub(super) enum Item {
    /// An unmasked setup packet.
    Setup { source: Hop, packet: Vec<u8> },
    /// Perhaps a cookie reply.
    Reply { source: Hop, packet: Vec<u8> },
    /// Control messages of a session.
    Messages { local_index: u32, source: Hop, plaintext: Vec<u8> },
    /// A datagram of that length to that endpoint exceeds the local link.
    TooBig { to: SocketAddr, len: usize },
    /// Something to know.
    Notice(Notice),
}

/// The data path's end.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    items: mpsc::Sender<Item>,
    unrouted: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
}

/// Where what was handed over comes out.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) items: mpsc::Receiver<Item>,
    /// Packets from the interface without a session.
    pub(super) unrouted: mpsc::Receiver<Vec<u8>>,
}

/// A new inbox and its outlet.
pub(super) fn inbox(shared: Arc<Shared>) -> (Inbox, Outlet) {
    let (items, items_out) = mpsc::channel(INBOX_LEN_MAX);
    let (unrouted, unrouted_out) = mpsc::channel(UNROUTED_LEN_MAX);
    (Inbox { items, unrouted, shared }, Outlet { items: items_out, unrouted: unrouted_out })
}

impl Inbox {
    /// Hands an item over; counts it when there is no room.
    pub(super) fn put(&self, item: Item) {
        if self.items.try_send(item).is_err() {
            self.shared.drops.count(DropReason::QueueFull);
        }
    }

    /// Hands over a packet from the interface without a session; counts it when there is no room.
    pub(super) fn put_unrouted(&self, packet: &[u8]) {
        match self.unrouted.try_reserve() {
            Ok(place) => place.send(packet.to_vec()),
            Err(_) => self.shared.drops.count(DropReason::QueueFull),
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
