//! Kademlia (Maymounkov, Mazières 2002): who is near a point of the key space, and the records held there.
//!
//! Positions are hashes of keys and addresses are heads of positions, so looking up an address finds the node's signed
//! record. Everything travels inside of sessions: `node` opens them, decides which endpoints are fit to be contacted
//! and reports here; nothing here opens, resolves or trusts an endpoint.
//!
//! ```text
//! handle_peer_up ──▶ table.rs    k-buckets             ┐ seeds
//!                └─▶ known.rs    all who ever answered ┴──────▶ lookup.rs ──▶ Event::LookupDone
//! remember ────────▶ known.rs                                     │  ▲
//! handle_request ──▶ records.rs  held for the network    walk.rs  ▼  │ handle_reply
//! publish ─────────▶ publish.rs  who is near, Store ───────────▶ rpc.rs ──▶ poll_transmit
//!
//! region.rs: who is chosen near a point, to ask, to tell and to name, where keys may have been made to stand there
//!
//! upkeep.rs, by time:  alone ─a node answers─▶ walk to us, at 2 s placing our record, at 15 s elsewhere, at 1 min placing it
//!                      again, then every 30 min or sooner, calm every 2 hours
//!                      one member checked every 10 s, calm every 240 s · idle buckets with room refreshed after an hour, others after four
//!                      3 known nodes outside of the table asked every 60 s: heals partitions
//! ```
//!
//! A node that lies can deny, never redirect: a record counts only when its key hashes to the address sought and
//! signed it. A node enters the table only after it answered us, and keys of one network find few places in it.
//!
//! Deliberately left out for now: the key puzzle of servers.

mod diversity;
mod known;
mod lookup;
mod publish;
mod records;
pub mod region;
mod rpc;
mod size;
mod status;
mod table;
mod upkeep;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;

pub use diversity::{PER_NETWORK_IN_ANSWER_MAX, PER_NETWORK_IN_BUCKET_MAX, PER_NETWORK_IN_TABLE_MAX};
pub use known::KNOWN_MAX;
pub use lookup::{ALPHA, LOOKUP_RPCS_MAX, LOOKUP_TIME_MAX, LookupId, Outcome, PATHS, PATHS_MAX, Step};
pub use publish::{PUBLISH_GAP_MIN, REGION_MAX, REPUBLISH_INTERVAL};
pub use records::{RECORD_TTL, RECORDS_BYTES_MAX, RECORDS_PER_SOURCE_MAX};
pub use rpc::{RPC_ATTEMPTS_MAX, RPC_TIMEOUT_FIRST, RPC_TIMEOUT_MAX, RPC_TIMEOUT_MIN, RPCS_MAX};
pub use status::{BucketStatus, Counters, Status};
pub use table::{K, MISSES_MAX, REPLACEMENTS_MAX};
pub use upkeep::{
    ALONE_PROBE_INTERVAL, BUCKET_REFRESH_INTERVAL, LIVENESS_INTERVAL, LIVENESS_INTERVAL_CALM, PROBE_INTERVAL,
};

use crate::proto::identity::{NodeId, Position};
use crate::proto::timer::{Deadlines, Instant, WallTime};
use crate::proto::wire::control::{Contact, Control, StoreOutcome, Want};
use crate::proto::wire::record::NodeRecord;
use diversity::Network;
use known::Known;
use lookup::{Lookup, Purpose, matches_target};
use publish::Publication;
use records::{Records, Source};
use rpc::{Due, Owner, Rpc, Rpcs};
use size::NetworkSize;
use table::{Admission, Table};
use upkeep::{Timer, Upkeep};

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
    /// What: [`Control::Find`], [`Control::Store`] or a forward of a find.
    pub control: Control,
}

impl Query {
    /// The number of the question.
    fn request(&self) -> u64 {
        if let Control::Find { request, .. } | Control::Store { request, .. } = &self.control {
            *request
        } else {
            0
        }
    }
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

