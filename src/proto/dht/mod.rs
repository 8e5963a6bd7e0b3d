//! Kademlia (Maymounkov, Mazières 2002): who is near a point of the key space, and the records held there.
//!
//! Positions are hashes of keys and addresses are heads of positions, so looking up an address finds the node's signed
//! record. Everything travels inside of sessions: `node` opens them, decides which endpoints are fit to be contacted
//! and reports here; nothing here opens, resolves or trusts an endpoint.
//!
//! ```text
//! handle_peer_up ──▶ table.rs    k-buckets            ┐
//!                └─▶ known.rs    all who ever answered ├─ seeds ─▶ lookup.rs ─▶ Event::LookupDone
//! remember ────────▶ known.rs                          ┘             │  ▲
//! handle_request ──▶ records.rs  held for the network               ▼  │ handle_reply
//! publish ─────────▶ upkeep.rs   lookup, then Store               rpc.rs ─▶ poll_transmit
//!
//! upkeep.rs, by time:  alone ─a node answers─▶ self lookup at 0, 15, 60 s ─▶ every 10 min
//!                      one member checked every 10 s · idle buckets refreshed after 15 min
//!                      3 known nodes outside of the table asked every 60 s: heals partitions
//! ```
//!
//! A node that lies can deny, never redirect: a record counts only when its key hashes to the address sought and
//! signed it. A node enters the table only after it answered us, and keys of one network find few places in it.
//!
//! Deliberately left out for now: disjoint paths, region store and region lookup, the key puzzle of servers.

mod diversity;
mod known;
mod lookup;
mod records;
mod rpc;
mod size;
mod table;
mod upkeep;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

pub use diversity::{PER_NETWORK_IN_ANSWER_MAX, PER_NETWORK_IN_BUCKET_MAX, PER_NETWORK_IN_TABLE_MAX};
pub use known::KNOWN_MAX;
pub use lookup::{ALPHA, LOOKUP_RPCS_MAX, LOOKUP_TIME_MAX, LookupId, Outcome, Step};
pub use records::{RECORD_TTL, RECORDS_BYTES_MAX, RECORDS_PER_SOURCE_MAX};
pub use rpc::{RPC_ATTEMPTS_MAX, RPC_TIMEOUT_FIRST, RPC_TIMEOUT_MAX, RPC_TIMEOUT_MIN, RPCS_MAX};
pub use table::{K, MISSES_MAX, REPLACEMENTS_MAX};
pub use upkeep::{
    ALONE_PROBE_INTERVAL, BUCKET_REFRESH_INTERVAL, LIVENESS_INTERVAL, PROBE_INTERVAL, PUBLISH_GAP_MIN,
    REPUBLISH_INTERVAL,
};

use crate::proto::identity::{NodeId, Position};
use crate::proto::timer::{Deadlines, Instant, WallTime};
use crate::proto::wire::control::{Contact, Control, StoreOutcome, Want};
use crate::proto::wire::record::NodeRecord;
use diversity::{Network, Tally};
use known::Known;
use lookup::{Lookup, Purpose, matches_target};
use records::{Records, Source};
use rpc::{Due, Owner, Question, Rpc, Rpcs};
use size::NetworkSize;
use table::{Admission, Table};
use upkeep::{Publication, Timer, Upkeep};

/// Most lookups of callers at once; more end at once with nothing.
pub const LOOKUPS_MAX: usize = 128;
/// Most queries that wait to be taken; more are dropped and sent again in time.
pub const TRANSMITS_MAX: usize = 1024;

/// Whether a node serves the DHT or only uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers, holds records, stands in the tables of others.
    Server,
    /// Answers nothing.
    Client,
}

/// A message to be sent to a node, over a session that may have to be opened first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// To whom.
    pub to: Contact,
    /// What: [`Control::Find`] or [`Control::Store`].
    pub control: Control,
}

/// What became true.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "an event is taken at once; at most one per lookup exists")]
pub enum Event {
    /// A lookup started by [`Dht::lookup`] is over.
    LookupDone {
        /// Which one.
        id: LookupId,
        /// What it found.
        outcome: Outcome,
    },
    /// Our record is about to be republished: sign a fresh one and call [`Dht::publish`] within a second, or the old
    /// one goes out again.
    RecordDue,
}

