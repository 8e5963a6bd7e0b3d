//! One lookup: an iterative walk towards a point of the key space (Kademlia paper §2.3).
//!
//! ```text
//! Seed(our closest contacts) ─▶ Walk(paths) ─▶ Decide(highest sequence) ─▶ WriteBack(closest that lacked it)
//!                                 │  ▲ answer: nearer contacts, perhaps a record
//!                                 └──┘ α at a time; a slow node frees its slot and may still answer
//! ```
//!
//! The walk ends when the k closest nodes that can be reached have answered. A search for a record ends sooner: with
//! the first valid one nobody new is asked, and those already asked may still bring a newer one. What cannot be
//! verified never ends a walk. A node is asked once; when it stays silent and someone else named another endpoint
//! for it, it is asked there too, so that one liar cannot hide a node behind a wrong address.
//!
//! There is one path now. The candidates live in a list of paths, so that disjoint ones can be added.

use std::collections::BTreeMap;
use std::time::Duration;

use super::table::K;
use crate::proto::identity::{ADDRESS_POSITION_BITS, Distance, NodeId, Position};
use crate::proto::timer::Instant;
use crate::proto::wire::control::{Contact, Want};
use crate::proto::wire::record::NodeRecord;

/// How many nodes are asked at once (Kademlia paper §2.3).
pub const ALPHA: usize = 3;
/// Most questions that one lookup sends, repetitions not counted.
pub const LOOKUP_RPCS_MAX: u32 = 96;
/// Longest time that a lookup takes.
pub const LOOKUP_TIME_MAX: Duration = Duration::from_secs(10);
/// Most candidates that a path remembers: the closest ones.
const CANDIDATES_MAX: usize = 128;
/// Nodes remembered that named a candidate.
const NAMED_BY_MAX: usize = 8;
/// Unanswered sendings after which the walk does not wait for a node any more.
const SILENT_TIMEOUTS: u8 = 2;

/// Names a lookup of one [`super::Dht`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LookupId(pub(super) u64);

/// One question of a lookup, for showing the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who was asked.
    pub asked: NodeId,
    /// Hops from our own table: 1 for a node that we knew.
    pub round: u32,
    /// How long the answer took; `None` when none came.
    pub answered: Option<Duration>,
    /// True when the answer had a valid record.
    pub held: bool,
    /// Number of contacts in the answer.
    pub contacts: u8,
}

/// What a lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was looked for.
    pub target: Position,
    /// The valid record with the highest sequence whose position starts with the target's first 120 bits.
    pub record: Option<NodeRecord>,
    /// The nodes closest to the target that answered, closest first, at most [`K`].
    pub closest: Vec<Contact>,
    /// Who held `record`.
    pub holders: Vec<NodeId>,
    /// Depth of the walk.
    pub rounds: u32,
    /// Questions asked, repetitions not counted.
    pub rpcs: u32,
    /// Time from start to end.
    pub elapsed: Duration,
    /// The walk in the order of asking.
    pub steps: Vec<Step>,
}

/// Whom a lookup serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The caller: it gets an event.
    Caller,
    /// The table.
    Upkeep,
    /// Our record, to be stored at the closest.
    Publish,
}

/// A lookup on its way.
#[derive(Debug)]
pub(super) struct Lookup {
    target: Position,
    want: Want,
    purpose: Purpose,
    started: Instant,
    paths: Vec<Path>,
    steps: Vec<Step>,
    record: Option<NodeRecord>,
    /// Who held a valid record, and of which sequence.
    holders: Vec<(NodeId, u64)>,
}

/// Candidates by distance, and how many of them may be asked at once.
#[derive(Debug)]
struct Path {
    candidates: BTreeMap<Distance, Candidate>,
    alpha: usize,
}

#[derive(Debug)]
struct Candidate {
    contact: Contact,
    /// Another endpoint that somebody named for the node, for the case that the first is wrong.
    alternative: Option<Contact>,
    /// Who named it, the latest last.
    named_by: Vec<NodeId>,
    round: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Asked { at: Instant, step: usize, timeouts: u8 },
    Answered,
    Failed,
}

