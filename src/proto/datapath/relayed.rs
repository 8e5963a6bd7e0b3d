//! Datagrams that a relay carries.
//!
//! A relay reads the slot and nothing else: it looks the channel up, counts the bytes and writes the slot of the other
//! side, masked for the next one on the way. What follows, often a whole train, stays where it lies and goes out as it
//! came. Around our own datagrams to a relay the header is put by a copy, for which a sending thread has a buffer.

use std::net::SocketAddr;

use super::inbound::Inbound;
use super::train::{SLOTS_MAX, TRAIN_BYTES_MAX, Train};
use super::{Carried, DropReason, Shared, Snapshot, Via};
use crate::proto::timer::Instant;
use crate::proto::wire::relay::{HOPS_MAX, Header, RELAY_OVERHEAD, Slot, seal};
use crate::proto::wire::session::PACKET_LEN_MIN;

/// Bytes of the buffer that [`wrap`] needs.
pub(super) const WRAPPED_LEN: usize = TRAIN_BYTES_MAX + SLOTS_MAX * RELAY_OVERHEAD;

/// What became of a datagram that may be a relayed one.
pub(super) enum Relayed {
    /// It is another kind of session packet.
    No,
    /// A relay of ours passed it on to us, under this slot.
    Ours(Slot),
    /// It is not for us.
    Verdict(Inbound<'static>),
}

/// Decides about a datagram of the session family whose header is unmasked, if it is a relayed one.
pub(super) fn relayed(
    snapshot: &Snapshot,
    shared: &Shared,
    source: SocketAddr,
    datagram: &mut [u8],
    now: Instant,
) -> Relayed {
    let Some(header) = datagram.first_chunk().and_then(Header::parse) else { return Relayed::No };
    let refuse = |reason| Relayed::Verdict(Inbound::Drop(shared.drop(reason)));
    let header = header.ok().filter(|_| datagram.len() >= RELAY_OVERHEAD + PACKET_LEN_MIN);
    // Garbage has a random header.
    let Some(header) = header else { return refuse(DropReason::Unauthenticated) };
    let forward = match snapshot.slots.get(&header.slot).map(|carried| &**carried) {
        Some(Carried::Ours(relay)) if *relay == source => return Relayed::Ours(header.slot),
        Some(Carried::Forward(forward)) if forward.from == source => forward,
        Some(_) | None => return refuse(DropReason::Relay),
    };
    let Some(hop_limit) = header.hop_limit.checked_sub(1) else { return refuse(DropReason::Relay) };
    if !forward.quota.take(now, datagram.len() as u64) {
        return refuse(DropReason::Relay);
    }
    match seal(&forward.via.key, Header { hop_limit, slot: forward.via.slot }, datagram) {
        Ok(()) => Relayed::Verdict(Inbound::Forward(header.slot)),
        Err(_) => refuse(DropReason::Malformed),
    }
}

/// Puts the header of a channel around every datagram of a train, in `room` of [`WRAPPED_LEN`] bytes.
pub(super) fn wrap<'r>(via: &Via, train: &Train<'_>, room: &'r mut [u8]) -> Train<'r> {
    let header = Header { hop_limit: HOPS_MAX, slot: via.slot };
    let mut end = 0;
    for datagram in train.bytes.chunks(train.datagram_len) {
        let start = end;
        end += RELAY_OVERHEAD + datagram.len();
        room[start + RELAY_OVERHEAD..end].copy_from_slice(datagram);
        // Every datagram of ours is long enough.
        let sealed = seal(&via.key, header, &mut room[start..end]);
        debug_assert!(sealed.is_ok(), "a datagram shorter than any session packet");
    }
    Train { bytes: &room[..end], datagram_len: train.datagram_len + RELAY_OVERHEAD, ..*train }
}
