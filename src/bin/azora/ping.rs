//! `azora ping`: one request for each ping; interval and statistics are ours.

use auramesh::control::exit::Exit;
use auramesh::control::message::{PathKind, PingOutcome, PingReply};
use auramesh::control::target::Target;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use crate::args::PingArguments;
use crate::output::{Fault, Outcome, print, print_json, short};
use crate::peers::path_kind;
use crate::socket::Socket;

/// Round trips kept for the median; the oldest make room.
const SAMPLES_MAX: usize = 100_000;

#[derive(Default)]
struct Tally {
    sent: u64,
    received: u64,
    rtts_ms: std::collections::VecDeque<f64>,
}

/// The last line of `--json`.
#[derive(Debug, PartialEq, Serialize)]
struct Statistics {
    sent: u64,
    received: u64,
    rtt_ms: Option<Spread>,
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
    stopped?;
    let statistics = tally.statistics();
    if arguments.format.json {
        print_json(&statistics)?;
    } else {
        print(&statistics.text())?;
        if statistics.received == 0 {
            let next = format!("try: azora probe {} tells how far it gets\n", arguments.target);
            print(&socket.hint(&next))?;
        }
    }
    Ok(if statistics.received > 0 { Exit::Ok } else { Exit::Failed })
}

async fn pings(socket: &Socket, arguments: &PingArguments, tally: &mut Tally) -> Result<(), Fault> {
    let timeout_ms = u64::try_from(arguments.timeout.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut ticks = tokio::time::interval(arguments.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for seq in 1..=arguments.count {
        ticks.tick().await;
        tally.sent += 1;
        // A connection each: the interval may be longer than an idle one may last.
        let outcome = socket.connect().await?.ping(arguments.target, timeout_ms, seq).await?;
        match &outcome {
            outcome if arguments.format.json => print_json(outcome)?,
            PingOutcome::Reply(reply) => print(&reply_line(arguments.target, reply))?,
            PingOutcome::Lost(loss) => {
                print(&socket.hint(&format!("no reply to {}: {}\n", loss.seq, loss.lost)))?
            }
        }
        if let PingOutcome::Reply(reply) = outcome {
            tally.add(&reply);
            if arguments.until_direct && reply.path == PathKind::Direct {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn reply_line(target: Target, reply: &PingReply) -> String {
    let elsewhere = target.endpoint().filter(|given| reply.endpoint != Some(*given));
    let elsewhere = elsewhere.map(|given| format!(", not at the given {given}")).unwrap_or_default();
    let endpoint = reply.endpoint.map(|endpoint| format!(" {endpoint}")).unwrap_or_default();
    format!(
        "reply from {} ({}): {}{endpoint} {:.3} ms{elsewhere}\n",
        reply.node_id.address(),
        short(&reply.node_id),
        path_kind(reply.path),
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
        Statistics { sent: self.sent, received: self.received, rtt_ms }
    }
}

impl Statistics {
    fn text(&self) -> String {
        let lost = 100 * (self.sent - self.received) / self.sent.max(1);
        let rtt = self
            .rtt_ms
            .as_ref()
            .map(|rtt| format!(", rtt min/p50/max {:.3}/{:.3}/{:.3} ms", rtt.min, rtt.p50, rtt.max));
        format!("{} sent, {} received, {lost}% lost{}\n", self.sent, self.received, rtt.unwrap_or_default())
    }
}
