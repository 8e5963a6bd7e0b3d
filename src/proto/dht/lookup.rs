//! One lookup: an iterative walk towards a point of the key space (Kademlia paper §2.3), along disjoint paths
//! (S/Kademlia paper §4.4).
//!
//! ```text
//! Seed(split between the paths) ─▶ Walk(paths) ─▶ Region ─▶ Decide(highest sequence) ─▶ WriteBack(closest that lacked it)
//!                                   │  ▲ answer: nearer contacts for that path only, perhaps a record
//!                                   └──┘ a slow node frees its slot and may still answer
//! ```
//!
//! A node is asked on one path only, the first that comes to it, and whom it names is followed on that path only: liars
//! lead those astray that meet them. No path has more than its share of the questions. When half of them know nobody
//! nearer, everybody of the region is asked, wherever he was named: at least the k closest, and all that are as near as
//! the k closest of an honest network would be, so that keys made to stand nearer than all others cannot hide those. The
//! closest and any other are asked in turn: of a region that is full of liars, who is asked cannot be foreseen.
//!
//! A search for a record ends with the first valid one: nobody new is asked, and those already asked may still bring a
//! newer one. When there was none, more paths start from nodes farther away. What cannot be verified never ends a walk. A
//! node is asked once; when it stays silent and someone else named another endpoint for it, it is asked there too, so
//! that one liar cannot hide a node behind a wrong address.

use std::collections::BTreeMap;
use std::time::Duration;

use super::region::{DEPTHS, depth};
use super::table::K;
use crate::proto::identity::{ADDRESS_POSITION_BITS, Distance, NodeId, Position};
use crate::proto::timer::Instant;
use crate::proto::wire::control::{Contact, Want};
use crate::proto::wire::record::NodeRecord;

/// How many nodes are asked at once (Kademlia paper §2.3) on the only path of a lookup for the table.
pub const ALPHA: usize = 3;
/// Disjoint paths of a search, each with one node asked at once: of a network with liars, more paths find more than more
/// nodes asked on one.
pub const PATHS: usize = 4;
/// Disjoint paths of a search that has found nothing with fewer, and to place our record.
pub const PATHS_MAX: usize = 8;
/// Most questions that one lookup sends, repetitions not counted.
pub const LOOKUP_RPCS_MAX: u32 = 96;
/// Longest time that a lookup takes.
pub const LOOKUP_TIME_MAX: Duration = Duration::from_secs(10);
/// Most candidates that were named on one path alone, over all paths: the closest ones of each. Those that several paths
/// have are as many again at most.
const CANDIDATES_MAX: usize = 256;
/// Part of all questions that several paths may use up between them; the others are for the region.
const WALK_PERCENT: usize = 60;
/// The closest candidates of a path that must have answered before it ends, where there are several paths.
const PATH_WINDOW_MIN: usize = 3;
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

impl Outcome {
    /// True when somebody answered.
    pub fn is_heard(&self) -> bool {
        self.steps.iter().any(|step| step.answered.is_some())
    }
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

impl Purpose {
    /// Paths to start with, and nodes asked at once on each.
    const fn breadth(self) -> (usize, usize) {
        match self {
            Self::Caller => (PATHS, 1),
            Self::Upkeep => (1, ALPHA),
            Self::Publish => (PATHS_MAX, 1),
        }
    }
}

/// A lookup on its way.
#[derive(Debug)]
pub(super) struct Lookup {
    target: Position,
    want: Want,
    purpose: Purpose,
    started: Instant,
    candidates: BTreeMap<Distance, Candidate>,
    paths: usize,
    /// Questions that each path has asked.
    asked: [usize; PATHS_MAX],
    /// How many nodes are asked at once on each path.
    alpha: usize,
    /// Whoever is nearer belongs to the region.
    region: Distance,
    /// Nodes asked for standing in the region, not on a path.
    region_asked: usize,
    /// What those of a region that are asked next are drawn by: nobody else knows it.
    salt: u64,
    steps: Vec<Step>,
    record: Option<NodeRecord>,
    /// Who held a valid record, and of which sequence.
    holders: Vec<(NodeId, u64)>,
}

/// The closest candidates of a path or the region that must have answered before it ends.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch<'c> {
    /// Those for which there is hope.
    hopeful: usize,
    /// Not all of them have answered.
    is_open: bool,
    /// The closest that was not asked.
    next: Option<&'c Candidate>,
    /// Of a path, questions on their way that are not slow.
    in_flight: usize,
}

