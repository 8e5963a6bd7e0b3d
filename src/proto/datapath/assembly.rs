//! Superframes whose slices come one by one, out of order, or not all.
//!
//! ```text
//! free ── a slice ──▶ filling ── all slices ──────────────────────────────▶ delivered whole
//!                        └────── ASSEMBLY_TIME_MAX, or a slice REORDER_MAX counters newer, or no free place ──▶ salvaged
//! ```
//!
//! Salvage: a TCP packet may be cut at any byte, so each run of slices that came is delivered as a packet of its own; of
//! a UDP packet, the datagrams that came whole are. The inner headers are in slice 0 and again in slice 1.

use std::ops::Range;

use super::inbound::{Slice, admit};
use super::reception::Turn;
use super::{DropReason, ecn};
use crate::proto::timer::Instant;
use crate::proto::wire::gso::{HEADERS_LEN_MAX, Transport};
use crate::proto::wire::inner::stated_len;
use crate::proto::wire::session::thread_of;
use crate::proto::wire::superframe::{FRAME_HEADER_LEN, FRAME_LEN_MAX, Layout, Offload, REPEAT_LEN};

/// Most superframes being assembled by one thread.
pub const SUPERFRAMES_MAX: usize = 4;
/// Longest time for which a slice waits for the others.
pub const ASSEMBLY_TIME_MAX: std::time::Duration = std::time::Duration::from_millis(10);
/// Datagrams that may overtake a slice.
const REORDER_MAX: u64 = 32;
/// Room behind a frame for the padding of its last slice.
const SLACK: usize = REPEAT_LEN;

/// Superframes being assembled.
pub(super) struct Assembly {
    places: [Place; SUPERFRAMES_MAX],
    used: usize,
}

struct Place {
    /// Its slice that came first, with the strongest congestion mark of all; `None` when the place is free.
    first: Option<Slice>,
    since: Instant,
    /// Bit n: slice n is there.
    have: u64,
    layout: Option<Layout>,
    last_len: usize,
    /// The frame as far as it came; the last slice, while the layout is not known, at the end.
    frame: Box<[u8]>,
    /// The copy of the frame's beginning in slice 1.
    repeat: [u8; REPEAT_LEN],
}

impl Default for Assembly {
    fn default() -> Self {
        let place = || Place {
            first: None,
            since: Instant::ZERO,
            have: 0,
            layout: None,
            last_len: 0,
            frame: vec![0; 2 * FRAME_LEN_MAX + SLACK].into_boxed_slice(),
            repeat: [0; REPEAT_LEN],
        };
        Self { places: std::array::from_fn(|_| place()), used: 0 }
    }
}

impl Assembly {
    /// Takes a copy of a slice; delivers the superframe when that completes it.
    pub(super) fn insert(&mut self, turn: &mut Turn<'_>, slice: &Slice, plaintext: &[u8]) {
        self.pass(turn, slice);
        let held = self.places.iter().position(|place| place.first.is_some_and(|first| first.is_of(slice)));
        let at = held.unwrap_or_else(|| self.free(turn));
        let place = &mut self.places[at];
        if held.is_none() {
            self.used += 1;
            (place.first, place.since, place.have, place.layout) = (Some(*slice), turn.now, 0, None);
        }
        if let Some(first) = &mut place.first {
            first.ecn = ecn::strongest(first.ecn, slice.ecn);
        }
        if place.store(slice, plaintext).is_none() {
            turn.shared.drops.count(DropReason::Malformed);
            return;
        }
        if place.have.count_ones() == u32::from(slice.count) {
            self.give_up(turn, at);
        }
    }

