//! What the DHT does by itself, by time: keep the table alive, find back after an outage. `publish` keeps our record placed.
//!
//! ```text
//!            a node answers                            first 20 s, then          nobody answers
//! alone ────────────────────▶ joined ─────▶ self lookup, publish, checks ─────────────────────────▶ alone
//!   └ 3 known nodes every 2 s, later every 20 s
//! ```
//!
//! Nothing is armed on a node that knows nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use rand_core::Rng;

use super::lookup::{ALPHA, LookupId, Purpose};
use super::rpc::{Owner, Question};
use super::{Dht, K, Mode};
use crate::proto::identity::{NodeId, Position};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Want};

/// How often one member of the table is checked while members come and go.
pub const LIVENESS_INTERVAL: Duration = Duration::from_secs(10);
/// How often once every member has been found alive in turn and nobody came: the longer a node was up, the longer it
/// will be (Kademlia paper §2.2), and an idle network should cost nothing.
pub const LIVENESS_INTERVAL_CALM: Duration = Duration::from_secs(240);
/// Its spread: nodes that came together would else go on checking each other at the same time, a handshake each.
const LIVENESS_SPREAD_PERCENT_CALM: u32 = 50;
/// How often known nodes outside of the table are asked.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// A node that answered within this time is not asked for being known alone: those that are cut off are, again and again.
const PROBE_FRESH: Duration = Duration::from_secs(30 * 60);
/// How often known nodes are asked while nobody answers: the first rounds, so that a list of dead bootstrap nodes
/// costs seconds.
pub const ALONE_PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// How often they are asked after that.
const ALONE_PROBE_INTERVAL_LATER: Duration = Duration::from_secs(20);
/// Number of the first rounds.
const ALONE_ROUNDS_FAST: u32 = 10;
/// Nodes asked in one round.
const PROBES: usize = ALPHA;
/// A bucket that no lookup went through for this long is refreshed (mainline DHT, BEP 5).
pub const BUCKET_REFRESH_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// The same for one that is almost full, and while nobody comes or goes: every member was found alive in turn.
const BUCKET_REFRESH_INTERVAL_CALM: Duration = Duration::from_secs(4 * 60 * 60);
/// Members that answer of a bucket that is almost full.
const ALMOST_FULL: usize = K * 3 / 4;
/// Shortest time between two refreshes.
const REFRESH_GAP_MIN: Duration = Duration::from_secs(5);
/// Time from the lookup of our own position to the one elsewhere, which shows how large the network is.
const LOOKUP_ELSEWHERE: Duration = Duration::from_secs(15);
/// Longest time between walks to our own position, whether for the table or to place our record.
const SELF_LOOKUP_INTERVAL: Duration = Duration::from_secs(30 * 60);
/// The same while nobody comes or goes.
const SELF_LOOKUP_INTERVAL_CALM: Duration = Duration::from_secs(2 * 60 * 60);
/// And when somebody came or went after all.
const SELF_LOOKUP_SOON: Duration = Duration::from_secs(60);
/// Then the lookup for the table comes so much later than the walk that places our record, which makes it needless.
const SELF_LOOKUP_LATER: Duration = Duration::from_secs(2);
/// Times between the first looks at buckets that are almost empty. Looking up our own position meets our neighbours,
/// but nobody far away (Kademlia paper §2.3 refreshes all farther buckets; asking for three nodes of each costs less).
const FILLS_FIRST: [Duration; 3] = [Duration::from_secs(3), Duration::from_secs(12), Duration::from_secs(45)];
/// Shortest time between two times that buckets are filled because members went.
const FILL_GAP_MIN: Duration = Duration::from_secs(120);
/// Most buckets filled at once.
const FILLS_MAX: usize = 16;
/// Shortest time between two times that strangers who were named in passing are met or looked for.
const REFILL_GAP_MIN: Duration = Duration::from_secs(60);
/// How long a node that nobody could reach is not tried again for the table's sake.
const AVOID_TIME: Duration = Duration::from_secs(15 * 60);
/// Most nodes avoided.
const AVOIDED_MAX: usize = 64;
/// Spread of all other intervals.
const SPREAD_PERCENT: u32 = 10;
/// Time from the first answer of anybody to the publication: the self lookup goes first.
const JOIN_TIME: Duration = Duration::from_secs(2);
/// How often expired records are dropped.
const PURGE_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// What is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A lookup has used up its time.
    Lookup(LookupId),
    /// Look up our own position.
    SelfLookup,
    /// Check a member of the table.
    Liveness,
    /// Ask known nodes.
    Probe,
    /// Refresh the stalest bucket.
    Refresh,
    /// Meet nodes of buckets that are almost empty.
    Fill,
    /// Place our record.
    Publish,
    /// Drop expired records.
    Purge,
}

