//! Packets of the interface into sealed datagrams, and datagrams into trains.
//!
//! ```text
//! small packets   ─► [header|frame frame …|tag] [header|frame …|tag] …   one slot a datagram, a tag for several packets
//! one large one   ─► [header|slice|tag] [header|slice|tag] …             read straight into this layout when expected
//!                     └── equal lengths, the last one shorter: one train, one system call, one trip through the stack
//! ```
//!
//! On a path that loses much, large packets are cut as the kernel would have done, each part a frame of its own.
//! A peer that does not take frames gets one whole packet a datagram, cut and with complete checksums.

use std::ops::Range;

use super::outbox::{Outbox, PACKED_LEN};
use super::plain::PlainPackets;
use super::train::{SLOTS_MAX, Sink, TRAIN_BYTES_MAX, Trains};
use super::{DropReason, Notice, Route, Shared, Snapshot, ecn};
use crate::proto::identity::MeshAddress;
use crate::proto::policy;
use crate::proto::session::transport::Content;
use crate::proto::timer::Instant;
use crate::proto::wire::gso::{Segments, Transport, Virtio};
use crate::proto::wire::inner::Inner;
use crate::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE};
use crate::proto::wire::superframe::{FRAME_HEADER_LEN, Layout, Offload};

/// Verdict about an outbound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// It goes with the batch.
    Sent,
    /// There is no session with the destination: hand [`PlainPackets`] over to `node`.
    Queue,
    /// It fits no datagram to this peer: answer with "packet too big" of this MTU.
    TooBig(u32),
    /// Gone, counted.
    Drop(DropReason),
}

/// One datagram that is being filled.
#[derive(Clone, Copy)]
struct Slot<'a> {
    route: &'a Route,
    ecn: u8,
    content: Content,
    /// Where it begins in `Outbox::packed`.
    start: usize,
    /// Plaintext bytes so far.
    len: usize,
}

/// One turn of a sending thread: packets that go out together.
pub struct Batch<'a> {
    snapshot: &'a Snapshot,
    shared: &'a Shared,
    outbox: &'a mut Outbox,
    sink: &'a mut dyn Sink,
    now: Instant,
    slots: [Option<Slot<'a>>; SLOTS_MAX],
    used: usize,
    /// Bytes of `Outbox::packed` that are taken.
    taken: usize,
}

impl<'a> Batch<'a> {
    /// An empty batch. What is in it when it is dropped is lost: call [`Batch::flush`].
    pub fn new(
        snapshot: &'a Snapshot,
        shared: &'a Shared,
        outbox: &'a mut Outbox,
        sink: &'a mut dyn Sink,
        now: Instant,
    ) -> Self {
        Self { snapshot, shared, outbox, sink, now, slots: [None; SLOTS_MAX], used: 0, taken: 0 }
    }

    /// The buffers, to read the next packet into.
    pub fn outbox(&mut self) -> &mut Outbox {
        self.outbox
    }

    /// Adds a packet that lies elsewhere.
    pub fn push(&mut self, packet: &[u8], virtio: Virtio) -> (Outbound, Option<Notice>) {
        self.outbox.expected = None;
        let Some(room) = self.outbox.flat.get_mut(..packet.len()) else {
            return (self.drop(DropReason::NotIpv6), None);
        };
        room.copy_from_slice(packet);
        self.push_read(packet.len(), virtio)
    }

    /// Adds the packet of `len` bytes that was read into [`Outbox::room`].
    pub fn push_read(&mut self, len: usize, virtio: Virtio) -> (Outbound, Option<Notice>) {
        let head = self.outbox.head(len);
        let Ok(inner) = Inner::parse_head(head, len) else {
            return (self.drop(DropReason::NotIpv6), None);
        };
        if inner.source != self.snapshot.own.ipv6() {
            return (self.drop(DropReason::SourceNotOurs), None);
        }
        let mesh = MeshAddress::from_ipv6(inner.destination).filter(|d| *d != self.snapshot.own);
        let Some(destination) = mesh else { return (self.drop(DropReason::NotMesh), None) };
        let snapshot = self.snapshot;
        let (thread, now) = (self.outbox.thread, self.now);
        let route = snapshot.routes.get(&destination).filter(|route| route.session.is_usable(thread, now));
        let Some(route) = route else { return (Outbound::Queue, None) };
        let peer = route.session.peer();
        policy::outbound(&snapshot.rules, &self.shared.flows, &peer, &inner, self.now);
        let notice = route.wakes().then_some(Notice::Woke { peer });
        let len = self.outbox.slow_down(self.now, inner.len, virtio.offload());
        let ecn = ecn::of(self.outbox.head(len));
        if len < inner.len {
            self.shared.drops.count(DropReason::Congestion);
        }
        (self.place(route, ecn, len, virtio), notice)
    }

