//! Time as the machines see it, and a queue of deadlines.
//!
//! The core never reads a clock: whoever drives it passes [`Instant`]s (monotonic, suspended time included) and
//! [`WallTime`]s (calendar time, needed only where something signed carries a date).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point of monotonic time in nanoseconds since an arbitrary start (the machine's boot, a simulation's zero).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of time.
    pub const ZERO: Self = Self(0);

    /// The instant `ns` nanoseconds after the start.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`, zero when `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Calendar time in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// The moment `ms` milliseconds after the Unix epoch.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_unix_ms(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn as_unix_s(self) -> u64 {
        self.0 / 1000
    }
}

/// One deadline per key, handed out in order of time, then of key.
///
/// A key is armed at most once: arming it again moves it. Stale heap entries are skipped when they surface, and
/// the heap is rebuilt when they outnumber the live ones, so memory follows the number of armed keys.
#[derive(Debug)]
pub struct Deadlines<K> {
    armed: BTreeMap<K, Instant>,
    heap: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Ord + Copy> Default for Deadlines<K> {
    fn default() -> Self {
        Self { armed: BTreeMap::new(), heap: BinaryHeap::new() }
    }
}

impl<K: Ord + Copy> Deadlines<K> {
    /// Arms `key` for `at`, replacing an earlier deadline of the same key.
    pub fn arm(&mut self, key: K, at: Instant) {
        if self.armed.insert(key, at) == Some(at) {
            return;
        }
        self.heap.push(Reverse((at, key)));
        if self.heap.len() > 2 * self.armed.len() + 16 {
            self.heap = self.armed.iter().map(|(k, at)| Reverse((*at, *k))).collect();
        }
    }

    /// Forgets the deadline of `key`.
    pub fn disarm(&mut self, key: &K) {
        self.armed.remove(key);
    }

    /// When `key` is due, if it is armed.
    pub fn deadline(&self, key: &K) -> Option<Instant> {
        self.armed.get(key).copied()
    }

    /// The next key that is due at `now`; it is disarmed.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied() {
            if self.armed.get(&key) != Some(&at) {
                self.heap.pop();
                continue;
            }
            if at > now {
                return None;
            }
            self.heap.pop();
            self.armed.remove(&key);
            return Some(key);
        }
        None
    }

    /// The earliest deadline.
    pub fn earliest(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied() {
            if self.armed.get(&key) == Some(&at) {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }
}

#[cfg(test)]
mod tests;