impl Lookup {
    /// A walk that starts from `seeds`. `held` is the record that we hold ourselves: it competes, but as it may be
    /// old it does not save the walk.
    pub(super) fn new(
        now: Instant,
        target: Position,
        want: Want,
        purpose: Purpose,
        seeds: Vec<Contact>,
        held: Option<NodeRecord>,
    ) -> Self {
        let mut path = Path { candidates: BTreeMap::new(), alpha: ALPHA };
        for contact in seeds {
            path.offer(contact.node_id.position().distance(&target), contact, 1, None);
        }
        let (paths, steps, holders) = (vec![path], Vec::new(), Vec::new());
        Self { target, want, purpose, started: now, paths, steps, record: held, holders }
    }

    pub(super) const fn target(&self) -> &Position {
        &self.target
    }

    pub(super) const fn want(&self) -> Want {
        self.want
    }

    pub(super) const fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The best record so far.
    pub(super) const fn record(&self) -> Option<&NodeRecord> {
        self.record.as_ref()
    }

    /// Whom to ask next. Call [`Self::handle_asked`] or [`Self::handle_failed`] for it before calling again.
    pub(super) fn next(&self) -> Option<Contact> {
        if self.is_confirming() || self.steps.len() >= LOOKUP_RPCS_MAX as usize {
            return None;
        }
        self.paths.iter().find_map(Path::next)
    }

    /// The node was asked.
    pub(super) fn handle_asked(&mut self, now: Instant, node_id: NodeId) {
        let step = self.steps.len();
        let Some(candidate) = self.candidate(node_id) else { return };
        candidate.state = State::Asked { at: now, step, timeouts: 0 };
        let round = candidate.round;
        self.steps.push(Step { asked: node_id, round, answered: None, held: false, contacts: 0 });
    }

    /// The node answered with these contacts (not us) and, perhaps, with a record that was checked to be valid.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        from: NodeId,
        record: Option<NodeRecord>,
        contacts: &[(Position, Contact)],
    ) {
        let Some(candidate) = self.candidate(from) else { return };
        let State::Asked { at, step, .. } = candidate.state else { return };
        candidate.state = State::Answered;
        let round = candidate.round + 1;
        if let Some(step) = self.steps.get_mut(step) {
            step.answered = Some(now.saturating_since(at));
            step.held = record.is_some();
            step.contacts = u8::try_from(contacts.len()).unwrap_or(u8::MAX);
        }
        if let Some(record) = record {
            self.holders.push((from, record.content().sequence));
            if self.record.as_ref().is_none_or(|best| best.content().sequence < record.content().sequence) {
                self.record = Some(record);
            }
        }
        for (position, contact) in contacts {
            let distance = position.distance(&self.target);
            // A candidate stays on the path that has it.
            let own = self.paths.iter().position(|path| path.candidates.contains_key(&distance)).unwrap_or(0);
            self.paths[own].offer(distance, *contact, round, Some(from));
        }
    }

    /// The node did not answer in time, for the `timeouts`th time.
    pub(super) fn handle_slow(&mut self, node_id: NodeId, count: u8) {
        if let Some(Candidate { state: State::Asked { timeouts, .. }, .. }) = self.candidate(node_id) {
            *timeouts = count;
        }
    }

    /// Who named a node, the latest first.
    pub(super) fn named_by(&self, node_id: NodeId) -> Vec<Contact> {
        let find = |node_id: NodeId| {
            let distance = node_id.position().distance(&self.target);
            self.paths.iter().find_map(|path| path.candidates.get(&distance))
        };
        let named_by = find(node_id).into_iter().flat_map(|candidate| candidate.named_by.iter().rev());
        named_by.filter_map(|by| find(*by)).map(|candidate| candidate.contact).collect()
    }

    /// The node will not answer.
    pub(super) fn handle_failed(&mut self, node_id: NodeId) {
        if let Some(candidate) = self.candidate(node_id) {
            candidate.state = State::Failed;
            candidate.turn_to_alternative();
        }
    }

    /// True when nothing more is to be learnt.
    pub(super) fn is_done(&self) -> bool {
        let stopped = self.is_confirming() || self.steps.len() >= LOOKUP_RPCS_MAX as usize;
        self.paths.iter().all(|path| if stopped { path.in_flight() == 0 } else { path.is_done() })
    }

    /// True when the walk went all the way, so that the closest nodes are really the closest.
    pub(super) fn is_converged(&self) -> bool {
        self.paths.iter().all(Path::is_done)
    }

    /// The result, and the closest node that answered without having the record found.
    pub(super) fn finish(self, now: Instant) -> (Outcome, Option<Contact>) {
        let answered = self.paths.iter().flat_map(|path| &path.candidates);
        let answered = answered.filter(|(_, candidate)| candidate.state == State::Answered);
        let mut closest: Vec<_> =
            answered.map(|(distance, candidate)| (*distance, candidate.contact)).collect();
        closest.sort_unstable_by_key(|(distance, _)| *distance);
        let sequence = self.record.as_ref().map(|record| record.content().sequence);
        let is_holder = |(_, held): &&(NodeId, u64)| Some(*held) == sequence;
        let holders: Vec<_> = self.holders.iter().filter(is_holder).map(|(id, _)| *id).collect();
        let closest: Vec<_> = closest.into_iter().map(|(_, contact)| contact).take(K).collect();
        let lacking = closest.iter().find(|contact| !holders.contains(&contact.node_id)).copied();
        let outcome = Outcome {
            target: self.target,
            record: self.record,
            closest,
            holders,
            rounds: self.steps.iter().map(|step| step.round).max().unwrap_or(0),
            rpcs: u32::try_from(self.steps.len()).unwrap_or(u32::MAX),
            elapsed: now.saturating_since(self.started),
            steps: self.steps,
        };
        (outcome, lacking)
    }

    /// True from the first valid record of another node on.
    fn is_confirming(&self) -> bool {
        !self.holders.is_empty()
    }

    fn candidate(&mut self, node_id: NodeId) -> Option<&mut Candidate> {
        let distance = node_id.position().distance(&self.target);
        self.paths.iter_mut().find_map(|path| path.candidates.get_mut(&distance))
    }
}

