//! The replay window: which counters of the last 8192 have been seen (RFC 6479, RFC 4303 §3.4.3).
//!
//! ```text
//! counter    lap (32 bits) ‖ slot (8 bits) ‖ bit (5 bits)
//! slots[256] lap (32 bits) ‖ seen (32 bits)
//! ```
//!
//! A slot names the lap that its bits belong to, so a newer counter replaces slot and bits in one atomic step and
//! nothing has to be cleared. Whatever the number of threads, a counter is accepted once. The newest slot replaces the
//! oldest as a whole: of the window, up to 31 counters at the old end are refused.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that the window covers.
pub const WINDOW_LEN: u64 = 8192;

const BITS_PER_SLOT: u64 = 32;
const SLOTS: usize = (WINDOW_LEN / BITS_PER_SLOT) as usize;

/// The window. Counters must stay below 2^45.
pub struct ReplayWindow {
    /// The greatest counter seen, plus one.
    next: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

/// What a counter was when it was marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Greater than every counter before.
    pub newest: bool,
    /// The first counter ever.
    pub first: bool,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl ReplayWindow {
    /// True when the counter was not seen and is not too old. For the look before decryption.
    pub fn is_fresh(&self, counter: u64) -> bool {
        let (slot, lap, bit) = locate(counter);
        let seen = self.slots[slot].load(Ordering::Relaxed);
        !self.is_too_old(counter) && (seen >> 32 < lap || (seen >> 32 == lap && seen & bit == 0))
    }

    /// Marks a counter whose packet was authentic; `None` when it is seen for the second time or too old.
    pub fn mark(&self, counter: u64) -> Option<Marked> {
        if self.is_too_old(counter) {
            return None;
        }
        let (slot, lap, bit) = locate(counter);
        self.slots[slot]
            .try_update(Ordering::AcqRel, Ordering::Acquire, |seen| match seen >> 32 {
                seen_lap if seen_lap < lap => Some(lap << 32 | bit),
                seen_lap if seen_lap == lap && seen & bit == 0 => Some(seen | bit),
                _ => None,
            })
            .ok()?;
        let next = self.next.fetch_max(counter + 1, Ordering::AcqRel);
        Some(Marked { newest: counter >= next, first: next == 0 })
    }

    /// The greatest counter seen, plus one.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn is_too_old(&self, counter: u64) -> bool {
        counter + WINDOW_LEN < self.next.load(Ordering::Relaxed)
    }
}

/// Slot, lap and bit of a counter.
const fn locate(counter: u64) -> (usize, u64, u64) {
    let block = counter / BITS_PER_SLOT;
    ((block % SLOTS as u64) as usize, block / SLOTS as u64, 1 << (counter % BITS_PER_SLOT))
}
