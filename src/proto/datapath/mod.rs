//! One packet to one verdict, over a read-only snapshot of sessions, routes and rules.
//!
//! ```text
//! outbound   destination ─► route (peer's session) ─► fits? ─► remember the flow ─► seal in place
//!            Send | Queue (no session: hand over to node) | TooBig | Drop(reason)
//! inbound    first byte ─┬► session: unmask ─► receiver index ─► open in place, replay window
//!                        │           data ─► source is the peer's address, destination is ours ─► policy
//!                        └► setup:   unmask ─► mac1
//!            Deliver | Control | Setup | Drop(reason), and a Notice when `node` should know
//! ```
//!
//! Nothing here allocates, locks or logs. `node` publishes snapshots; what changes per packet are atomics inside of
//! the sessions, the flow table and the drop counters.

mod drops;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use drops::{DropReason, Drops};

use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::policy::{self, EchoLimit, Flows, Rules};
use crate::proto::session::transport::{OpenError, SealError, Session};
use crate::proto::timer::Instant;
use crate::proto::wire::envelope::{Opening, RecipientKey};
use crate::proto::wire::inner::{self, Inner};
use crate::proto::wire::session::{HEADER_LEN, Header, Kind, OVERHEAD, mask};
use crate::proto::wire::{DATAGRAM_LEN_MAX, Family, Malformed, family};

/// Largest inner packet that fits into a datagram over IPv6 on Ethernet, in bytes.
pub const INNER_LEN_MAX: usize = DATAGRAM_LEN_MAX - 40 - 8 - OVERHEAD;

/// Where packets for one mesh address go.
#[derive(Debug)]
pub struct Route {
    /// The peer's newest session.
    pub session: Session,
    /// Where the peer is.
    pub endpoint: SocketAddr,
    /// Largest inner packet in bytes.
    pub mtu: usize,
    noticed: AtomicBool,
}

impl Route {
    /// A route over `session`. Unless `watched`, its next packet is reported.
    pub const fn new(session: Session, endpoint: SocketAddr, mtu: usize, watched: bool) -> Self {
        Self { session, endpoint, mtu, noticed: AtomicBool::new(watched) }
    }
}

/// A session that may receive.
#[derive(Debug)]
pub struct Receiver {
    /// Its keys.
    pub session: Session,
    /// The only source address that its inner packets may have.
    pub address: MeshAddress,
    /// Where the peer was last heard; `None` until it was.
    pub endpoint: Option<SocketAddr>,
    /// Limit of the peer's echo requests.
    pub echo: Arc<EchoLimit>,
    noticed: AtomicBool,
}

impl Receiver {
    /// A session that receives from the node with `address`.
    pub const fn new(
        session: Session,
        address: MeshAddress,
        endpoint: Option<SocketAddr>,
        echo: Arc<EchoLimit>,
    ) -> Self {
        Self { session, address, endpoint, echo, noticed: AtomicBool::new(false) }
    }
}

/// All that the data path reads. Published as a whole, never changed.
pub struct Snapshot {
    /// Our address.
    pub own: MeshAddress,
    /// The key that packets to us are masked with.
    pub own_key: RecipientKey,
    /// Peers with a session, by address.
    pub routes: HashMap<MeshAddress, Arc<Route>>,
    /// Sessions by the index that we gave them.
    pub receivers: HashMap<u32, Arc<Receiver>>,
    /// What may enter unasked.
    pub rules: Arc<Rules>,
    /// Endpoints that we sent an initiation to: a cookie reply may come from there.
    pub awaiting: BTreeSet<SocketAddr>,
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
        /// Where it came from.
        source: SocketAddr,
        /// The sender has moved to the next ratchet epoch.
        epoch_advanced: bool,
    },
    /// A session that `node` does not watch sends again.
    Woke {
        /// To whom.
        peer: NodeId,
    },
}

/// Verdict about an outbound packet.
#[derive(Debug)]
pub enum Outbound {
    /// The first `len` bytes of the buffer go to `to`.
    Send {
        /// Length of the datagram.
        len: usize,
        /// Where to.
        to: SocketAddr,
    },
    /// There is no session with the destination: `node` queues it.
    Queue,
    /// It fits no datagram to this peer: answer with "packet too big" of this MTU.
    TooBig(u32),
    /// Gone, counted.
    Drop(DropReason),
}

/// Verdict about an inbound datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'p> {
    /// An inner packet for the interface.
    Deliver(&'p [u8]),
    /// Control messages of an authenticated peer.
    Control {
        /// The index that we gave the session.
        local_index: u32,
        /// The plaintext.
        messages: &'p [u8],
    },
    /// A setup packet with a valid mac1, unmasked in place.
    Setup,
    /// Perhaps a cookie reply: a setup packet from an endpoint that we wait for; as it came.
    Reply,
    /// Gone, counted.
    Drop(DropReason),
}

