//! Our own record: who is to hold it, and when it is placed there again.
//!
//! ```text
//! a new record, or time ─▶ signed lately? ─no─▶ RecordDue, wait a second ─┐
//!                              │ yes  ◀───────────────────────────────────┘
//!                              ▼
//!       those known to be closest, or a walk to our own position ─▶ Store, to all of our region
//!            ▲ otherwise        ▲ twice after joining, then every other time, while nobody comes or goes one time in
//!                                twelve; and when most of those known do not have it or members went
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::lookup::Purpose;
use super::region::STORED_AMONG;
use super::rpc::{Owner, Question};
use super::upkeep::Timer;
use super::{Dht, Event, K, region};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Want};
use crate::proto::wire::record::NodeRecord;

/// How often our record is placed anew, give or take a fifth.
pub const REPUBLISH_INTERVAL: Duration = Duration::from_secs(20 * 60);
/// The same while nobody comes or goes: of three times in the life of a record one may fail.
const REPUBLISH_INTERVAL_CALM: Duration = Duration::from_secs(25 * 60);
/// Spread of the republications, so that nodes started together do not act together.
const REPUBLISH_SPREAD_PERCENT: u32 = 20;
/// The first republication comes sooner: our view of who is closest is still young when we first publish.
const REPUBLISH_FIRST: Duration = Duration::from_secs(60);
/// When to try again after most of those known did not take the record; twice as long each time.
const PUBLISH_RETRY: Duration = Duration::from_secs(10);
/// How often it is doubled, at most.
const THIN_DOUBLINGS: u32 = 7;
/// The first publications after joining walk to our own position.
const WALKS_FIRST: u32 = 2;
/// Later ones do once in so many times: whoever comes to stand near us meets us, but a table can be filled with liars, and
/// walks come closer together than records live.
const WALK_EVERY: u32 = 2;
/// The same while nobody comes or goes.
const WALK_EVERY_CALM: u32 = 12;
/// Most nodes that are told our record: half of them the closest, the others drawn from our region.
pub const REGION_MAX: usize = 64;
/// Shortest time between publications of changing records.
pub const PUBLISH_GAP_MIN: Duration = Duration::from_secs(10);
/// How long the caller has for signing a fresh record.
const SIGNING_TIME: Duration = Duration::from_secs(1);

/// Our own record and how it is placed.
#[derive(Debug, Default)]
pub(super) struct Publication {
    record: Option<NodeRecord>,
    /// When it was last about to be placed.
    pub(super) placed: Option<Instant>,
    /// How often it was, since we joined or moved.
    pub(super) times: u32,
    /// The caller was asked for a fresh one.
    is_signing: bool,
    /// Asked to take it, and have not answered.
    pending: usize,
    /// How many were told without a walk.
    told: usize,
    holders: usize,
    /// The next publication walks.
    pub(super) wants_walk: bool,
    /// Times in a row that most of those known did not take it.
    thin: u32,
}

impl Publication {
    pub(super) const fn record(&self) -> Option<&NodeRecord> {
        self.record.as_ref()
    }

    pub(super) const fn holders(&self) -> usize {
        self.holders
    }
}

impl Dht {
    pub(super) fn replace_publication(&mut self, now: Instant, record: NodeRecord) {
        if self.publication.record.as_ref() == Some(&record) {
            return;
        }
        self.publication.record = Some(record);
        self.publication.is_signing = false;
        self.arm_publish(now, now);
    }

