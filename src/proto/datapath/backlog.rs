//! How long packets wait in the interface's queue, and when their senders are told to slow down.
//!
//! The kernel does not say how long that queue is, and drops only what no longer fits: 500 packets of up to 62,000
//! bytes. Packets of all others wait behind them. So a probe of our own is sent through the queue while large packets
//! come out of it: it has waited as long as any packet, and what was read before it is what stood in front of it.
//!
//! ```text
//! large packets read ─► probe due ─► (through the interface) ─► delay and bytes of the queue
//!     more than STEP_BYTES, and longer than STEP_DELAY  ─► a signal, at most one in SIGNAL_EVERY
//!     longer than TARGET for a whole INTERVAL           ─► signals by the control law of CoDel (RFC 8289 §5)
//! signal ─► the next large TCP packet is marked (ECN), or loses its last segment: the least that TCP understands
//! ```
//!
//! The first rule keeps a queue short that programs on a fast network fill within one round trip. Only a sender of
//! gigabits a second gets there when this machine was busy for a moment with something else. The second one is for
//! queues that stand for longer than the round trips of the Internet.

use std::time::Duration;

use crate::proto::timer::Instant;

/// Bytes in the queue above which a sender is told: what crosses in half a millisecond at 8 Gbit/s.
pub(super) const STEP_BYTES: u64 = 512 * 1024;
/// Least delay of that many bytes to be worth a signal.
pub(super) const STEP_DELAY: Duration = Duration::from_micros(250);
/// Least time between two signals by the bytes in the queue: a few round trips of a local network.
pub(super) const SIGNAL_EVERY: Duration = Duration::from_millis(4);
/// Delay that is acceptable for long (RFC 8289 §4.3).
pub(super) const TARGET: Duration = Duration::from_millis(5);
/// How long the delay may exceed [`TARGET`]: a round trip of the Internet (RFC 8289 §4.3).
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two probes.
pub(super) const PROBE_EVERY: Duration = Duration::from_micros(500);
/// After this time a probe counts as lost, and the next one is sent.
pub(super) const PROBE_LOST: Duration = Duration::from_millis(200);
/// How long a signal waits for a packet that can carry it: later, it would be about a queue that is no more.
pub(super) const SIGNAL_KEPT: Duration = Duration::from_millis(20);

/// A probe that should be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeDue {
    /// The one before has not come back.
    pub lost: bool,
}

/// State of one sending thread.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Bytes of large packets read so far.
    read: u64,
    /// `read` when the last probe was decided on: no large packet since, no probe.
    probed: u64,
    probe: Option<Probe>,
    /// When the next probe may go.
    probe_from: Instant,
    /// When the next signal by the bytes in the queue may be.
    step_from: Instant,
    codel: Codel,
    /// Since when a signal waits.
    signal: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    sent_at: Instant,
    /// `Backlog::read` when it was sent.
    read: u64,
}

impl Backlog {
    /// A large packet of `len` bytes was read at `now`; true when it has to carry the signal.
    pub(super) fn note_read(&mut self, now: Instant, len: usize) -> bool {
        self.read += len as u64;
        self.signal.take().is_some_and(|since| now.saturating_since(since) < SIGNAL_KEPT)
    }

    /// The packet could not carry the signal: the next one is asked.
    pub(super) fn return_signal(&mut self, now: Instant) {
        self.signal.get_or_insert(now);
    }

    /// The queue is empty at `now`.
    pub fn note_empty(&mut self, now: Instant) {
        if self.probe.is_none() {
            self.probed = self.read;
            self.codel.handle_delay(now, Duration::ZERO);
        }
    }

    /// Says when a probe should be sent at `now`; it counts as sent then.
    pub fn poll_probe(&mut self, now: Instant) -> Option<ProbeDue> {
        let waits = self.probe.is_some_and(|probe| now.saturating_since(probe.sent_at) < PROBE_LOST);
        if self.read == self.probed || waits || now < self.probe_from {
            return None;
        }
        let lost = self.probe.is_some();
        self.probed = self.read;
        self.probe = Some(Probe { sent_at: now, read: self.read });
        self.probe_from = now + PROBE_EVERY;
        Some(ProbeDue { lost })
    }

    /// The probe that was sent at `sent_at` has come out of the queue at `now`. One that was given up still tells how
    /// long the queue is, but not what stood in front of it.
    pub fn handle_probe(&mut self, now: Instant, sent_at: Instant) {
        let delay = now.saturating_since(sent_at);
        let probe = self.probe.take_if(|probe| probe.sent_at == sent_at);
        let bytes = probe.map_or(0, |probe| self.read - probe.read);
        let step = bytes >= STEP_BYTES && delay >= STEP_DELAY && now >= self.step_from;
        if step {
            self.step_from = now + SIGNAL_EVERY;
        }
        if self.codel.handle_delay(now, delay) || step {
            self.signal = Some(now);
        }
    }
}

/// The control law of CoDel (RFC 8289 §5.3 to §5.6), on samples instead of on every packet.
#[derive(Debug, Default)]
struct Codel {
    /// When the delay will have been above the target for an interval.
    above_until: Option<Instant>,
    dropping: bool,
    next: Instant,
    /// Signals since the queue was last short.
    count: u32,
    last_count: u32,
}

impl Codel {
    /// True when a signal is due.
    fn handle_delay(&mut self, now: Instant, delay: Duration) -> bool {
        if delay < TARGET {
            self.above_until = None;
            self.dropping = false;
            return false;
        }
        let stands = now >= *self.above_until.get_or_insert(now + INTERVAL);
        if !stands || self.dropping && now < self.next {
            return false;
        }
        if self.dropping {
            self.count = self.count.saturating_add(1);
            self.next += self.spacing();
        } else {
            self.dropping = true;
            // A queue that is back soon takes up the rate at which it was last held.
            let recent = now.saturating_since(self.next) < 16 * INTERVAL;
            let delta = self.count.saturating_sub(self.last_count);
            self.count = if recent && delta > 1 { delta } else { 1 };
            self.last_count = self.count;
            self.next = now + self.spacing();
        }
        true
    }

    fn spacing(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.count).sqrt())
    }
}
