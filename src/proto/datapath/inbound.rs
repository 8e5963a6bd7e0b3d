//! One datagram from the underlay to one verdict, and the checks that every inner packet passes.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::reception::Turn;
use super::relayed::{Relayed, relayed};
use super::{DropReason, Notice, Receiver, Shared, Snapshot, ecn};
use crate::proto::policy;
use crate::proto::session::transport::OpenError;
use crate::proto::timer::Instant;
use crate::proto::wire::control::CONTROL_LEN_MAX;
use crate::proto::wire::envelope::Opening;
use crate::proto::wire::gso::{self, Virtio};
use crate::proto::wire::inner::Inner;
use crate::proto::wire::relay::{Hop, RELAY_OVERHEAD, Slot};
use crate::proto::wire::session::{HEADER_LEN, Header, Kind, count_of, counter, mask, thread_of};
use crate::proto::wire::superframe::Offload;
use crate::proto::wire::{Family, Malformed, family};

/// Verdict about an inbound datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'p> {
    /// An inner packet for the interface: what the kernel is told about it, and its length. It lies behind the header
    /// in the datagram, opened in place.
    Deliver(Virtio, usize),
    /// Frames of an authenticated peer, not checked any further, behind the header in the datagram, opened in place.
    Frames {
        /// The index that we gave the session.
        local_index: u32,
        /// Bytes of plaintext.
        len: usize,
    },
    /// A slice of a superframe of an authenticated peer, not checked any further.
    Slice(Slice),
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
    /// Somebody else's, made ready for the next one on its way: the channel under this slot.
    Forward(Slot),
    /// Gone, counted.
    Drop(DropReason),
}

/// Where a slice belongs. Its plaintext lies in the datagram, opened in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The index that we gave the session.
    pub local_index: u32,
    /// Counter of the superframe's first slice, which names the superframe; all are of one sending thread.
    pub first_counter: u64,
    /// Its number, from 0.
    pub number: u8,
    /// Slices of the superframe.
    pub count: u8,
    /// Bytes of plaintext behind the header.
    pub len: usize,
    /// ECN codepoint of the IP header.
    pub ecn: u8,
}

impl Slice {
    /// True for slices of the same superframe.
    pub(super) const fn is_of(&self, other: &Self) -> bool {
        self.local_index == other.local_index
            && self.first_counter == other.first_counter
            && self.count == other.count
    }

    /// Where the plaintext is in its datagram.
    pub const fn plaintext(&self) -> Range<usize> {
        HEADER_LEN..HEADER_LEN + self.len
    }
}

impl Shared {
    /// Counts a drop.
    pub(super) fn drop(&self, reason: DropReason) -> DropReason {
        self.drops.count(reason);
        reason
    }

    fn refuse(&self, reason: DropReason) -> (Inbound<'static>, Option<Notice>) {
        (Inbound::Drop(self.drop(reason)), None)
    }
}

/// What came of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrival<'p> {
    /// How it came. What a relay of ours passed on lies behind [`RELAY_OVERHEAD`] bytes more.
    pub hop: Hop,
    /// What to do with it.
    pub verdict: Inbound<'p>,
    /// What `node` should know.
    pub notice: Option<Notice>,
}

/// Decides about a datagram from the underlay, which is unmasked and opened in place; `ecn` is the codepoint of its IP
/// header.
pub fn inbound<'p>(
    snapshot: &Snapshot,
    shared: &Shared,
    source: SocketAddr,
    ecn: u8,
    datagram: &'p mut [u8],
    now: Instant,
) -> Arrival<'p> {
    let hop = Hop::Direct(source);
    if family(datagram) != Some(Family::Session) {
        let verdict = setup(snapshot, shared, hop, datagram);
        return Arrival { hop, verdict, notice: None };
    }
    let relayed = match mask(&snapshot.own_key, datagram) {
        Ok(()) => relayed(snapshot, shared, source, datagram, now),
        Err(_) => Relayed::Verdict(Inbound::Drop(shared.drop(DropReason::Malformed))),
    };
    match relayed {
        Relayed::No => {
            let (verdict, notice) = session(snapshot, shared, hop, ecn, datagram, now);
            Arrival { hop, verdict, notice }
        }
        Relayed::Verdict(verdict) => Arrival { hop, verdict, notice: None },
        Relayed::Ours(slot) => {
            let (hop, inside) = (Hop::Relayed(slot), &mut datagram[RELAY_OVERHEAD..]);
            let (verdict, notice) = match family(inside) {
                Some(Family::Session) if mask(&snapshot.own_key, inside).is_ok() => {
                    session(snapshot, shared, hop, ecn, inside, now)
                }
                _ => (setup(snapshot, shared, hop, inside), None),
            };
            Arrival { hop, verdict, notice }
        }
    }
}

/// What is no session packet.
fn setup(snapshot: &Snapshot, shared: &Shared, hop: Hop, datagram: &mut [u8]) -> Inbound<'static> {
    if family(datagram) != Some(Family::Setup) {
        return Inbound::Drop(shared.drop(DropReason::Foreign));
    }
    let reason = match snapshot.own_key.open(datagram) {
        Ok(_) => return Inbound::Setup,
        Err(Opening::NotForUs) if snapshot.awaiting.contains(&hop) => return Inbound::Reply,
        Err(Opening::NotForUs) => DropReason::Unauthenticated,
        Err(Opening::Malformed(Malformed::Kind(_))) => DropReason::UnknownKind,
        Err(Opening::Malformed(_)) => DropReason::Malformed,
    };
    Inbound::Drop(shared.drop(reason))
}

