//! An open session: sealing and opening packets in place, and the ratchet of its keys.
//!
//! ```text
//! epoch            n           n+1         n+2
//! sealing          ●──next_sending_epoch──▶●               node: wants_ratchet
//! opening          ● current   ○ next                      chosen by the epoch bit of the header
//!                              ● current   ○ next          next_receiving_epoch, EPOCH_OVERLAP after epoch_advanced
//! ```
//!
//! The counter runs on through all epochs, so one replay window and no repeated nonce. A [`Session`] is a handful of
//! pointers: the node publishes clones, and one with newer keys replaces an older one while both share the counters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::keys::{Chain, Key};
use super::loss::Totals;
use super::window::ReplayWindow;
use super::{
    EPOCH_PACKETS_MAX, ERASE_AFTER, RATCHET_AFTER, RATCHET_AFTER_PACKETS, REJECT_AFTER, REJECT_AFTER_PACKETS,
    REKEY_AFTER,
};
use crate::proto::identity::NodeId;
use crate::proto::timer::Instant;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::handshake::{CAPABILITY_FRAMES, Suite};
use crate::proto::wire::session::{self, HEADER_LEN, Header, Kind, PADDING_MULTIPLE, SLICES_MAX, TAG_LEN};

/// An open session with one peer.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    sealing: Arc<Sealing>,
    /// By epoch bit: one is the current epoch, the other the next.
    opening: [Arc<Key>; 2],
    receiving_epoch: u32,
    /// Chain of the receiving epoch after the next.
    receiving_chain: Arc<Chain>,
}

/// What the header says of the plaintext.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// What it is.
    pub kind: Kind,
    /// See [`Header::partial`].
    pub partial: bool,
    /// See [`Header::slice`].
    pub slice: (u8, u8),
}

/// A packet that opened.
#[derive(Debug)]
pub struct Opened<'p> {
    /// The plaintext, padding included.
    pub plaintext: &'p mut [u8],
    /// Newer than every packet before: its source is where the peer is now.
    pub newest: bool,
    /// The first packet of the session: a responder knows by it that the handshake is complete.
    pub first: bool,
    /// The first packet of the next epoch: [`super::EPOCH_OVERLAP`] later the older one should go.
    pub epoch_advanced: bool,
}

/// Why a packet was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Too many packets under this key or in this session.
    #[error("the session has sent as many packets as it may")]
    Exhausted,
    /// Older than [`REJECT_AFTER`].
    #[error("the session has expired")]
    Expired,
    /// The buffer does not hold header, padded plaintext and tag.
    #[error("no room for padding and tag")]
    NoRoom,
}

/// Why a packet was not opened. The buffer's content is then undefined for `Authentication`, untouched otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Seen before, or too old to know.
    #[error("replayed or too old")]
    Replay,
    /// Not sealed by the peer with a key that we hold.
    #[error("does not authenticate")]
    Authentication,
    /// The session is older than [`REJECT_AFTER`].
    #[error("the session has expired")]
    Expired,
}

/// What a finished handshake leaves behind.
pub(super) struct Outcome {
    pub(super) peer: NodeId,
    pub(super) peer_key: RecipientKey,
    pub(super) local_index: u32,
    pub(super) remote_index: u32,
    pub(super) suite: Suite,
    /// What both sides can do.
    pub(super) capabilities: u16,
    pub(super) is_initiator: bool,
    pub(super) established: Instant,
    /// Raw split: initiator to responder, responder to initiator.
    pub(super) split: [Zeroizing<[u8; 32]>; 2],
    pub(super) handshake_hash: [u8; 32],
}

/// What all epochs of a session share.
struct Shared {
    peer: NodeId,
    peer_key: RecipientKey,
    local_index: u32,
    remote_index: u32,
    suite: Suite,
    capabilities: u16,
    is_initiator: bool,
    established: Instant,
    sent: Sent,
    received: Received,
}

/// Counters of one direction, on cache lines of their own: each direction has its thread.
#[repr(align(128))]
struct Sent {
    /// The next counter, which is the number of packets sent.
    counter: AtomicU64,
    bytes: AtomicU64,
    last: AtomicU64,
}

#[repr(align(128))]
struct Received {
    window: ReplayWindow,
    newest_epoch: AtomicU32,
    packets: AtomicU64,
    bytes: AtomicU64,
    replays: AtomicU64,
    last: AtomicU64,
}

