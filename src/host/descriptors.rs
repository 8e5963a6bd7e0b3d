//! How many files and sockets may still be opened.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use super::clock;
use crate::proto::timer::Instant;

/// The open ones of this process (proc_pid_fd(5)).
const OPEN: &str = "/proc/self/fd";
/// Between two lines in the log about connections of one kind that cannot be accepted.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// Descriptors that the process may still open (`RLIMIT_NOFILE`, getrlimit(2)). None, when nobody can tell.
pub fn free() -> usize {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let Ok(open) = fs::read_dir(OPEN).map(Iterator::count) else { return 0 };
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(open)
}

/// Tells the log that connections cannot be accepted, which mostly is for want of descriptors: once in a while, since
/// whoever accepts tries again at once.
#[derive(Debug, Default)]
pub struct Complaint {
    last: Option<Instant>,
}

impl Complaint {
    /// One more could not be accepted: `what`, with its article.
    pub fn tell(&mut self, error: &io::Error, what: &str) {
        if self.is_due(clock::now()) {
            tracing::warn!(
                %error,
                fix = "close what keeps connections to it open; LimitNOFILE= in the unit, or `ulimit -n`, allows more",
                "cannot accept {what}"
            );
        }
    }

    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.last.is_none_or(|last| now.saturating_since(last) >= COMPLAINT_PAUSE);
        if due {
            self.last = Some(now);
        }
        due
    }
}
