//! Which threads run first when there are more than processors.

use std::{fs, io};

use nix::unistd::{getpid, getsid};
use rustix::process::{getpriority_process, setpriority_process};

/// Nice value of the whole session against other sessions (sched(7), "The autogroup feature").
const AUTOGROUP: &str = "/proc/self/autogroup";

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

/// Gives the session that this process leads, as a service of its own does, the nice value `nice` against all other
/// sessions, where the kernel divides the processors among sessions first: the values of threads count only inside of
/// one. In a session that somebody else leads, other programs run too: then nothing is changed, and neither is a value
/// that somebody has chosen before.
///
/// # Errors
/// As [`set_nice`].
pub fn set_session_nice(nice: i32) -> io::Result<()> {
    // In a PID namespace whose session began outside of it, the session is 0, which is nobody's process ID here
    // (pid_namespaces(7)).
    if getsid(None)? != getpid() {
        return Ok(());
    }
    match fs::read_to_string(AUTOGROUP) {
        Ok(group) if group.trim_end().ends_with(" nice 0") => fs::write(AUTOGROUP, nice.to_string()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