/// What upkeep remembers.
#[derive(Debug)]
pub(super) struct Upkeep {
    started: Instant,
    self_lookups: usize,
    fills: usize,
    /// When buckets were last filled because members went.
    filled: Option<Instant>,
    alone: bool,
    alone_rounds: u32,
    /// Checks since somebody joined the table or did not answer.
    calm_checks: usize,
    /// When strangers were last looked for, and met.
    refilled: Option<Instant>,
    greeted: Option<Instant>,
    /// Nodes that could not be reached or do not fit in, and since when.
    avoided: BTreeMap<NodeId, Instant>,
}

impl Upkeep {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            started: now,
            self_lookups: 0,
            fills: 0,
            filled: None,
            alone: true,
            alone_rounds: 0,
            calm_checks: 0,
            refilled: None,
            greeted: None,
            avoided: BTreeMap::new(),
        }
    }

    fn avoids(&self, now: Instant, node_id: NodeId) -> bool {
        self.avoided.get(&node_id).is_some_and(|since| now.saturating_since(*since) < AVOID_TIME)
    }
}

impl Dht {
    /// The machine's addresses or links changed: old failures say nothing any more.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.upkeep.alone_rounds = 0;
        self.upkeep.avoided.clear();
        if self.table.is_alone() {
            self.arm_probe(now);
        } else {
            (self.upkeep.self_lookups, self.publication.times) = (0, 0);
            self.timers.arm(Timer::SelfLookup, now);
        }
    }

    pub(super) fn handle_timer(&mut self, now: Instant, wall: WallTime, timer: Timer) {
        match timer {
            Timer::Lookup(id) => self.finish_lookup(now, id),
            Timer::SelfLookup => self.look_up_self(now),
            Timer::Liveness => self.check_member(now),
            Timer::Probe => self.probe_known(now),
            Timer::Refresh => self.refresh_bucket(now),
            Timer::Fill => self.fill_sparse(now),
            Timer::Publish => self.publish_now(now, wall),
            Timer::Purge => {
                self.records.purge(now);
                self.arm_purge(now);
            }
        }
    }

    /// Somebody answered.
    pub(super) fn handle_table_grown(&mut self, now: Instant, was_alone: bool) {
        for (timer, interval) in [
            (Timer::Liveness, LIVENESS_INTERVAL),
            (Timer::Refresh, BUCKET_REFRESH_INTERVAL),
            (Timer::Probe, PROBE_INTERVAL),
        ] {
            if self.timers.deadline(&timer).is_none() {
                let at = now + self.spread(interval, SPREAD_PERCENT);
                self.timers.arm(timer, at);
            }
        }
        if was_alone && !self.table.is_alone() {
            (self.upkeep.alone, self.upkeep.alone_rounds, self.upkeep.self_lookups) = (false, 0, 0);
            self.timers.arm(Timer::SelfLookup, now);
            self.arm_publish(now, now + JOIN_TIME);
            (self.upkeep.fills, self.publication.times) = (0, 0);
            self.arm_fill(now);
        }
        self.handle_more_known(now);
    }

    fn arm_fill(&mut self, now: Instant) {
        if let Some(gap) = FILLS_FIRST.get(self.upkeep.fills) {
            self.upkeep.fills += 1;
            let at = now + self.spread(*gap, SPREAD_PERCENT);
            self.timers.arm(Timer::Fill, at);
        }
    }

    /// Members that went may have been all of a bucket, as when the network is split.
    pub(super) fn fill_holes(&mut self, now: Instant) {
        let filled = self.upkeep.filled.is_some_and(|at| now.saturating_since(at) < FILL_GAP_MIN);
        if !filled && self.timers.deadline(&Timer::Fill).is_none() && !self.sparse().is_empty() {
            (self.upkeep.filled, self.upkeep.fills) = (Some(now), 0);
            self.arm_fill(now);
        }
    }

    /// Asks, for each bucket that is almost empty, the node nearest to a random point of it, and some farther away, for
    /// others.
    fn fill_sparse(&mut self, now: Instant) {
        self.arm_fill(now);
        for index in self.sparse().into_iter().take(FILLS_MAX) {
            let target = self.random_position(index);
            let mut asked = self.table.closest(&target, 1, None);
            // Our neighbours may miss the same ones: what we know of others is much like what they know.
            let chance = self.rng.next_u64() as usize;
            asked.extend(self.table.farther(index, chance).take(ALPHA));
            for contact in asked {
                let question = Question::Find { want: Want::Contacts, target };
                self.ask(now, contact, Owner::Fill, question);
            }
        }
    }

    /// Buckets with fewer members than there should be.
    pub(super) fn sparse(&self) -> Vec<u16> {
        self.table.sparse(ALPHA, |index| self.size.may_be_few_in(index))
    }

    /// Asks nodes that were named for a bucket that is almost empty: who answers finds a place there.
    pub(super) fn meet(&mut self, now: Instant, target: Position, named: &[(Position, Contact)]) {
        let Some(index) = self.table.index(&target) else { return };
        let there = named.iter().filter(|(position, _)| self.table.index(position) == Some(index));
        let strangers = self.welcome(now, there);
        self.greet(now, target, strangers);
    }

    /// Of those named, whoever would find a place in the table and may be reached.
    fn welcome<'c>(
        &self,
        now: Instant,
        named: impl Iterator<Item = &'c (Position, Contact)>,
    ) -> Vec<Contact> {
        let strangers = named.filter(|(position, contact)| {
            self.table.contact(contact.node_id, position).is_none()
                && self.table.has_room_for(position)
                && !self.upkeep.avoids(now, contact.node_id)
        });
        strangers.map(|(_, contact)| *contact).filter(|contact| contact.node_id.is_usable()).collect()
    }

    fn greet(&mut self, now: Instant, target: Position, strangers: Vec<Contact>) {
        for contact in strangers.into_iter().take(ALPHA) {
            self.ask(now, contact, Owner::Nobody, Question::Find { want: Want::Nothing, target });
        }
    }

    /// Nobody answers any more.
    pub(super) fn handle_alone(&mut self, now: Instant) {
        if !self.upkeep.alone {
            (self.upkeep.alone, self.upkeep.alone_rounds) = (true, 0);
            self.arm_probe(now);
        }
    }

    pub(super) fn arm_probe_after_remember(&mut self) {
        if self.table.is_alone() {
            self.arm_probe(self.upkeep.started);
        }
    }

    pub(super) fn arm_purge(&mut self, now: Instant) {
        if self.records.len() > 0 && self.timers.deadline(&Timer::Purge).is_none() {
            self.timers.arm(Timer::Purge, now + PURGE_INTERVAL);
        }
    }

    /// The node is not worth a lookup for the table's sake for a while.
    pub(super) fn avoid(&mut self, now: Instant, node_id: NodeId) {
        let avoided = &mut self.upkeep.avoided;
        if avoided.len() >= AVOIDED_MAX && !avoided.contains_key(&node_id) {
            let oldest = avoided.iter().min_by_key(|(_, since)| **since).map(|(id, _)| *id);
            oldest.map(|id| avoided.remove(&id));
        }
        avoided.insert(node_id, now);
    }

    /// A member that was checked, or a known node outside of the table, named others: strangers that would find a place are
    /// met. When one outside names mostly strangers, there is a part of the network that we do not know, and a lookup meets it.
    pub(super) fn handle_upkeep_answer(
        &mut self,
        now: Instant,
        target: Position,
        contacts: &[(Position, Contact)],
        is_probe: bool,
    ) {
        let strangers = self.welcome(now, contacts.iter());
        let is_foreign = is_probe && strangers.len() * 2 > contacts.len();
        let last = if is_foreign { &mut self.upkeep.refilled } else { &mut self.upkeep.greeted };
        if strangers.is_empty() || last.is_some_and(|at| now.saturating_since(at) < REFILL_GAP_MIN) {
            return;
        }
        *last = Some(now);
        if is_foreign {
            self.start_lookup(now, target, Want::Contacts, Purpose::Upkeep, strangers);
        } else {
            self.greet(now, target, strangers);
        }
    }

    fn look_up_self(&mut self, now: Instant) {
        if self.table.is_alone() {
            return;
        }
        self.upkeep.self_lookups += 1;
        self.arm_self_lookup(now);
        // Keys made to be near us make the network look larger than it is, but not everywhere. Known before our record is
        // placed the second time.
        let is_elsewhere = self.upkeep.self_lookups.is_multiple_of(2) && !self.size.is_known_elsewhere();
        let target = if is_elsewhere { self.random_position(0) } else { self.position };
        self.start_lookup(now, target, Want::Contacts, Purpose::Upkeep, Vec::new());
    }

    fn arm_self_lookup(&mut self, now: Instant) {
        let interval = match self.upkeep.self_lookups {
            0 | 1 => LOOKUP_ELSEWHERE,
            _ if self.is_calm() => SELF_LOOKUP_INTERVAL_CALM,
            _ => SELF_LOOKUP_INTERVAL,
        };
        let at = now + self.spread(interval, SPREAD_PERCENT);
        self.timers.arm(Timer::SelfLookup, at);
    }

    /// Our record is about to be placed by a walk to our own position, so that none is needed for the table. When we have
    /// just come, others come too, and both are needed.
    pub(super) fn handle_walk_to_us(&mut self, now: Instant) {
        if self.upkeep.self_lookups > 1 {
            self.arm_self_lookup(now);
        }
    }

    /// Where its bucket lacks members the question is for a random point of it, so the answer may fill it.
    fn check_member(&mut self, now: Instant) {
        let Some(contact) = self.table.next_to_check() else { return };
        self.upkeep.calm_checks = self.upkeep.calm_checks.saturating_add(1);
        let (interval, spread) = match self.is_calm() {
            true => (LIVENESS_INTERVAL_CALM, LIVENESS_SPREAD_PERCENT_CALM),
            false => (LIVENESS_INTERVAL, SPREAD_PERCENT),
        };
        let at = now + self.spread(interval, spread);
        self.timers.arm(Timer::Liveness, at);
        self.table.handle_check(now, contact.node_id);
        if let Some(index) = self.table.index(&contact.node_id.position())
            && !self.rpcs.is_asking(contact.node_id)
        {
            let target = self.random_position(index);
            let want = if self.lacks_members(index) { Want::Contacts } else { Want::Nothing };
            self.ask(now, contact, Owner::Liveness, Question::Find { want, target });
        }
    }

    /// True for a bucket with too few members for what is there: whoever is new comes to a server by itself, but a client
    /// is in nobody's table.
    fn lacks_members(&self, index: u16) -> bool {
        let there = self.size.expected_in_bucket(index).map_or(K, |expected| K.min(expected as usize));
        match self.mode {
            Mode::Server => !self.is_calm() && self.table.live_in(index) < there / 2,
            Mode::Client => self.table.live_in(index) < K,
        }
    }

    /// True once every member was found alive in turn and nobody came meanwhile.
    pub(super) fn is_calm(&self) -> bool {
        self.upkeep.calm_checks > self.table.len()
    }

    /// Somebody joined the table or did not answer: there may be more of that.
    pub(super) fn handle_unrest(&mut self, now: Instant) {
        let was_calm = self.is_calm();
        self.upkeep.calm_checks = 0;
        if was_calm {
            self.arm_refresh(now);
            let at = now + self.spread(SELF_LOOKUP_SOON, SPREAD_PERCENT);
            self.timers.arm(Timer::SelfLookup, at + SELF_LOOKUP_LATER);
            // Those who held our record may be among those who went: it is placed by that walk, and no other is needed.
            if self.timers.deadline(&Timer::Publish).is_some_and(|planned| planned > at) {
                self.publication.wants_walk = true;
                self.timers.arm(Timer::Publish, at);
            }
        }
        let soon = now + LIVENESS_INTERVAL;
        if self.timers.deadline(&Timer::Liveness).is_some_and(|at| at > soon) {
            let at = now + self.spread(LIVENESS_INTERVAL, SPREAD_PERCENT);
            self.timers.arm(Timer::Liveness, at);
        }
    }

    fn probe_known(&mut self, now: Instant) {
        let alone = self.table.is_alone();
        let interval = match alone {
            true if self.upkeep.alone_rounds < ALONE_ROUNDS_FAST => ALONE_PROBE_INTERVAL,
            true => ALONE_PROBE_INTERVAL_LATER,
            false => self.spread(PROBE_INTERVAL, SPREAD_PERCENT),
        };
        self.upkeep.alone_rounds = self.upkeep.alone_rounds.saturating_add(u32::from(alone));
        self.arm_probe(now + interval);
        let fresh = if alone { Duration::ZERO } else { PROBE_FRESH };
        let table = &self.table;
        let outside = |c: &Contact| alone || table.contact(c.node_id, &c.node_id.position()).is_none();
        for contact in self.known.take_for_probe(now, PROBES, fresh, outside) {
            let question = Question::Find { want: Want::Contacts, target: self.position };
            if !self.rpcs.is_asking(contact.node_id) {
                self.ask(now, contact, Owner::Probe, question);
            }
        }
    }

    fn refresh_bucket(&mut self, now: Instant) {
        if let Some((index, due)) = self.next_refresh()
            && due <= now
        {
            let target = self.random_position(index);
            self.table.handle_lookup(now, &target);
            self.start_lookup(now, target, Want::Contacts, Purpose::Upkeep, Vec::new());
        }
        self.arm_refresh(now);
    }

    /// The bucket that is to be refreshed next, and when. In one that is almost full hardly anybody finds a place.
    pub(super) fn next_refresh(&self) -> Option<(u16, Instant)> {
        let is_calm = self.is_calm();
        let due = self.table.refreshed().map(|(index, at)| {
            let is_rare = is_calm || self.table.live_in(index) >= ALMOST_FULL;
            let interval = if is_rare { BUCKET_REFRESH_INTERVAL_CALM } else { BUCKET_REFRESH_INTERVAL };
            (index, at + interval)
        });
        due.min_by_key(|(index, due)| (*due, *index))
    }

    fn arm_refresh(&mut self, now: Instant) {
        let Some((_, due)) = self.next_refresh() else { return };
        let late =
            self.spread(BUCKET_REFRESH_INTERVAL, SPREAD_PERCENT).saturating_sub(BUCKET_REFRESH_INTERVAL);
        self.timers.arm(Timer::Refresh, due.max(now + REFRESH_GAP_MIN) + late);
    }

    fn arm_probe(&mut self, at: Instant) {
        if !self.known.is_empty() {
            self.timers.arm(Timer::Probe, at);
        }
    }

    /// A random position in the bucket: it shares exactly `index` leading bits with ours.
    pub(super) fn random_position(&mut self, index: u16) -> Position {
        let mut random = [0; 32];
        self.rng.fill_bytes(&mut random);
        let (byte, bit) = (usize::from(index / 8), 0x80u8 >> (index % 8));
        let own = self.position.0;
        random[..byte].copy_from_slice(&own[..byte]);
        let above = !(bit | (bit - 1));
        random[byte] = (own[byte] & above) | (!own[byte] & bit) | (random[byte] & (bit - 1));
        Position(random)
    }

    /// `interval` give or take `percent`.
    pub(super) fn spread(&mut self, interval: Duration, percent: u32) -> Duration {
        let width = interval * percent / 50;
        let nanos = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX).max(1);
        interval - width / 2 + Duration::from_nanos(self.rng.next_u64() % nanos)
    }
}
