//! `azora trace`: who carries packets on their way to a node, and how long each takes to answer.

use std::time::Duration;

use futures_util::future::join_all;

use crate::control::message::{Failure, TraceHop, TraceReport};
use crate::control::target::Target;
use crate::engine::{AskError, Handle};
use crate::proto::identity::NodeId;
use crate::proto::node::{PingFailure, PingReply};

use super::probe::{self, node_target};
use super::status::ms;

/// How long the target may take to answer: a search for a route and a handshake.
const TARGET_PATIENCE: Duration = Duration::from_secs(8);
/// How long a relay may take.
const RELAY_PATIENCE: Duration = Duration::from_secs(2);
/// Questions to one relay: one may get lost.
const ATTEMPTS: usize = 2;

/// Measures the present path to `target`.
pub(super) async fn trace(handle: &Handle, target: Target) -> Result<TraceReport, Failure> {
    let stopped = |error: AskError| Failure::new(error.to_string(), "look at the daemon's log");
    let lost =
        |why: String| TraceReport { target, node_id: None, hops: Vec::new(), lost: Some(why), fix: None };
    // The second answer comes by the path that the first one has found.
    let mut reply = Err(AskError::Stopped);
    for _ in 0..ATTEMPTS {
        reply = handle.ping(node_target(target), TARGET_PATIENCE).await;
        if reply.is_err() {
            break;
        }
    }
    let reply = match reply {
        Ok(reply) => reply,
        Err(AskError::Ping(PingFailure::Ourselves)) => {
            return Err(Failure::new(probe::OURSELVES, "trace another node; azora peers lists them"));
        }
        Err(error @ AskError::Stopped) => return Err(stopped(error)),
        Err(AskError::Ping(PingFailure::Unheard)) => return Ok(lost(probe::UNHEARD.into())),
        Err(AskError::Ping(PingFailure::NotFound)) => return Ok(lost(probe::NOT_FOUND.into())),
        Err(error) => return Ok(lost(error.to_string())),
    };
    let relays: Vec<NodeId> = reply.via.into_iter().chain(reply.beyond.iter().copied()).collect();
    let asked = relays.iter().enumerate().map(|(n, relay)| relay_hop(handle, &reply, *relay, n));
    let mut hops = join_all(asked).await;
    hops.push(TraceHop {
        node_id: reply.node_id,
        address: reply.node_id.address(),
        endpoint: relays.is_empty().then_some(reply.endpoint),
        relay: false,
        rtt_ms: Some(ms(reply.rtt)),
    });
    Ok(TraceReport { target, node_id: Some(reply.node_id), hops, lost: None, fix: None })
}

/// One relay, asked by way of those before it.
async fn relay_hop(handle: &Handle, reply: &PingReply, relay: NodeId, n: usize) -> TraceHop {
    let mut rtt_ms = None;
    for _ in 0..ATTEMPTS {
        let answer = handle.trace(reply.node_id, n as u8, RELAY_PATIENCE).await;
        rtt_ms = answer.ok().filter(|answer| answer.node_id == relay).map(|answer| ms(answer.rtt));
        if rtt_ms.is_some() {
            break;
        }
    }
    let endpoint = (n == 0).then_some(reply.endpoint);
    TraceHop { node_id: relay, address: relay.address(), endpoint, relay: true, rtt_ms }
}
