//! What a peer was refused lately: for people, the data path decides nothing by it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::flows::{TCP, UDP};
use crate::proto::timer::Instant;
use crate::proto::wire::inner::Traffic;

/// Protocols and ports remembered of one peer; of more, those that were refused last.
pub const REFUSED_MAX: usize = 8;

/// Bits of a slot that count.
const TIMES_BITS: u32 = 40;
const TIMES_MAX: u64 = (1 << TIMES_BITS) - 1;

/// One protocol and port that a peer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Protocol number (IANA).
    pub protocol: u8,
    /// Our port, where the protocol has ports.
    pub port: Option<u16>,
    /// Packets.
    pub times: u64,
    /// The last of them.
    pub last: Instant,
}

/// Protocol, port and count in one word, so that no reader sees a part of two.
#[derive(Debug, Default)]
struct Slot {
    word: AtomicU64,
    last_ns: AtomicU64,
}

/// A short table without locks. Of two threads that note at once one may be lost, or a port be there twice.
#[derive(Debug, Default)]
pub struct Refusals([Slot; REFUSED_MAX]);

impl Refusals {
    /// Notes a refused packet, if it could have started a flow: late segments of old TCP connections say nothing. Of
    /// UDP nothing tells late replies from first datagrams.
    pub(super) fn note(&self, traffic: &Traffic, now: Instant) {
        let (protocol, port) = match *traffic {
            Traffic::Tcp { destination, opens: true, .. } => (TCP, destination),
            Traffic::Udp { destination, .. } => (UDP, destination),
            Traffic::Other(protocol) => (protocol, 0),
            Traffic::Tcp { .. }
            | Traffic::EchoRequest(_)
            | Traffic::EchoReply(_)
            | Traffic::Error { .. }
            | Traffic::Tail => return,
        };
        let key = u64::from(protocol) << 16 | u64::from(port);
        let known = self.0.iter().find(|slot| slot.word.load(Ordering::Relaxed) >> TIMES_BITS == key);
        let oldest = || self.0.iter().min_by_key(|slot| slot.last_ns.load(Ordering::Relaxed));
        let times = known.map_or(0, |slot| slot.word.load(Ordering::Relaxed) & TIMES_MAX);
        if let Some(slot) = known.or_else(oldest) {
            slot.word.store(key << TIMES_BITS | (times + 1).min(TIMES_MAX), Ordering::Relaxed);
            slot.last_ns.store(now.as_nanos(), Ordering::Relaxed);
        }
    }

    /// What is remembered, the last refused first.
    pub fn list(&self) -> Vec<Refused> {
        let of = |slot: &Slot| {
            let word = slot.word.load(Ordering::Relaxed);
            let (protocol, port) = ((word >> (TIMES_BITS + 16)) as u8, (word >> TIMES_BITS) as u16);
            let port = matches!(protocol, TCP | UDP).then_some(port);
            let last = Instant::from_nanos(slot.last_ns.load(Ordering::Relaxed));
            (word != 0).then_some(Refused { protocol, port, times: word & TIMES_MAX, last })
        };
        let mut refused: Vec<_> = self.0.iter().filter_map(of).collect();
        refused.sort_by_key(|refused| std::cmp::Reverse(refused.last));
        refused
    }
}
