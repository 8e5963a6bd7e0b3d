//! An open session: sealing and opening packets in place, and the ratchet of its keys.
//!
//! ```text
//! epoch            n           n+1         n+2
//! sealing          ●──next_sending_epoch──▶●               node: wants_ratchet
//! opening          ● current   ○ next                      chosen by the epoch bit of the header
//!                              ● current   ○ next          next_receiving_epoch, EPOCH_OVERLAP after epoch_advanced
//! ```
//!
//! Every sending thread has a key, a counter and, at the peer, a replay window of its own: threads share no memory that
//! they write. The peer knows from the handshake how many we have, and refuses others. Counters run on through all
//! epochs, so one replay window and no repeated nonce. A [`Session`] is a handful of pointers: the node publishes clones,
//! and one with newer keys replaces an older one while both share the counters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::keys::{Chain, Epoch};
use super::loss::Totals;
use super::threads::PerThread;
use super::window::ReplayWindow;
use super::{
    EPOCH_PACKETS_MAX, ERASE_AFTER, RATCHET_AFTER, RATCHET_AFTER_PACKETS, REJECT_AFTER, REJECT_AFTER_PACKETS,
    REKEY_AFTER, THREAD_SILENT_AFTER,
};
use crate::proto::identity::NodeId;
use crate::proto::timer::Instant;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::handshake::{CAPABILITY_FRAMES, Suite, THREADS_MAX};
use crate::proto::wire::session::{self, HEADER_LEN, Header, Kind, PADDING_MULTIPLE, SLICES_MAX, TAG_LEN};

/// An open session with one peer.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    sealing: Arc<Sealing>,
    /// By epoch bit: one is the current epoch, the other the next.
    opening: [Arc<Epoch>; 2],
    receiving_epoch: u32,
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
    /// Newer than every packet of its thread before: its source is where the peer is now, if the thread is one that
    /// [`Session::locates_peer`].
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
    /// Sending threads, ours and the peer's.
    pub(super) threads: (u8, u8),
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
    newest_epoch: AtomicU32,
    /// A packet has come.
    heard: AtomicBool,
    sent: PerThread<Sent>,
    received: PerThread<Received>,
}

/// Counters of one sending thread, on cache lines of their own.
#[repr(align(128))]
struct Sent {
    /// The next count, which is the number of packets sent.
    count: AtomicU64,
    bytes: AtomicU64,
    last: AtomicU64,
}

/// What came of one thread of the peer's. Nearly all of it comes in by one thread of ours, whose cache has it; a peer with
/// two families or a copied datagram reaches two, so that every field is atomic all the same.
#[repr(align(128))]
struct Received {
    window: ReplayWindow,
    packets: AtomicU64,
    bytes: AtomicU64,
    replays: AtomicU64,
    last: AtomicU64,
}

/// Value of a time that has not come yet.
const NEVER: u64 = u64::MAX;

struct Sealing {
    keys: Epoch,
    epoch: u32,
    /// Count at which the epoch began, by thread.
    since: [u64; THREADS_MAX as usize],
}

impl Default for Sent {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), bytes: AtomicU64::new(0), last: AtomicU64::new(NEVER) }
    }
}

impl Default for Received {
    fn default() -> Self {
        Self {
            window: ReplayWindow::default(),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            last: AtomicU64::new(NEVER),
        }
    }
}

