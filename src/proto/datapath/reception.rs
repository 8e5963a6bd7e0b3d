//! Trains of datagrams to the interface.
//!
//! ```text
//! one train, slices 0..n in their order    every slice opened in place, handed over piece by piece: no copy
//! any other slice                          copied to `assembly` until the superframe is whole
//! UDP datagrams                            held by `gro` until one does not go on with those before it
//! ```

use std::net::SocketAddr;
use std::ops::Range;

use super::assembly::Assembly;
use super::gro::Gro;
use super::inbound::{Arrival, Inbound, Slice, admit, inbound};
use super::train::Train;
use super::{Carried, DropReason, Notice, Shared, Snapshot};
use crate::proto::timer::Instant;
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::relay::{Hop, RELAY_OVERHEAD, Slot};
use crate::proto::wire::session::{HEADER_LEN, SLICES_MAX};
use crate::proto::wire::superframe::{FRAME_HEADER_LEN, Frames, Layout, Offload};

/// Where what was received goes.
pub trait Inward {
    /// An inner packet for the interface, in pieces.
    fn deliver(&mut self, virtio: Virtio, pieces: &[&[u8]]);
    /// Control messages of an authenticated peer, under the index that we gave the session, and how they came.
    fn control(&mut self, local_index: u32, source: Hop, messages: &[u8]);
    /// A setup packet with a valid mac1, unmasked.
    fn setup(&mut self, source: Hop, packet: &[u8]);
    /// Perhaps a cookie reply, as it came.
    fn reply(&mut self, source: Hop, packet: &[u8]);
    /// A train of somebody else's datagrams.
    fn forward(&mut self, train: Train<'_>);
    /// Something that `node` should know; comes before whatever else the datagram holds.
    fn notify(&mut self, notice: Notice);
}

/// What one turn of a receiving thread works with.
pub struct Turn<'a> {
    /// What `node` published last.
    pub snapshot: &'a Snapshot,
    /// Flows and counters.
    pub shared: &'a Shared,
    /// The time.
    pub now: Instant,
    /// Where everything goes.
    pub out: &'a mut dyn Inward,
}

/// State of one receiving thread.
#[derive(Default)]
pub struct Reception {
    assembly: Assembly,
    /// Where the kernel takes several UDP datagrams as one packet.
    gro: Option<Gro>,
}

/// Slices in a row, in place.
#[derive(Clone, Copy)]
struct Run {
    first: Slice,
    /// Where slice 0's datagram begins.
    start: usize,
    slices: usize,
    last_len: usize,
}

impl Reception {
    /// With buffers for superframes that come in pieces. `joins`: UDP datagrams go to the interface several at once.
    pub fn new(joins: bool) -> Self {
        Self { assembly: Assembly::default(), gro: joins.then(Gro::default) }
    }

    /// Handles the datagrams of one train, which are opened in place: all of `datagram_len` bytes but the last. `ecn` is
    /// the codepoint of their IP headers.
    pub fn handle_train(
        &mut self,
        turn: &mut Turn<'_>,
        source: SocketAddr,
        ecn: u8,
        train: &mut [u8],
        datagram_len: usize,
    ) {
        if train.is_empty() {
            turn.shared.drop(DropReason::Malformed);
        }
        let mut run: Option<Run> = None;
        let mut carried: Option<(Slot, Range<usize>)> = None;
        let mut next = 0;
        while next < train.len() {
            let whole = next..(next + datagram_len.max(1)).min(train.len());
            let (end, datagram) = (whole.end, &mut train[whole.clone()]);
            next = end;
            let Arrival { hop, verdict, notice } =
                inbound(turn.snapshot, turn.shared, source, ecn, datagram, turn.now);
            let start = whole.start + if hop.slot().is_some() { RELAY_OVERHEAD } else { 0 };
            if let Some(notice) = notice {
                turn.out.notify(notice);
            }
            match verdict {
                Inbound::Slice(slice) => {
                    self.flush(turn, train);
                    run = match run {
                        Some(run) if run.goes_on_with(&slice, start, datagram_len) => {
                            Some(Run { slices: run.slices + 1, last_len: slice.len, ..run })
                        }
                        broken => {
                            self.spill(turn, broken, train, datagram_len);
                            if slice.number == 0 {
                                Some(Run { first: slice, start, slices: 1, last_len: slice.len })
                            } else {
                                let plaintext = &train[start..end][slice.plaintext()];
                                self.assembly.insert(turn, &slice, plaintext);
                                None
                            }
                        }
                    };
                    if let Some(whole) = run.filter(|run| run.slices == usize::from(run.first.count)) {
                        run = None;
                        self.assembly.pass(turn, &whole.first);
                        whole.deliver(turn, train, datagram_len);
                    }
                }
                Inbound::Deliver(virtio, len) => {
                    self.deliver(turn, train, virtio, start + HEADER_LEN..start + HEADER_LEN + len);
                }
                Inbound::Frames { local_index, len } => {
                    let plaintext = start + HEADER_LEN..start + HEADER_LEN + len;
                    self.handle_frames(turn, local_index, ecn, train, plaintext);
                }
                Inbound::Control { local_index, messages } => turn.out.control(local_index, hop, messages),
                Inbound::Setup => turn.out.setup(hop, &train[start..end]),
                Inbound::Reply => turn.out.reply(hop, &train[start..end]),
                Inbound::Forward(slot) => {
                    carried = match carried {
                        Some((same, range)) if same == slot && range.end == start => {
                            Some((slot, range.start..end))
                        }
                        before => {
                            forward(turn, before, ecn, train, datagram_len);
                            Some((slot, start..end))
                        }
                    };
                }
                Inbound::Drop(_) => {}
            }
        }
        forward(turn, carried, ecn, train, datagram_len);
        self.flush(turn, train);
        self.spill(turn, run, train, datagram_len);
    }