    /// Server or client.
    pub const fn mode(&self) -> Mode {
        self.mode
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
        match self.table.admit(now, contact) {
            Admission::Added => {
                self.hand_over(now, contact);
                self.handle_unrest(now);
            }
            Admission::Refused => {
                self.counters.crowded += 1;
                self.avoid(now, contact.node_id);
            }
            Admission::Updated | Admission::Waiting => {}
        }
        self.known.handle_seen(now, contact);
        self.handle_table_grown(now, was_alone);
    }

    /// A node answered at `endpoint`, perhaps not the one that it is reached at.
    pub fn handle_also_at(&mut self, now: Instant, node_id: NodeId, endpoint: SocketAddr) {
        self.table.handle_also_at(now, node_id, endpoint);
    }

    /// True when it is worth asking a node at `endpoint`: those who have only that IP version could be told of it.
    pub fn may_be_also_at(&self, now: Instant, node_id: NodeId, endpoint: SocketAddr) -> bool {
        self.mode == Mode::Server && self.table.may_be_also_at(now, node_id, endpoint)
    }

    /// Contacts as they are named to somebody who has this IP version alone.
    pub fn named_to(&self, now: Instant, contacts: Vec<Contact>, is_ipv4: bool) -> Vec<Contact> {
        contacts.into_iter().map(|contact| self.table.named_to(now, contact, is_ipv4)).collect()
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
        if let Control::Find { request, want, target } = request {
            let record = self.held(now, target).filter(|_| *want == Want::Record).map(<[u8]>::to_vec);
            let contacts = match want {
                Want::Contacts | Want::Record => self.name(target, from),
                Want::Nothing => Vec::new(),
            };
            return Some(Control::Found { request: *request, record, contacts });
        }
        let Control::Store { request, record } = request else { return None };
        let outcome = self.store(now, wall, from, record);
        Some(Control::Stored { request: *request, outcome })
    }

    /// Whom we name to somebody who searches there: the k closest, but where more stand near, others among them.
    fn name(&mut self, target: &Position, to: NodeId) -> Vec<Contact> {
        let region = self.size.region(region::SEARCHED_AMONG);
        let near = self.table.near(target, K, &region, Some(to));
        region::choose(&mut self.rng, near, target, &region, K)
    }

    /// Takes a [`Control::Found`] or [`Control::Stored`] of an authenticated peer. The endpoints in it are those that
    /// the caller finds fit to be contacted.
    pub fn handle_reply(&mut self, now: Instant, wall: WallTime, from: NodeId, reply: Control) {
        if let Control::Found { request, record, contacts } = reply {
            let Some(rpc) = self.answered(now, from, request, false) else { return };
            self.handle_found(now, wall, rpc, record, contacts);
        } else if let Control::Stored { request, outcome } = reply {
            let Some(rpc) = self.answered(now, from, request, true) else { return };
            if rpc.owner == Owner::Publish {
                self.handle_placed(now, outcome == StoreOutcome::Stored);
            }
        } else {
            self.counters.unsolicited += 1;
        }
    }

    /// The record of a node that we hold for the network.
    pub fn record(&self, now: Instant, node_id: &NodeId) -> Option<NodeRecord> {
        let bytes = self.records.find(now, &node_id.position())?;
        NodeRecord::parse(bytes).ok().filter(|record| record.node_id() == *node_id)
    }

    /// True while nobody in the table answers.
    pub fn is_alone(&self) -> bool {
        self.table.is_alone()
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
        self.lookups.insert(id, Lookup::refused(now, target, want));
        self.finish_lookup(now, id);
        id
    }

    /// Keeps `record` as our own and places it at the k closest nodes and all of its region, now (but not more often than
    /// every [`PUBLISH_GAP_MIN`]) and again and again.
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
        [self.rpcs.poll_timeout(), self.timers.earliest()].into_iter().flatten().min()
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
}

#[cfg(test)]
mod tests;
