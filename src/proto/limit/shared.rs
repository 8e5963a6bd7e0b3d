//! A token bucket that several threads take from.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::timer::Instant;

const SECOND_NS: u64 = 1_000_000_000;

/// A token bucket in one atomic, as the generic cell rate algorithm (ITU-T I.371): it holds when the bucket will be full
/// again. Threads that take at the same moment may get a little more than there is.
#[derive(Debug)]
pub struct SharedBucket {
    rate_per_s: u64,
    burst: u64,
    full_at_ns: AtomicU64,
}

impl SharedBucket {
    /// A full bucket: `rate_per_s` tokens a second, at least 1, at most `burst` saved up.
    pub const fn new(rate_per_s: u64, burst: u64) -> Self {
        Self { rate_per_s, burst, full_at_ns: AtomicU64::new(0) }
    }

    /// Takes `tokens`; false when there are fewer.
    pub fn take(&self, now: Instant, tokens: u64) -> bool {
        let now_ns = now.as_nanos();
        let full_at = self.full_at_ns.load(Ordering::Relaxed).max(now_ns) + self.time_for(tokens);
        if full_at - now_ns > self.time_for(self.burst) {
            return false;
        }
        self.full_at_ns.store(full_at, Ordering::Relaxed);
        true
    }

    /// When the bucket is full again; later than [`Instant::ZERO`] once something was taken.
    pub fn full_at(&self) -> Instant {
        Instant::from_nanos(self.full_at_ns.load(Ordering::Relaxed))
    }

    const fn time_for(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(SECOND_NS) / self.rate_per_s
    }
}