impl Path {
    /// Takes in a contact that `by` named, or that we know ourselves.
    fn offer(&mut self, distance: Distance, contact: Contact, round: u32, by: Option<NodeId>) {
        if let Some(candidate) = self.candidates.get_mut(&distance) {
            candidate.named_by.extend(by.filter(|_| candidate.named_by.len() < NAMED_BY_MAX));
            if candidate.contact != contact && candidate.alternative.is_none() {
                candidate.alternative = Some(contact);
                if candidate.state == State::Failed {
                    candidate.turn_to_alternative();
                }
            }
            return;
        }
        let named_by = by.into_iter().collect();
        let candidate = Candidate { contact, alternative: None, named_by, round, state: State::New };
        self.candidates.insert(distance, candidate);
        if self.candidates.len() > CANDIDATES_MAX {
            let farthest = self.candidates.iter().rev().find(|(_, c)| c.state == State::New);
            if let Some(distance) = farthest.map(|(distance, _)| *distance) {
                self.candidates.remove(&distance);
            }
        }
    }

    fn next(&self) -> Option<Contact> {
        if self.in_flight() >= self.alpha {
            return None;
        }
        self.window().find(|candidate| candidate.state == State::New).map(|candidate| candidate.contact)
    }

    fn is_done(&self) -> bool {
        self.window().all(|candidate| candidate.state == State::Answered)
    }

    /// The k closest candidates for which there is hope.
    fn window(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.values().filter(|candidate| candidate.is_hopeful()).take(K)
    }

    fn in_flight(&self) -> usize {
        let asked = |c: &&Candidate| matches!(c.state, State::Asked { timeouts: 0, .. });
        self.candidates.values().filter(asked).count()
    }
}

impl Candidate {
    const fn is_hopeful(&self) -> bool {
        match self.state {
            State::New | State::Answered => true,
            State::Asked { timeouts, .. } => timeouts < SILENT_TIMEOUTS,
            State::Failed => false,
        }
    }

    /// A failed candidate gets one more chance where others say that it is.
    fn turn_to_alternative(&mut self) {
        if let Some(contact) = self.alternative.filter(|contact| *contact != self.contact) {
            (self.contact, self.state) = (contact, State::New);
        }
    }
}

/// True when `record` belongs to an address whose position prefix is `target`.
pub(super) fn matches_target(record: &NodeRecord, target: &Position) -> bool {
    record.node_id().position().distance(target).leading_zeros() >= ADDRESS_POSITION_BITS
}
