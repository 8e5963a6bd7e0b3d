//! Many `Dht`s that exchange messages on virtual time, through the real codec, without sessions or crypto. Also part of
//! `tests/simulate`, so it uses only what is public.
//!
//! The first message between two nodes takes a handshake's round trip longer; when it arrives both are up for each
//! other, as `node` would report. Whoever is dead, elsewhere or at another endpoint than asked hears nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

use crate::proto::dht::*;
use crate::proto::identity::{Identity, NodeId};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Control, StoreOutcome, Want};
use crate::proto::wire::record::{CAPABILITY_DHT_SERVER, Content, NodeRecord};

pub(super) const WALL_START_MS: u64 = 1_800_000_000_000;

/// What a datagram costs beside its messages: headers of IPv6 and UDP, header and tag of a session packet.
const OVERHEAD_BYTES: u64 = 40 + 8 + 16 + 16;

pub(super) fn wall(now: Instant) -> WallTime {
    WallTime::from_unix_ms(WALL_START_MS + now.as_nanos() / 1_000_000)
}

pub(super) fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

pub(super) fn identity(i: usize) -> Identity {
    let mut seed = [0x5a; 32];
    seed[..8].copy_from_slice(&(i as u64).to_be_bytes());
    Identity::from_seed(seed)
}

pub(super) fn record_of(
    identity: &Identity,
    sequence: u64,
    now: Instant,
    endpoint: SocketAddr,
) -> NodeRecord {
    let content = Content {
        sequence,
        issued: wall(now),
        ttl: RECORD_TTL,
        capabilities: CAPABILITY_DHT_SERVER,
        endpoints: vec![endpoint],
        relays: Vec::new(),
        streams: Vec::new(),
    };
    NodeRecord::sign(identity, content)
}

/// An endpoint in a private network, where diversity does not count.
pub(super) fn private_endpoint(i: usize) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + i as u32), 5747).into()
}

pub(super) fn contact_of(identity: &Identity, endpoint: SocketAddr) -> Contact {
    Contact { node_id: identity.node_id(), x25519: identity.x25519_public(), endpoint }
}

pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) dht: Dht,
    pub(super) alive: bool,
    pub(super) group: u8,
    /// Names nobody but liars, shows no record, and keeps none.
    pub(super) liar: bool,
    pub(super) sequence: u64,
    contact: Contact,
    wake: Option<Instant>,
    /// Messages sent, and their bytes.
    sent: (u64, u64),
}

impl Node {
    /// Bytes sent, each message in a datagram of its own.
    pub(super) const fn cost(&self) -> u64 {
        self.sent.0 * OVERHEAD_BYTES + self.sent.1
    }
}

enum Delivery {
    Request { from: usize, to: Contact, bytes: Vec<u8> },
    Reply { from: usize, to: usize, bytes: Vec<u8> },
}

pub(super) struct Swarm {
    pub(super) now: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) loss_percent: u64,
    pub(super) liars_drip: bool,
    pub(super) messages: u64,
    one_way: Duration,
    rng: ChaCha12Rng,
    by_id: BTreeMap<NodeId, usize>,
    sessions: BTreeSet<(usize, usize)>,
    queue: BTreeMap<(Instant, u64), Delivery>,
    sent: u64,
    wakes: BTreeSet<(Instant, usize)>,
    pub(super) done: BTreeMap<(usize, LookupId), Outcome>,
}

impl Swarm {
    pub(super) fn new(seed: u8) -> Self {
        Self {
            now: Instant::ZERO,
            nodes: Vec::new(),
            loss_percent: 0,
            liars_drip: false,
            messages: 0,
            one_way: Duration::from_millis(15),
            rng: ChaCha12Rng::from_seed([seed; 32]),
            by_id: BTreeMap::new(),
            sessions: BTreeSet::new(),
            queue: BTreeMap::new(),
            sent: 0,
            wakes: BTreeSet::new(),
            done: BTreeMap::new(),
        }
    }

    /// `n` nodes, one every 50 ms, each knowing one of those before; all publish.
    pub(super) fn grown(seed: u8, n: usize) -> Self {
        let mut network = Self::new(seed);
        for _ in 0..n {
            network.join(Mode::Server);
            network.run_for(Duration::from_millis(50));
        }
        network
    }

