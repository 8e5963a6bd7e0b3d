//! What happened, for metrics and status.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pump::End;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) crowded: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) dialled: AtomicU64,
    pub(super) dials_failed: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
}

/// The same, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// TCP connections taken.
    pub accepted: u64,
    /// Connections ended or refused because there were too many.
    pub crowded: u64,
    /// Requests answered as a web server answers them, and failed TLS handshakes.
    pub rejected: u64,
    /// Connections ended because nothing came in time.
    pub timed_out: u64,
    /// Streams ended because of what came.
    pub malformed: u64,
    /// Streams that others opened.
    pub opened: u64,
    /// Streams that we opened.
    pub dialled: u64,
    /// Attempts that led to no stream.
    pub dials_failed: u64,
    /// Messages dropped because the network was slower than what was to be sent.
    pub dropped: u64,
    /// Bytes of datagrams that came by streams.
    pub received_bytes: u64,
    /// Bytes of datagrams that went by streams.
    pub sent_bytes: u64,
}

impl Counters {
    /// The present counts.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accepted: of(&self.accepted),
            crowded: of(&self.crowded),
            rejected: of(&self.rejected),
            timed_out: of(&self.timed_out),
            malformed: of(&self.malformed),
            opened: of(&self.opened),
            dialled: of(&self.dialled),
            dials_failed: of(&self.dials_failed),
            dropped: of(&self.dropped),
            received_bytes: of(&self.received_bytes),
            sent_bytes: of(&self.sent_bytes),
        }
    }

    pub(super) fn count_end(&self, end: End) {
        match end {
            End::TimedOut => add(&self.timed_out, 1),
            End::Malformed => add(&self.malformed, 1),
            End::Closed | End::Broken => {}
        }
    }
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
