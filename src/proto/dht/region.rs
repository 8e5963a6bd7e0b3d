//! Choosing among those who stand near a point, where many of them may have made their keys to stand there.
//!
//! ```text
//! region  ├───────── depth 0 ─────────┼──── depth 1 ────┼─ depth 2 ─┼ … point      honest nodes: 10, 5, 2.5, …
//!                                                             keys made for it:  ●●●●●●●●●●●●
//! ```
//! Half of those chosen are the closest. The others are drawn, from each depth in turn: keys made to be nearer than all
//! others crowd the last depths, and to crowd the first ones takes as many again for each of them.

use rand_chacha::ChaCha12Rng;
use rand_core::Rng as _;

use super::table::K;
use crate::proto::identity::{Distance, Position};
use crate::proto::wire::control::Contact;

/// Nodes expected in the region of a record, all of which are to hold it.
pub const STORED_AMONG: f64 = K as f64;
/// Nodes expected where it is searched for: a quarter more, since the estimates of two nodes differ.
pub const SEARCHED_AMONG: f64 = 1.25 * K as f64;
/// Depths told apart. With so many, the last begins at a hundredth part of the region: an honest node in five.
pub const DEPTHS: usize = 8;

/// The distance within which so many of the network's nodes are expected.
pub fn end(expected: f64, nodes: f64) -> Distance {
    let part = (expected / nodes.max(1.0)).min(1.0);
    let mut region = Distance([0xff; 32]);
    // Saturates at the whole key space.
    region.0[..16].copy_from_slice(&((part * u128::MAX as f64) as u128).to_be_bytes());
    region
}

/// How often what is left of the region has been halved at this distance, at most [`DEPTHS`] - 1.
pub fn depth(distance: &Distance, region: &Distance) -> usize {
    let halved = distance.leading_zeros().saturating_sub(region.leading_zeros());
    usize::try_from(halved).unwrap_or(DEPTHS).min(DEPTHS - 1)
}

/// Of these, sorted by distance from `point`, at most `n`: the closest half, and others of the same region. `all` must not hold
/// any that are out of it beyond the `n` closest.
pub fn choose(
    rng: &mut ChaCha12Rng,
    all: Vec<Contact>,
    point: &Position,
    region: &Distance,
    n: usize,
) -> Vec<Contact> {
    if all.len() <= n {
        return all;
    }
    let mut chosen = all;
    let mut by_depth: [Vec<Contact>; DEPTHS] = Default::default();
    for contact in chosen.drain(n / 2..) {
        by_depth[depth(&contact.node_id.position().distance(point), region)].push(contact);
    }
    while chosen.len() < n {
        for crowd in &mut by_depth {
            if !crowd.is_empty() && chosen.len() < n {
                let drawn = (rng.next_u64() % crowd.len() as u64) as usize;
                chosen.push(crowd.swap_remove(drawn));
            }
        }
    }
    chosen
}

/// Of contacts sorted by distance from `point`, the `n` closest and all that stand in the region.
pub fn within(mut sorted: Vec<Contact>, point: &Position, region: &Distance, n: usize) -> Vec<Contact> {
    let is_far = |contact: &Contact| contact.node_id.position().distance(point) >= *region;
    let beyond = sorted.iter().skip(n).position(is_far);
    sorted.truncate(beyond.map_or(sorted.len(), |more| n + more));
    sorted
}