impl Session {
    pub(super) fn new(outcome: Outcome) -> Self {
        let [first, second] = &outcome.split;
        let (to_peer, from_peer) = if outcome.is_initiator { (first, second) } else { (second, first) };
        let (sending, receiving) = outcome.threads;
        let epoch =
            |split, threads| Epoch::new(Chain::new(split, &outcome.handshake_hash), outcome.suite, threads);
        let opening = epoch(from_peer, receiving);
        let opening_next = opening.next();
        Self {
            sealing: Arc::new(Sealing {
                keys: epoch(to_peer, sending),
                epoch: 0,
                since: [0; THREADS_MAX as usize],
            }),
            opening: [Arc::new(opening), Arc::new(opening_next)],
            receiving_epoch: 0,
            shared: Arc::new(Shared {
                peer: outcome.peer,
                peer_key: outcome.peer_key,
                local_index: outcome.local_index,
                remote_index: outcome.remote_index,
                suite: outcome.suite,
                capabilities: outcome.capabilities,
                is_initiator: outcome.is_initiator,
                established: outcome.established,
                newest_epoch: AtomicU32::new(0),
                heard: AtomicBool::new(false),
                sent: PerThread::new(sending, Sent::default()),
                received: PerThread::new(receiving, Received::default()),
            }),
        }
    }

