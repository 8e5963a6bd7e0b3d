//! Records of other nodes that we hold for the network.
//!
//! One record per node, the highest sequence. They are kept in order of distance from us, since those nearest to us
//! are the ones that lookups come to us for: when the room is used up, the farthest goes first. What one network or
//! one node may place here is limited, so that nobody fills it alone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::diversity::Network;
use crate::proto::identity::{ADDRESS_POSITION_BITS, Distance, NodeId, Position};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::StoreOutcome;
use crate::proto::wire::record::NodeRecord;

/// Time to live of our own records. Three republications fit, so two may fail; one while nobody comes or goes.
pub const RECORD_TTL: Duration = Duration::from_secs(60 * 60);
/// Room for records of others in bytes, bookkeeping included.
pub const RECORDS_BYTES_MAX: usize = 16 << 20;
/// Most records that one /24 or /48, or one node in a private network, may place here.
pub const RECORDS_PER_SOURCE_MAX: usize = 64;
/// What a held record costs beside its bytes.
const HELD_OVERHEAD_BYTES: usize = 192;

/// Who placed a record here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Somebody in a globally routable network.
    Network(Network),
    /// A node of which we know no such network.
    Node(NodeId),
}

/// The records held.
#[derive(Debug)]
pub(super) struct Records {
    local: Position,
    by_distance: BTreeMap<Distance, Held>,
    per_source: BTreeMap<Source, usize>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Held {
    bytes: Box<[u8]>,
    sequence: u64,
    expires: Instant,
    source: Source,
}

impl Held {
    fn cost(&self) -> usize {
        self.bytes.len() + HELD_OVERHEAD_BYTES
    }
}

impl Records {
    pub(super) const fn new(local: Position, bytes_max: usize) -> Self {
        Self { local, by_distance: BTreeMap::new(), per_source: BTreeMap::new(), bytes: 0, bytes_max }
    }

    /// Takes in a record whose signature was checked.
    pub(super) fn store(
        &mut self,
        now: Instant,
        wall: WallTime,
        record: &NodeRecord,
        source: Source,
    ) -> StoreOutcome {
        let Ok(left) = record.remaining(wall) else { return StoreOutcome::Refused };
        let distance = record.node_id().position().distance(&self.local);
        let sequence = record.content().sequence;
        let replaced = match self.by_distance.get(&distance) {
            Some(held) if held.bytes.as_ref() == record.bytes() => return StoreOutcome::Stored,
            Some(held) if held.sequence >= sequence => return StoreOutcome::Old,
            held => held.map(|held| held.source),
        };
        let placed = self.per_source.get(&source).copied().unwrap_or(0);
        if replaced != Some(source) && placed >= RECORDS_PER_SOURCE_MAX {
            return StoreOutcome::Full;
        }
        self.remove(&distance);
        let held = Held { bytes: record.bytes().into(), sequence, expires: now + left, source };
        self.insert(distance, held);
        while self.bytes > self.bytes_max {
            let Some(farthest) = self.by_distance.keys().next_back().copied() else { break };
            self.remove(&farthest);
        }
        if self.by_distance.contains_key(&distance) { StoreOutcome::Stored } else { StoreOutcome::Full }
    }

    /// The bytes of the record whose position starts with the first 120 bits of `target`.
    pub(super) fn find(&self, now: Instant, target: &Position) -> Option<&[u8]> {
        let (mut low, mut high) = (self.local.distance(target), self.local.distance(target));
        let shown = (ADDRESS_POSITION_BITS / 8) as usize;
        low.0[shown..].fill(0);
        high.0[shown..].fill(0xff);
        let (_, held) = self.by_distance.range(low..=high).next()?;
        (held.expires > now).then_some(&held.bytes)
    }

    /// Positions and bytes of records to whose position `node` is closer than we are. All that are closer to us than
    /// the node is share more bits with us than with it, so the search begins behind them.
    pub(super) fn nearer_to(
        &self,
        now: Instant,
        node: &Position,
    ) -> impl Iterator<Item = (Position, &[u8])> + use<'_> {
        let node = *node;
        let mut from = Distance([0; 32]);
        let shared = self.local.distance(&node).leading_zeros() as usize;
        if let Some(byte) = from.0.get_mut(shared / 8) {
            *byte = 0x80 >> (shared % 8);
        }
        self.by_distance.range(from..).filter(move |(_, held)| held.expires > now).filter_map(
            move |(distance, held)| {
                let position = Position(self.local.distance(&Position(distance.0)).0);
                (position.distance(&node) < *distance).then_some((position, held.bytes.as_ref()))
            },
        )
    }

    /// True when exactly these bytes are held for `target`, so that their signature needs no second check.
    pub(super) fn holds(&self, now: Instant, target: &Position, bytes: &[u8]) -> bool {
        self.find(now, target) == Some(bytes)
    }

    /// Drops what has expired.
    pub(super) fn purge(&mut self, now: Instant) {
        let expired = self.by_distance.iter().filter(|(_, held)| held.expires <= now);
        let expired: Vec<Distance> = expired.map(|(distance, _)| *distance).collect();
        expired.iter().for_each(|distance| self.remove(distance));
    }

    pub(super) fn len(&self) -> usize {
        self.by_distance.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn insert(&mut self, distance: Distance, held: Held) {
        self.bytes += held.cost();
        *self.per_source.entry(held.source).or_default() += 1;
        self.by_distance.insert(distance, held);
    }

    fn remove(&mut self, distance: &Distance) {
        let Some(held) = self.by_distance.remove(distance) else { return };
        self.bytes -= held.cost();
        if let Some(count) = self.per_source.get_mut(&held.source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&held.source);
            }
        }
    }
}
