//! Driving lookups: asking whom they want to ask, judging what comes back, ending them.

use std::sync::Arc;

use rand_core::Rng;

use super::diversity::{PER_NETWORK_IN_ANSWER_MAX, Tally};
use super::lookup::{ALPHA, LOOKUP_TIME_MAX, Lookup, LookupId, Purpose, matches_target};
use super::region::SEARCHED_AMONG;
use super::rpc::{FORWARDERS_MAX, Owner, Question, Rpc};
use super::table::K;
use super::upkeep::Timer;
use super::{Dht, Event, Query, TRANSMITS_MAX};
use crate::proto::identity::{Distance, NodeId, Position};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Want};
use crate::proto::wire::record::NodeRecord;

/// Targets that share fewer leading bits with us are far enough away not to be crowded with keys made to be near us.
const DRAWN_BITS_MAX: u32 = 4;
/// Most records that one new member is handed.
const HAND_OVER_MAX: usize = 8;

impl Dht {
    pub(super) fn handle_found(
        &mut self,
        now: Instant,
        wall: WallTime,
        rpc: Rpc,
        record: Option<Vec<u8>>,
        contacts: Vec<Contact>,
    ) {
        let contacts = self.acceptable(contacts);
        match (rpc.owner, rpc.question) {
            (Owner::Lookup(id), _) => {
                let record = record.and_then(|bytes| self.checked(wall, id, &bytes));
                if let Some(lookup) = self.lookups.get_mut(&id) {
                    lookup.handle_answer(now, rpc.to.node_id, record, &contacts);
                }
                self.drive_lookup(now, id);
            }
            (owner @ (Owner::Liveness | Owner::Probe), Question::Find { target, .. }) => {
                self.handle_upkeep_answer(now, target, &contacts, owner == Owner::Probe);
            }
            (Owner::Fill, Question::Find { target, .. }) => self.meet(now, target, &contacts),
            (
                Owner::Liveness
                | Owner::Probe
                | Owner::Fill
                | Owner::Publish
                | Owner::WriteBack
                | Owner::Nobody,
                _,
            ) => {}
        }
    }

    /// Leaves out ourselves and crowds; a node that answered us before is taken at its proven endpoint.
    pub(super) fn acceptable(&self, contacts: Vec<Contact>) -> Vec<(Position, Contact)> {
        let mut tally = Tally::default();
        let others = contacts.into_iter().filter(|contact| contact.node_id != self.local);
        let proven = others.map(|named| {
            let position = named.node_id.position();
            (position, self.table.contact(named.node_id, &position).copied().unwrap_or(named))
        });
        proven.filter(|(_, contact)| tally.admits(contact, PER_NETWORK_IN_ANSWER_MAX)).collect()
    }

    /// The record, if it is what the lookup wants, signed and in date.
    pub(super) fn checked(&mut self, wall: WallTime, id: LookupId, bytes: &[u8]) -> Option<NodeRecord> {
        let lookup = self.lookups.get(&id).filter(|lookup| lookup.want() == Want::Record)?;
        if let Some(best) = lookup.record().filter(|best| best.bytes() == bytes) {
            return Some(best.clone()).filter(|best| best.remaining(wall).is_ok());
        }
        let record = NodeRecord::parse(bytes).ok();
        let record = record.filter(|r| r.remaining(wall).is_ok() && matches_target(r, lookup.target()));
        self.counters.records_invalid += u64::from(record.is_none());
        record
    }

