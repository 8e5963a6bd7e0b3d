//! Questions on their way: who was asked what, when to ask again, when to give up.
//!
//! ```text
//! sent ──timeout──▶ slow: sent again ──2×──▶ silent: sent again ──4×──▶ … ──▶ failed
//!   └──────answer, however late, from the node that was asked────▶ answered
//! ```
//!
//! The first timeout only frees the asker's slot for another node, so one dead node costs a lookup a few hundred
//! milliseconds, and one lost packet costs no answer. Whoever named a silent node can be asked to ask it: the answer may
//! come from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Query;
use super::lookup::LookupId;
use crate::proto::identity::{NodeId, Position};
use crate::proto::timer::{Deadlines, Instant};
use crate::proto::wire::control::{Contact, Control, Want};
use crate::proto::wire::routing::Routing;

/// How often one question is sent (RFC 8489 §6.2.1 has 7 for strangers; here a session stands below).
pub const RPC_ATTEMPTS_MAX: u8 = 4;
/// Timeout of the first sending while nothing was measured: a handshake and a question over a continent and back.
pub const RPC_TIMEOUT_FIRST: Duration = Duration::from_millis(500);
/// Shortest timeout of the first sending.
pub const RPC_TIMEOUT_MIN: Duration = Duration::from_millis(150);
/// Longest timeout of the first sending.
pub const RPC_TIMEOUT_MAX: Duration = Duration::from_secs(1);
/// Nodes that are asked to ask one that is silent.
pub(super) const FORWARDERS_MAX: usize = 6;
/// The lowest bits of a request number tell the sending, so that an answer shows the true round trip.
const ATTEMPT_MASK: u64 = 3;
/// Most questions on their way at once; more are refused.
pub const RPCS_MAX: usize = 2048;

/// Why something was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// For a lookup.
    Lookup(LookupId),
    /// To see whether a member of the table is alive.
    Liveness,
    /// To see whether a known node outside of the table is alive.
    Probe,
    /// To meet nodes of a bucket that is almost empty.
    Fill,
    /// To place our record.
    Publish,
    /// To place a record where a lookup missed it.
    WriteBack,
    /// For something that is over, or to meet a stranger; the answer only shows that the node lives.
    Nobody,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// Find.
    Find {
        /// What is wanted.
        want: Want,
        /// Where.
        target: Position,
    },
    /// Store.
    Store {
        /// Bytes of the record.
        record: Arc<[u8]>,
    },
}

impl Question {
    fn control(&self, request: u64) -> Control {
        match self {
            Self::Find { want, target } => Control::Find { request, want: *want, target: *target },
            Self::Store { record } => Control::Store { request, record: record.to_vec() },
        }
    }
}

/// A question on its way.
#[derive(Debug)]
pub(super) struct Rpc {
    pub(super) to: Contact,
    pub(super) owner: Owner,
    pub(super) question: Question,
    /// When, for each sending.
    sent: [Instant; RPC_ATTEMPTS_MAX as usize],
    timeout: Duration,
    attempts: u8,
    /// Who was asked to ask the node.
    forwarders: Vec<NodeId>,
}

/// What a passed deadline means.
#[derive(Debug)]
pub(super) enum Due {
    /// No answer yet: send this again. `timeouts` counts from 1.
    Again {
        /// To be sent.
        query: Query,
        /// Whose question.
        owner: Owner,
        /// How many sendings went unanswered.
        timeouts: u8,
    },
    /// Given up.
    Failed(Rpc),
}

/// All questions on their way.
#[derive(Debug, Default)]
pub(super) struct Rpcs {
    outstanding: BTreeMap<u64, Rpc>,
    deadlines: Deadlines<u64>,
    rtt: RoundTrip,
}

