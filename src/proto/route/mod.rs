//! Searches for a route: a way through several relays, for when nothing shorter is left.
//!
//! ```text
//! ours      idle ─begin─► ring 1 ─0.3 s─► ring 2 ─0.6 s─► ring 3 ─► ended ─1, 2, 4 .. 60 s─► idle
//!                           └──────────────┴───── a sought ─┴─► a route, kept for [`ROUTE_LIFE`]
//! others'   seek ─► noted once ─┬─► the target shows that it is there: sought
//!                               ├─► passed on, to relays of the target that show the same ─┐
//!                               └─► and to neighbours whose packets we would carry ────────┴► their sought goes back
//! ```
//!
//! An expanding ring (RFC 3561 §6.4), each with a question of its own. A node takes part in a question once, so the
//! ways that it goes are a tree and no route has a loop. An answer goes back the way of its question, and each node adds the neighbour
//! that it came from: nobody can name a relay in front of itself. What a stranger can make us send is bounded twice,
//! by the neighbour that it comes from and in all ([`PASSED_PER_S`]).
//!
//! Deliberately left out: who is a neighbour, what we would carry, and how routes are set up, which are `node`'s.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_core::Rng;

use super::identity::NodeId;
use super::limit::TokenBucket;
use super::timer::Instant;
use super::wire::control::Service;
use super::wire::record::RECORD_RELAYS_MAX;
use super::wire::relay::HOPS_MAX;
use super::wire::routing::SEEK_HOPS_MAX;

/// When the rings of a search begin, counted from its start, and when it ends.
const RINGS_MS: [u64; SEEK_HOPS_MAX as usize] = [0, 300, 900];
/// See [`RINGS_MS`].
const SEARCH_TIME: Duration = Duration::from_millis(2500);
/// Waits until the next search for a node that was not found, doubled from the first to the last.
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// See [`AGAIN_MIN`].
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Nodes that are searched for, or were lately.
pub const SEARCHES_MAX: usize = 128;
/// Searches of ours that begin a second, and at once.
pub const SEARCHES_PER_S: u32 = 4;
/// See [`SEARCHES_PER_S`].
pub const SEARCHES_BURST: u32 = 32;
/// A neighbour that knew a route this lately may know others.
const SOUGHT_LATELY: Duration = Duration::from_secs(60);
/// Neighbours that a question of ours goes to.
pub const ASKED_MAX: usize = 32;
/// Neighbours that a question of somebody else is passed on to.
pub const PASSED_MAX: usize = 8;
/// Relays of its target that a question is passed on to: those that it names, and those of a record that we hold.
pub const RELAYS_PASSED_MAX: usize = 2 * RECORD_RELAYS_MAX;
/// Questions that are passed on a second, to all neighbours and from all together, and at once.
pub const PASSED_PER_S: u32 = 200;
/// See [`PASSED_PER_S`].
pub const PASSED_BURST: u32 = 800;
/// Questions of others that are remembered.
pub const QUESTIONS_MAX: usize = 1024;
/// Of these, questions that came by one neighbour.
pub const QUESTIONS_PER_NODE_MAX: usize = 128;
/// How long a question is remembered.
pub const QUESTION_LIFE: Duration = Duration::from_secs(5);
/// Answers to one question that go back.
const ANSWERS_MAX: usize = 3;
/// How long a route that was found is worth a try.
pub const ROUTE_LIFE: Duration = Duration::from_secs(600);
/// Routes kept for one target.
pub const ROUTES_MAX: usize = 3;
/// Targets that routes are kept for.
const TARGETS_MAX: usize = 256;

/// A way to a node: who carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Relays, the nearest first; at least one, at most [`HOPS_MAX`].
    pub relays: Vec<NodeId>,
    /// What it is good for, as they say.
    pub service: Service,
    until: Instant,
}

/// A question of ours, to be sent to [`ASKED_MAX`] neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Names it.
    pub nonce: u64,
    /// Sessions that it goes along.
    pub ttl: u8,
}

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A route to this node.
    Found(NodeId, Route),
    /// It is for a neighbour.
    Back {
        /// Which.
        to: NodeId,
        /// From its question.
        nonce: u64,
        /// Relays beyond us.
        hops: Vec<NodeId>,
    },
    /// Nobody asked for it, it comes from whom nobody asked, or it is no route.
    Refused,
}