    /// Gives up what a slice of the same session and sending thread has overtaken by too much.
    pub(super) fn pass(&mut self, turn: &mut Turn<'_>, slice: &Slice) {
        if self.used == 0 {
            return;
        }
        let overtaken = |first: &Slice| {
            first.local_index == slice.local_index
                && thread_of(first.first_counter) == thread_of(slice.first_counter)
                && first.first_counter + u64::from(first.count) + REORDER_MAX < slice.first_counter
        };
        while let Some(at) = self.oldest(|place| place.first.as_ref().is_some_and(overtaken)) {
            self.give_up(turn, at);
        }
    }

    pub(super) fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        while let Some(at) =
            self.oldest(|place| place.first.is_some() && turn.now >= place.since + ASSEMBLY_TIME_MAX)
        {
            self.give_up(turn, at);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.used == 0 {
            return None;
        }
        let taken = self.places.iter().filter(|place| place.first.is_some());
        taken.map(|place| place.since + ASSEMBLY_TIME_MAX).min()
    }

    /// A free place; the oldest superframe is given up when there is none.
    fn free(&mut self, turn: &mut Turn<'_>) -> usize {
        if let Some(at) = self.places.iter().position(|place| place.first.is_none()) {
            return at;
        }
        let at = self.oldest(|_| true).unwrap_or(0);
        self.give_up(turn, at);
        at
    }

    fn oldest(&self, wanted: impl Fn(&Place) -> bool) -> Option<usize> {
        let order = |place: &Place| (place.since, place.first.map(|first| first.first_counter));
        let wanted = self.places.iter().enumerate().filter(|(_, place)| wanted(place));
        wanted.min_by_key(|(_, place)| order(place)).map(|(at, _)| at)
    }

    /// Delivers what came of a superframe and frees its place.
    fn give_up(&mut self, turn: &mut Turn<'_>, at: usize) {
        let place = &mut self.places[at];
        let Some(first) = place.first.take() else { return };
        self.used -= 1;
        let Some(receiver) = turn.snapshot.receivers.get(&first.local_index) else {
            return turn.shared.drops.count(DropReason::UnknownSession);
        };
        let Some(found) = place.headers() else { return turn.shared.drops.count(DropReason::Incomplete) };
        let mut delivered = false;
        for run in place.runs(usize::from(first.count)) {
            let Some(piece) = found.piece(run) else { continue };
            let mut head = [0; HEADERS_LEN_MAX];
            let head = &mut head[..found.head_len(&piece)];
            head.copy_from_slice(&place.beginning()[FRAME_HEADER_LEN..FRAME_HEADER_LEN + head.len()]);
            let (offload, body) = found.cut(head, piece);
            let packet_len = head.len() + body.len();
            match admit(turn, receiver, first.ecn, head, packet_len, offload) {
                Ok((virtio, _)) => {
                    delivered = true;
                    turn.out.deliver(virtio, &[head, &place.frame[body]]);
                }
                Err(reason) => return turn.shared.drops.count(reason),
            }
        }
        if !delivered {
            turn.shared.drops.count(DropReason::Incomplete);
        }
    }
}

impl Place {
    /// Copies a slice to where it belongs; `None` when it contradicts the others.
    fn store(&mut self, slice: &Slice, plaintext: &[u8]) -> Option<()> {
        let (number, last) = (usize::from(slice.number), usize::from(slice.count) - 1);
        let body = plaintext.get(Layout::lead(number)..)?;
        if number == last {
            self.last_len = plaintext.len();
            match self.layout {
                Some(layout) => self.put(layout.part(last).start, body)?,
                None => {
                    let at = self.frame.len().checked_sub(body.len())?;
                    self.put(at, body)?;
                }
            }
        } else {
            match self.layout {
                Some(layout) if layout.slice_len() == plaintext.len() => {}
                Some(_) => return None,
                None => self.set_layout(Layout::new(plaintext.len())?, last)?,
            }
            self.put(self.layout?.part(number).start, body)?;
        }
        if number == 1 {
            self.repeat.copy_from_slice(plaintext.get(..REPEAT_LEN)?);
        }
        self.have |= 1 << number;
        Some(())
    }

