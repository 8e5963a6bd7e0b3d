//! What waits for the network.
//!
//! Inside are mostly TCP connections of programs: what waits long is worth less than the sign to slow down, so the oldest
//! goes first.

use std::collections::VecDeque;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::Instant;

/// Most bytes that wait.
pub(super) const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// So much may wait for longer: a slow line has to have something to send.
pub(super) const QUEUE_BYTES_MIN: usize = 128 * 1024;
/// What has waited for this long is dropped, if there is more than [`QUEUE_BYTES_MIN`].
pub(super) const QUEUE_TIME_MAX: Duration = Duration::from_millis(200);

/// Messages in their order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    messages: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    dropped: u64,
}

impl Queue {
    /// Adds a message.
    pub(super) fn push(&mut self, now: Instant, message: Bytes) {
        self.bytes += message.len();
        self.messages.push_back((now, message));
        while self.bytes > QUEUE_BYTES_MAX && self.take().is_some() {
            self.dropped += 1;
        }
    }

    /// The next message to send.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Bytes> {
        while self.bytes > QUEUE_BYTES_MIN
            && self.messages.front().is_some_and(|(since, _)| now.duration_since(*since) > QUEUE_TIME_MAX)
        {
            self.take();
            self.dropped += 1;
        }
        self.take()
    }

    /// How many were dropped since this was last asked.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn take(&mut self) -> Option<Bytes> {
        let (_, message) = self.messages.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }
}