/// Decides about a packet of `len` bytes from the interface, which stands in `buffer` behind [`HEADER_LEN`] bytes of
/// room and before [`OVERHEAD`] bytes of room.
pub fn outbound(
    snapshot: &Snapshot,
    shared: &Shared,
    buffer: &mut [u8],
    len: usize,
    now: Instant,
) -> (Outbound, Option<Notice>) {
    let packet = &buffer[HEADER_LEN..HEADER_LEN + len];
    let Ok(inner) = Inner::parse(packet) else {
        return (shared.drop_outbound(DropReason::NotIpv6), None);
    };
    if inner.source != snapshot.own.ipv6() {
        return (shared.drop_outbound(DropReason::SourceNotOurs), None);
    }
    let Some(destination) = MeshAddress::from_ipv6(inner.destination).filter(|d| *d != snapshot.own) else {
        return (shared.drop_outbound(DropReason::NotMesh), None);
    };
    let Some(route) = snapshot.routes.get(&destination) else { return (Outbound::Queue, None) };
    if len > route.mtu {
        shared.drops.count(DropReason::TooBig);
        return (Outbound::TooBig(route.mtu as u32), None);
    }
    policy::outbound(&snapshot.rules, &shared.flows, &route.session.peer(), &inner, now);
    let woke = !route.noticed.load(Ordering::Relaxed) && !route.noticed.swap(true, Ordering::Relaxed);
    let notice = woke.then_some(Notice::Woke { peer: route.session.peer() });
    match route.session.seal(Kind::Data, buffer, len, route.mtu, now) {
        Ok(len) => (Outbound::Send { len, to: route.endpoint }, notice),
        // `node` retires the session; the packet waits for the next one.
        Err(SealError::Expired | SealError::Exhausted | SealError::NoRoom) => (Outbound::Queue, notice),
    }
}

impl Shared {
    fn drop_outbound(&self, reason: DropReason) -> Outbound {
        self.drops.count(reason);
        Outbound::Drop(reason)
    }

    fn drop_inbound(&self, reason: DropReason) -> (Inbound<'static>, Option<Notice>) {
        self.drops.count(reason);
        (Inbound::Drop(reason), None)
    }
}

/// Decides about a datagram from the underlay, which is unmasked and opened in place.
pub fn inbound<'p>(
    snapshot: &Snapshot,
    shared: &Shared,
    source: SocketAddr,
    datagram: &'p mut [u8],
    now: Instant,
) -> (Inbound<'p>, Option<Notice>) {
    match family(datagram) {
        Some(Family::Session) => inbound_session(snapshot, shared, source, datagram, now),
        Some(Family::Setup) => match snapshot.own_key.open(datagram) {
            Ok(_) => (Inbound::Setup, None),
            Err(Opening::Malformed(Malformed::Kind(_))) => shared.drop_inbound(DropReason::UnknownKind),
            Err(Opening::Malformed(_)) => shared.drop_inbound(DropReason::Malformed),
            Err(Opening::NotForUs) if snapshot.awaiting.contains(&source) => (Inbound::Reply, None),
            Err(Opening::NotForUs) => shared.drop_inbound(DropReason::Unauthenticated),
        },
        None => shared.drop_inbound(DropReason::Foreign),
    }
}

fn inbound_session<'p>(
    snapshot: &Snapshot,
    shared: &Shared,
    source: SocketAddr,
    datagram: &'p mut [u8],
    now: Instant,
) -> (Inbound<'p>, Option<Notice>) {
    if datagram.len() > DATAGRAM_LEN_MAX || mask(&snapshot.own_key, datagram).is_err() {
        return shared.drop_inbound(DropReason::Malformed);
    }
    let header = datagram.first_chunk().ok_or(Malformed::Truncated).and_then(Header::parse);
    let Ok(header) = header else {
        // Garbage has a random header: most of what ends here never was a session packet.
        return shared.drop_inbound(DropReason::Unauthenticated);
    };
    let Some(receiver) = snapshot.receivers.get(&header.receiver_index) else {
        return shared.drop_inbound(DropReason::UnknownSession);
    };
    let opened = match receiver.session.open(&header, datagram, now) {
        Ok(opened) => opened,
        Err(OpenError::Replay) => return shared.drop_inbound(DropReason::Replay),
        Err(OpenError::Authentication) => return shared.drop_inbound(DropReason::Unauthenticated),
        Err(OpenError::Expired) => return shared.drop_inbound(DropReason::UnknownSession),
    };
    let moved = opened.newest && receiver.endpoint != Some(source);
    let worth =
        opened.first || opened.epoch_advanced || moved && !receiver.noticed.swap(true, Ordering::Relaxed);
    let notice = worth.then_some(Notice::Heard {
        local_index: header.receiver_index,
        source,
        epoch_advanced: opened.epoch_advanced,
    });
    let plaintext: &'p [u8] = opened.plaintext;
    let verdict = match header.kind {
        Kind::Control => Inbound::Control { local_index: header.receiver_index, messages: plaintext },
        Kind::Data => match admit(snapshot, shared, receiver, plaintext, now) {
            Ok(packet) => Inbound::Deliver(packet),
            Err(reason) => shared.drop_inbound(reason).0,
        },
    };
    (verdict, notice)
}

/// Checks an inner packet: it must be the peer's, for us, and let in by the policy.
fn admit<'p>(
    snapshot: &Snapshot,
    shared: &Shared,
    receiver: &Receiver,
    plaintext: &'p [u8],
    now: Instant,
) -> Result<&'p [u8], DropReason> {
    let inner = Inner::parse(plaintext).map_err(|_| DropReason::NotIpv6)?;
    if inner.source != receiver.address.ipv6() {
        return Err(DropReason::Source);
    }
    if inner.destination != snapshot.own.ipv6() {
        return Err(DropReason::Destination);
    }
    let peer = receiver.session.peer();
    if !policy::inbound(&snapshot.rules, &shared.flows, &receiver.echo, &peer, &inner, now) {
        return Err(DropReason::Policy);
    }
    Ok(&plaintext[..inner.len])
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

/// True when an outbound packet is addressed to the mesh, and so worth queueing.
pub fn wanted(packet: &[u8]) -> Option<MeshAddress> {
    inner::destination(packet).ok().and_then(MeshAddress::from_ipv6)
}