    /// Now it is known where the last slice belongs.
    fn set_layout(&mut self, layout: Layout, last: usize) -> Option<()> {
        let end = self.frame.len();
        let start = layout.part(last).start;
        if self.have >> last & 1 == 1 {
            let len = self.last_len.checked_sub(Layout::lead(last))?;
            if start + len > FRAME_LEN_MAX + SLACK {
                return None;
            }
            self.frame.copy_within(end - len..end, start);
        }
        self.layout = Some(layout);
        Some(())
    }

    fn put(&mut self, at: usize, body: &[u8]) -> Option<()> {
        self.frame.get_mut(at..at + body.len())?.copy_from_slice(body);
        Some(())
    }

    /// The frame's beginning, from slice 0 or 1.
    fn beginning(&self) -> &[u8] {
        if self.have & 1 == 1 { &self.frame[..REPEAT_LEN] } else { &self.repeat }
    }

    fn headers(&self) -> Option<Found> {
        if self.have & 3 == 0 {
            return None;
        }
        let (header, head) = self.beginning().split_first_chunk()?;
        let frame_len = FRAME_HEADER_LEN + stated_len(head).ok()?;
        let transport = Transport::locate(head);
        Some(Found { offload: Offload::parse(*header), transport, frame_len })
    }

    /// Runs of slices that came, as ranges of the frame.
    fn runs(&self, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (have, layout, last_len) = (self.have, self.layout, self.last_len);
        let mut number = 0;
        std::iter::from_fn(move || {
            let layout = layout?;
            let is_there = |number: usize| number < count && have >> number & 1 == 1;
            while number < count && !is_there(number) {
                number += 1;
            }
            let start = number;
            while is_there(number) {
                number += 1;
            }
            let end = number.checked_sub(1).filter(|end| *end >= start)?;
            let part = layout.part(end);
            let end = if end + 1 == count { part.start + last_len - Layout::lead(end) } else { part.end };
            Some(layout.part(start).start..end)
        })
    }
}

/// What the headers say of a superframe.
struct Found {
    offload: Offload,
    transport: Option<Transport>,
    frame_len: usize,
}

impl Found {
    /// The part of a run that makes a packet, as a range of the frame: payload only, unless the run is everything.
    fn piece(&self, run: Range<usize>) -> Option<Range<usize>> {
        let run = run.start..run.end.min(self.frame_len);
        if run == (0..self.frame_len) {
            return Some(run);
        }
        let transport = self.transport.filter(|_| self.offload.segment_len != 0)?;
        let payload = FRAME_HEADER_LEN + transport.headers_len();
        let (mut start, mut end) = (run.start.max(payload), run.end);
        if !transport.is_tcp() {
            let datagram = usize::from(self.offload.segment_len);
            start = payload + (start - payload).next_multiple_of(datagram);
            if end < self.frame_len {
                end = payload + end.checked_sub(payload)? / datagram * datagram;
            }
        }
        (start < end).then_some(start..end)
    }

    /// Bytes of headers in front of a piece.
    fn head_len(&self, piece: &Range<usize>) -> usize {
        let all = || piece.len().saturating_sub(FRAME_HEADER_LEN).min(HEADERS_LEN_MAX);
        if piece.start == 0 { all() } else { self.transport.map_or(0, |transport| transport.headers_len()) }
    }

    /// Makes `head` the headers of a piece; what remains for its receiver to do, and where its payload is.
    fn cut(&self, head: &mut [u8], piece: Range<usize>) -> (Offload, Range<usize>) {
        if piece.start == 0 {
            return (self.offload, FRAME_HEADER_LEN + head.len()..piece.end);
        }
        if let Some(transport) = self.transport {
            let payload = FRAME_HEADER_LEN + transport.headers_len();
            let (from, to) = (piece.start - payload, piece.end - payload);
            transport.cut(head, self.frame_len - payload, from, to);
        }
        (Offload { partial: true, ..self.offload }, piece)
    }
}
