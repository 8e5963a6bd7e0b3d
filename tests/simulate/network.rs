//! Everybody but the two nodes of a trial: what each would answer, from a table that is drawn when it is asked.
//!
//! A table is what [`Dht`](auramesh::proto::dht::Dht) keeps after long enough: up to k members for each number of leading
//! bits shared, drawn evenly from all who belong there, whether they still live or not. It is the same whenever it is
//! drawn again, and takes no memory: a million nodes cost 64 bytes each.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use auramesh::proto::dht::{K, region};
use auramesh::proto::identity::{Distance, NodeId, Position};
use auramesh::proto::wire::control::{Contact, Control, StoreOutcome, Want};
use auramesh::proto::wire::record::NodeRecord;
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng as _;

use crate::people::{People, Person, flipped, lot, nearest, shared};

/// Half of all pairs of nodes are nearer to each other than this, there and back.
const RTT_MEDIAN_MS: f64 = 30.0;
/// Spread of the logarithm of round trips: one pair in twenty has 80 ms or more.
const RTT_SPREAD: f64 = 0.6;
/// Spread of the logarithm of what each node takes the network's size for: one walk shows no more.
const SIZE_SPREAD: f64 = 0.25;

/// What becomes of the network's nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shares {
    /// Part of them that dies after the record was placed, and stays in all tables.
    pub(crate) dead: f64,
    /// Part that names only its like, says that it keeps a record, and shows none.
    pub(crate) colluding: f64,
}

/// The network as one trial sees it.
#[derive(Debug)]
pub(crate) struct Network<'a> {
    pub(crate) people: &'a People,
    /// Keys made to stand near to the record; they collude.
    pub(crate) sybils: &'a People,
    pub(crate) shares: Shares,
    pub(crate) seed: u64,
    /// Whether nodes name the k closest and nobody else, as in the paper.
    pub(crate) plain: bool,
    /// Whether the dead have died.
    pub(crate) later: bool,
    /// The record that the trial is about, and who keeps it.
    pub(crate) kept: RefCell<Kept>,
}

/// The record of a trial.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) owner: Option<Position>,
    pub(crate) record: Vec<u8>,
    pub(crate) holders: BTreeSet<NodeId>,
}

impl Kept {
    /// Somebody is to keep a record; only that of the owner counts.
    fn take(&mut self, keeper: NodeId, record: &[u8]) {
        if self.record != record {
            let Ok(parsed) = NodeRecord::parse(record) else { return };
            if Some(parsed.node_id().position()) != self.owner {
                return;
            }
            self.record = record.to_vec();
            self.holders.clear();
        }
        self.holders.insert(keeper);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Honest,
    Dead,
    Colluder,
}

impl Network<'_> {
    /// The answer to a question, or nothing.
    pub(crate) fn answer(&self, asked: &NodeId, question: &Control) -> Option<Control> {
        let (person, role) = self.role_of(asked)?;
        match (question, role) {
            (_, Role::Dead) => None,
            (Control::Find { request, want: Want::Nothing, .. }, _) => {
                Some(Control::Found { request: *request, record: None, contacts: Vec::new() })
            }
            (Control::Find { request, target, .. }, Role::Colluder) => {
                let contacts = self.colluders(target);
                Some(Control::Found { request: *request, record: None, contacts })
            }
            (Control::Find { request, want, target }, Role::Honest) => {
                let record = self.shown(asked, target).filter(|_| *want == Want::Record);
                let contacts = self.named(&person.position, target);
                Some(Control::Found { request: *request, record, contacts })
            }
            (Control::Store { request, record }, _) => {
                if role == Role::Honest {
                    self.kept.borrow_mut().take(*asked, record);
                }
                Some(Control::Stored { request: *request, outcome: StoreOutcome::Stored })
            }
            _ => None,
        }
    }

    fn shown(&self, asked: &NodeId, target: &Position) -> Option<Vec<u8>> {
        let kept = self.kept.borrow();
        let about = kept.owner.is_some_and(|owner| owner.address() == target.address());
        (about && kept.holders.contains(asked)).then(|| kept.record.clone())
    }

    fn role_of(&self, id: &NodeId) -> Option<(&Person, Role)> {
        if let Some(sybil) = self.sybils.find(id) {
            return Some((sybil, Role::Colluder));
        }
        self.people.find(id).map(|person| (person, self.role(person)))
    }

    fn role(&self, person: &Person) -> Role {
        let part = mix(person.lot() ^ self.seed) as f64 / u64::MAX as f64;
        if part < self.shares.colluding {
            Role::Colluder
        } else if self.later && part < self.shares.colluding + self.shares.dead {
            Role::Dead
        } else {
            Role::Honest
        }
    }

