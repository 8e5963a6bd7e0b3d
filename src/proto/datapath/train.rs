//! Datagrams of equal length, one behind the other, that leave with one system call.

use std::net::SocketAddr;

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

/// Where trains go.
pub trait Sink {
    /// Sends the trains, in their order.
    fn send(&mut self, trains: &[Train<'_>]);
}

/// Trains that are being put together over one buffer.
pub(super) struct Trains {
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
    pub(super) const fn new() -> Self {
        Self { spans: [None; SLOTS_MAX], used: 0 }
    }

    /// The train that another datagram of at most `len` bytes may join.
    fn joinable(&self, to: SocketAddr, ecn: u8, len: usize) -> Option<Span> {
        self.spans[..self.used].last().copied().flatten().filter(|span| {
            !span.closed
                && span.to == to
                && span.ecn == ecn
                && len <= span.datagram_len
                && span.end + span.datagram_len - span.start <= TRAIN_BYTES_MAX
        })
    }

    /// Length to pad a datagram of `natural` bytes to, at most `most`, so that the train goes on behind it.
    pub(super) fn length_for(&self, to: SocketAddr, ecn: u8, natural: usize, most: usize) -> usize {
        let train = self.joinable(to, ecn, natural).map(|span| span.datagram_len);
        train.filter(|len| *len <= most && natural >= len - len / STRETCH).unwrap_or(natural)
    }

    /// The datagram of `len` bytes at `start` goes with the train before it, or begins one.
    pub(super) fn add(&mut self, to: SocketAddr, ecn: u8, start: usize, len: usize) {
        match self.joinable(to, ecn, len).filter(|span| span.end == start) {
            Some(span) => {
                let closed = len < span.datagram_len;
                self.spans[self.used - 1] = Some(Span { end: start + len, closed, ..span });
            }
            None => {
                let span = Span { to, ecn, datagram_len: len, start, end: start + len, closed: false };
                self.spans[self.used] = Some(span);
                self.used += 1;
            }
        }
    }

    /// Hands the trains over; the datagrams lie in `bytes`.
    pub(super) fn send(&self, bytes: &[u8], sink: &mut dyn Sink) {
        let nothing = Train { to: SocketAddr::from(([0; 4], 0)), ecn: 0, datagram_len: 0, bytes: &[] };
        let mut trains = [nothing; SLOTS_MAX];
        for (train, span) in trains.iter_mut().zip(self.spans.iter().flatten()) {
            let Span { to, ecn, datagram_len, start, end, .. } = *span;
            *train = Train { to, ecn, datagram_len, bytes: &bytes[start..end] };
        }
        sink.send(&trains[..self.used]);
    }
}
