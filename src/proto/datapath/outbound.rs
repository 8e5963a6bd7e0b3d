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

use std::net::SocketAddr;
use std::ops::Range;

use super::{Backlog, DropReason, Notice, Route, Shared, Snapshot, ecn};
use crate::proto::identity::MeshAddress;
use crate::proto::policy;
use crate::proto::session::transport::Content;
use crate::proto::timer::Instant;
use crate::proto::wire::gso::{Segments, Transport, Virtio};
use crate::proto::wire::inner::Inner;
use crate::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE, SLICES_MAX, TAG_LEN};
use crate::proto::wire::superframe::{FRAME_HEADER_LEN, FRAME_LEN_MAX, Layout, Offload, PACKET_LEN_MAX};

/// Most datagrams of one batch, and of one train (`UDP_MAX_SEGMENTS` of kernels before 6.9).
const SLOTS_MAX: usize = SLICES_MAX as usize;
/// Most bytes of one train: what UDP over IPv4 and IPv6 both take (`UDP_SEGMENT`, udp(7)).
pub const TRAIN_BYTES_MAX: usize = 65_487;
/// Bytes of packed datagrams in one batch: room for a train of the longest.
const PACKED_LEN: usize = 2 * (TRAIN_BYTES_MAX + OVERHEAD);
/// A datagram is padded up to the length of those before it when that costs at most one part in so many.
const STRETCH: usize = 8;

/// Datagrams to one endpoint, all of one length but the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Train<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// ECN codepoint of the outer header (RFC 6040 §4.1).
    pub ecn: u8,
    /// Length of every datagram but the last, in bytes.
    pub datagram_len: usize,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
}

/// Where trains go.
pub trait Sink {
    /// Sends the trains, in their order.
    fn send(&mut self, trains: &[Train<'_>]);
}

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

/// Buffers of one sending thread.
pub struct Outbox {
    /// The thread that it is of, as counters name it.
    thread: u8,
    /// Datagrams of small packets.
    packed: Box<[u8]>,
    /// One superframe in its layout on the wire, with more room behind than any packet needs.
    wide: Box<[u8]>,
    /// One packet in one piece.
    flat: Box<[u8]>,
    /// The layout in which the next packet is expected: after one large packet comes another.
    expected: Option<Layout>,
    /// The queue that packets come from.
    pub backlog: Backlog,
}

/// Where to read the next packet of the interface into.
pub enum Room<'a> {
    /// One piece.
    Flat(&'a mut [u8]),
    /// Piece by piece into the layout on the wire.
    Wide(WideRoom<'a>),
}

/// The pieces of [`Room::Wide`].
pub struct WideRoom<'a> {
    layout: Layout,
    slice: usize,
    rest: &'a mut [u8],
}

impl<'a> Iterator for WideRoom<'a> {
    type Item = &'a mut [u8];

    fn next(&mut self) -> Option<&'a mut [u8]> {
        let stride = self.layout.slice_len() + OVERHEAD;
        if self.slice >= SLOTS_MAX || self.rest.len() < stride {
            return None;
        }
        let (datagram, rest) = std::mem::take(&mut self.rest).split_at_mut(stride);
        self.rest = rest;
        let frame_header = if self.slice == 0 { FRAME_HEADER_LEN } else { 0 };
        let start = HEADER_LEN + Layout::lead(self.slice) + frame_header;
        self.slice += 1;
        Some(&mut datagram[start..stride - TAG_LEN])
    }
}

impl Outbox {
    /// Allocates the buffers of thread 0.
    pub fn new() -> Self {
        Self::of_thread(0)
    }

    /// Allocates the buffers of a thread. Threads with the same number share counters, which is slow but right.
    pub fn of_thread(thread: u8) -> Self {
        let buffer = |len| vec![0; len].into_boxed_slice();
        Self {
            thread,
            packed: buffer(PACKED_LEN),
            wide: buffer(FRAME_LEN_MAX + SLOTS_MAX * (OVERHEAD + PADDING_MULTIPLE) + TRAIN_BYTES_MAX),
            flat: buffer(PACKET_LEN_MAX),
            expected: None,
            backlog: Backlog::default(),
        }
    }