/// A bucket as shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketStatus {
    /// Distances from us have this many significant bits, 1 to 256.
    pub distance_bits: u16,
    /// Members.
    pub contacts: usize,
    /// Replacements waiting.
    pub replacements: usize,
}

/// Events that are only counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers to nothing that we asked, answered before, or from another node than asked.
    pub unsolicited: u64,
    /// Nodes kept out because too many of their network are in.
    pub crowded: u64,
    /// Records that were malformed, badly signed, out of date or of another address than sought.
    pub records_invalid: u64,
    /// Stores refused for want of room.
    pub records_full: u64,
    /// Lookups refused because too many were running.
    pub lookups_refused: u64,
    /// Queries dropped because nobody took them.
    pub transmits_dropped: u64,
}

/// The state of the DHT as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Server or client.
    pub mode: Mode,
    /// Members of the table.
    pub contacts: usize,
    /// Nodes that answered us once.
    pub known: usize,
    /// Nodes that serve the DHT, ourselves included if we do.
    pub network_size_estimate: u64,
    /// Farthest first.
    pub buckets: Vec<BucketStatus>,
    /// Records held for others.
    pub records: usize,
    /// What they cost in bytes.
    pub records_bytes: usize,
    /// Lookups on their way, upkeep included.
    pub lookups_running: usize,
    /// Questions on their way.
    pub rpcs_running: usize,
    /// Nodes that took our record when it was last published.
    pub publish_holders: usize,
    /// What was counted.
    pub counters: Counters,
}