#[derive(Debug)]
struct Search {
    started: Instant,
    /// Of the rings so far.
    nonces: Vec<u64>,
    /// Who was asked.
    asked: Vec<NodeId>,
    /// Who has answered which ring: once each.
    answered: Vec<(u64, NodeId)>,
    /// A route that carries data was found.
    found: bool,
    /// Searches before that found nothing.
    failures: u32,
    /// Ended: no other one before this.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Question {
    from: NodeId,
    passed: Vec<NodeId>,
    /// How many of those are relays of the target.
    relays: usize,
    /// Nodes that are waited for: the target, for which it is answered, and relays of it, to which it is passed on.
    waits: Vec<NodeId>,
    /// Neighbours whose answers went back: one of each.
    answered: Vec<NodeId>,
    until: Instant,
}

/// All searches that we take part in.
#[derive(Debug)]
pub struct Routes {
    own: NodeId,
    searches: BTreeMap<NodeId, Search>,
    starts: TokenBucket,
    /// By nonce and target: who repeats a nonce for another target takes nothing from the question.
    questions: BTreeMap<(u64, NodeId), Question>,
    /// The same, the oldest first.
    oldest: VecDeque<(u64, NodeId)>,
    /// How many of them came by a neighbour.
    of_neighbour: BTreeMap<NodeId, usize>,
    /// Which of them wait for a node.
    waiting: BTreeMap<NodeId, BTreeSet<(u64, NodeId)>>,
    passing: TokenBucket,
    routes: BTreeMap<NodeId, Vec<Route>>,
}

impl Routes {
    /// Nothing is searched for yet.
    pub const fn new(own: NodeId, now: Instant) -> Self {
        Self {
            own,
            searches: BTreeMap::new(),
            starts: TokenBucket::new(SEARCHES_PER_S, SEARCHES_BURST, now),
            questions: BTreeMap::new(),
            oldest: VecDeque::new(),
            of_neighbour: BTreeMap::new(),
            waiting: BTreeMap::new(),
            passing: TokenBucket::new(PASSED_PER_S, PASSED_BURST, now),
            routes: BTreeMap::new(),
        }
    }

    /// Begins a search, unless one runs or the last one has failed lately. Call [`Self::poll_ring`] then.
    pub fn begin(&mut self, now: Instant, target: NodeId) -> bool {
        let before = self.searches.get(&target);
        if before.is_some_and(|search| search.next.is_none_or(|next| now < next)) {
            return false;
        }
        let failures = before.map_or(0, |search| search.failures);
        if before.is_none() && !self.make_room() || !self.starts.take(now) {
            return false;
        }
        let (nonces, asked, answered) = (Vec::new(), Vec::new(), Vec::new());
        let search = Search { started: now, nonces, asked, answered, found: false, failures, next: None };
        self.searches.insert(target, search);
        true
    }

    fn make_room(&mut self) -> bool {
        let ended = self.searches.iter().filter_map(|(id, search)| Some((search.next?, *id)));
        let oldest = ended.min();
        if self.searches.len() >= SEARCHES_MAX
            && let Some((_, oldest)) = oldest
        {
            self.searches.remove(&oldest);
        }
        self.searches.len() < SEARCHES_MAX
    }

    /// The next ring of a search, when it is due. What an answer says is not believed before the target itself has
    /// answered by the route: then the caller ends the search.
    pub fn poll_ring(&mut self, now: Instant, target: NodeId, rng: &mut impl Rng) -> Option<Ring> {
        let search = self.searches.get_mut(&target).filter(|search| search.next.is_none())?;
        let ring = search.nonces.len();
        let due = |at: Duration| now.saturating_since(search.started) >= at;
        match RINGS_MS.get(ring) {
            Some(ms) => {
                if !due(Duration::from_millis(*ms)) {
                    return None;
                }
                let nonce = rng.next_u64();
                search.nonces.push(nonce);
                Some(Ring { nonce, ttl: ring as u8 + 1 })
            }
            _ if due(SEARCH_TIME) => {
                self.end(now, target);
                None
            }
            _ => None,
        }
    }

    /// When [`Self::poll_ring`] has something to do for this target.
    pub fn poll_timeout(&self, target: &NodeId) -> Option<Instant> {
        let search = self.searches.get(target).filter(|search| search.next.is_none())?;
        let ring = RINGS_MS.get(search.nonces.len());
        Some(search.started + ring.map_or(SEARCH_TIME, |ms| Duration::from_millis(*ms)))
    }

    /// The target is not missing any more, or the time of its search is over.
    pub fn end(&mut self, now: Instant, target: NodeId) {
        if let Some(search) = self.searches.get_mut(&target).filter(|search| search.next.is_none()) {
            search.failures = if search.found { 0 } else { search.failures.saturating_add(1) };
            let doublings = search.failures.saturating_sub(1).min(16);
            search.next = Some(now + (AGAIN_MIN * (1 << doublings)).min(AGAIN_MAX));
        }
    }

