//! The local API between the daemon and programs on the same machine: JSON lines over a unix socket.
//!
//! ```text
//! client                              daemon
//!   {"command":"ping","target":…} \n  ──►   one line, one request
//!                      ◄──  {"ok":{…}} \n   or {"error":{"message":…,"next_step":…}} \n
//! ```
//!
//! Requests of one connection are answered in order; a client that wants two things at once connects twice. Whoever
//! can open the socket (owner and group, mode 0660) may read; only root and the daemon's own user may change
//! anything, or name a place that is sent to, by the credentials that the kernel attests for the connection. A line
//! that is not a JSON object gets no answer at all, so that a browser tricked into talking to the socket learns
//! nothing.
//!
//! What is deliberately not here: what the answers say. The daemon implements [`server::Handler`].

use std::time::Duration;

pub mod client;
pub mod exit;
pub mod hint;
pub mod message;
pub mod metrics;
pub mod server;
pub mod target;
mod text;

/// Longest request in bytes, newline included.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest answer in bytes, newline included: a status with about 20,000 peers.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// Connections served at once. When all are taken the one idle for longest is closed for a new one.
pub const CONNECTIONS_MAX: usize = 64;
/// Of them those that only root and the daemon's own user can have.
pub const CONNECTIONS_KEPT: usize = 8;
/// Connections that wait for a place; more are closed at once, and as many as are kept of those who have these.
pub const CONNECTIONS_WAITING_MAX: usize = 64;
/// How long a connection may take for the next whole request line.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to accept an answer.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause in accepting when the system has no more descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long an ordinary request may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lookup or a probe may take.
pub const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest ping timeout that is accepted.
pub const PING_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Longest single wait for readiness; the client asks again.
pub const WAIT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// What the server adds to a timeout that the request names.
pub const ANSWER_SLACK: Duration = Duration::from_secs(2);

/// A number and what is counted: `1 contact`, `2 contacts`.
pub fn counted(number: impl Into<u64>, thing: &str) -> String {
    let number = number.into();
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