/// How far a lookup is.
struct Survey<'c> {
    paths: [Stretch<'c>; PATHS_MAX],
    region: Stretch<'c>,
    /// Of each depth of the region, any that was not asked.
    drawn: [Option<&'c Candidate>; DEPTHS],
}

#[derive(Debug)]
struct Candidate {
    contact: Contact,
    /// The paths on which it was named, a bit each; once it is asked, the one that asked it.
    paths: u8,
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
    /// A walk that starts from `seeds`, to all that are nearer than `region`, at least the k closest. `held` is the record
    /// that we hold ourselves: it competes, but as it may be old it does not save the walk. `salt` is random.
    #[expect(clippy::too_many_arguments, reason = "each is known to the caller alone")]
    pub(super) fn new(
        now: Instant,
        target: Position,
        want: Want,
        purpose: Purpose,
        seeds: Vec<Contact>,
        region: Distance,
        held: Option<NodeRecord>,
        salt: u64,
    ) -> Self {
        let (paths, alpha) = purpose.breadth();
        let mut lookup = Self {
            target,
            want,
            purpose,
            started: now,
            candidates: BTreeMap::new(),
            paths,
            asked: [0; PATHS_MAX],
            alpha,
            region,
            region_asked: 0,
            salt,
            steps: Vec::new(),
            record: held,
            holders: Vec::new(),
        };
        lookup.seed(0, seeds);
        lookup
    }

    /// One that asks nobody.
    pub(super) fn refused(now: Instant, target: Position, want: Want) -> Self {
        Self::new(now, target, want, Purpose::Caller, Vec::new(), Distance([0; 32]), None, 0)
    }

    /// Shares seeds out between the paths from `first` on, those next to each other to different ones.
    fn seed(&mut self, first: usize, seeds: Vec<Contact>) {
        let fresh = self.paths - first;
        for (i, contact) in seeds.into_iter().enumerate() {
            let distance = contact.node_id.position().distance(&self.target);
            self.offer(first + i % fresh, distance, contact, 1, None);
        }
    }

    /// True when a search found nothing on as many paths as it began with.
    pub(super) fn may_widen(&self) -> bool {
        let is_search = self.purpose == Purpose::Caller && self.want == Want::Record;
        is_search && self.paths < PATHS_MAX && self.holders.is_empty()
    }

    /// Adds paths that start from `seeds`, of which those are left out that are known to a path already.
    pub(super) fn widen(&mut self, seeds: Vec<Contact>) {
        let first = self.paths;
        self.paths = PATHS_MAX;
        let known = |contact: &Contact| {
            self.candidates.contains_key(&contact.node_id.position().distance(&self.target))
        };
        let fresh: Vec<_> = seeds.into_iter().filter(|contact| !known(contact)).collect();
        self.seed(first, fresh);
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

    /// Whoever is nearer to the target belongs to its region.
    pub(super) const fn region(&self) -> &Distance {
        &self.region
    }

    /// Whom to ask next. Call [`Self::handle_asked`] or [`Self::handle_failed`] for it before calling again.
    pub(super) fn next(&mut self) -> Option<Contact> {
        if self.is_confirming() || self.steps.len() >= LOOKUP_RPCS_MAX as usize {
            return None;
        }
        let Survey { paths, region, drawn } = self.survey();
        let paths = &paths[..self.paths];
        let ready = |path: &&Stretch<'_>| path.in_flight < self.alpha;
        if let Some(next) = paths.iter().filter(ready).find_map(|path| path.next) {
            return Some(next.contact);
        }
        let in_flight: usize = paths.iter().map(|path| path.in_flight).sum();
        let walking = paths.iter().filter(|path| path.next.is_some()).count();
        if walking * 2 > self.paths || in_flight >= self.alpha * self.paths {
            return None;
        }
        // The closest and any other of the region in turn, the others of each depth in turn.
        let turn = self.region_asked / 2;
        let other = (turn..turn + DEPTHS).find_map(|depth| drawn[depth % DEPTHS]);
        let chosen = if self.region_asked.is_multiple_of(2) { region.next } else { other.or(region.next) };
        let contact = chosen?.contact;
        self.region_asked += 1;
        Some(contact)
    }

    /// How far the paths and the region are, in one pass.
    fn survey(&self) -> Survey<'_> {
        let width = K.div_ceil(self.paths).max(PATH_WINDOW_MIN);
        let mut survey = Survey {
            paths: [Stretch::default(); PATHS_MAX],
            region: Stretch::default(),
            drawn: [None; DEPTHS],
        };
        for (distance, candidate) in &self.candidates {
            let is_asked = matches!(candidate.state, State::Asked { timeouts: 0, .. });
            let is_hopeful = candidate.is_hopeful();
            for (number, path) in survey.paths[..self.paths].iter_mut().enumerate() {
                if candidate.paths >> number & 1 == 1 {
                    path.in_flight += usize::from(is_asked);
                    if is_hopeful && path.hopeful < width {
                        path.add(candidate);
                    }
                }
            }
            if is_hopeful && (survey.region.hopeful < K || *distance < self.region) {
                survey.region.add(candidate);
                let drawn = &mut survey.drawn[depth(distance, &self.region)];
                let other = drawn.map(|other| self.draw(&other.distance(&self.target)));
                if candidate.state == State::New && other.is_none_or(|other| self.draw(distance) < other) {
                    *drawn = Some(candidate);
                }
            }
        }
        for (path, asked) in survey.paths.iter_mut().zip(self.asked) {
            if asked >= self.share() {
                (path.next, path.is_open) = (None, false);
            }
        }
        survey
    }

    /// Questions that one path may ask.
    const fn share(&self) -> usize {
        match self.paths {
            1 => LOOKUP_RPCS_MAX as usize,
            paths => LOOKUP_RPCS_MAX as usize * WALK_PERCENT / 100 / paths,
        }
    }

    /// Puts candidates into an order that nobody can foresee.
    fn draw(&self, distance: &Distance) -> u64 {
        let mut tail = [0; 8];
        tail.copy_from_slice(&distance.0[24..]);
        // The second half of a SplitMix64 step: by XOR alone, keys could be made to come before a certain one.
        let mixed = (u64::from_be_bytes(tail) ^ self.salt).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) ^ mixed >> 31
    }

    /// The node was asked, on the path that has asked least of those that it was named on.
    pub(super) fn handle_asked(&mut self, now: Instant, node_id: NodeId) {
        let step = self.steps.len();
        let asked = self.asked;
        let Some(candidate) = self.candidate(node_id) else { return };
        let named = (0..PATHS_MAX).filter(|path| candidate.paths >> path & 1 == 1);
        let path = named.min_by_key(|path| asked[*path]).unwrap_or(0);
        (candidate.paths, candidate.state) = (1 << path, State::Asked { at: now, step, timeouts: 0 });
        let round = candidate.round;
        self.asked[path] += 1;
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
        let (path, round) = (candidate.path(), candidate.round + 1);
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
            self.offer(path, position.distance(&self.target), *contact, round, Some(from));
        }
        self.trim(path);
    }

    /// The node did not answer in time, for the `timeouts`th time.
    pub(super) fn handle_slow(&mut self, node_id: NodeId, count: u8) {
        if let Some(Candidate { state: State::Asked { timeouts, .. }, .. }) = self.candidate(node_id) {
            *timeouts = count;
        }
    }

    /// Who named a node, the latest first.
    pub(super) fn named_by(&self, node_id: NodeId) -> Vec<Contact> {
        let find = |node_id: NodeId| self.candidates.get(&node_id.position().distance(&self.target));
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
        match stopped {
            true => self.survey().paths.iter().all(|path| path.in_flight == 0),
            false => self.is_converged(),
        }
    }

    /// True when the walk went all the way, so that the closest nodes are really the closest.
    pub(super) fn is_converged(&self) -> bool {
        let Survey { paths, region, .. } = self.survey();
        paths.iter().chain([&region]).all(|stretch| !stretch.is_open)
    }

    /// The result; those of the region that answered, closest first; and the closest of them without the record found.
    pub(super) fn finish(self, now: Instant) -> (Outcome, Vec<Contact>, Option<Contact>) {
        let answered = self.candidates.iter().filter(|(_, candidate)| candidate.state == State::Answered);
        let within = answered.enumerate().take_while(|(i, (distance, _))| *i < K || **distance < self.region);
        let region: Vec<_> = within.map(|(_, (_, candidate))| candidate.contact).collect();
        let sequence = self.record.as_ref().map(|record| record.content().sequence);
        let is_holder = |(_, held): &&(NodeId, u64)| Some(*held) == sequence;
        let holders: Vec<_> = self.holders.iter().filter(is_holder).map(|(id, _)| *id).collect();
        let closest: Vec<_> = region.iter().take(K).copied().collect();
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
        (outcome, region, lacking)
    }

    /// True from the first valid record of another node on.
    fn is_confirming(&self) -> bool {
        !self.holders.is_empty()
    }

    fn candidate(&mut self, node_id: NodeId) -> Option<&mut Candidate> {
        self.candidates.get_mut(&node_id.position().distance(&self.target))
    }

    /// Takes in a contact that `by` named on a path, or that we know ourselves. Who names others first does not get them.
    fn offer(&mut self, path: usize, distance: Distance, contact: Contact, round: u32, by: Option<NodeId>) {
        if let Some(candidate) = self.candidates.get_mut(&distance) {
            candidate.named_by.extend(by.filter(|_| candidate.named_by.len() < NAMED_BY_MAX));
            if candidate.contact != contact && candidate.alternative.is_none() {
                candidate.alternative = Some(contact);
                if candidate.state == State::Failed {
                    candidate.turn_to_alternative();
                }
            }
            if candidate.state == State::New {
                candidate.paths |= 1 << path;
            }
            return;
        }
        if self.candidates.len() < 2 * CANDIDATES_MAX {
            let (named_by, paths) = (by.into_iter().collect(), 1 << path);
            let candidate =
                Candidate { contact, paths, alternative: None, named_by, round, state: State::New };
            self.candidates.insert(distance, candidate);
        }
    }

    /// Forgets of those whom one path alone has what is beyond its share: the farthest, but inside of the region where most
    /// are crowded.
    fn trim(&mut self, path: usize) {
        let is_own = |candidate: &Candidate| candidate.paths == 1 << path && candidate.state == State::New;
        let own = self.candidates.iter().filter(|(_, candidate)| is_own(candidate));
        let mut own: Vec<Distance> = own.map(|(distance, _)| *distance).collect();
        let beyond = own.len().saturating_sub(CANDIDATES_MAX / self.paths);
        if beyond == 0 {
            return;
        }
        let inside = own.partition_point(|distance| *distance < self.region);
        let mut forgotten = own.split_off(inside.max(own.len() - beyond));
        let mut by_depth: [Vec<Distance>; DEPTHS] = Default::default();
        own.sort_unstable_by_key(|distance| self.draw(distance));
        own.into_iter().for_each(|distance| by_depth[depth(&distance, &self.region)].push(distance));
        while forgotten.len() < beyond {
            forgotten.extend(by_depth.iter_mut().max_by_key(|crowd| crowd.len()).and_then(Vec::pop));
        }
        forgotten.iter().for_each(|distance| drop(self.candidates.remove(distance)));
    }
}

impl<'c> Stretch<'c> {
    /// Counts a candidate for which there is hope.
    fn add(&mut self, candidate: &'c Candidate) {
        self.hopeful += 1;
        self.is_open |= candidate.state != State::Answered;
        if candidate.state == State::New {
            self.next.get_or_insert(candidate);
        }
    }
}

impl Candidate {
    /// The path that asked it.
    const fn path(&self) -> usize {
        self.paths.trailing_zeros() as usize % PATHS_MAX
    }

    fn distance(&self, target: &Position) -> Distance {
        self.contact.node_id.position().distance(target)
    }

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