    /// These neighbours were asked for the target.
    pub fn asked(&mut self, target: &NodeId, neighbours: &[NodeId]) {
        if let Some(search) = self.searches.get_mut(target) {
            search
                .asked
                .extend(neighbours.iter().filter(|id| !search.asked.contains(id)).collect::<Vec<_>>());
        }
    }

    /// A neighbour asks. False when we take no part: it is not new, it is ours, or there is no room for it.
    pub fn handle_seek(&mut self, now: Instant, from: NodeId, nonce: u64, target: NodeId) -> bool {
        self.forget_old(now);
        let of_neighbour = self.of_neighbour.get(&from).copied().unwrap_or(0);
        let full = self.questions.len() >= QUESTIONS_MAX || of_neighbour >= QUESTIONS_PER_NODE_MAX;
        if full || self.questions.contains_key(&(nonce, target)) || self.is_ours(nonce) {
            return false;
        }
        let (passed, waits, answered) = (Vec::new(), Vec::new(), Vec::new());
        let until = now + QUESTION_LIFE;
        self.questions.insert((nonce, target), Question { from, passed, relays: 0, waits, answered, until });
        self.oldest.push_back((nonce, target));
        self.of_neighbour.insert(from, of_neighbour + 1);
        true
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(key) = self.oldest.front().copied() {
            if self.questions.get(&key).is_some_and(|question| now < question.until) {
                break;
            }
            self.oldest.pop_front();
            let Some(question) = self.questions.remove(&key) else { continue };
            for node in question.waits {
                self.waits_no_more(node, key);
            }
            match self.of_neighbour.get_mut(&question.from) {
                Some(n) if *n > 1 => *n -= 1,
                Some(_) | None => drop(self.of_neighbour.remove(&question.from)),
            }
        }
    }

    fn waits_no_more(&mut self, node: NodeId, key: (u64, NodeId)) {
        if let Some(keys) = self.waiting.get_mut(&node) {
            keys.remove(&key);
            if keys.is_empty() {
                self.waiting.remove(&node);
            }
        }
    }

    fn is_ours(&self, nonce: u64) -> bool {
        self.searches.values().any(|search| search.nonces.contains(&nonce))
    }

    /// Notes that a question is about to be passed on to a neighbour; false when we have passed on enough. Those that are
    /// relays of the target come on top.
    pub fn pass(&mut self, now: Instant, nonce: u64, target: NodeId, to: NodeId, is_relay: bool) -> bool {
        let Some(question) = self.questions.get_mut(&(nonce, target)) else { return false };
        let (count, most) = match is_relay {
            true => (question.relays, RELAYS_PASSED_MAX),
            false => (question.passed.len() - question.relays, PASSED_MAX),
        };
        if count >= most || question.passed.contains(&to) || !self.passing.take(now) {
            return false;
        }
        question.passed.push(to);
        question.relays += usize::from(is_relay);
        true
    }

    /// A question waits for `node` to show that it is there.
    pub fn wait_for(&mut self, (nonce, target): (u64, NodeId), node: NodeId) {
        if let Some(question) = self.questions.get_mut(&(nonce, target)) {
            question.waits.push(node);
            self.waiting.entry(node).or_default().insert((nonce, target));
        }
    }

    /// True while a question waits for a sign of life of `node`.
    pub fn awaits(&self, node: &NodeId) -> bool {
        self.waiting.contains_key(node)
    }

    /// `node` has shown that it is there: the questions that waited for it, each by its nonce and target, and whose it is.
    /// Those about the node itself are to be answered now, the others passed on to it.
    pub fn handle_seen(&mut self, now: Instant, node: NodeId) -> Vec<(NodeId, u64, NodeId)> {
        let mut seen = Vec::new();
        for key in self.waiting.remove(&node).unwrap_or_default() {
            let Some(question) = self.questions.get_mut(&key) else { continue };
            question.waits.retain(|waits| *waits != node);
            if now < question.until {
                seen.push((question.from, key.0, key.1));
            }
        }
        seen
    }

