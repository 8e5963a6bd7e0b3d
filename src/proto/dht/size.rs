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

/// The estimate.
#[derive(Debug, Default)]
pub(super) struct NetworkSize {
    /// Target and slope of each lookup, oldest first. A target counts once: we often look for ourselves, and that
    /// shows the same neighbourhood again.
    slopes: VecDeque<(Position, f64)>,
    /// Nodes counted one by one, while they are fewer than k.
    counted: Option<u64>,
}

impl NetworkSize {
    /// A walk ended; these are the closest nodes to its target, closest first.
    pub(super) fn handle_lookup(&mut self, target: &Position, closest: &[Contact]) {
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
        self.slopes.retain(|(other, _)| other != target);
        if self.slopes.len() == LOOKUPS_COUNTED {
            self.slopes.pop_front();
        }
        self.slopes.push_back((*target, products / squares));
    }

    /// Nodes of the network beside ourselves; `None` before the first walk.
    pub(super) fn estimate(&self) -> Option<u64> {
        if self.counted.is_some() {
            return self.counted;
        }
        let mean = self.slopes.iter().map(|(_, slope)| slope).sum::<f64>() / self.slopes.len() as f64;
        (mean > 0.0).then(|| (1.0 / mean).round() as u64)
    }

    /// What is nearer to a point than this belongs to a region in which so many nodes are expected. Nothing does before the
    /// first estimate. What was seen around `own` counts only as long as nothing else was: keys made to be near us make
    /// the network look larger there, and our region smaller.
    pub(super) fn region(&self, expected: f64, own: &Position) -> Distance {
        let elsewhere: Vec<f64> =
            self.slopes.iter().filter(|(target, _)| target != own).map(|(_, slope)| *slope).collect();
        let mean = elsewhere.iter().sum::<f64>() / elsewhere.len() as f64;
        let nodes = if self.counted.is_none() && mean > 0.0 { Some(1.0 / mean) } else { None };
        let nodes = nodes.or(self.estimate().map(|nodes| nodes as f64));
        nodes.map_or(Distance([0; 32]), |nodes| region::end(expected, nodes))
    }

    /// True once the network was seen around another point than `own`, or counted.
    pub(super) fn is_known_elsewhere(&self, own: &Position) -> bool {
        self.counted.is_some() || self.slopes.iter().any(|(target, _)| target != own)
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