/// One node's part of the DHT.
#[derive(Debug)]
pub struct Dht {
    local: NodeId,
    position: Position,
    mode: Mode,
    rng: ChaCha12Rng,
    table: Table,
    known: Known,
    records: Records,
    rpcs: Rpcs,
    lookups: BTreeMap<LookupId, Lookup>,
    lookups_started: u64,
    publication: Publication,
    upkeep: Upkeep,
    timers: Deadlines<Timer>,
    size: NetworkSize,
    transmits: VecDeque<Query>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Dht {
    /// A node that knows nobody.
    pub fn new(local: NodeId, mode: Mode, seed: [u8; 32], now: Instant) -> Self {
        let position = local.position();
        Self {
            local,
            position,
            mode,
            rng: ChaCha12Rng::from_seed(seed),
            table: Table::new(position),
            known: Known::default(),
            records: Records::new(position, RECORDS_BYTES_MAX),
            rpcs: Rpcs::default(),
            lookups: BTreeMap::new(),
            lookups_started: 0,
            publication: Publication::default(),
            upkeep: Upkeep::new(now),
            timers: Deadlines::default(),
            size: NetworkSize::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Starts or stops serving.
    pub const fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// A session stands, so the key is good, and the peer answered at `contact.endpoint`. Only nodes that serve the
    /// DHT enter the table.
    pub fn handle_peer_up(&mut self, now: Instant, contact: Contact, serves_dht: bool) {
        if contact.node_id == self.local {
            return;
        }
        if !serves_dht {
            self.table.remove(contact.node_id);
            self.known.remove(contact.node_id);
            return;
        }
        let was_alone = self.table.is_alone();
        if self.table.admit(now, contact) == Admission::Refused {
            self.counters.crowded += 1;
            self.avoid(now, contact.node_id);
        }
        self.known.handle_seen(now, contact);
        self.handle_table_grown(now, was_alone);
    }

    /// A handshake with the node was given up: all questions to it have failed.
    pub fn handle_peer_failed(&mut self, now: Instant, node_id: NodeId) {
        let failed = self.rpcs.fail(node_id);
        if failed.is_empty() {
            self.handle_miss(now, node_id);
        }
        for rpc in failed {
            self.handle_rpc_failed(now, rpc);
        }
    }

    /// Answers a [`Control::Find`] or [`Control::Store`] of an authenticated peer; a client answers nothing.
    pub fn handle_request(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: NodeId,
        request: &Control,
    ) -> Option<Control> {
        if self.mode == Mode::Client {
            return None;
        }
        match request {
            Control::Find { request, want, target } => {
                let record = self.held(now, target).filter(|_| *want == Want::Record).map(<[u8]>::to_vec);
                let contacts = self.table.closest(target, K, Some(from));
                Some(Control::Found { request: *request, record, contacts })
            }
            Control::Store { request, record } => {
                let outcome = self.store(now, wall, from, record);
                Some(Control::Stored { request: *request, outcome })
            }
            Control::Ping { .. }
            | Control::Pong { .. }
            | Control::Hello { .. }
            | Control::Close { .. }
            | Control::Found { .. }
            | Control::Stored { .. } => None,
        }
    }

    /// Takes a [`Control::Found`] or [`Control::Stored`] of an authenticated peer. The endpoints in it are those that
    /// the caller finds fit to be contacted.
    pub fn handle_reply(&mut self, now: Instant, wall: WallTime, from: NodeId, reply: Control) {
        match reply {
            Control::Found { request, record, contacts } => {
                let Some(rpc) = self.answered(now, from, request, false) else { return };
                self.handle_found(now, wall, rpc, record, contacts);
            }
            Control::Stored { request, outcome } => {
                let Some(rpc) = self.answered(now, from, request, true) else { return };
                if rpc.owner == Owner::Publish {
                    let stored = outcome == StoreOutcome::Stored;
                    self.handle_placed(now, stored);
                }
            }
            Control::Ping { .. }
            | Control::Pong { .. }
            | Control::Hello { .. }
            | Control::Close { .. }
            | Control::Find { .. }
            | Control::Store { .. } => self.counters.unsolicited += 1,
        }
    }

    /// Keeps a record that came in another way, as if its owner had stored it here.
    pub fn handle_record(&mut self, now: Instant, wall: WallTime, record: NodeRecord) {
        if record.node_id() != self.local {
            self.keep(now, wall, record.node_id(), &record);
        }
    }

    /// Searches for the nodes closest to `target` or for the record there. Ends with [`Event::LookupDone`].
    pub fn lookup(&mut self, now: Instant, target: Position, want: Want) -> LookupId {
        let running = self.lookups.values().filter(|lookup| lookup.purpose() == Purpose::Caller).count();
        if running < LOOKUPS_MAX {
            return self.start_lookup(now, target, want, Purpose::Caller, Vec::new());
        }
        self.counters.lookups_refused += 1;
        let id = self.next_lookup_id();
        self.lookups.insert(id, Lookup::new(now, target, want, Purpose::Caller, Vec::new(), None));
        self.finish_lookup(now, id);
        id
    }

    /// Keeps `record` as our own and places it at the k closest nodes, now (but not more often than every
    /// [`PUBLISH_GAP_MIN`]) and again and again.
    pub fn publish(&mut self, now: Instant, record: NodeRecord) {
        self.replace_publication(now, record);
    }

    /// Takes in nodes of an earlier run; they are asked when nobody else answers.
    pub fn remember(&mut self, contacts: Vec<Contact>) {
        for contact in contacts {
            if contact.node_id != self.local && contact.node_id.is_usable() {
                self.known.remember(contact);
            }
        }
        self.arm_probe_after_remember();
    }

    /// All known nodes, best first, at most [`KNOWN_MAX`]: what to save.
    pub fn known(&self) -> impl Iterator<Item = Contact> + use<> {
        self.known.best_first().into_iter()
    }

    /// The nodes of the table that are closest to `target`, silent ones left out, closest first.
    pub fn closest(&self, target: &Position, n: usize) -> Vec<Contact> {
        self.table.closest(target, n, None)
    }

    /// Where a node answered last.
    pub fn contact(&self, node_id: NodeId) -> Option<Contact> {
        self.table.contact(node_id, &node_id.position()).or_else(|| self.known.contact(node_id)).copied()
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Query> {
        self.transmits.pop_front()
    }

    /// The next thing that became true.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        [self.rpcs.poll_timeout(), self.timers.next()].into_iter().flatten().min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, wall: WallTime) {
        while let Some(due) = self.rpcs.handle_timeout(now) {
            match due {
                Due::Again { query, owner, timeouts } => self.handle_rpc_slow(now, query, owner, timeouts),
                Due::Failed(rpc) => self.handle_rpc_failed(now, rpc),
            }
        }
        while let Some(timer) = self.timers.pop_due(now) {
            self.handle_timer(now, wall, timer);
        }
    }

    /// A summary for people.
    pub fn status(&self) -> Status {
        let bucket = |(index, contacts, replacements): (u16, usize, usize)| BucketStatus {
            distance_bits: 256 - index,
            contacts,
            replacements,
        };
        let others = self.size.estimate().unwrap_or(0).max(self.table.len() as u64);
        Status {
            mode: self.mode,
            contacts: self.table.len(),
            known: self.known.len(),
            network_size_estimate: others + u64::from(self.mode == Mode::Server),
            buckets: self.table.buckets().map(bucket).collect(),
            records: self.records.len(),
            records_bytes: self.records.bytes(),
            lookups_running: self.lookups.len(),
            rpcs_running: self.rpcs.len(),
            publish_holders: self.publication.holders(),
            counters: self.counters,
        }
    }

    /// The record that we can show for `target`: our own or one held.
    fn held(&self, now: Instant, target: &Position) -> Option<&[u8]> {
        match self.publication.record() {
            Some(own) if matches_target(own, target) => Some(own.bytes()),
            Some(_) | None => self.records.find(now, target),
        }
    }

    fn store(&mut self, now: Instant, wall: WallTime, from: NodeId, bytes: &[u8]) -> StoreOutcome {
        if self.records.holds(now, &from.position(), bytes) {
            return StoreOutcome::Stored;
        }
        match NodeRecord::parse(bytes) {
            Ok(record) if record.node_id() != self.local => self.keep(now, wall, from, &record),
            Ok(_) => StoreOutcome::Refused,
            Err(_) => {
                self.counters.records_invalid += 1;
                StoreOutcome::Refused
            }
        }
    }

    fn keep(&mut self, now: Instant, wall: WallTime, from: NodeId, record: &NodeRecord) -> StoreOutcome {
        let network = self.contact(from).and_then(|contact| Network::of_contact(&contact));
        let source = network.map_or(Source::Node(from), Source::Network);
        let outcome = self.records.store(now, wall, record, source);
        self.counters.records_invalid += u64::from(outcome == StoreOutcome::Refused);
        self.counters.records_full += u64::from(outcome == StoreOutcome::Full);
        self.arm_purge(now);
        outcome
    }

    /// The question that this answers; what answers nothing is counted.
    fn answered(&mut self, now: Instant, from: NodeId, request: u64, is_store: bool) -> Option<Rpc> {
        let rpc = self.rpcs.handle_answer(now, from, request, is_store);
        if rpc.is_some() {
            let was_alone = self.table.is_alone();
            self.table.handle_answer(now, from);
            self.known.handle_answer(now, from);
            self.handle_table_grown(now, was_alone);
        } else {
            self.counters.unsolicited += 1;
        }
        rpc
    }

    fn handle_found(
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
            (Owner::Liveness | Owner::Probe, Question::Find { target, .. }) => {
                self.handle_upkeep_answer(now, target, &contacts);
            }
            (Owner::Liveness | Owner::Probe | Owner::Publish | Owner::WriteBack | Owner::Nobody, _) => {}
        }
    }

    /// Leaves out ourselves and crowds; a node that answered us before is taken at its proven endpoint.
    fn acceptable(&self, contacts: Vec<Contact>) -> Vec<(Position, Contact)> {
        let mut tally = Tally::default();
        let others = contacts.into_iter().filter(|contact| contact.node_id != self.local);
        let proven = others.map(|named| {
            let position = named.node_id.position();
            (position, self.table.contact(named.node_id, &position).copied().unwrap_or(named))
        });
        proven.filter(|(_, contact)| tally.admits(contact, PER_NETWORK_IN_ANSWER_MAX)).collect()
    }

    /// The record, if it is what the lookup wants, signed and in date.
    fn checked(&mut self, wall: WallTime, id: LookupId, bytes: &[u8]) -> Option<NodeRecord> {
        let lookup = self.lookups.get(&id).filter(|lookup| lookup.want() == Want::Record)?;
        if let Some(best) = lookup.record().filter(|best| best.bytes() == bytes) {
            return Some(best.clone()).filter(|best| best.remaining(wall).is_ok());
        }
        let record = NodeRecord::parse(bytes).ok();
        let record = record.filter(|r| r.remaining(wall).is_ok() && matches_target(r, lookup.target()));
        self.counters.records_invalid += u64::from(record.is_none());
        record
    }

    fn start_lookup(
        &mut self,
        now: Instant,
        target: Position,
        want: Want,
        purpose: Purpose,
        mut seeds: Vec<Contact>,
    ) -> LookupId {
        let id = self.next_lookup_id();
        seeds.extend(self.table.seeds(&target, K));
        if seeds.len() < ALPHA {
            seeds.extend(self.known.best_first().into_iter().take(K));
        }
        let held = if want == Want::Record { self.held(now, &target) } else { None };
        let held = held.and_then(|bytes| NodeRecord::parse(bytes).ok());
        self.lookups.insert(id, Lookup::new(now, target, want, purpose, seeds, held));
        self.timers.arm(Timer::Lookup(id), now + LOOKUP_TIME_MAX);
        self.drive_lookup(now, id);
        id
    }

    const fn next_lookup_id(&mut self) -> LookupId {
        self.lookups_started += 1;
        LookupId(self.lookups_started)
    }

    /// Asks whom the lookup wants to ask, and ends it when nothing is left.
    fn drive_lookup(&mut self, now: Instant, id: LookupId) {
        let Some(lookup) = self.lookups.get(&id) else { return };
        let question = Question::Find { want: lookup.want(), target: *lookup.target() };
        while let Some(contact) = self.lookups.get(&id).and_then(Lookup::next) {
            let asked =
                self.is_usable(&contact) && self.ask(now, contact, Owner::Lookup(id), question.clone());
            let Some(lookup) = self.lookups.get_mut(&id) else { return };
            if asked {
                lookup.handle_asked(now, contact.node_id);
            } else {
                lookup.handle_failed(contact.node_id);
            }
        }
        if self.lookups.get(&id).is_some_and(Lookup::is_done) {
            self.finish_lookup(now, id);
        }
    }

    /// True for those who answered us, and for keys with which a handshake is possible.
    fn is_usable(&self, contact: &Contact) -> bool {
        let id = contact.node_id;
        self.table.contact(id, &id.position()).is_some() || id.is_usable()
    }

    fn finish_lookup(&mut self, now: Instant, id: LookupId) {
        let Some(lookup) = self.lookups.remove(&id) else { return };
        self.timers.disarm(&Timer::Lookup(id));
        self.rpcs.detach(id);
        let (purpose, converged) = (lookup.purpose(), lookup.is_converged());
        let (outcome, lacking) = lookup.finish(now);
        if converged && !outcome.closest.is_empty() {
            self.size.handle_lookup(&outcome.target, &outcome.closest);
        }
        self.table.handle_lookup(now, &outcome.target);
        match purpose {
            Purpose::Caller => {
                if let (Some(record), Some(contact)) = (&outcome.record, lacking) {
                    self.write_back(now, record, contact);
                }
                self.events.push_back(Event::LookupDone { id, outcome });
            }
            Purpose::Publish => self.place(now, &outcome.closest),
            Purpose::Upkeep => {}
        }
    }

    /// Gives the record to a node that should have it: one expected to be among the k closest.
    fn write_back(&mut self, now: Instant, record: &NodeRecord, contact: Contact) {
        let distance = record.node_id().position().distance(&contact.node_id.position());
        if self.size.expected_rank(&distance) <= K as f64 {
            let record = Arc::from(record.bytes());
            self.ask(now, contact, Owner::WriteBack, Question::Store { record });
        }
    }

    /// Sends a question; false when there is no room for it.
    fn ask(&mut self, now: Instant, to: Contact, owner: Owner, question: Question) -> bool {
        let request = self.rng.next_u64();
        let query = self.rpcs.ask(now, request, to, owner, question);
        let asked = query.is_some();
        query.into_iter().for_each(|query| self.transmit(query));
        asked
    }

    fn transmit(&mut self, query: Query) {
        if self.transmits.len() < TRANSMITS_MAX {
            self.transmits.push_back(query);
        } else {
            self.counters.transmits_dropped += 1;
        }
    }

    fn handle_rpc_slow(&mut self, now: Instant, query: Query, owner: Owner, timeouts: u8) {
        let node_id = query.to.node_id;
        self.transmit(query);
        if let Owner::Lookup(id) = owner {
            if let Some(lookup) = self.lookups.get_mut(&id) {
                lookup.handle_slow(node_id, timeouts);
            }
            self.drive_lookup(now, id);
        }
    }

    fn handle_rpc_failed(&mut self, now: Instant, rpc: Rpc) {
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
            Owner::Liveness | Owner::Probe | Owner::WriteBack | Owner::Nobody => {}
        }
    }

    fn handle_miss(&mut self, now: Instant, node_id: NodeId) {
        self.table.handle_miss(now, node_id);
        self.known.handle_miss(node_id);
        if self.table.is_alone() {
            self.handle_alone(now);
        }
    }
}

#[cfg(test)]
mod tests;
