//! Which threads run first when there are more than processors.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};

/// Gives the calling thread the nice value `nice` (-20 runs first, 19 last; `setpriority(2)`, where Linux takes a thread
/// for a process). A value that somebody has chosen before (nice(1), `Nice=` of systemd) stays. Returns the value in
/// force.
///
/// # Errors
/// `PermissionDenied` without `CAP_SYS_NICE` or a limit that allows it (`RLIMIT_NICE`).
pub fn set_nice(nice: i32) -> io::Result<i32> {
    let chosen = getpriority_process(None)?;
    if chosen != 0 {
        return Ok(chosen);
    }
    setpriority_process(None, nice)?;
    Ok(nice)
}
