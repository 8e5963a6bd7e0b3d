//! Packets to verdicts, over a read-only snapshot of sessions, routes and rules.
//!
//! ```text
//! outbound   destination ─► route (peer's session) ─► remember the flow ─► frame or superframe ─► seal in place
//!            trains for the sockets, or: Queue (no session: hand over to node) | TooBig | Drop(reason)
//! inbound    first byte ─┬► session: unmask ─► receiver index ─► open in place, replay window
//!                        │           frames, slices ─► assembly ─► source is the peer's address, destination is
//!                        │                                         ours ─► policy ─► what the kernel is told
//!                        ├► relayed: unmask ─► slot ─► ours: the datagram inside, once more; or Forward
//!                        └► setup:   unmask ─► mac1
//!            Deliver | Frames | Slice | Control | Setup | Forward | Drop(reason), and a Notice when `node` should know
//! ```
//!
//! | file | what it does |
//! | --- | --- |
//! | `backlog` | how long packets wait in the interface's queue, and when their senders are told |
//! | `outbox` | where packets of the interface are read to |
//! | `outbound` | packets of the interface into datagrams |
//! | `relayed` | datagrams that a relay carries, ours and others' |
//! | `train` | datagrams into trains |
//! | `plain` | large packets as ordinary ones |
//! | `inbound` | one datagram to one verdict |
//! | `reception` | trains of datagrams; frames and whole superframes to the interface without copying |
//! | `gro` | UDP datagrams of one flow to the interface as one packet |
//! | `ecn` | congestion marks between outer and inner header |
//! | `assembly` | superframes that come in pieces, or with holes |
//! | `shards` | maps of which a changed copy shares what did not change |
//! | `drops` | counters |
//!
//! Nothing here allocates per packet, locks or logs. `node` publishes snapshots; what changes per packet are atomics
//! inside of the sessions, apart for each sending thread; flows are noted once a second, drops are counted, what a peer was
//! refused is noted with it.

mod assembly;
mod backlog;
mod drops;
mod ecn;
mod gro;
mod inbound;
mod outbound;
mod outbox;
mod plain;
mod reception;
mod relayed;
mod shards;
mod train;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use assembly::{ASSEMBLY_TIME_MAX, SUPERFRAMES_MAX};
pub use backlog::{Backlog, ProbeDue};
pub use drops::{DropReason, Drops};
pub use inbound::{Arrival, Inbound, Slice, inbound};
pub use outbound::{Batch, Outbound};
pub use outbox::{Outbox, Room, WideRoom};
pub use plain::PlainPackets;
pub use reception::{Inward, Reception, Turn};
pub use shards::{Shard, Shards};
pub use train::{Sink, TRAIN_BYTES_MAX, Train};

use train::Way;

use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::limit::SharedBucket;
use crate::proto::policy::{Account, Flows, Rules};
use crate::proto::session::transport::Session;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::inner;
use crate::proto::wire::relay::{Hop, Slot};
use crate::proto::wire::session::OVERHEAD;
use crate::proto::wire::superframe::Layout;

/// What goes around a datagram on its way to a relay, or from us as a relay.
#[derive(Clone)]
pub struct Via {
    /// How the receiver of the datagram names the channel.
    pub slot: Slot,
    /// The key that packets to it are masked with.
    pub key: RecipientKey,
}

/// What becomes of packets that come under a slot.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "each is behind a pointer of its own")]
pub enum Carried {
    /// Ours to open, if they come from this endpoint: our relay's.
    Ours(SocketAddr),
    /// Somebody else's.
    Forward(Forward),
}

/// A channel in one direction.
#[derive(Debug)]
pub struct Forward {
    /// Where the sender is.
    pub from: SocketAddr,
    /// Where the recipient is.
    pub to: SocketAddr,
    /// What the recipient finds around it.
    pub via: Via,
    /// Bytes that it may carry.
    pub quota: Arc<SharedBucket>,
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Via").field(&self.slot).finish()
    }
}

/// Where packets for one mesh address go.
#[derive(Debug)]
pub struct Route {
    /// The peer's newest session.
    pub session: Session,
    /// Where the peer is, or the relay before it.
    pub endpoint: SocketAddr,
    /// The channel through the relay.
    pub via: Option<Via>,
    /// Largest session packet that the path carries, in bytes.
    pub datagram_len: usize,
    /// Large packets are cut: the path loses so much that superframes would have holes.
    pub cuts: bool,
    /// How superframes are laid out; `None` when the peer does not take frames.
    layout: Option<Layout>,
    noticed: AtomicBool,
}