/// Value of a time that has not come yet.
const NEVER: u64 = u64::MAX;

struct Sealing {
    key: Key,
    epoch: u32,
    /// Counter at which the epoch began.
    since: u64,
    next: Chain,
}

impl Session {
    pub(super) fn new(outcome: Outcome) -> Self {
        let [first, second] = &outcome.split;
        let (to_peer, from_peer) = if outcome.is_initiator { (first, second) } else { (second, first) };
        let sealing = Chain::new(to_peer, &outcome.handshake_hash);
        let opening = Chain::new(from_peer, &outcome.handshake_hash);
        let opening_next = opening.ratchet();
        let suite = outcome.suite;
        Self {
            sealing: Arc::new(Sealing::new(&sealing, suite, 0, 0)),
            opening: [Arc::new(opening.key(suite)), Arc::new(opening_next.key(suite))],
            receiving_epoch: 0,
            receiving_chain: Arc::new(opening_next.ratchet()),
            shared: Arc::new(Shared {
                peer: outcome.peer,
                peer_key: outcome.peer_key,
                local_index: outcome.local_index,
                remote_index: outcome.remote_index,
                suite,
                capabilities: outcome.capabilities,
                is_initiator: outcome.is_initiator,
                established: outcome.established,
                sent: Sent {
                    counter: AtomicU64::new(0),
                    bytes: AtomicU64::new(0),
                    last: AtomicU64::new(NEVER),
                },
                received: Received {
                    window: ReplayWindow::default(),
                    newest_epoch: AtomicU32::new(0),
                    packets: AtomicU64::new(0),
                    bytes: AtomicU64::new(0),
                    replays: AtomicU64::new(0),
                    last: AtomicU64::new(NEVER),
                },
            }),
        }
    }

    /// Seals the packet `[16 bytes of room | plaintext | room for padding and tag]` in place and returns its length.
    ///
    /// The plaintext is padded with zeros to a multiple of 16 bytes, but not beyond `plaintext_len_max` (the MTU).
    ///
    /// # Errors
    /// [`SealError`]; the packet must not be sent then.
    pub fn seal(
        &self,
        kind: Kind,
        packet: &mut [u8],
        plaintext_len: usize,
        plaintext_len_max: usize,
        now: Instant,
    ) -> Result<usize, SealError> {
        let padded =
            plaintext_len.next_multiple_of(PADDING_MULTIPLE).min(plaintext_len_max).max(plaintext_len);
        let len = HEADER_LEN + padded + TAG_LEN;
        let packet = packet.get_mut(..len).ok_or(SealError::NoRoom)?;
        packet[HEADER_LEN + plaintext_len..].fill(0);
        let counter = self.reserve(1, now)?;
        self.seal_at(counter, Content { kind, partial: false, slice: (0, 1) }, packet);
        self.count_sent(len, now);
        Ok(len)
    }

    /// Takes `n` consecutive counters and returns the first.
    ///
    /// # Errors
    /// [`SealError`]; nothing must be sealed then.
    pub fn reserve(&self, n: u64, now: Instant) -> Result<u64, SealError> {
        if self.is_expired(now) {
            return Err(SealError::Expired);
        }
        let end = REJECT_AFTER_PACKETS.min(self.sealing.since + EPOCH_PACKETS_MAX);
        // INVARIANT: the counter never goes back, not even after a refusal: a clone with newer keys may be taking
        // counters at this moment, and one taken twice is a nonce used twice.
        let counter = self.shared.sent.counter.fetch_add(n, Ordering::Relaxed);
        if counter.saturating_add(n) <= end { Ok(counter) } else { Err(SealError::Exhausted) }
    }

    /// True when [`Session::reserve`] of a few counters would succeed now.
    pub fn is_usable(&self, now: Instant) -> bool {
        let end = REJECT_AFTER_PACKETS.min(self.sealing.since + EPOCH_PACKETS_MAX);
        !self.is_expired(now) && self.packets_sent() + u64::from(SLICES_MAX) <= end
    }

