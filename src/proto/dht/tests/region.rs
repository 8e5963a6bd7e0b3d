//! Who is chosen near a point.

use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;

use super::swarm::*;
use crate::proto::dht::region::{DEPTHS, choose, depth, within};
use crate::proto::dht::*;
use crate::proto::identity::Distance;

/// Contacts sorted by distance from the first key's position, and a region in which every n-th of all stands.
fn around(count: usize, part: u32) -> (Position, Vec<Contact>, Distance) {
    let point = identity(0).node_id().position();
    let mut all: Vec<Contact> = (1..=count).map(|i| contact_of(&identity(i), private_endpoint(i))).collect();
    all.sort_by_key(|contact| contact.node_id.position().distance(&point));
    let mut region = Distance([0xff; 32]);
    region.0[..4].copy_from_slice(&(u32::MAX / part).to_be_bytes());
    (point, all, region)
}

#[test]
fn the_region_ends_where_it_ends_but_holds_the_closest() {
    let (point, all, region) = around(400, 8);
    let inside = all.iter().filter(|c| c.node_id.position().distance(&point) < region).count();
    assert!((30..70).contains(&inside), "{inside}");
    assert_eq!(within(all.clone(), &point, &region, K), all[..inside]);
    assert_eq!(within(all.clone(), &point, &region, 100), all[..100]);
    assert_eq!(within(all.clone(), &point, &Distance([0; 32]), K), all[..K]);
}

#[test]
fn depths_halve_the_region() {
    for region in [Distance([0xff; 32]), Distance([0x0b; 32])] {
        let at = |part: u8| depth(&Distance([region.0[0] / part; 32]), &region);
        assert_eq!([at(1), at(3), at(4), at(0xff)], [0, 1, 2, 7], "{region:?}");
    }
    assert_eq!(depth(&Distance([0xff; 32]), &Distance([0; 32])), 0, "nothing is in an empty region");
}

/// A hundred keys were made to be nearest; the twenty others are chosen all the same.
#[test]
fn keys_made_to_be_nearest_leave_places_to_others() {
    let (point, honest, _) = around(20, 1);
    let region = Distance([0xff; 32]);
    let depth_of = |c: &Contact| depth(&c.node_id.position().distance(&point), &region);
    let made = (10_000..22_000).map(|i| contact_of(&identity(i), private_endpoint(i)));
    let mut all: Vec<Contact> = made.filter(|c| depth_of(c) == DEPTHS - 1).chain(honest).collect();
    all.sort_by_key(|contact| contact.node_id.position().distance(&point));
    assert!(all.len() > 80, "{} keys", all.len());
    let mut rng = ChaCha12Rng::from_seed([3; 32]);
    let chosen = choose(&mut rng, all.clone(), &point, &region, K);
    assert_eq!(chosen.len(), K);
    let closest: Vec<_> = chosen.iter().copied().step_by(2).collect();
    assert_eq!(closest, all[..K / 2], "half are the closest");
    let depths: Vec<usize> = chosen.iter().map(depth_of).collect();
    for wanted in 0..3 {
        assert!(depths.contains(&wanted), "none of depth {wanted} among {depths:?}");
    }
}