    fn place(&mut self, route: &'a Route, ecn: u8, len: usize, virtio: Virtio) -> Outbound {
        let mut offload = virtio.offload();
        let known = offload == Offload::NONE || Transport::locate(self.outbox.head(len)).is_some();
        if !known {
            // Peers find checksums of TCP and UDP only; all others are completed here.
            self.outbox.flatten(len);
            virtio.complete(&mut self.outbox.flat[..len]);
            offload = Offload::NONE;
        }
        let Some(layout) = route.layout else { return self.place_plain(route, ecn, len, offload) };
        if len <= route.plaintext_len() {
            self.outbox.flatten(len);
            self.place_small(route, ecn, 0..len, offload);
            return Outbound::Sent;
        }
        if route.cuts && self.place_cut(route, ecn, len, offload) {
            return Outbound::Sent;
        }
        // The order of packets is kept.
        self.flush();
        self.outbox.widen(layout, len);
        self.send_superframe(route, layout, ecn, len, offload)
    }

    /// For a path that loses much: a datagram for each part of a packet that can be cut. False when it cannot.
    fn place_cut(&mut self, route: &'a Route, ecn: u8, len: usize, offload: Offload) -> bool {
        self.outbox.flatten(len);
        let flat = std::mem::take(&mut self.outbox.flat);
        let limit = route.plaintext_len();
        let segments = Segments::of(&flat[..len], offload);
        let mut fitting = segments.filter(|parts| FRAME_HEADER_LEN + parts.packet_len_max() <= limit);
        let is_cut = fitting.is_some();
        let content = Content { kind: Kind::Frames, partial: false, slice: (0, 1) };
        let header = Offload { segment_len: 0, partial: true }.emit();
        while let Some(segments) = &mut fitting {
            let start = self.open(route, ecn, content) + HEADER_LEN;
            let (front, room) = self.outbox.packed[start..start + limit].split_at_mut(FRAME_HEADER_LEN);
            front.copy_from_slice(&header);
            match segments.next(&flat[..len], room) {
                Some(len) => self.fill(FRAME_HEADER_LEN + len),
                None => {
                    self.used -= 1;
                    fitting = None;
                }
            }
        }
        self.outbox.flat = flat;
        is_cut
    }

    /// For a peer that takes whole packets only.
    fn place_plain(&mut self, route: &'a Route, ecn: u8, len: usize, offload: Offload) -> Outbound {
        self.outbox.flatten(len);
        let flat = std::mem::take(&mut self.outbox.flat);
        let limit = route.plaintext_len();
        let mut plain = PlainPackets::of(&flat[..len], offload);
        let verdict = if plain.packet_len_max() > limit {
            self.shared.drops.count(DropReason::TooBig);
            Outbound::TooBig(limit as u32)
        } else {
            let content = Content { kind: Kind::Data, partial: false, slice: (0, 1) };
            loop {
                let start = self.open(route, ecn, content) + HEADER_LEN;
                let Some(len) = plain.next(&flat[..len], &mut self.outbox.packed[start..start + limit])
                else {
                    self.used -= 1;
                    break Outbound::Sent;
                };
                self.fill(len);
            }
        };
        self.outbox.flat = flat;
        verdict
    }