    /// Where the next packet should be read to; then tell [`Batch::push_read`] its length.
    pub fn room(&mut self) -> Room<'_> {
        match self.expected {
            Some(layout) => Room::Wide(WideRoom { layout, slice: 0, rest: &mut self.wide }),
            None => Room::Flat(&mut self.flat),
        }
    }

    /// The packet that was read last, in one piece.
    pub fn last_read(&mut self, len: usize) -> &mut [u8] {
        self.flatten(len);
        &mut self.flat[..len]
    }

    /// Copies what was read in pieces into one.
    fn flatten(&mut self, len: usize) {
        let Some(layout) = self.expected.take() else { return };
        let mut at = 0;
        for piece in (WideRoom { layout, slice: 0, rest: &mut self.wide }) {
            let part = piece.len().min(len - at);
            self.flat[at..at + part].copy_from_slice(&piece[..part]);
            at += part;
        }
    }

    /// The beginning of the packet that was read last: all that one piece of it holds.
    pub fn head(&mut self, len: usize) -> &mut [u8] {
        match self.expected {
            Some(layout) => {
                let start = HEADER_LEN + FRAME_HEADER_LEN;
                &mut self.wide[start..start + len.min(layout.slice_len() - FRAME_HEADER_LEN)]
            }
            None => &mut self.flat[..len],
        }
    }

    /// Tells the sender of the packet that was read last, if it is a large one of TCP, when the queue is too long.
    /// Returns the packet's length: a sender that knows no marks misses a segment.
    fn slow_down(&mut self, len: usize, offload: Offload) -> usize {
        if offload.segment_len == 0 || !self.backlog.note_read(len) {
            return len;
        }
        let head = self.head(len);
        if ecn::mark(head) {
            return len;
        }
        let Some(shorter) = shorten(head, len, offload) else {
            self.backlog.return_signal();
            return len;
        };
        shorter
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the last segment off a large TCP packet of `len` bytes that begins with `head`; the length of what is left.
fn shorten(head: &mut [u8], len: usize, offload: Offload) -> Option<usize> {
    let transport = Transport::locate(head).filter(|transport| transport.is_tcp() && offload.partial)?;
    let payload_len = len - transport.headers_len();
    let segments = payload_len.div_ceil(usize::from(offload.segment_len));
    let left = segments.checked_sub(1).filter(|left| *left > 0)? * usize::from(offload.segment_len);
    transport.cut(head, payload_len, 0, left);
    Some(transport.headers_len() + left)
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
        let len = self.outbox.slow_down(inner.len, virtio.offload());
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
        if self.outbox.expected != Some(layout) {
            self.outbox.flatten(len);
            let mut rest = &self.outbox.flat[..len];
            for piece in (WideRoom { layout, slice: 0, rest: &mut self.outbox.wide }) {
                let part;
                (part, rest) = rest.split_at(piece.len().min(rest.len()));
                piece[..part.len()].copy_from_slice(part);
            }
        }
        self.outbox.expected = Some(layout);
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
        let mut trains = Trains { spans: [None; SLOTS_MAX], used: 0 };
        // Datagrams move up to the end of the train before them, so that trains lie in one piece.
        let mut end = 0;
        for slot in self.slots[..used].iter().flatten() {
            let limit = slot.route.plaintext_len();
            let natural = slot.len.next_multiple_of(PADDING_MULTIPLE).min(limit) + OVERHEAD;
            let len = trains.length_for(slot, natural);
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
            trains.add(slot, end, len);
            end += len;
        }
        trains.send(&self.outbox.packed, self.sink);
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
        let per_train = (TRAIN_BYTES_MAX / stride).min(SLOTS_MAX) * stride;
        for bytes in wide[..end].chunks(per_train) {
            self.sink.send(&[Train { to: route.endpoint, ecn, datagram_len: stride, bytes }]);
        }
        Outbound::Sent
    }

    fn drop(&self, reason: DropReason) -> Outbound {
        self.shared.drops.count(reason);
        Outbound::Drop(reason)
    }
}

/// Trains that are being put together over one buffer.
struct Trains {
    spans: [Option<Span>; SLOTS_MAX],
    used: usize,
}

#[derive(Clone, Copy)]
struct Span {
    to: SocketAddr,
    ecn: u8,
    datagram_len: usize,
    start: usize,
    end: usize,
    /// Its last datagram is shorter.
    closed: bool,
}

impl Trains {
    /// The train that another datagram of at most `len` bytes may join.
    fn joinable(&self, slot: &Slot<'_>, len: usize) -> Option<Span> {
        self.spans[..self.used].last().copied().flatten().filter(|span| {
            !span.closed
                && span.to == slot.route.endpoint
                && span.ecn == slot.ecn
                && len <= span.datagram_len
                && span.end + span.datagram_len - span.start <= TRAIN_BYTES_MAX
        })
    }

