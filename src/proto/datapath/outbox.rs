//! Buffers of one sending thread: where the next packet of the interface is read to.

use super::backlog::Backlog;
use super::ecn;
use super::relayed::WRAPPED_LEN;
use super::train::{SLOTS_MAX, TRAIN_BYTES_MAX};
use crate::proto::timer::Instant;
use crate::proto::wire::gso::Transport;
use crate::proto::wire::session::{HEADER_LEN, OVERHEAD, PADDING_MULTIPLE, TAG_LEN};
use crate::proto::wire::superframe::{FRAME_HEADER_LEN, FRAME_LEN_MAX, Layout, Offload, PACKET_LEN_MAX};

/// Bytes of packed datagrams in one batch: room for a train of the longest.
pub(super) const PACKED_LEN: usize = 2 * (TRAIN_BYTES_MAX + OVERHEAD);

/// Buffers of one sending thread.
pub struct Outbox {
    /// The thread that it is of, as counters name it.
    pub(super) thread: u8,
    /// Datagrams of small packets.
    pub(super) packed: Box<[u8]>,
    /// One superframe in its layout on the wire, with more room behind than any packet needs.
    pub(super) wide: Box<[u8]>,
    /// One packet in one piece.
    pub(super) flat: Box<[u8]>,
    /// Datagrams with the headers of relays around them.
    pub(super) wrapped: Box<[u8]>,
    /// The layout in which the next packet is expected: after one large packet comes another.
    pub(super) expected: Option<Layout>,
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
            wrapped: buffer(WRAPPED_LEN),
            expected: None,
            backlog: Backlog::default(),
        }
    }

    /// Where the next packet should be read to; then tell [`super::Batch::push_read`] its length.
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
    pub(super) fn flatten(&mut self, len: usize) {
        let Some(layout) = self.expected.take() else { return };
        let mut at = 0;
        for piece in (WideRoom { layout, slice: 0, rest: &mut self.wide }) {
            let part = piece.len().min(len - at);
            self.flat[at..at + part].copy_from_slice(&piece[..part]);
            at += part;
        }
    }

    /// Lays the packet that was read last out as it goes on the wire.
    pub(super) fn widen(&mut self, layout: Layout, len: usize) {
        if self.expected != Some(layout) {
            self.flatten(len);
            let mut rest = &self.flat[..len];
            for piece in (WideRoom { layout, slice: 0, rest: &mut self.wide }) {
                let part;
                (part, rest) = rest.split_at(piece.len().min(rest.len()));
                piece[..part.len()].copy_from_slice(part);
            }
        }
        self.expected = Some(layout);
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
    pub(super) fn slow_down(&mut self, now: Instant, len: usize, offload: Offload) -> usize {
        if offload.segment_len == 0 || !self.backlog.note_read(now, len) {
            return len;
        }
        let head = self.head(len);
        if ecn::mark(head) {
            return len;
        }
        let Some(shorter) = shorten(head, len, offload) else {
            self.backlog.return_signal(now);
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