    /// Puts a packet of `Outbox::flat` that fits into one datagram behind others, or into a datagram of its own.
    fn place_small(&mut self, route: &'a Route, ecn: u8, packet: Range<usize>, offload: Offload) {
        let limit = route.plaintext_len();
        let frame_len = FRAME_HEADER_LEN + packet.len();
        if frame_len > limit {
            let content = Content { kind: Kind::Data, partial: offload.partial, slice: (0, 1) };
            let at = self.open(route, ecn, content) + HEADER_LEN;
            self.outbox.packed[at..at + packet.len()].copy_from_slice(&self.outbox.flat[packet.clone()]);
            return self.fill(packet.len());
        }
        let fits = |slot: &Slot<'_>| {
            slot.len + frame_len <= limit
                && slot.ecn == ecn
                && matches!(slot.content.kind, Kind::Frames)
                && std::ptr::eq(slot.route, route)
        };
        // Of several peers each has a datagram that is being filled; the newest of this peer is looked for.
        let is_route = |slot: &Option<Slot<'_>>| slot.is_some_and(|slot| std::ptr::eq(slot.route, route));
        let newest = self.slots[..self.used].iter().rposition(is_route);
        let open = newest.filter(|at| self.slots[*at].is_some_and(|slot| fits(&slot)));
        let at = open.unwrap_or_else(|| {
            self.open(route, ecn, Content { kind: Kind::Frames, partial: false, slice: (0, 1) });
            self.used - 1
        });
        let Some(slot) = &mut self.slots[at] else { return };
        let start = slot.start + HEADER_LEN + slot.len;
        slot.len += frame_len;
        let (header, body) = self.outbox.packed[start..start + frame_len].split_at_mut(FRAME_HEADER_LEN);
        header.copy_from_slice(&offload.emit());
        body.copy_from_slice(&self.outbox.flat[packet]);
    }

    /// Opens a datagram; returns where it begins.
    fn open(&mut self, route: &'a Route, ecn: u8, content: Content) -> usize {
        if self.used == SLOTS_MAX || self.taken + route.datagram_len > PACKED_LEN {
            self.flush();
        }
        let start = self.taken;
        self.taken += route.datagram_len;
        self.slots[self.used] = Some(Slot { route, ecn, content, start, len: 0 });
        self.used += 1;
        start
    }

    /// Says how long the plaintext of the datagram opened last is.
    fn fill(&mut self, len: usize) {
        if let Some(slot) = self.slots[..self.used].last_mut().and_then(Option::as_mut) {
            slot.len = len;
        }
    }

    /// True when nothing more should be read before [`Batch::flush`]: a train is full.
    pub const fn is_full(&self) -> bool {
        self.used == SLOTS_MAX || self.taken > TRAIN_BYTES_MAX / 2
    }

    /// Seals and sends what is there.
    pub fn flush(&mut self) {
        let used = std::mem::take(&mut self.used);
        self.taken = 0;
        if used == 0 {
            return;
        }
        let mut trains = Trains::new();
        // Datagrams move up to the end of the train before them, so that trains lie in one piece.
        let mut end = 0;
        for slot in self.slots[..used].iter().flatten() {
            let limit = slot.route.plaintext_len();
            let natural = slot.len.next_multiple_of(PADDING_MULTIPLE).min(limit) + OVERHEAD;
            // Only behind frames may there be more padding.
            let is_frames = matches!(slot.content.kind, Kind::Frames);
            let most = if is_frames { slot.route.datagram_len } else { natural };
            let way = slot.route.way(slot.ecn);
            let len = trains.length_for(way, natural, most);
            let packed = &mut self.outbox.packed;
            let text = slot.start + HEADER_LEN..slot.start + HEADER_LEN + slot.len;
            if slot.start != end {
                packed.copy_within(text, end + HEADER_LEN);
            }
            let datagram = &mut packed[end..end + len];
            datagram[HEADER_LEN + slot.len..].fill(0);
            let session = &slot.route.session;
            // Between push and flush a session can only run out of counters by another clone of it.
            let Ok(counter) = session.reserve(self.outbox.thread, 1, self.now) else {
                self.shared.drops.count(DropReason::UnknownSession);
                continue;
            };
            session.seal_at(counter, slot.content, datagram);
            session.count_sent(self.outbox.thread, len, self.now);
            trains.add(way, end, len);
            end += len;
        }
        trains.send(&self.outbox.packed, &mut self.outbox.wrapped, self.sink);
    }

    /// Seals and sends the packet of `len` bytes that lies in `Outbox::wide`.
    fn send_superframe(
        &mut self,
        route: &'a Route,
        layout: Layout,
        ecn: u8,
        len: usize,
        offload: Offload,
    ) -> Outbound {
        let frame_len = FRAME_HEADER_LEN + len;
        let slices = layout.slices(frame_len);
        if slices > SLOTS_MAX {
            return self.drop(DropReason::TooBig);
        }
        let thread = self.outbox.thread;
        let Ok(counter) = route.session.reserve(thread, slices as u64, self.now) else {
            return Outbound::Queue;
        };
        let stride = layout.slice_len() + OVERHEAD;
        let wide = &mut self.outbox.wide;
        wide[HEADER_LEN..HEADER_LEN + FRAME_HEADER_LEN].copy_from_slice(&offload.emit());
        let lead = Layout::lead(1);
        wide.copy_within(HEADER_LEN..HEADER_LEN + lead, stride + HEADER_LEN);
        let mut end = 0;
        for slice in 0..slices {
            let part = layout.part(slice);
            let text_len = Layout::lead(slice) + part.len().min(frame_len - part.start);
            let padded = text_len.next_multiple_of(PADDING_MULTIPLE).min(layout.slice_len());
            let start = slice * stride;
            end = start + padded + OVERHEAD;
            wide[start + HEADER_LEN + text_len..end].fill(0);
            let content = Content { kind: Kind::Slice, partial: false, slice: (slice as u8, slices as u8) };
            route.session.seal_at(counter + slice as u64, content, &mut wide[start..end]);
        }
        route.session.count_sent(thread, end, self.now);
        let way = route.way(ecn);
        let per_train = (way.train_bytes_max() / stride).min(SLOTS_MAX) * stride;
        for bytes in wide[..end].chunks(per_train) {
            way.send(bytes, stride, &mut self.outbox.wrapped, self.sink);
        }
        Outbound::Sent
    }

    fn drop(&self, reason: DropReason) -> Outbound {
        self.shared.drops.count(reason);
        Outbound::Drop(reason)
    }
}
