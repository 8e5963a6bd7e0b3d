//! A kernel ping that runs on while something happens to the path.

use std::io::{BufRead, BufReader};
use std::net::Ipv6Addr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Machine, eventually};

/// `ping -6` at a fixed interval, with the time of each reply.
pub(crate) struct Pinger {
    child: Child,
    replies: Arc<Mutex<Vec<Instant>>>,
}

impl Pinger {
    /// Starts it inside a machine.
    pub(crate) fn start(machine: &Machine, to: Ipv6Addr, interval: &str) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &machine.netns, "stdbuf", "-oL", "ping", "-6", "-n", "-i", interval])
            .arg(to.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let replies = Arc::new(Mutex::new(Vec::new()));
        let (out, seen) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&replies));
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok).filter(|line| line.contains("time=")) {
                let _ = line;
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        });
        Self { child, replies }
    }

    /// Replies since `start`.
    pub(crate) fn since(&self, start: Instant) -> Vec<Instant> {
        let replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.iter().copied().filter(|&reply| reply >= start).collect()
    }

    /// How long after `start` the first reply came.
    pub(crate) fn first_after(&self, start: Instant, limit: Duration, what: &str) -> Duration {
        let (reply, _) = eventually(limit, what, || self.since(start).first().copied());
        reply - start
    }

    /// The longest silence between `start` and the newest reply.
    pub(crate) fn longest_gap(&self, start: Instant) -> Duration {
        let mut before = start;
        let mut longest = Duration::ZERO;
        for reply in self.since(start) {
            longest = longest.max(reply - before);
            before = reply;
        }
        longest
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