    /// A packet at `range` of `train` for the interface.
    fn deliver(&mut self, turn: &mut Turn<'_>, train: &mut [u8], virtio: Virtio, range: Range<usize>) {
        match &mut self.gro {
            Some(gro) => gro.put(turn, train, virtio, range),
            None => turn.out.deliver(virtio, &[&train[range]]),
        }
    }

    /// Hands over what is held back, so that packets stay in their order.
    fn flush(&mut self, turn: &mut Turn<'_>, train: &mut [u8]) {
        if let Some(gro) = &mut self.gro {
            gro.flush(turn, train);
        }
    }

    /// Frames at `range` of `train`.
    fn handle_frames(
        &mut self,
        turn: &mut Turn<'_>,
        local_index: u32,
        ecn: u8,
        train: &mut [u8],
        plaintext: Range<usize>,
    ) {
        let Some(receiver) = turn.snapshot.receivers.get(&local_index) else { return };
        let mut frames = Frames::new();
        while let Some((offload, range)) = frames.next(&train[plaintext.clone()]) {
            let range = plaintext.start + range.start..plaintext.start + range.end;
            match admit(turn, receiver, ecn, &mut train[range.clone()], range.len(), offload) {
                Ok((virtio, len)) => self.deliver(turn, train, virtio, range.start..range.start + len),
                Err(reason) => turn.shared.drops.count(reason),
            }
        }
        if !frames.is_at_end(&train[plaintext]) {
            turn.shared.drops.count(DropReason::Malformed);
        }
    }

    /// Gives up superframes whose slices stay away.
    pub fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        self.assembly.handle_timeout(turn);
    }

    /// When [`Reception::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.assembly.poll_timeout()
    }

    /// Copies the slices of a run that did not get whole.
    fn spill(&mut self, turn: &mut Turn<'_>, run: Option<Run>, train: &[u8], datagram_len: usize) {
        let Some(run) = run else { return };
        for number in 0..run.slices {
            let len = if number + 1 == run.slices { run.last_len } else { run.first.len };
            let slice = Slice { number: number as u8, len, ..run.first };
            let plaintext = &train[run.start + number * datagram_len..][slice.plaintext()];
            self.assembly.insert(turn, &slice, plaintext);
        }
    }
}

/// Passes on what a channel carries.
fn forward(
    turn: &mut Turn<'_>,
    carried: Option<(Slot, Range<usize>)>,
    ecn: u8,
    train: &[u8],
    datagram_len: usize,
) {
    let Some((slot, range)) = carried else { return };
    if let Some(Carried::Forward(forward)) = turn.snapshot.slots.get(&slot).map(|carried| &**carried) {
        turn.out.forward(Train { to: forward.to, ecn, datagram_len, bytes: &train[range] });
    }
}

impl Run {
    fn goes_on_with(&self, slice: &Slice, start: usize, datagram_len: usize) -> bool {
        self.first.is_of(slice)
            && usize::from(slice.number) == self.slices
            && start == self.start + self.slices * datagram_len
            && (slice.len == self.first.len || self.slices + 1 == usize::from(self.first.count))
    }

    /// Hands over a whole superframe from where it lies.
    fn deliver(&self, turn: &mut Turn<'_>, train: &mut [u8], datagram_len: usize) {
        let Some(receiver) = turn.snapshot.receivers.get(&self.first.local_index) else { return };
        let at = |slice: usize| self.start + slice * datagram_len + self.first.plaintext().start;
        let Some(layout) =
            Layout::new(self.first.len).filter(|_| self.last_len >= Layout::lead(self.slices - 1))
        else {
            return turn.shared.drops.count(DropReason::Malformed);
        };
        let last = self.slices - 1;
        let frame_len = layout.part(last).start + self.last_len - Layout::lead(last);
        let (header, head) = train[at(0)..at(0) + self.first.len].split_at_mut(FRAME_HEADER_LEN);
        let offload = Offload::parse([header[0], header[1]]);
        let available = frame_len - FRAME_HEADER_LEN;
        let (virtio, len) = match admit(turn, receiver, self.first.ecn, head, available, offload) {
            Ok(admitted) => admitted,
            Err(reason) => return turn.shared.drops.count(reason),
        };
        let mut pieces = [&[][..]; SLICES_MAX as usize];
        let (mut used, mut rest) = (0, len);
        for (slice, piece) in pieces[..self.slices].iter_mut().enumerate() {
            let frame_header = if slice == 0 { FRAME_HEADER_LEN } else { 0 };
            let text_len = if slice == last { self.last_len } else { self.first.len };
            let start = at(slice) + Layout::lead(slice) + frame_header;
            let text = &train[start..at(slice) + text_len];
            *piece = &text[..text.len().min(rest)];
            rest -= piece.len();
            used += usize::from(!piece.is_empty());
        }
        turn.out.deliver(virtio, &pieces[..used]);
    }
}
