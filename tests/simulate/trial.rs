//! One record placed by its owner and searched by a stranger: two real state machines on virtual time, the real codec.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use auramesh::proto::dht::{Dht, Event, LookupId, Mode, Outcome};
use auramesh::proto::identity::{Identity, NodeId, Position};
use auramesh::proto::timer::Instant;
use auramesh::proto::wire::control::{Contact, Control, Want};

use crate::network::{Network, mix};
use crate::people::Person;
use crate::swarm::{record_of, wall};

/// A node is given so long for joining: it looks itself up at once, a point elsewhere after 15 s, and walks to its position to
/// place its record after 2 and about 60 s.
const JOINING: Duration = Duration::from_secs(90);
/// Longer than any lookup or publication.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node that is not part of the modelled network, with the messages on their way to it.
struct Host {
    identity: Identity,
    dht: Dht,
    now: Instant,
    greeted: BTreeSet<NodeId>,
    answers: BTreeMap<(Instant, u64), (Contact, Vec<u8>)>,
    sent: u64,
    done: BTreeMap<LookupId, Outcome>,
    /// When the last answer to a Store came.
    stored: Option<Instant>,
}

/// What one trial gave.
#[derive(Debug)]
pub(crate) struct Trial {
    /// Time of a walk until all who were to keep the record had answered.
    pub(crate) publish: Duration,
    /// Honest nodes that keep it.
    pub(crate) holders: usize,
    pub(crate) get: Outcome,
}

fn owner(seed: u64) -> Identity {
    Identity::from_seed(blake3::derive_key("azora simulate owner", &seed.to_be_bytes()))
}

fn stranger(seed: u64) -> Identity {
    Identity::from_seed(blake3::derive_key("azora simulate stranger", &seed.to_be_bytes()))
}

/// The positions of both nodes of a trial.
pub(crate) fn both(seed: u64) -> (Position, Position) {
    (owner(seed).node_id().position(), stranger(seed).node_id().position())
}

/// The owner joins and places its record, what the network has in store happens, and a stranger searches.
pub(crate) fn run(network: &mut Network<'_>, seed: u64) -> Trial {
    network.kept.borrow_mut().owner = Some(both(seed).0);
    let mut owner = Host::joined(network, owner(seed), seed);
    let holders = network.kept.borrow().holders.len();
    let mut stranger = Host::joined(network, stranger(seed), mix(seed));
    network.later = true;
    let get = stranger.search(network, owner.identity.address().position_prefix());

    network.later = false;
    // The third goes to those who are known, the fourth walks again.
    owner.publish(2);
    owner.run(network, PATIENCE, |_| false);
    let began = owner.now;
    owner.publish(3);
    owner.run(network, PATIENCE, |_| false);
    Trial { publish: owner.stored.map_or(PATIENCE, |last| last.saturating_since(began)), holders, get }
}

impl Host {
    /// A node that has been up for a while: its table is full, as are those of all others.
    fn joined(network: &Network<'_>, identity: Identity, seed: u64) -> Self {
        let id = identity.node_id();
        let random = *blake3::hash(&seed.to_be_bytes()).as_bytes();
        let now = Instant::from_nanos(1_000_000_000);
        let mut host = Self {
            dht: Dht::new(id, Mode::Server, random, now),
            identity,
            now,
            greeted: BTreeSet::new(),
            answers: BTreeMap::new(),
            sent: 0,
            done: BTreeMap::new(),
            stored: None,
        };
        host.publish(1);
        for contact in network.members(&id.position()) {
            host.greeted.insert(contact.node_id);
            host.dht.handle_peer_up(now, contact, true);
        }
        host.run(network, JOINING, |_| false);
        host
    }

    fn publish(&mut self, sequence: u64) {
        let endpoint = Person::of(&self.identity).contact().endpoint;
        self.dht.publish(self.now, record_of(&self.identity, sequence, self.now, endpoint));
    }

    fn search(&mut self, network: &Network<'_>, target: Position) -> Outcome {
        let id = self.dht.lookup(self.now, target, Want::Record);
        self.run(network, PATIENCE, |host| host.done.contains_key(&id));
        self.done.remove(&id).expect("every lookup ends")
    }

    /// Lets time pass until then, or until something is so.
    fn run(&mut self, network: &Network<'_>, time: Duration, until: impl Fn(&Self) -> bool) {
        let end = self.now + time;
        loop {
            self.settle(network);
            if until(self) {
                return;
            }
            let answer = self.answers.keys().next().map(|key| key.0);
            let timer = self.dht.poll_timeout();
            let Some(next) = [answer, timer].into_iter().flatten().min().filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            if answer == Some(next) {
                self.hear();
            } else {
                self.dht.handle_timeout(self.now, wall(self.now));
            }
        }
    }

    fn hear(&mut self) {
        let Some((_, (from, bytes))) = self.answers.pop_first() else { return };
        if self.greeted.insert(from.node_id) {
            self.dht.handle_peer_up(self.now, from, true);
        }
        for answer in Control::parse_all(&bytes).expect("answers are well formed") {
            if let Control::Stored { .. } = answer {
                self.stored = Some(self.now);
            }
            self.dht.handle_reply(self.now, wall(self.now), from.node_id, answer);
        }
    }

    /// Asks what is to be asked; the answers are on their way at once.
    fn settle(&mut self, network: &Network<'_>) {
        let own = self.identity.node_id().position();
        while let Some(query) = self.dht.poll_transmit() {
            let mut bytes = Vec::new();
            query.control.emit(&mut bytes);
            let question = Control::parse_all(&bytes).expect("questions are well formed").remove(0);
            let Some(answer) = network.answer(&query.to.node_id, &question) else { continue };
            let once = network.round_trip(&own, &query.to.node_id.position());
            // The handshake comes first.
            let times = if self.greeted.contains(&query.to.node_id) { 1 } else { 2 };
            let mut bytes = Vec::new();
            answer.emit(&mut bytes);
            self.sent += 1;
            self.answers.insert((self.now + once * times, self.sent), (query.to, bytes));
        }
        while let Some(event) = self.dht.poll_event() {
            match event {
                Event::LookupDone { id, outcome } => drop(self.done.insert(id, outcome)),
                // The old record goes out again.
                Event::RecordDue => {}
            }
        }
    }
}
