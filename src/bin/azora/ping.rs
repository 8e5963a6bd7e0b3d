//! `azora ping`: one request for each ping; interval and statistics are ours.

use auramesh::control::exit::Exit;
use auramesh::control::message::{Cause, PathKind, PingOutcome, PingReply};
use auramesh::control::target::Target;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::args::PingArguments;
use crate::output::{Fault, Outcome, print, print_json, short};
use crate::peers::{no_data, path_kind};
use crate::socket::Socket;

/// Round trips kept for the median; the oldest make room.
const SAMPLES_MAX: usize = 100_000;
/// Pings that are sent unless the user says how many.
const COUNT: u64 = 5;
/// And while a direct path is waited for: to guess the port of a symmetric NAT takes seconds.
const COUNT_UNTIL_DIRECT: u64 = 20;

#[derive(Default)]
struct Tally {
    sent: u64,
    received: u64,
    rtts_ms: std::collections::VecDeque<f64>,
    /// Seconds until the first reply over a direct path.
    direct_after_s: Option<f64>,
    /// Why the last reply came through a relay.
    why_relayed: Option<Cause>,
    /// What to do about the last ping that was lost.
    fix: Option<String>,
}

/// The last line of `--json`.
#[derive(Debug, PartialEq, Serialize)]
struct Statistics {
    sent: u64,
    received: u64,
    rtt_ms: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_after_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_relayed: Option<Cause>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Spread {
    min: f64,
    p50: f64,
    max: f64,
}

pub(crate) async fn run(socket: &Socket, arguments: &PingArguments) -> Outcome {
    let mut tally = Tally::default();
    let stopped = tokio::select! {
        stopped = pings(socket, arguments, &mut tally) => stopped,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    if tally.sent <= 1 {
        stopped.clone()?;
    }
    let fix = tally.fix.take();
    let statistics = tally.statistics();
    let wanted =
        if arguments.until_direct { statistics.direct_after_s.is_some() } else { statistics.received > 0 };
    if arguments.format.json {
        print_json(&statistics)?;
        stopped?;
    } else {
        print(&statistics.text())?;
        print(&socket.hint(&statistics.path_text()))?;
        stopped?;
        if statistics.received == 0 {
            let probe = || format!("azora probe {} tells how far it gets", arguments.target);
            print(&socket.hint(&format!("try: {}\n", fix.unwrap_or_else(probe))))?;
        }
    }
    Ok(if wanted { Exit::Ok } else { Exit::Failed })
}

async fn pings(socket: &Socket, arguments: &PingArguments, tally: &mut Tally) -> Result<(), Fault> {
    let timeout_ms = u64::try_from(arguments.timeout.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut ticks = tokio::time::interval(arguments.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let count = arguments.count.unwrap_or(if arguments.until_direct { COUNT_UNTIL_DIRECT } else { COUNT });
    let start = Instant::now();
    for seq in 1..=count {
        ticks.tick().await;
        tally.sent += 1;
        let seek = arguments.until_direct && seq == 1;
        // A connection each: the interval may be longer than an idle one may last.
        let outcome = socket.connect().await?.ping(arguments.target, timeout_ms, seq, seek).await?;
        match &outcome {
            outcome if arguments.format.json => print_json(outcome)?,
            PingOutcome::Reply(reply) => print(&reply_line(arguments.target, reply))?,
            PingOutcome::Lost(loss) => {
                print(&socket.hint(&format!("no reply to {}: {}\n", loss.seq, loss.lost)))?
            }
        }
        let reply = match outcome {
            PingOutcome::Reply(reply) => reply,
            PingOutcome::Lost(loss) => {
                tally.fix = loss.fix;
                continue;
            }
        };
        tally.add(&reply);
        tally.why_relayed = reply.why_relayed;
        if arguments.until_direct && reply.path == PathKind::Direct {
            tally.direct_after_s = Some((start.elapsed().as_secs_f64() * 1e3).round() / 1e3);
            return Ok(());
        }
    }
    Ok(())
}

fn reply_line(target: Target, reply: &PingReply) -> String {
    let elsewhere = target.endpoint().filter(|given| reply.endpoint != Some(*given));
    let elsewhere = elsewhere.map(|given| format!(", not at the given {given}")).unwrap_or_default();
    let tcp = if reply.tcp { " tcp" } else { "" };
    let endpoint = reply.endpoint.map(|endpoint| format!("{tcp} {endpoint}")).unwrap_or_default();
    format!(
        "reply from {} ({}): {}{endpoint}{} {:.3} ms{elsewhere}\n",
        reply.node_id.address(),
        short(&reply.node_id),
        path_kind(reply.path),
        no_data(reply.no_data),
        reply.rtt_ms
    )
}

impl Tally {
    fn add(&mut self, reply: &PingReply) {
        self.received += 1;
        if self.rtts_ms.len() == SAMPLES_MAX {
            self.rtts_ms.pop_front();
        }
        self.rtts_ms.push_back(reply.rtt_ms);
    }

    fn statistics(self) -> Statistics {
        let mut sorted = Vec::from(self.rtts_ms);
        sorted.sort_by(f64::total_cmp);
        let rtt_ms = match sorted.as_slice() {
            [] => None,
            [min, ..] => {
                Some(Spread { min: *min, p50: sorted[(sorted.len() - 1) / 2], max: sorted[sorted.len() - 1] })
            }
        };
        Statistics {
            sent: self.sent,
            received: self.received,
            rtt_ms,
            direct_after_s: self.direct_after_s,
            why_relayed: self.why_relayed,
        }
    }
}

impl Statistics {
    /// How long a direct path took, or why there is none.
    fn path_text(&self) -> String {
        if let Some(seconds) = self.direct_after_s {
            return format!("direct after {seconds:.1} s\n");
        }
        let Some(Cause { text, fix }) = &self.why_relayed else { return String::new() };
        format!("through a relay: {text}\n  try: {fix}\n")
    }

    fn text(&self) -> String {
        let lost = 100 * (self.sent - self.received) / self.sent.max(1);
        let rtt = self
            .rtt_ms
            .as_ref()
            .map(|rtt| format!(", rtt min/p50/max {:.3}/{:.3}/{:.3} ms", rtt.min, rtt.p50, rtt.max));
        format!("{} sent, {} received, {lost}% lost{}\n", self.sent, self.received, rtt.unwrap_or_default())
    }
}
