//! The one clock.
//!
//! Monotonic time is `CLOCK_BOOTTIME`: like `CLOCK_MONOTONIC`, but it runs on while the machine sleeps, so that a
//! laptop that wakes up knows that its sessions are too old (clock_gettime(2)).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::proto::timer::{Instant, WallTime};

/// Monotonic time since boot, suspended time included.
pub fn now() -> Instant {
    Instant::from_nanos(u64::try_from(read(ClockId::CLOCK_BOOTTIME).as_nanos()).unwrap_or(u64::MAX))
}

/// Calendar time as the machine believes it; the epoch itself when its clock stands before 1970.
pub fn wall() -> WallTime {
    WallTime::from_unix_ms(u64::try_from(read(ClockId::CLOCK_REALTIME).as_millis()).unwrap_or(u64::MAX))
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock).expect("Linux has had both clocks since 2.6.39");
    let (seconds, nanoseconds) = (time.tv_sec(), time.tv_nsec());
    Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanoseconds).unwrap_or(0))
}