    /// A neighbour says by whom it reaches the target of a question that we sent or passed on to it.
    pub fn handle_sought(
        &mut self,
        now: Instant,
        from: NodeId,
        nonce: u64,
        service: Service,
        hops: Vec<NodeId>,
    ) -> Answer {
        let mut relays = vec![from];
        relays.extend(hops);
        let own = self.searches.iter_mut().find(|(_, search)| search.nonces.contains(&nonce));
        if let Some((target, search)) = own {
            let target = *target;
            let fits = is_route(&relays, &[self.own, target]) && relays.len() <= usize::from(HOPS_MAX);
            let expected = search.asked.contains(&from)
                && search.next.is_none()
                && !search.answered.contains(&(nonce, from));
            if !expected || !fits || service == Service::None {
                return Answer::Refused;
            }
            search.answered.push((nonce, from));
            search.found |= service == Service::Data;
            let route = Route { relays, service, until: now + ROUTE_LIFE };
            self.keep(now, target, &route);
            return Answer::Found(target, route);
        }
        let fits = is_route(&relays, &[self.own]) && relays.len() < usize::from(HOPS_MAX);
        let mut same = self.questions.range_mut((nonce, NodeId([0; 32]))..=(nonce, NodeId([255; 32])));
        match same.find(|(_, question)| question.passed.contains(&from)).map(|(_, question)| question) {
            Some(question) if fits && now < question.until => {
                let done = question.answered.len() >= ANSWERS_MAX || question.answered.contains(&from);
                if done || relays.contains(&question.from) {
                    return Answer::Refused;
                }
                question.answered.push(from);
                Answer::Back { to: question.from, nonce, hops: relays }
            }
            Some(_) | None => Answer::Refused,
        }
    }

    /// Keeps a route, in front of those that do less or are longer.
    fn keep(&mut self, now: Instant, target: NodeId, route: &Route) {
        if self.routes.len() >= TARGETS_MAX && !self.routes.contains_key(&target) {
            self.routes.retain(|_, routes| routes.iter().any(|route| now < route.until));
            if self.routes.len() >= TARGETS_MAX {
                self.routes.pop_first();
            }
        }
        let routes = self.routes.entry(target).or_default();
        routes.retain(|known| now < known.until && known.relays != route.relays);
        routes.push(route.clone());
        routes.sort_by_key(|route| (std::cmp::Reverse(route.service), route.relays.len()));
        routes.truncate(ROUTES_MAX);
    }

    /// Routes that were found to a node, the best first.
    pub fn known(&self, now: Instant, target: &NodeId) -> Vec<Route> {
        let routes = self.routes.get(target).into_iter().flatten();
        routes.filter(|route| now < route.until).cloned().collect()
    }

    /// A route does not work: it is not tried again, and another one may be looked for at once.
    pub fn forget(&mut self, now: Instant, target: &NodeId, relays: &[NodeId]) {
        if let Some(routes) = self.routes.get_mut(target) {
            routes.retain(|route| route.relays != relays);
            if routes.is_empty() {
                self.routes.remove(target);
            }
        }
        if let Some(search) = self.searches.get_mut(target)
            && std::mem::take(&mut search.found)
            && search.next.is_some()
        {
            search.next = Some(now);
        }
    }
}

/// Of `neighbours`, in random order and each with when it last knew a route to somebody, those that a question about
/// `target` goes to, at most `most`.
///
/// Half are some that knew a route lately: they are between us and what we are cut off from. A quarter are those nearest to
/// the target in the key space, who may hold its record and know its relays. The rest is random, since what the others
/// know may be old, and an answer is easily given.
pub fn chosen(
    now: Instant,
    neighbours: &[(NodeId, Option<Instant>)],
    target: &NodeId,
    most: usize,
) -> Vec<NodeId> {
    let point = target.position();
    let lately = |at: &Instant| now.saturating_since(*at) < SOUGHT_LATELY;
    let mut helpful: Vec<_> =
        neighbours.iter().filter_map(|(id, at)| Some((at.filter(lately)?, *id))).collect();
    helpful.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
    let mut near: Vec<_> = neighbours.iter().map(|(id, _)| (id.position().distance(&point), *id)).collect();
    near.sort_unstable_by_key(|(distance, _)| *distance);
    let groups: [(usize, Vec<NodeId>); 3] = [
        (most / 2, helpful.into_iter().map(|(_, id)| id).collect()),
        (most / 4, near.into_iter().map(|(_, id)| id).collect()),
        (most, neighbours.iter().map(|(id, _)| *id).collect()),
    ];
    let mut chosen = Vec::new();
    for (share, group) in groups {
        let others: Vec<_> = group.into_iter().filter(|id| !chosen.contains(id)).take(share).collect();
        chosen.extend(others);
    }
    chosen.truncate(most);
    chosen
}

/// True when no node is twice on the way.
pub fn is_route(relays: &[NodeId], ends: &[NodeId]) -> bool {
    let all: Vec<_> = relays.iter().chain(ends).collect();
    all.iter().enumerate().all(|(n, node)| !all[..n].contains(node))
}

#[cfg(test)]
mod tests;