    /// Length to pad a datagram to, so that the train goes on behind it; never beyond what the path carries.
    fn length_for(&self, slot: &Slot<'_>, natural: usize) -> usize {
        match self.joinable(slot, natural) {
            Some(span)
                if natural >= span.datagram_len - span.datagram_len / STRETCH
                    && span.datagram_len <= slot.route.datagram_len
                    && matches!(slot.content.kind, Kind::Frames) =>
            {
                span.datagram_len
            }
            _ => natural,
        }
    }

    fn add(&mut self, slot: &Slot<'_>, start: usize, len: usize) {
        let joined = self.joinable(slot, len).filter(|span| span.end == start);
        match joined {
            Some(span) => {
                let closed = len < span.datagram_len;
                self.spans[self.used - 1] = Some(Span { end: start + len, closed, ..span });
            }
            None => {
                let (to, ecn) = (slot.route.endpoint, slot.ecn);
                self.spans[self.used] =
                    Some(Span { to, ecn, datagram_len: len, start, end: start + len, closed: false });
                self.used += 1;
            }
        }
    }

    fn send(&self, bytes: &[u8], sink: &mut dyn Sink) {
        let nothing = Train { to: SocketAddr::from(([0; 4], 0)), ecn: 0, datagram_len: 0, bytes: &[] };
        let mut trains = [nothing; SLOTS_MAX];
        for (train, span) in trains.iter_mut().zip(self.spans.iter().flatten()) {
            let Span { to, ecn, datagram_len, start, end, .. } = *span;
            *train = Train { to, ecn, datagram_len, bytes: &bytes[start..end] };
        }
        sink.send(&trains[..self.used]);
    }
}

/// A packet as whole packets with complete checksums: what a queue, or a peer without frames, takes.
#[derive(Debug)]
pub struct PlainPackets {
    offload: Offload,
    segments: Option<Segments>,
    done: bool,
    packet_len: usize,
}

impl PlainPackets {
    /// For a whole packet.
    pub fn of(packet: &[u8], offload: Offload) -> Self {
        let segments = Segments::of(packet, offload);
        Self { offload, segments, done: false, packet_len: packet.len() }
    }

    /// Length of the longest of them in bytes.
    pub fn packet_len_max(&self) -> usize {
        self.segments.as_ref().map_or(self.packet_len, Segments::packet_len_max)
    }

    /// Writes the next one to the front of `out`, which has room for the longest; its length.
    pub fn next(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let len = match &mut self.segments {
            Some(segments) => segments.next(packet, out)?,
            None if std::mem::replace(&mut self.done, true) => return None,
            None => {
                out[..packet.len()].copy_from_slice(packet);
                packet.len()
            }
        };
        if (self.offload.partial || self.segments.is_some())
            && let Some(transport) = Transport::locate(&out[..len])
        {
            transport.complete(&mut out[..len]);
        }
        Some(len)
    }
}