/// A session packet, unmasked.
fn session<'p>(
    snapshot: &Snapshot,
    shared: &Shared,
    source: Hop,
    ecn: u8,
    datagram: &'p mut [u8],
    now: Instant,
) -> (Inbound<'p>, Option<Notice>) {
    let header = datagram.first_chunk().ok_or(Malformed::Truncated).and_then(Header::parse);
    let Ok(header) = header else {
        // Garbage has a random header: most of what ends here never was a session packet.
        return shared.refuse(DropReason::Unauthenticated);
    };
    let local_index = header.receiver_index;
    let Some(receiver) = snapshot.receivers.get(&local_index) else {
        return shared.refuse(DropReason::UnknownSession);
    };
    let opened = match receiver.session.open(&header, datagram, now) {
        Ok(opened) => opened,
        Err(OpenError::Replay) => return shared.refuse(DropReason::Replay),
        Err(OpenError::Authentication) => return shared.refuse(DropReason::Unauthenticated),
        Err(OpenError::Expired) => return shared.refuse(DropReason::UnknownSession),
    };
    let moved = opened.newest
        && receiver.hop != Some(source)
        && receiver.session.locates_peer(thread_of(header.counter), now);
    let worth =
        opened.first || opened.epoch_advanced || moved && !receiver.noticed.swap(true, Ordering::Relaxed);
    let epoch_advanced = opened.epoch_advanced;
    let notice = worth.then_some(Notice::Heard { local_index, source, epoch_advanced });
    let plaintext: &'p mut [u8] = opened.plaintext;
    let verdict = match header.kind {
        // What goes beyond is the padding of a probe: not worth a copy of up to 64 KiB for each place in the inbox.
        Kind::Control => {
            let len = plaintext.len().min(CONTROL_LEN_MAX);
            Inbound::Control { local_index, messages: &plaintext[..len] }
        }
        Kind::Frames => Inbound::Frames { local_index, len: plaintext.len() },
        Kind::Slice => {
            let (number, count) = header.slice;
            // No superframe begins before the first counter of its thread.
            let Some(first) = count_of(header.counter).checked_sub(u64::from(number)) else {
                return (shared.refuse(DropReason::Malformed).0, notice);
            };
            let first_counter = counter(thread_of(header.counter), first);
            Inbound::Slice(Slice { local_index, first_counter, number, count, len: plaintext.len(), ecn })
        }
        Kind::Data => {
            let offload = Offload { segment_len: 0, partial: header.partial };
            let available = plaintext.len();
            let checked = check(snapshot, shared, receiver, plaintext, available, offload, now);
            match checked.and_then(|checked| leave(checked, plaintext, ecn)) {
                Ok((virtio, len)) => Inbound::Deliver(virtio, len),
                Err(reason) => shared.refuse(reason).0,
            }
        }
    };
    (verdict, notice)
}

/// Checks an inner packet of at most `available` bytes that begins with `head`: it must be the peer's, for us, let in by
/// the policy, and nothing that harms the kernel. Returns what the kernel is told and the packet's length; a partial
/// checksum is computed anew.
///
/// # Errors
/// The reason to count; nothing may be delivered then.
fn check(
    snapshot: &Snapshot,
    shared: &Shared,
    receiver: &Receiver,
    head: &mut [u8],
    available: usize,
    offload: Offload,
    now: Instant,
) -> Result<(Virtio, usize), DropReason> {
    let inner = Inner::parse_head(head, available).map_err(|_| DropReason::NotIpv6)?;
    if inner.source != receiver.address.ipv6() {
        return Err(DropReason::Source);
    }
    if inner.destination != snapshot.own.ipv6() {
        return Err(DropReason::Destination);
    }
    let peer = receiver.session.peer();
    if !policy::inbound(&snapshot.rules, &shared.flows, &receiver.account, &peer, &inner, now) {
        return Err(DropReason::Policy);
    }
    let head_len = head.len().min(inner.len);
    let virtio = gso::prepare(&mut head[..head_len], inner.len, offload);
    Ok((virtio.map_err(|_| DropReason::Malformed)?, inner.len))
}

/// Takes over the congestion mark `outer`.
fn leave(checked: (Virtio, usize), head: &mut [u8], outer: u8) -> Result<(Virtio, usize), DropReason> {
    ecn::leave(head, outer).map(|()| checked).ok_or(DropReason::Congestion)
}

/// As [`check`], for a turn; the packet takes over the congestion mark `outer`.
pub(super) fn admit(
    turn: &Turn<'_>,
    receiver: &Receiver,
    outer: u8,
    head: &mut [u8],
    available: usize,
    offload: Offload,
) -> Result<(Virtio, usize), DropReason> {
    let checked = check(turn.snapshot, turn.shared, receiver, head, available, offload, turn.now)?;
    leave(checked, head, outer)
}
