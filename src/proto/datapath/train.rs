//! Datagrams of equal length, one behind the other, that leave with one system call.

use std::net::SocketAddr;

use super::Via;
use super::relayed::wrap;
use crate::proto::wire::relay::RELAY_OVERHEAD;
use crate::proto::wire::session::SLICES_MAX;

/// Most datagrams of one batch, and of one train (`UDP_MAX_SEGMENTS` of kernels before 6.9).
pub(super) const SLOTS_MAX: usize = SLICES_MAX as usize;
/// Most bytes of one train: what UDP over IPv4 and IPv6 both take (`UDP_SEGMENT`, udp(7)).
pub const TRAIN_BYTES_MAX: usize = 65_487;
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

/// Where a datagram goes, and how.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) to: SocketAddr,
    pub(super) via: Option<&'a Via>,
    pub(super) ecn: u8,
}

impl PartialEq for Way<'_> {
    fn eq(&self, other: &Self) -> bool {
        let slot = |way: &Self| way.via.map(|via| via.slot);
        self.to == other.to && self.ecn == other.ecn && slot(self) == slot(other)
    }
}

impl Way<'_> {
    /// Most bytes of one train.
    pub(super) const fn train_bytes_max(&self) -> usize {
        match self.via {
            Some(_) => TRAIN_BYTES_MAX - SLOTS_MAX * RELAY_OVERHEAD,
            None => TRAIN_BYTES_MAX,
        }
    }

    /// Hands over a train; `room` is for the headers of a relay.
    pub(super) fn send(&self, bytes: &[u8], datagram_len: usize, room: &mut [u8], sink: &mut dyn Sink) {
        let train = Train { to: self.to, ecn: self.ecn, datagram_len, bytes };
        match self.via {
            Some(via) => sink.send(&[wrap(via, &train, room)]),
            None => sink.send(&[train]),
        }
    }
}

/// Where trains go.
pub trait Sink {
    /// Sends the trains, in their order.
    fn send(&mut self, trains: &[Train<'_>]);
}

/// Trains that are being put together over one buffer.
pub(super) struct Trains<'a> {
    spans: [Option<Span<'a>>; SLOTS_MAX],
    used: usize,
}

#[derive(Clone, Copy)]
struct Span<'a> {
    way: Way<'a>,
    datagram_len: usize,
    start: usize,
    end: usize,
    /// Its last datagram is shorter.
    closed: bool,
}

impl<'a> Trains<'a> {
    pub(super) const fn new() -> Self {
        Self { spans: [None; SLOTS_MAX], used: 0 }
    }

    /// The train that another datagram of at most `len` bytes may join.
    fn joinable(&self, way: Way<'_>, len: usize) -> Option<Span<'a>> {
        self.spans[..self.used].last().copied().flatten().filter(|span| {
            !span.closed
                && span.way == way
                && len <= span.datagram_len
                && span.end + span.datagram_len - span.start <= way.train_bytes_max()
        })
    }

    /// Length to pad a datagram of `natural` bytes to, at most `most`, so that the train goes on behind it.
    pub(super) fn length_for(&self, way: Way<'_>, natural: usize, most: usize) -> usize {
        let train = self.joinable(way, natural).map(|span| span.datagram_len);
        train.filter(|len| *len <= most && natural >= len - len / STRETCH).unwrap_or(natural)
    }

    /// The datagram of `len` bytes at `start` goes with the train before it, or begins one.
    pub(super) fn add(&mut self, way: Way<'a>, start: usize, len: usize) {
        match self.joinable(way, len).filter(|span| span.end == start) {
            Some(span) => {
                let closed = len < span.datagram_len;
                self.spans[self.used - 1] = Some(Span { end: start + len, closed, ..span });
            }
            None => {
                let span = Span { way, datagram_len: len, start, end: start + len, closed: false };
                self.spans[self.used] = Some(span);
                self.used += 1;
            }
        }
    }

    /// Hands the trains over; the datagrams lie in `bytes`, `room` is for the headers of relays.
    pub(super) fn send(&self, bytes: &[u8], room: &mut [u8], sink: &mut dyn Sink) {
        let spans = || self.spans[..self.used].iter().flatten();
        if spans().any(|span| span.way.via.is_some()) {
            for span in spans() {
                span.way.send(&bytes[span.start..span.end], span.datagram_len, room, sink);
            }
            return;
        }
        let nothing = Train { to: SocketAddr::from(([0; 4], 0)), ecn: 0, datagram_len: 0, bytes: &[] };
        let mut trains = [nothing; SLOTS_MAX];
        for (train, span) in trains.iter_mut().zip(spans()) {
            let Span { way: Way { to, ecn, .. }, datagram_len, start, end, .. } = *span;
            *train = Train { to, ecn, datagram_len, bytes: &bytes[start..end] };
        }
        sink.send(&trains[..self.used]);
    }
}
