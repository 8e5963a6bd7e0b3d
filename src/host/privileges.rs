//! What this process may do, and keeping its secrets out of dumps.

use std::{fs, io};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Bit of `CAP_NET_ADMIN` in a capability set (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// True when the process holds `CAP_NET_ADMIN`: it may create interfaces, routes and nftables rules.
///
/// False also when `/proc` cannot be read.
pub fn can_administer_network() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| effective(&status, CAP_NET_ADMIN))
}

/// Whether the `CapEff:` line of a `/proc/PID/status` has the bit.
pub(super) fn effective(status: &str, capability: u32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set >> capability & 1 == 1)
}

/// Keeps keys out of core dumps and away from debuggers of the same user: no dump (`PR_SET_DUMPABLE` 0,
/// `RLIMIT_CORE` 0). Children inherit the limit.
///
/// # Errors
/// When the kernel refuses either.
pub fn harden() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}