impl Route {
    /// A route over `session`. Unless `watched`, its next packet is reported.
    pub fn new(session: Session, endpoint: SocketAddr, datagram_len: usize, watched: bool) -> Self {
        let layout = Layout::new(datagram_len - OVERHEAD).filter(|_| session.has_frames());
        let noticed = AtomicBool::new(watched);
        Self { session, endpoint, via: None, datagram_len, cuts: false, layout, noticed }
    }

    /// The same, through a relay at its endpoint.
    pub fn with_via(mut self, via: Option<Via>) -> Self {
        self.via = via;
        self
    }

    /// The same, for a path that loses much if `cuts`.
    pub const fn with_cuts(mut self, cuts: bool) -> Self {
        self.cuts = cuts;
        self
    }

    const fn way(&self, ecn: u8) -> Way<'_> {
        Way { to: self.endpoint, via: self.via.as_ref(), ecn }
    }

    /// True once: its next packet is news.
    fn wakes(&self) -> bool {
        !self.noticed.load(Ordering::Relaxed) && !self.noticed.swap(true, Ordering::Relaxed)
    }

    /// Plaintext bytes of one datagram.
    const fn plaintext_len(&self) -> usize {
        self.datagram_len - OVERHEAD
    }
}

/// A session that may receive.
#[derive(Debug)]
pub struct Receiver {
    /// Its keys.
    pub session: Session,
    /// The only source address that its inner packets may have.
    pub address: MeshAddress,
    /// How its packets came last; `None` until they did.
    pub hop: Option<Hop>,
    /// What the policy keeps of the peer.
    pub account: Arc<Account>,
    noticed: AtomicBool,
}

impl Receiver {
    /// A session that receives from the node with `address`.
    pub const fn new(
        session: Session,
        address: MeshAddress,
        hop: Option<Hop>,
        account: Arc<Account>,
    ) -> Self {
        Self { session, address, hop, account, noticed: AtomicBool::new(false) }
    }
}

/// All that the data path reads. Published as a whole, never changed. A copy shares what did not change since.
#[derive(Clone)]
pub struct Snapshot {
    /// Our address.
    pub own: MeshAddress,
    /// The key that packets to us are masked with.
    pub own_key: RecipientKey,
    /// Peers with a session, by address.
    pub routes: Shards<MeshAddress, Arc<Route>>,
    /// Sessions by the index that we gave them.
    pub receivers: Shards<u32, Arc<Receiver>>,
    /// Relayed packets, ours and others'.
    pub slots: Shards<Slot, Arc<Carried>>,
    /// What may enter unasked.
    pub rules: Arc<Rules>,
    /// Where we sent an initiation to: a cookie reply may come from there.
    pub awaiting: BTreeSet<Hop>,
}

/// What the threads of the data path share.
#[derive(Debug)]
pub struct Shared {
    /// Flows that we started.
    pub flows: Flows,
    /// What was dropped, by reason.
    pub drops: Drops,
}

/// Something that `node` should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The first packet of a session, or the newest one from another endpoint, or the first of a ratchet epoch.
    Heard {
        /// The index that we gave the session.
        local_index: u32,
        /// How it came.
        source: Hop,
        /// The sender has moved to the next ratchet epoch.
        epoch_advanced: bool,
    },
    /// A session that `node` does not watch sends again.
    Woke {
        /// To whom.
        peer: NodeId,
    },
}

/// Lets the next packet report again: the notice could not be handed over.
pub fn notice_lost(snapshot: &Snapshot, notice: Notice) {
    match notice {
        Notice::Heard { local_index, .. } => {
            if let Some(receiver) = snapshot.receivers.get(&local_index) {
                receiver.noticed.store(false, Ordering::Relaxed);
            }
        }
        Notice::Woke { peer } => {
            if let Some(route) = snapshot.routes.get(&peer.address()) {
                route.noticed.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// Where an outbound packet is addressed to, if that is in the mesh: it is worth queueing.
pub fn wanted(packet: &[u8]) -> Option<MeshAddress> {
    inner::destination(packet).ok().and_then(MeshAddress::from_ipv6)
}

#[cfg(test)]
mod tests;
