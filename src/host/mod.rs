//! This machine: what the rest of the product may know of it.
//!
//! The protocol core takes time, entropy and events as arguments; here they are read. One file per question:
//!
//! | file | question | source |
//! | --- | --- | --- |
//! | `clock` | what time is it | `CLOCK_BOOTTIME` (counts suspended time), `CLOCK_REALTIME` |
//! | `entropy` | 32 unpredictable bytes | `getrandom(2)` |
//! | `privileges` | may we administer the network; keep secrets out of core dumps | capabilities(7), `PR_SET_DUMPABLE` |
//! | `priority` | may our threads run before others | `setpriority(2)` |
//! | `cpu` | which cipher is fast here, how many cores are ours | CPU feature bits, `sched_getaffinity(2)`, cgroup |
//! | `descriptors` | how many sockets may still be opened | `getrlimit(2)`, `/proc/self/fd` |
//! | `addresses` | which addresses do the interfaces have | `getifaddrs(3)` |
//! | `changes` | what has just changed | rtnetlink(7) and nfnetlink multicast groups |
//! | `gateway` | which router leads to the internet | rtnetlink(7) |
//!
//! Left out: DNS, other systems than Linux. The one clock of the product is [`clock`]; `clippy.toml`
//! forbids every other.

pub mod addresses;
pub mod changes;
pub mod clock;
pub mod cpu;
pub mod descriptors;
pub mod entropy;
pub mod gateway;
pub mod priority;
pub mod privileges;

#[cfg(test)]
mod tests;