    /// Seals `[header room | plaintext | tag room]`, which is the whole of `packet`, in place.
    ///
    /// INVARIANT: `counter` comes from [`Session::reserve`] of this very clone and is used once.
    ///
    /// # Panics
    /// When `packet` has no room for header and tag.
    pub fn seal_at(&self, counter: u64, content: Content, packet: &mut [u8]) {
        let Content { kind, partial, slice } = content;
        let (epoch, receiver_index) = (self.sealing.epoch & 1 == 1, self.shared.remote_index);
        let header = Header { kind, epoch, partial, slice, receiver_index, counter }.emit();
        packet[..HEADER_LEN].copy_from_slice(&header);
        let (text, tag_room) =
            packet[HEADER_LEN..].split_last_chunk_mut::<TAG_LEN>().expect("there is room for a tag");
        *tag_room = self.sealing.key.seal(counter, &header, text);
        session::mask(&self.shared.peer_key, packet).expect("header and tag are there");
    }

    /// Counts `bytes` of sealed packets as sent.
    pub fn count_sent(&self, bytes: usize, now: Instant) {
        let sent = &self.shared.sent;
        sent.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        sent.last.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// Opens a packet in place; `header` is its unmasked header, as in its first 16 bytes. The window is looked at
    /// before decryption and changed only after it.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has changed then but the count of replays.
    pub fn open<'p>(
        &self,
        header: &Header,
        packet: &'p mut [u8],
        now: Instant,
    ) -> Result<Opened<'p>, OpenError> {
        if self.is_expired(now) {
            return Err(OpenError::Expired);
        }
        if header.counter >= REJECT_AFTER_PACKETS || packet.len() < HEADER_LEN + TAG_LEN {
            return Err(OpenError::Authentication);
        }
        let received = &self.shared.received;
        if !received.window.is_fresh(header.counter) {
            return Err(self.replay());
        }
        let len = packet.len() as u64;
        let plaintext = self.opening[usize::from(header.epoch)]
            .open(header.counter, &header.emit(), &mut packet[HEADER_LEN..])
            .ok_or(OpenError::Authentication)?;
        let marked = received.window.mark(header.counter).ok_or_else(|| self.replay())?;
        received.packets.fetch_add(1, Ordering::Relaxed);
        received.bytes.fetch_add(len, Ordering::Relaxed);
        received.last.store(now.as_nanos(), Ordering::Relaxed);
        let epoch_advanced = self.advances_epoch(header.epoch);
        Ok(Opened { plaintext, newest: marked.newest, first: marked.first, epoch_advanced })
    }

    fn replay(&self) -> OpenError {
        self.shared.received.replays.fetch_add(1, Ordering::Relaxed);
        OpenError::Replay
    }

    /// True once for each epoch, at its first authentic packet.
    fn advances_epoch(&self, bit: bool) -> bool {
        let epoch = self.receiving_epoch + u32::from(bit != (self.receiving_epoch & 1 == 1));
        let newest = &self.shared.received.newest_epoch;
        epoch > newest.load(Ordering::Relaxed) && newest.fetch_max(epoch, Ordering::Relaxed) < epoch
    }

    /// The same session, sending with the keys of the next epoch. Both may be in use while the node publishes it, but
    /// it replaces this one for good.
    pub fn next_sending_epoch(&self) -> Self {
        let since = self.shared.sent.counter.load(Ordering::Relaxed);
        let epoch = self.sealing.epoch + 1;
        let sealing = Sealing::new(&self.sealing.next, self.shared.suite, epoch, since);
        Self { sealing: Arc::new(sealing), ..self.clone() }
    }

    /// The same session without the keys of the oldest receiving epoch, with those of the one after the next.
    pub fn next_receiving_epoch(&self) -> Self {
        let receiving_epoch = self.receiving_epoch + 1;
        let mut opening = self.opening.clone();
        opening[usize::from(self.receiving_epoch & 1 == 1)] =
            Arc::new(self.receiving_chain.key(self.shared.suite));
        let receiving_chain = Arc::new(self.receiving_chain.ratchet());
        Self { opening, receiving_epoch, receiving_chain, ..self.clone() }
    }

    /// True when it is time for [`Session::next_sending_epoch`]: [`RATCHET_AFTER_PACKETS`] or [`RATCHET_AFTER`].
    pub fn wants_ratchet(&self, now: Instant) -> bool {
        let packets = self.packets_sent().saturating_sub(self.sealing.since);
        packets >= RATCHET_AFTER_PACKETS || self.age(now) >= RATCHET_AFTER * (self.sealing.epoch + 1)
    }

    /// True when the node should open the next session: the initiator after [`REKEY_AFTER`], either side when the
    /// session is used up.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        (self.shared.is_initiator && self.age(now) >= REKEY_AFTER)
            || self.packets_sent() >= REJECT_AFTER_PACKETS - EPOCH_PACKETS_MAX
    }

    /// True from [`REJECT_AFTER`] on: nothing goes in or out any more.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.age(now) >= REJECT_AFTER
    }

    /// True from [`ERASE_AFTER`] on: drop every clone, which wipes the keys.
    pub fn is_erasable(&self, now: Instant) -> bool {
        self.age(now) >= ERASE_AFTER
    }

    /// As if so many packets had been sealed.
    #[cfg(test)]
    pub(super) fn skip_counters(&self, n: u64) {
        self.shared.sent.counter.fetch_add(n, Ordering::Relaxed);
    }

    fn age(&self, now: Instant) -> std::time::Duration {
        now.saturating_since(self.shared.established)
    }

    /// The node at the other end, proven by its signature.
    pub fn peer(&self) -> NodeId {
        self.shared.peer
    }

    /// Index by which packets to us name the session.
    pub fn local_index(&self) -> u32 {
        self.shared.local_index
    }

    /// Index by which packets to the peer name the session.
    pub fn remote_index(&self) -> u32 {
        self.shared.remote_index
    }

    /// The AEAD that both agreed on.
    pub fn suite(&self) -> Suite {
        self.shared.suite
    }

    /// True when the peer understands frames and superframes, and we may send them.
    pub fn has_frames(&self) -> bool {
        self.shared.capabilities & CAPABILITY_FRAMES != 0
    }

    /// When the handshake was finished on this side.
    pub fn established(&self) -> Instant {
        self.shared.established
    }

    /// True when we opened the session.
    pub fn is_initiator(&self) -> bool {
        self.shared.is_initiator
    }

    /// Number of the epoch that we send with.
    pub fn sending_epoch(&self) -> u32 {
        self.sealing.epoch
    }

    /// Number of the older of the two epochs that we can open.
    pub fn receiving_epoch(&self) -> u32 {
        self.receiving_epoch
    }

    /// Number of the newest epoch that an authentic packet came in; beyond [`Session::receiving_epoch`] the sender has
    /// moved on.
    pub fn newest_epoch(&self) -> u32 {
        self.shared.received.newest_epoch.load(Ordering::Relaxed)
    }

    /// Packets sealed.
    pub fn packets_sent(&self) -> u64 {
        self.shared.sent.counter.load(Ordering::Relaxed)
    }

    /// Bytes of sealed packets, overhead included.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.sent.bytes.load(Ordering::Relaxed)
    }

    /// When a packet was sealed last.
    pub fn last_sent(&self) -> Option<Instant> {
        time(&self.shared.sent.last)
    }

    /// Authentic packets opened.
    pub fn packets_received(&self) -> u64 {
        self.shared.received.packets.load(Ordering::Relaxed)
    }

    /// What came of that which the peer is known to have sent.
    pub fn totals_received(&self) -> Totals {
        // In this order: a packet is marked before it is counted.
        let received = self.packets_received();
        Totals { sent: self.shared.received.window.next().max(received), received }
    }

    /// Bytes of authentic packets, overhead included.
    pub fn bytes_received(&self) -> u64 {
        self.shared.received.bytes.load(Ordering::Relaxed)
    }

    /// When an authentic packet came last.
    pub fn last_received(&self) -> Option<Instant> {
        time(&self.shared.received.last)
    }

    /// Packets refused because they were seen before or too old.
    pub fn replays(&self) -> u64 {
        self.shared.received.replays.load(Ordering::Relaxed)
    }
}

impl Sealing {
    fn new(chain: &Chain, suite: Suite, epoch: u32, since: u64) -> Self {
        Self { key: chain.key(suite), epoch, since, next: chain.ratchet() }
    }
}

fn time(at: &AtomicU64) -> Option<Instant> {
    Some(at.load(Ordering::Relaxed)).filter(|at| *at != NEVER).map(Instant::from_nanos)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.shared.peer)
            .field("local_index", &self.shared.local_index)
            .field("remote_index", &self.shared.remote_index)
            .field("suite", &self.shared.suite)
            .finish_non_exhaustive()
    }
}