    /// Whom a node names to somebody who searches at `target`.
    fn named(&self, owner: &Position, target: &Position) -> Vec<Contact> {
        let end = if self.plain {
            Distance([0; 32])
        } else {
            let size = self.people.len() as f64 * (SIZE_SPREAD * normal(lot(owner))).exp();
            region::end(region::SEARCHED_AMONG, size)
        };
        let near = self.near(owner, target, &end);
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(lot(owner) ^ lot(target)).to_be_bytes());
        region::choose(&mut ChaCha12Rng::from_seed(seed), near, target, &end, K)
    }

    /// The members of a node's table that are closest to `target`: k, and all of a region.
    fn near(&self, owner: &Position, target: &Position, end: &Distance) -> Vec<Contact> {
        let bucket = shared(owner, target);
        let mut found = Vec::new();
        if bucket < 256 {
            self.bucket(owner, bucket, &mut found);
        }
        // All of these share as many bits with the target.
        (bucket.saturating_add(1)..256).take_while(|i| self.is_inhabited(owner, *i)).for_each(|i| {
            self.bucket(owner, i, &mut found);
        });
        (0..bucket.min(256)).rev().for_each(|i| {
            if found.len() < K || i >= end.leading_zeros() {
                self.bucket(owner, i, &mut found);
            }
        });
        nearest(found, target, usize::MAX).iter().map(Person::contact).collect()
    }

    /// All members of the table that a node at `owner` has.
    pub(crate) fn members(&self, owner: &Position) -> Vec<Contact> {
        let mut found = Vec::new();
        (0..256).take_while(|i| self.is_inhabited(owner, *i)).for_each(|i| self.bucket(owner, i, &mut found));
        found.iter().map(Person::contact).collect()
    }

    /// True if somebody else shares so many bits with it.
    fn is_inhabited(&self, owner: &Position, bits: u32) -> bool {
        let mut all = self.people.with_prefix(owner, bits).iter().chain(self.sybils.with_prefix(owner, bits));
        all.any(|person| person.position != *owner)
    }

    /// k of those who share exactly `bits` leading bits with `owner`.
    fn bucket(&self, owner: &Position, bits: u32, out: &mut Vec<Person>) {
        let beside = flipped(owner, bits);
        let (people, sybils) =
            (self.people.with_prefix(&beside, bits + 1), self.sybils.with_prefix(&beside, bits + 1));
        let all = people.len() + sybils.len();
        let member = |i: usize| people.get(i).copied().unwrap_or_else(|| sybils[i - people.len()]);
        if all <= K {
            return out.extend((0..all).map(member));
        }
        let mut next = mix(lot(owner) ^ u64::from(bits));
        let mut drawn = [usize::MAX; K];
        for n in 0..K {
            drawn[n] = loop {
                next = mix(next);
                let i = (next % all as u64) as usize;
                if !drawn[..n].contains(&i) {
                    break i;
                }
            };
            out.push(member(drawn[n]));
        }
    }

    /// The k colluders that are closest to a point.
    fn colluders(&self, target: &Position) -> Vec<Contact> {
        let is_colluder = |person: &&Person| self.role(person) == Role::Colluder;
        let mut bits = 256;
        loop {
            bits -= if bits > 64 { 192 } else { 1 };
            let people = self.people.with_prefix(target, bits);
            let sybils = self.sybils.with_prefix(target, bits);
            if bits > 0 && people.len() + sybils.len() < K {
                continue;
            }
            let liars: Vec<Person> = people.iter().filter(is_colluder).chain(sybils).copied().collect();
            if bits == 0 || liars.len() >= K {
                return nearest(liars, target, K).iter().map(Person::contact).collect();
            }
        }
    }

    /// How long a question and its answer take together.
    pub(crate) fn round_trip(&self, a: &Position, b: &Position) -> Duration {
        let normal = normal(mix(lot(a) ^ lot(b) ^ self.seed));
        Duration::from_secs_f64(RTT_MEDIAN_MS / 1000.0 * (RTT_SPREAD * normal).exp())
    }
}

/// Normally distributed (Box, Muller 1958).
fn normal(lot: u64) -> f64 {
    let (radius, angle) = (unit(lot), unit(mix(lot)));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// Above 0, at most 1.
pub(crate) fn unit(lot: u64) -> f64 {
    ((lot >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) const fn mix(lot: u64) -> u64 {
    let mut z = lot.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