    pub(super) fn start_lookup(
        &mut self,
        now: Instant,
        target: Position,
        want: Want,
        purpose: Purpose,
        mut seeds: Vec<Contact>,
    ) -> LookupId {
        let id = self.next_lookup_id();
        let region =
            if purpose == Purpose::Upkeep { Distance([0; 32]) } else { self.size.region(SEARCHED_AMONG) };
        // All that we know of the region: keys made to be nearest may fill the first places.
        seeds.extend(self.table.seeds(&target, K, &region));
        if seeds.len() < ALPHA {
            seeds.extend(self.known.best_first().into_iter().take(K));
        }
        let held = if want == Want::Record { self.held(now, &target) } else { None };
        let held = held.and_then(|bytes| NodeRecord::parse(bytes).ok());
        let salt = self.rng.next_u64();
        self.lookups.insert(id, Lookup::new(now, target, want, purpose, seeds, region, held, salt));
        self.timers.arm(Timer::Lookup(id), now + LOOKUP_TIME_MAX);
        self.drive_lookup(now, id);
        id
    }

    pub(super) const fn next_lookup_id(&mut self) -> LookupId {
        self.lookups_started += 1;
        LookupId(self.lookups_started)
    }

    /// Asks whom the lookup wants to ask, and ends it when nothing is left.
    pub(super) fn drive_lookup(&mut self, now: Instant, id: LookupId) {
        self.ask_next(now, id);
        if self.lookups.get(&id).is_some_and(|lookup| lookup.is_converged() && lookup.may_widen())
            && let Some(lookup) = self.lookups.get_mut(&id)
        {
            lookup.widen(self.table.seeds(lookup.target(), 2 * K, lookup.region()));
            self.ask_next(now, id);
        }
        if self.lookups.get(&id).is_some_and(Lookup::is_done) {
            self.finish_lookup(now, id);
        }
    }

    fn ask_next(&mut self, now: Instant, id: LookupId) {
        let Some(lookup) = self.lookups.get(&id) else { return };
        let question = Question::Find { want: lookup.want(), target: *lookup.target() };
        while let Some(contact) = self.lookups.get_mut(&id).and_then(Lookup::next) {
            let asked =
                self.is_usable(&contact) && self.ask(now, contact, Owner::Lookup(id), question.clone());
            let Some(lookup) = self.lookups.get_mut(&id) else { return };
            if asked {
                lookup.handle_asked(now, contact.node_id);
            } else {
                lookup.handle_failed(contact.node_id);
            }
        }
    }

    /// True for those who answered us, and for keys with which a handshake is possible.
    pub(super) fn is_usable(&self, contact: &Contact) -> bool {
        let id = contact.node_id;
        self.table.contact(id, &id.position()).is_some() || id.is_usable()
    }

    pub(super) fn finish_lookup(&mut self, now: Instant, id: LookupId) {
        let Some(lookup) = self.lookups.remove(&id) else { return };
        self.timers.disarm(&Timer::Lookup(id));
        self.rpcs.detach(id);
        let (purpose, converged) = (lookup.purpose(), lookup.is_converged());
        let (outcome, region, lacking) = lookup.finish(now);
        // Whoever knows more nodes than answered has lost the network, not counted it.
        let is_all = outcome.closest.len() >= self.table.closest(&outcome.target, K, None).len();
        if converged && is_all && !outcome.closest.is_empty() {
            let far = outcome.target.distance(&self.position).leading_zeros() < DRAWN_BITS_MAX;
            let drawn = purpose == Purpose::Upkeep && far;
            self.size.handle_lookup(&outcome.target, drawn, &outcome.closest);
        }
        self.table.handle_lookup(now, &outcome.target);
        match purpose {
            Purpose::Caller => {
                if let (Some(record), Some(contact)) = (&outcome.record, lacking) {
                    self.write_back(now, record, contact);
                }
                self.events.push_back(Event::LookupDone { id, outcome });
            }
            Purpose::Publish => self.place(now, region, true),
            Purpose::Upkeep => {}
        }
    }

    /// Gives the record to a node that should have it: one expected to be among the k closest.
    pub(super) fn write_back(&mut self, now: Instant, record: &NodeRecord, contact: Contact) {
        let distance = record.node_id().position().distance(&contact.node_id.position());
        if self.size.expected_rank(&distance) <= K as f64 {
            let record = Arc::from(record.bytes());
            self.ask(now, contact, Owner::WriteBack, Question::Store { record });
        }
    }

