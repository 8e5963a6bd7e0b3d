//! Choosing among those who stand near a point, where many of them may have made their keys to stand there.
//!
//! ```text
//! region  ├───────── depth 0 ─────────┼──── depth 1 ────┼─ depth 2 ─┼ … point      honest nodes: 10, 5, 2.5, …
//!                                                                        ●●●●●●●●●●  keys made to be nearest
//! ```
//! Half of those chosen are the closest. The others are drawn, from each depth in turn: keys made to be nearer than all
//! others are in the last depths only. Whoever crowds every depth instead leaves honest nodes their part of each.

use rand_chacha::ChaCha12Rng;
use rand_core::Rng as _;

use super::table::K;
use crate::proto::identity::{Distance, Position};
use crate::proto::wire::control::Contact;

/// Nodes expected in the region of a record, all of which are to hold it.
pub(super) const STORED_AMONG: f64 = K as f64;
/// Nodes expected where it is searched for: a quarter more, since the estimates of two nodes differ.
pub const SEARCHED_AMONG: f64 = 1.25 * K as f64;
/// Depths told apart. With so many, the last begins at 1/128 of the region.
pub(super) const DEPTHS: usize = 8;

/// The distance within which so many of the network's nodes are expected.
pub fn end(expected: f64, nodes: f64) -> Distance {
    let part = (expected / nodes.max(1.0)).min(1.0);
    let mut region = Distance([0xff; 32]);
    // Saturates at the whole key space.
    region.0[..16].copy_from_slice(&((part * u128::MAX as f64) as u128).to_be_bytes());
    region
}

/// How often the region has to be halved to end at this distance, at most [`DEPTHS`] - 1.
pub(super) fn depth(distance: &Distance, region: &Distance) -> usize {
    let times = head(region) / head(distance).max(1);
    times.checked_ilog2().map_or(0, |halvings| (halvings as usize).min(DEPTHS - 1))
}

fn head(distance: &Distance) -> u128 {
    u128::from_be_bytes(std::array::from_fn(|i| distance.0[i]))
}

/// Of these, sorted by distance from `point`, at most `n`: the closest half, and between them others that are drawn from the
/// region. Where the region holds no more than `n`, the closest.
pub fn choose(
    rng: &mut ChaCha12Rng,
    mut all: Vec<Contact>,
    point: &Position,
    region: &Distance,
    n: usize,
) -> Vec<Contact> {
    let distance = |contact: &Contact| contact.node_id.position().distance(point);
    let inside = all.partition_point(|contact| distance(contact) < *region);
    if inside <= n {
        all.truncate(n);
        return all;
    }
    let mut by_depth: [Vec<Contact>; DEPTHS] = Default::default();
    for contact in all.drain(n / 2..inside) {
        by_depth[depth(&distance(&contact), region)].push(contact);
    }
    let mut drawn = Vec::with_capacity(n);
    while drawn.len() < n - n / 2 {
        for crowd in &mut by_depth {
            if !crowd.is_empty() && drawn.len() < n - n / 2 {
                let i = (rng.next_u64() % crowd.len() as u64) as usize;
                drawn.push(crowd.swap_remove(i));
            }
        }
    }
    // In turn, since an answer is cut at what fits into a datagram.
    let closest = all.into_iter().take(n / 2).map(Some).chain(std::iter::repeat(None));
    closest.zip(drawn).flat_map(|(closest, drawn)| closest.into_iter().chain([drawn])).collect()
}

/// Of contacts sorted by distance from `point`, the `n` closest and all that stand in the region.
pub(super) fn within(
    mut sorted: Vec<Contact>,
    point: &Position,
    region: &Distance,
    n: usize,
) -> Vec<Contact> {
    let is_far = |contact: &Contact| contact.node_id.position().distance(point) >= *region;
    let beyond = sorted.iter().skip(n).position(is_far);
    sorted.truncate(beyond.map_or(sorted.len(), |more| n + more));
    sorted
}