    /// A new node, brought together with a random living one.
    pub(super) fn join(&mut self, mode: Mode) -> usize {
        let i = self.add(mode);
        let others: Vec<usize> = (0..i).filter(|other| self.nodes[*other].alive).collect();
        if !others.is_empty() {
            let other = others[self.random(others.len())];
            self.introduce(i, other);
        }
        i
    }

    /// A new node that knows nobody.
    pub(super) fn add(&mut self, mode: Mode) -> usize {
        self.add_as(identity(self.nodes.len()), mode)
    }

    /// The same, with a key of its own.
    pub(super) fn add_as(&mut self, identity: Identity, mode: Mode) -> usize {
        let i = self.nodes.len();
        let endpoint = private_endpoint(i);
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&self.rng.next_u64().to_be_bytes());
        let mut dht = Dht::new(identity.node_id(), mode, seed, self.now);
        dht.publish(self.now, record_of(&identity, 1, self.now, endpoint));
        let contact = contact_of(&identity, endpoint);
        self.by_id.insert(identity.node_id(), i);
        self.nodes.push(Node {
            identity,
            dht,
            alive: true,
            group: 0,
            liar: false,
            sequence: 1,
            contact,
            wake: None,
            sent: (0, 0),
        });
        self.settle(i);
        i
    }

    pub(super) fn introduce(&mut self, a: usize, b: usize) {
        let now = self.now;
        for (one, other) in [(a, b), (b, a)] {
            let (contact, serves) = (self.nodes[other].contact, self.nodes[other].dht.mode() == Mode::Server);
            self.nodes[one].dht.handle_peer_up(now, contact, serves);
        }
        self.sessions.insert((a.min(b), a.max(b)));
        self.settle(a);
        self.settle(b);
    }

    pub(super) fn kill(&mut self, i: usize) {
        self.nodes[i].alive = false;
        self.nodes[i].wake.take().map(|at| self.wakes.remove(&(at, i)));
    }

    pub(super) fn random(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n as u64) as usize
    }

    /// A living node.
    pub(super) fn random_alive(&mut self) -> usize {
        loop {
            let i = self.random(self.nodes.len());
            if self.nodes[i].alive {
                return i;
            }
        }
    }

    pub(super) fn start_lookup(&mut self, from: usize, whom: usize) -> (usize, LookupId) {
        let target = self.nodes[whom].identity.address().position_prefix();
        let id = self.nodes[from].dht.lookup(self.now, target, Want::Record);
        self.settle(from);
        (from, id)
    }

    /// Looks up `whom` and gives the outcome.
    pub(super) fn find(&mut self, from: usize, whom: usize) -> Outcome {
        let key = self.start_lookup(from, whom);
        let end = self.now + LOOKUP_TIME_MAX + Duration::from_secs(1);
        while !self.done.contains_key(&key) && self.step(end) {}
        self.done.remove(&key).expect("every lookup ends in time")
    }

    /// Whether it finds the record of `whom`.
    pub(super) fn finds(&mut self, from: usize, whom: usize) -> bool {
        let id = self.nodes[whom].identity.node_id();
        self.find(from, whom).record.is_some_and(|record| record.node_id() == id)
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Takes one thing that happens until `end`.
    fn step(&mut self, end: Instant) -> bool {
        let delivery = self.queue.keys().next().map(|key| key.0);
        let wake = self.wakes.iter().next().map(|key| key.0);
        let Some(next) = [delivery, wake].into_iter().flatten().min().filter(|next| *next <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        if wake == Some(next) {
            let (_, i) = self.wakes.pop_first().unwrap();
            self.nodes[i].wake = None;
            self.nodes[i].dht.handle_timeout(next, wall(next));
            self.settle(i);
        } else if let Some((_, delivery)) = self.queue.pop_first() {
            self.deliver(delivery);
        }
        true
    }

    fn deliver(&mut self, delivery: Delivery) {
        let now = self.now;
        match delivery {
            Delivery::Request { from, to, bytes } => {
                let Some(to_index) = self.by_id.get(&to.node_id).copied() else { return };
                if self.nodes[to_index].contact.endpoint != to.endpoint || !self.reaches(from, to_index) {
                    return;
                }
                if !self.sessions.contains(&(from.min(to_index), from.max(to_index))) {
                    self.introduce(from, to_index);
                }
                let name = self.nodes[from].identity.node_id();
                let request = &Control::parse_all(&bytes).unwrap()[0];
                if self.nodes[to_index].liar {
                    let mut bytes = Vec::new();
                    self.lie(to_index, request).emit(&mut bytes);
                    return self.send(self.one_way, Delivery::Reply { from: to_index, to: from, bytes });
                }
                let dht = &mut self.nodes[to_index].dht;
                if let Some(reply) = dht.handle_request(now, wall(now), name, request) {
                    let mut bytes = Vec::new();
                    reply.emit(&mut bytes);
                    self.send(self.one_way, Delivery::Reply { from: to_index, to: from, bytes });
                }
                self.settle(to_index);
            }
            Delivery::Reply { from, to, bytes } => {
                if self.reaches(from, to) {
                    let name = self.nodes[from].identity.node_id();
                    let reply = Control::parse_all(&bytes).unwrap().remove(0);
                    self.nodes[to].dht.handle_reply(now, wall(now), name, reply);
                    self.settle(to);
                }
            }
        }
    }

    /// What a liar says: it took the record, and only its like are near.
    fn lie(&self, liar: usize, request: &Control) -> Control {
        let others = self.nodes.iter().enumerate().filter(|(i, node)| *i != liar && node.liar && node.alive);
        if let Control::Find { request, target, .. } = request {
            let mut others: Vec<_> = others.map(|(_, node)| node.contact).collect();
            others.sort_by_cached_key(|contact| contact.node_id.position().distance(target));
            if self.liars_drip {
                // Two at a time, and always others, the farthest first: each looks like progress.
                let asked = usize::try_from(request >> 2).unwrap() % (others.len().max(4) / 2);
                others.reverse();
                others.drain(..asked * 2);
                others.truncate(2);
            }
            others.truncate(K);
            return Control::Found { request: *request, record: None, contacts: others };
        }
        let Control::Store { request, .. } = request else { panic!("{request:?} is no question") };
        Control::Stored { request: *request, outcome: StoreOutcome::Stored }
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.nodes[to].alive && self.nodes[from].alive && self.nodes[from].group == self.nodes[to].group
    }

    fn send(&mut self, delay: Duration, delivery: Delivery) {
        self.messages += 1;
        let (Delivery::Request { from, bytes, .. } | Delivery::Reply { from, bytes, .. }) = &delivery;
        let sent = &mut self.nodes[*from].sent;
        *sent = (sent.0 + 1, sent.1 + bytes.len() as u64);
        if self.rng.next_u64() % 100 >= self.loss_percent {
            self.sent += 1;
            self.queue.insert((self.now + delay, self.sent), delivery);
        }
    }

    /// Takes everything that a node has to say.
    pub(super) fn settle(&mut self, i: usize) {
        while let Some(Query { to, control }) = self.nodes[i].dht.poll_transmit() {
            let known = self.by_id.get(&to.node_id).copied();
            let greeted = known.is_some_and(|other| self.sessions.contains(&(i.min(other), i.max(other))));
            let mut bytes = Vec::new();
            control.emit(&mut bytes);
            let delay = if greeted { self.one_way } else { self.one_way * 3 };
            self.send(delay, Delivery::Request { from: i, to, bytes });
        }
        while let Some(event) = self.nodes[i].dht.poll_event() {
            match event {
                Event::LookupDone { id, outcome } => drop(self.done.insert((i, id), outcome)),
                Event::RecordDue => {
                    let now = self.now;
                    let node = &mut self.nodes[i];
                    node.sequence += 1;
                    let record = record_of(&node.identity, node.sequence, now, node.contact.endpoint);
                    node.dht.publish(now, record);
                }
            }
        }
        let wake = self.nodes[i].dht.poll_timeout();
        if wake != self.nodes[i].wake {
            self.nodes[i].wake.map(|at| self.wakes.remove(&(at, i)));
            wake.map(|at| self.wakes.insert((at, i)));
            self.nodes[i].wake = wake;
        }
    }
}