impl Rpcs {
    /// Registers a question under a fresh random number; `None` when too many are on their way.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        request: u64,
        to: Contact,
        owner: Owner,
        question: Question,
    ) -> Option<Query> {
        let request = request & !ATTEMPT_MASK;
        if self.outstanding.len() >= RPCS_MAX || self.outstanding.contains_key(&request) {
            return None;
        }
        let timeout = self.rtt.timeout();
        let query = Query { to, control: question.control(request) };
        self.deadlines.arm(request, now + timeout);
        self.outstanding.insert(
            request,
            Rpc {
                to,
                owner,
                question,
                sent: [now; RPC_ATTEMPTS_MAX as usize],
                timeout,
                attempts: 1,
                forwarders: Vec::new(),
            },
        );
        Some(query)
    }

    /// The question that `from` answers, if it was asked that: of the right kind and not answered before.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        from: NodeId,
        request: u64,
        is_store: bool,
    ) -> Option<Rpc> {
        let (request, attempt) = (request & !ATTEMPT_MASK, (request & ATTEMPT_MASK) as u8);
        let rpc = self.outstanding.get(&request)?;
        let is_kind = is_store == matches!(rpc.question, Question::Store { .. });
        let asked = rpc.to.node_id == from || rpc.forwarders.contains(&from);
        if !asked || !is_kind || attempt >= rpc.attempts {
            return None;
        }
        self.rtt.sample(now.saturating_since(rpc.sent[usize::from(attempt)]));
        self.deadlines.disarm(&request);
        self.outstanding.remove(&request)
    }

    /// Has somebody else ask the node that a question is for. `None` for questions that nobody else can ask, and when
    /// that one was asked before.
    pub(super) fn forward(&mut self, request: u64, by: Contact) -> Option<Query> {
        let rpc = self.outstanding.get_mut(&(request & !ATTEMPT_MASK))?;
        let Question::Find { want, target } = &rpc.question else { return None };
        let forward = Routing::Forward { request, to: rpc.to.node_id, want: *want, target: *target };
        if rpc.forwarders.len() >= FORWARDERS_MAX || rpc.forwarders.contains(&by.node_id) {
            return None;
        }
        rpc.forwarders.push(by.node_id);
        Some(Query { to: by, control: Control::Routing(forward) })
    }

    /// The next thing that is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        let request = self.deadlines.pop_due(now)?;
        let rpc = self.outstanding.get_mut(&request)?;
        if rpc.attempts >= rpc.attempts_max() {
            return self.outstanding.remove(&request).map(Due::Failed);
        }
        self.deadlines.arm(request, now + rpc.timeout * (1 << rpc.attempts));
        rpc.sent[usize::from(rpc.attempts)] = now;
        let query = Query { to: rpc.to, control: rpc.question.control(request | u64::from(rpc.attempts)) };
        rpc.attempts += 1;
        Some(Due::Again { query, owner: rpc.owner, timeouts: rpc.attempts - 1 })
    }

    /// Takes back all questions to a node.
    pub(super) fn fail(&mut self, node_id: NodeId) -> Vec<Rpc> {
        let requests: Vec<u64> = self.requests(|rpc| rpc.to.node_id == node_id);
        requests.iter().for_each(|request| self.deadlines.disarm(request));
        requests.iter().filter_map(|request| self.outstanding.remove(request)).collect()
    }

    /// A lookup is over: its questions are nobody's now and repeated once at most.
    pub(super) fn detach(&mut self, id: LookupId) {
        let owned = self.outstanding.values_mut().filter(|rpc| rpc.owner == Owner::Lookup(id));
        owned.for_each(|rpc| rpc.owner = Owner::Nobody);
    }

    /// True when a node is being asked something.
    pub(super) fn is_asking(&self, node_id: NodeId) -> bool {
        self.outstanding.values().any(|rpc| rpc.to.node_id == node_id)
    }

    /// The next deadline.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// Number of questions on their way.
    pub(super) fn len(&self) -> usize {
        self.outstanding.len()
    }

    fn requests(&self, wanted: impl Fn(&Rpc) -> bool) -> Vec<u64> {
        self.outstanding.iter().filter(|(_, rpc)| wanted(rpc)).map(|(request, _)| *request).collect()
    }
}

impl Rpc {
    const fn attempts_max(&self) -> u8 {
        match self.owner {
            Owner::Fill | Owner::Nobody => 2,
            // A handshake and a question, to somebody farther away than most.
            Owner::Probe => 3,
            Owner::Lookup(_) | Owner::Liveness | Owner::Publish | Owner::WriteBack => RPC_ATTEMPTS_MAX,
        }
    }
}

/// Smoothed round trip over all nodes asked (RFC 6298 §2): a measure of our access more than of theirs.
#[derive(Debug, Default)]
struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
}

impl RoundTrip {
    fn sample(&mut self, rtt: Duration) {
        match self.smoothed {
            None => (self.smoothed, self.variation) = (Some(rtt), rtt / 2),
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
    }

    fn timeout(&self) -> Duration {
        self.smoothed.map_or(RPC_TIMEOUT_FIRST, |smoothed| {
            (smoothed * 2 + self.variation * 4).clamp(RPC_TIMEOUT_MIN, RPC_TIMEOUT_MAX)
        })
    }
}