    /// Hands a new member the records that it is closer to than we are, where of all we know nobody else stands
    /// between (Kademlia paper §2.5): what was placed among few nodes stays findable when many have joined.
    pub(super) fn hand_over(&mut self, now: Instant, to: Contact) {
        let is_ours_to_give = |position: &Position| {
            let ours = position.distance(&self.position);
            let others = self.table.closest(position, 3, Some(to.node_id));
            let mut others =
                others.iter().map(|other| other.node_id.position()).filter(|other| other != position);
            others.next().is_none_or(|nearest| ours < position.distance(&nearest))
        };
        let node = to.node_id.position();
        let records: Vec<Arc<[u8]>> = self
            .records
            .nearer_to(now, &node)
            .filter(|(position, _)| *position != node && is_ours_to_give(position))
            .take(HAND_OVER_MAX)
            .map(|(_, bytes)| Arc::from(bytes))
            .collect();
        for record in records {
            self.ask(now, to, Owner::WriteBack, Question::Store { record });
        }
    }

    /// Sends a question; false when there is no room for it.
    pub(super) fn ask(&mut self, now: Instant, to: Contact, owner: Owner, question: Question) -> bool {
        let request = self.rng.next_u64();
        let query = self.rpcs.ask(now, request, to, owner, question);
        let asked = query.is_some();
        query.into_iter().for_each(|query| self.transmit(query));
        asked
    }

    pub(super) fn transmit(&mut self, query: Query) {
        if self.transmits.len() < TRANSMITS_MAX {
            self.transmits.push_back(query);
        } else {
            self.counters.transmits_dropped += 1;
        }
    }

    pub(super) fn handle_rpc_slow(&mut self, now: Instant, query: Query, owner: Owner, timeouts: u8) {
        let node_id = query.to.node_id;
        let request = query.request();
        self.transmit(query);
        if let Owner::Lookup(id) = owner {
            // Who cannot be reached directly is of no use to the table.
            if self.lookups.get(&id).is_some_and(|lookup| lookup.purpose() != Purpose::Upkeep) {
                self.ask_by_others(id, node_id, request, timeouts);
            }
            if let Some(lookup) = self.lookups.get_mut(&id) {
                lookup.handle_slow(node_id, timeouts);
            }
            self.drive_lookup(now, id);
        }
    }

    /// Has those who named a silent node ask it: the underlay may be cut between it and us, and not between it and them.
    fn ask_by_others(&mut self, id: LookupId, node_id: NodeId, request: u64, timeouts: u8) {
        let named_by = self.lookups.get(&id).map(|lookup| lookup.named_by(node_id)).unwrap_or_default();
        let so_many = FORWARDERS_MAX / 2 * usize::from(timeouts);
        for by in named_by.into_iter().take(so_many) {
            if let Some(query) = self.rpcs.forward(request, by) {
                self.transmit(query);
            }
        }
    }

    pub(super) fn handle_rpc_failed(&mut self, now: Instant, rpc: Rpc) {
        self.handle_miss(now, rpc.to.node_id);
        match rpc.owner {
            Owner::Lookup(id) => {
                if let Some(lookup) = self.lookups.get_mut(&id) {
                    lookup.handle_failed(rpc.to.node_id);
                }
                self.avoid(now, rpc.to.node_id);
                self.drive_lookup(now, id);
            }
            Owner::Publish => self.handle_placed(now, false),
            Owner::Nobody => self.avoid(now, rpc.to.node_id),
            Owner::Liveness | Owner::Probe | Owner::Fill | Owner::WriteBack => {}
        }
    }

    pub(super) fn handle_miss(&mut self, now: Instant, node_id: NodeId) {
        if self.table.contact(node_id, &node_id.position()).is_some() {
            self.table.handle_miss(now, node_id);
            self.handle_unrest(now);
            self.fill_holes(now);
        }
        self.known.handle_miss(node_id);
        if self.table.is_alone() {
            self.handle_alone(now);
        }
    }
}
