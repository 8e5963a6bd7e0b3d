//! Token buckets: how often something may happen.

mod shared;

pub use shared::SharedBucket;

use crate::proto::timer::Instant;

/// A token bucket: `rate` tokens a second, at most `burst` saved up.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate_per_s: u32,
    burst: u32,
    /// Tokens in billionths, so that small steps of time are not lost.
    level_nano: u64,
    updated: Instant,
}

const NANO: u64 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket.
    pub const fn new(rate_per_s: u32, burst: u32, now: Instant) -> Self {
        Self { rate_per_s, burst, level_nano: burst as u64 * NANO, updated: now }
    }

    /// Takes one token; false when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let elapsed_ns = u64::try_from(now.saturating_since(self.updated).as_nanos()).unwrap_or(u64::MAX);
        self.updated = self.updated.max(now);
        let gained = elapsed_ns.saturating_mul(u64::from(self.rate_per_s));
        self.level_nano = self.level_nano.saturating_add(gained).min(u64::from(self.burst) * NANO);
        if self.level_nano < NANO {
            return false;
        }
        self.level_nano -= NANO;
        true
    }

    /// True when the bucket has had time to fill up again, so that forgetting it changes nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        let elapsed_ns = u64::try_from(now.saturating_since(self.updated).as_nanos()).unwrap_or(u64::MAX);
        self.level_nano.saturating_add(elapsed_ns.saturating_mul(u64::from(self.rate_per_s)))
            >= u64::from(self.burst) * NANO
    }
}

#[cfg(test)]
mod tests;
