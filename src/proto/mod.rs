//! The protocol core: bytes and values in, bytes and events out.
//!
//! Nothing here reads a clock, entropy, the environment, a file or a socket, and nothing waits. State machines
//! share one shape: `handle_*` records what happened, `poll_*` hands out what follows, time is an argument.

#![forbid(unsafe_code)]

pub mod datapath;
pub mod dht;
pub mod identity;
pub mod limit;
pub mod node;
pub mod path;
pub mod policy;
pub mod portmap;
pub mod relay;
pub mod route;
pub mod session;
pub mod timer;
pub mod wire;
