//! How many nodes the network has, told from how densely they stand.
//!
//! With N nodes spread evenly, the i-th closest to any point is at i/N of the key space on average. A lookup's k
//! distances give a line through the origin; its slope, averaged over the last lookups, is 1/N.

use std::collections::VecDeque;

use super::region;
use super::table::K;
use crate::proto::identity::{Distance, Position};
use crate::proto::wire::control::Contact;

/// How many lookups count.
const LOOKUPS_COUNTED: usize = 32;

/// Where more than this are expected, fewer than α are there by chance once in a hundred times.
const HARDLY_FEW: f64 = 8.0;

/// One network is not taken for so many times as large by chance: two standard errors of a walk.
const DISAGREEING: f64 = 1.5;

/// The estimate.
#[derive(Debug, Default)]
pub(super) struct NetworkSize {
    /// Of each lookup, oldest first. A target counts once: we often look for ourselves, and that shows the same
    /// neighbourhood again.
    slopes: VecDeque<Seen>,
    /// Nodes counted one by one, while they are fewer than k.
    counted: Option<u64>,
}

/// What one lookup showed.
#[derive(Debug)]
struct Seen {
    target: Position,
    slope: f64,
    /// The target was drawn by us from a large part of the key space.
    drawn: bool,
}

impl NetworkSize {
    /// A walk ended; these are the closest nodes to its target, closest first. `drawn`: nobody but us chose the target.
    pub(super) fn handle_lookup(&mut self, target: &Position, drawn: bool, closest: &[Contact]) {
        if closest.len() < K {
            self.counted = Some(closest.len() as u64);
            return;
        }
        self.counted = None;
        let (mut products, mut squares) = (0.0, 0.0);
        for (i, contact) in closest.iter().enumerate() {
            let rank = (i + 1) as f64;
            products += rank * fraction(&contact.node_id.position().distance(target));
            squares += rank * rank;
        }
        self.slopes.retain(|seen| seen.target != *target);
        if self.slopes.len() == LOOKUPS_COUNTED {
            self.slopes.pop_front();
        }
        self.slopes.push_back(Seen { target: *target, slope: products / squares, drawn });
    }

    /// Nodes of the network beside ourselves; `None` before the first walk.
    pub(super) fn estimate(&self) -> Option<u64> {
        if self.counted.is_some() {
            return self.counted;
        }
        let mean = self.slopes.iter().map(|seen| seen.slope).sum::<f64>() / self.slopes.len() as f64;
        (mean > 0.0).then(|| (1.0 / mean).round() as u64)
    }

    /// The standard error of the estimate as a part of it; `None` where there is none or everybody was counted. Distances of
    /// nodes that stand at random are sums of exponential ones: the slope through k of them has a variance of 6/5k.
    pub(super) fn error(&self) -> Option<f64> {
        let among = (K * self.slopes.len()) as f64;
        (self.counted.is_none() && among > 0.0).then(|| (1.2 / among).sqrt())
    }

    /// What is nearer to a point than this belongs to a region in which so many nodes are expected. Nothing does before the
    /// first estimate. Keys made to be near us, or near to whom we search, make the network look larger there, and its regions
    /// smaller: where all that was seen disagrees with what was seen at points that we drew, those count alone.
    pub(super) fn region(&self, expected: f64) -> Distance {
        let Some(all) = self.estimate().map(|nodes| nodes as f64) else { return Distance([0; 32]) };
        let mut drawn: Vec<f64> =
            self.slopes.iter().filter(|seen| seen.drawn).map(|seen| seen.slope).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        let median = drawn.get(drawn.len() / 2).filter(|slope| self.counted.is_none() && **slope > 0.0);
        let nodes = median.map_or(all, |slope| if all * slope > DISAGREEING { 1.0 / slope } else { all });
        region::end(expected, nodes)
    }

    /// True once the network was seen around a point that we drew, or counted.
    pub(super) fn is_known_elsewhere(&self) -> bool {
        self.counted.is_some() || self.slopes.iter().any(|seen| seen.drawn)
    }

    /// How many nodes are expected in the bucket of those that share exactly `index` leading bits with us; `None` before the
    /// first walk, and where everybody was counted.
    pub(super) fn expected_in_bucket(&self, index: u16) -> Option<f64> {
        let nodes = self.estimate().filter(|_| self.counted.is_none())?;
        Some(nodes as f64 * 0.5f64.powi(i32::from(index) + 1))
    }

    /// True where it is no wonder that a bucket is almost empty.
    pub(super) fn may_be_few_in(&self, index: u16) -> bool {
        self.expected_in_bucket(index).is_some_and(|expected| expected < HARDLY_FEW)
    }

    /// How many nodes are expected to be nearer than that.
    pub(super) fn expected_rank(&self, distance: &Distance) -> f64 {
        self.estimate().unwrap_or(0) as f64 * fraction(distance)
    }
}

/// The distance as a part of the key space, 0 to 1.
fn fraction(distance: &Distance) -> f64 {
    let mut head = [0; 16];
    head.copy_from_slice(&distance.0[..16]);
    u128::from_be_bytes(head) as f64 / u128::MAX as f64
}
