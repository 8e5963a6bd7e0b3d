//! How many files and sockets may still be opened.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

/// The open ones of this process (proc_pid_fd(5)).
const OPEN: &str = "/proc/self/fd";

/// Descriptors that the process may still open (`RLIMIT_NOFILE`, getrlimit(2)). None, when nobody can tell.
pub fn free() -> usize {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let Ok(open) = fs::read_dir(OPEN).map(Iterator::count) else { return 0 };
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(open)
}