    /// These stand nearest to us, closest first: our record goes to the k closest, and to all of our region. Of more than
    /// can be told, half are drawn: there may be keys made to be nearer than all others. `walked`: a walk has found them just
    /// now; else they are those that we knew.
    pub(super) fn place(&mut self, now: Instant, closest: Vec<Contact>, walked: bool) {
        let (own, end) = (self.position, self.size.region(STORED_AMONG));
        let region = region::within(closest, &own, &end, K);
        let region = region::choose(&mut self.rng, region, &own, &end, REGION_MAX);
        let Some(record) = &self.publication.record else { return };
        let record: Arc<[u8]> = record.bytes().into();
        let interval = match self.publication.times {
            1 => REPUBLISH_FIRST,
            _ if self.is_calm() => REPUBLISH_INTERVAL_CALM,
            _ => REPUBLISH_INTERVAL,
        };
        let at = now + self.spread(interval, REPUBLISH_SPREAD_PERCENT);
        self.timers.arm(Timer::Publish, at);
        (self.publication.pending, self.publication.holders) = (region.len() + 1, 0);
        self.publication.told = if walked { 0 } else { region.len() };
        for contact in &region {
            let question = Question::Store { record: Arc::clone(&record) };
            if !self.ask(now, *contact, Owner::Publish, question) {
                self.handle_placed(now, false);
            }
        }
        self.handle_placed_one(now);
    }

    /// One of the closest nodes took our record or did not.
    pub(super) fn handle_placed(&mut self, now: Instant, stored: bool) {
        self.publication.holders += usize::from(stored);
        self.handle_placed_one(now);
    }

    fn handle_placed_one(&mut self, now: Instant) {
        self.publication.pending = self.publication.pending.saturating_sub(1);
        if self.publication.pending > 0 {
            return;
        }
        if !self.is_thin() {
            self.publication.thin = 0;
            return;
        }
        self.publication.wants_walk = true;
        let wait = PUBLISH_RETRY * (1 << self.publication.thin.min(THIN_DOUBLINGS));
        self.publication.thin += 1;
        self.timers.arm(Timer::Publish, now + wait);
    }

    /// True when nobody has our record, or fewer than half of those who should, as far as they are known.
    fn is_thin(&self) -> bool {
        let wanted = self.publication.told.max(self.table.len().min(K));
        self.publication.holders == 0 || self.publication.holders * 2 < wanted
    }

    /// More nodes are known than when our record was placed: a walk that met few of them has left it with too few.
    pub(super) fn handle_more_known(&mut self, now: Instant) {
        let soonest = self.publication.placed.map_or(now, |placed| now.max(placed + PUBLISH_GAP_MIN));
        let is_later = self.timers.deadline(&Timer::Publish).is_some_and(|planned| planned > soonest);
        let Publication { pending, holders, thin, .. } = self.publication;
        if is_later && pending == 0 && holders > 0 && thin == 0 && self.is_thin() {
            self.publication.wants_walk = true;
            self.timers.arm(Timer::Publish, soonest);
        }
    }

    pub(super) fn arm_publish(&mut self, now: Instant, wanted: Instant) {
        if self.publication.record.is_some() {
            let soonest = self.publication.placed.map_or(now, |placed| placed + PUBLISH_GAP_MIN);
            self.timers.arm(Timer::Publish, wanted.max(soonest));
        }
    }

    /// Alone nothing is placed: joining arms the timer again.
    pub(super) fn publish_now(&mut self, now: Instant, wall: WallTime) {
        let Some(record) = self.publication.record.as_ref().filter(|_| !self.table.is_alone()) else {
            return;
        };
        let ttl = record.content().ttl;
        let is_fresh = record.remaining(wall).is_ok_and(|left| left > ttl * 3 / 4);
        if !is_fresh && !self.publication.is_signing {
            self.publication.is_signing = true;
            self.events.push_back(Event::RecordDue);
            self.timers.arm(Timer::Publish, now + SIGNING_TIME);
            return;
        }
        self.publication.is_signing = false;
        self.publication.placed = Some(now);
        self.publication.times = self.publication.times.saturating_add(1);
        let walk_every = if self.is_calm() { WALK_EVERY_CALM } else { WALK_EVERY };
        let times = self.publication.times;
        if times > WALKS_FIRST && !times.is_multiple_of(walk_every) && !self.publication.wants_walk {
            // Who is closest is known; not every time, since a full network in the table may hide somebody.
            let end = self.size.region(STORED_AMONG);
            let near = self.table.near(&self.position, K, &end, None);
            return self.place(now, near, false);
        }
        self.publication.wants_walk = false;
        self.handle_walk_to_us(now);
        self.start_lookup(now, self.position, Want::Contacts, Purpose::Publish, Vec::new());
    }
}