    /// Seals the packet `[16 bytes of room | plaintext | room for padding and tag]` in place and returns its length.
    ///
    /// The plaintext is padded with zeros to a multiple of 16 bytes, but not beyond `plaintext_len_max` (the MTU). The
    /// packet counts as one of thread 0.
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
        let counter = self.reserve(0, 1, now)?;
        self.seal_at(counter, Content { kind, partial: false, slice: (0, 1) }, packet);
        self.count_sent(0, len, now);
        Ok(len)
    }

    /// Takes `n` consecutive counters of a sending thread and returns the first.
    ///
    /// # Errors
    /// [`SealError`]; nothing must be sealed then.
    pub fn reserve(&self, thread: u8, n: u64, now: Instant) -> Result<u64, SealError> {
        if self.is_expired(now) {
            return Err(SealError::Expired);
        }
        let (thread, sent) = self.sending(thread);
        // INVARIANT: the count never goes back, not even after a refusal: a clone with newer keys may be taking
        // counters at this moment, and one taken twice is a nonce used twice.
        let count = sent.count.fetch_add(n, Ordering::Relaxed);
        if count.saturating_add(n) <= self.end(thread) {
            Ok(session::counter(thread, count))
        } else {
            Err(SealError::Exhausted)
        }
    }

    /// True when [`Session::reserve`] of a few counters would succeed now.
    pub fn is_usable(&self, thread: u8, now: Instant) -> bool {
        let (thread, sent) = self.sending(thread);
        let count = sent.count.load(Ordering::Relaxed);
        !self.is_expired(now) && count + u64::from(SLICES_MAX) <= self.end(thread)
    }

    /// A sending thread and its counters: the one asked for, or thread 0 when the peer does not take others.
    fn sending(&self, thread: u8) -> (u8, &Sent) {
        let sent = &self.shared.sent;
        let thread = if thread < sent.threads() { thread } else { 0 };
        (thread, sent.get_or_init(thread, Sent::default).expect("there is such a thread"))
    }

    /// The count that a thread must not reach with the present keys.
    fn end(&self, thread: u8) -> u64 {
        REJECT_AFTER_PACKETS.min(self.sealing.since[usize::from(thread)] + EPOCH_PACKETS_MAX)
    }

    /// Seals `[header room | plaintext | tag room]`, which is the whole of `packet`, in place.
    ///
    /// INVARIANT: `counter` comes from [`Session::reserve`] of this very clone and is used once.
    ///
    /// # Panics
    /// When `packet` has no room for header and tag, or the counter is of a thread that there is not.
    pub fn seal_at(&self, counter: u64, content: Content, packet: &mut [u8]) {
        let Content { kind, partial, slice } = content;
        let (epoch, receiver_index) = (self.sealing.epoch & 1 == 1, self.shared.remote_index);
        let header = Header { kind, epoch, partial, slice, receiver_index, counter }.emit();
        packet[..HEADER_LEN].copy_from_slice(&header);
        let (text, tag_room) =
            packet[HEADER_LEN..].split_last_chunk_mut::<TAG_LEN>().expect("there is room for a tag");
        *tag_room = self.sealing.keys.seal(session::thread_of(counter), counter, &header, text);
        session::mask(&self.shared.peer_key, packet).expect("header and tag are there");
    }

    /// Counts `bytes` of sealed packets as sent by a thread.
    pub fn count_sent(&self, thread: u8, bytes: usize, now: Instant) {
        let (_, sent) = self.sending(thread);
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
        let (thread, count) = (session::thread_of(header.counter), session::count_of(header.counter));
        let all = &self.shared.received;
        if count >= REJECT_AFTER_PACKETS || thread >= all.threads() || packet.len() < HEADER_LEN + TAG_LEN {
            return Err(OpenError::Authentication);
        }
        if let Some(received) = all.get(thread).filter(|received| !received.window.is_fresh(count)) {
            return Err(received.replay());
        }
        let len = packet.len() as u64;
        let plaintext = self.opening[usize::from(header.epoch)]
            .open(thread, header.counter, &header.emit(), &mut packet[HEADER_LEN..])
            .ok_or(OpenError::Authentication)?;
        let received = all.get_or_init(thread, Received::default).ok_or(OpenError::Authentication)?;
        let marked = received.window.mark(count).ok_or_else(|| received.replay())?;
        received.packets.fetch_add(1, Ordering::Relaxed);
        received.bytes.fetch_add(len, Ordering::Relaxed);
        received.last.store(now.as_nanos(), Ordering::Relaxed);
        let first = marked.first && !self.shared.heard.swap(true, Ordering::Relaxed);
        let epoch_advanced = self.advances_epoch(header.epoch);
        Ok(Opened { plaintext, newest: marked.newest, first, epoch_advanced })
    }

    /// True when the newest packet of a thread says where the peer is at `now`: no thread before it was heard lately.
    pub fn locates_peer(&self, thread: u8, now: Instant) -> bool {
        let received = &self.shared.received;
        let last = |thread| received.get(thread).and_then(|received| time(&received.last));
        (0..thread).filter_map(last).all(|last| now.saturating_since(last) >= THREAD_SILENT_AFTER)
    }

    /// True once for each epoch, at its first authentic packet.
    fn advances_epoch(&self, bit: bool) -> bool {
        let epoch = self.receiving_epoch + u32::from(bit != (self.receiving_epoch & 1 == 1));
        let newest = &self.shared.newest_epoch;
        epoch > newest.load(Ordering::Relaxed) && newest.fetch_max(epoch, Ordering::Relaxed) < epoch
    }

    /// The same session, sending with the keys of the next epoch. Both may be in use while the node publishes it, but
    /// it replaces this one for good.
    pub fn next_sending_epoch(&self) -> Self {
        let mut since = [0; THREADS_MAX as usize];
        self.counts().for_each(|(thread, count)| since[thread] = count);
        let sealing = Sealing { keys: self.sealing.keys.next(), epoch: self.sealing.epoch + 1, since };
        Self { sealing: Arc::new(sealing), ..self.clone() }
    }

    /// The same session without the keys of the oldest receiving epoch, with those of the one after the next.
    pub fn next_receiving_epoch(&self) -> Self {
        let mut opening = self.opening.clone();
        let oldest = usize::from(self.receiving_epoch & 1 == 1);
        opening[oldest] = Arc::new(self.opening[1 - oldest].next());
        Self { opening, receiving_epoch: self.receiving_epoch + 1, ..self.clone() }
    }

    /// True when it is time for [`Session::next_sending_epoch`]: [`RATCHET_AFTER_PACKETS`] of a thread, or
    /// [`RATCHET_AFTER`].
    pub fn wants_ratchet(&self, now: Instant) -> bool {
        let sent_since = |(thread, count): (usize, u64)| count.saturating_sub(self.sealing.since[thread]);
        self.age(now) >= RATCHET_AFTER * (self.sealing.epoch + 1)
            || self.counts().map(sent_since).any(|packets| packets >= RATCHET_AFTER_PACKETS)
    }

    /// What the threads have sent, by thread.
    fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        let sent = &self.shared.sent;
        (0..sent.threads())
            .filter_map(|thread| Some((usize::from(thread), sent.get(thread)?.count.load(Ordering::Relaxed))))
    }

    /// True when the node should open the next session: the initiator after [`REKEY_AFTER`], either side when the
    /// session is used up.
    pub fn wants_rekey(&self, now: Instant) -> bool {
        (self.shared.is_initiator && self.age(now) >= REKEY_AFTER)
            || self.counts().any(|(_, count)| count >= REJECT_AFTER_PACKETS - EPOCH_PACKETS_MAX)
    }

    /// True from [`REJECT_AFTER`] on: nothing goes in or out any more.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.age(now) >= REJECT_AFTER
    }

    /// True from [`ERASE_AFTER`] on: drop every clone, which wipes the keys.
    pub fn is_erasable(&self, now: Instant) -> bool {
        self.age(now) >= ERASE_AFTER
    }

    /// As if a thread had sealed so many packets.
    #[cfg(test)]
    pub(super) fn skip_counters(&self, thread: u8, n: u64) {
        self.sending(thread).1.count.fetch_add(n, Ordering::Relaxed);
    }

    /// Bytes that it takes, clones aside.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let (sent, received) = (&self.shared.sent, &self.shared.received);
        let shared = size_of::<Shared>() + sent.memory_of_others() + received.memory_of_others();
        let sealing = size_of::<Sealing>() - size_of::<Epoch>() + self.sealing.keys.memory();
        size_of::<Self>() + shared + sealing + self.opening.iter().map(|epoch| epoch.memory()).sum::<usize>()
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
        self.shared.newest_epoch.load(Ordering::Relaxed)
    }

    /// Threads that we may send with, from 0 on.
    pub fn sending_threads(&self) -> u8 {
        self.shared.sent.threads()
    }

    /// Threads that the peer may send with.
    pub fn receiving_threads(&self) -> u8 {
        self.shared.received.threads()
    }

    /// Packets sealed.
    pub fn packets_sent(&self) -> u64 {
        self.counts().map(|(_, count)| count).sum()
    }

    /// Bytes of sealed packets, overhead included.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.sent.iter().map(|sent| sent.bytes.load(Ordering::Relaxed)).sum()
    }

    /// When a packet was sealed last.
    pub fn last_sent(&self) -> Option<Instant> {
        self.shared.sent.iter().filter_map(|sent| time(&sent.last)).max()
    }

    /// Authentic packets opened.
    pub fn packets_received(&self) -> u64 {
        self.shared.received.iter().map(|received| received.packets.load(Ordering::Relaxed)).sum()
    }

    /// What came of that which the peer is known to have sent, by all of its threads.
    pub fn totals_received(&self) -> Totals {
        self.shared.received.iter().fold(Totals::default(), |sum, thread| {
            // In this order: a packet is marked before it is counted.
            let received = thread.packets.load(Ordering::Relaxed);
            let sent = thread.window.next().max(received);
            Totals { sent: sum.sent + sent, received: sum.received + received }
        })
    }

    /// Bytes of authentic packets, overhead included.
    pub fn bytes_received(&self) -> u64 {
        self.shared.received.iter().map(|received| received.bytes.load(Ordering::Relaxed)).sum()
    }

    /// When an authentic packet came last.
    pub fn last_received(&self) -> Option<Instant> {
        self.shared.received.iter().filter_map(|received| time(&received.last)).max()
    }

    /// Packets refused because they were seen before or too old.
    pub fn replays(&self) -> u64 {
        self.shared.received.iter().map(|received| received.replays.load(Ordering::Relaxed)).sum()
    }
}

impl Received {
    fn replay(&self) -> OpenError {
        self.replays.fetch_add(1, Ordering::Relaxed);
        OpenError::Replay
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
