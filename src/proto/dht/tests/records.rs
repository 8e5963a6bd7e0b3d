//! Held records: who may place what, and what goes when the room is used up.

use std::time::Duration;

use super::swarm::*;
use crate::proto::dht::records::{Records, Source};
use crate::proto::dht::*;
use crate::proto::identity::Identity;
use crate::proto::wire::record::Content;

const NOW: Instant = Instant::ZERO;

fn local() -> Position {
    identity(0).node_id().position()
}

fn record(i: usize, sequence: u64) -> NodeRecord {
    record_of(&identity(i), sequence, NOW, private_endpoint(i))
}

fn place(records: &mut Records, i: usize) {
    let _ = records.store(NOW, wall(NOW), &record(i, 1), own(i));
}

fn own(i: usize) -> Source {
    Source::Node(identity(i).node_id())
}

fn dated(identity: &Identity, issued_ms: u64, ttl: Duration) -> NodeRecord {
    let issued = WallTime::from_unix_ms(issued_ms);
    NodeRecord::sign(
        identity,
        Content {
            sequence: 1,
            issued,
            ttl,
            capabilities: 1,
            endpoints: Vec::new(),
            relays: Vec::new(),
            streams: Vec::new(),
        },
    )
}

#[test]
fn the_highest_sequence_stays() {
    let mut records = Records::new(local(), RECORDS_BYTES_MAX);
    let target = identity(1).address().position_prefix();
    let mut store = |sequence| records.store(NOW, wall(NOW), &record(1, sequence), own(1));
    assert_eq!([5, 5, 4, 6].map(&mut store), {
        use StoreOutcome::*;
        [Stored, Stored, Old, Stored]
    });
    assert_eq!(records.find(NOW, &target), Some(record(1, 6).bytes()));
    assert_eq!(records.len(), 1);
}

#[test]
fn dates_are_checked() {
    let mut records = Records::new(local(), RECORDS_BYTES_MAX);
    let ttl = Duration::from_secs(600);
    for (issued, expected) in [
        (WALL_START_MS, StoreOutcome::Stored),
        (WALL_START_MS - 600_000, StoreOutcome::Refused),
        (WALL_START_MS + 601_000, StoreOutcome::Refused),
    ] {
        let mut fresh = Records::new(local(), RECORDS_BYTES_MAX);
        assert_eq!(fresh.store(NOW, wall(NOW), &dated(&identity(1), issued, ttl), own(1)), expected);
    }
    records.store(NOW, wall(NOW), &dated(&identity(1), WALL_START_MS - 100_000, ttl), own(1));
    let target = identity(1).node_id().position();
    assert!(records.find(at(499), &target).is_some());
    assert!(records.find(at(500), &target).is_none(), "100 s of its time were over when it came");
    records.purge(at(499));
    assert_eq!(records.len(), 1);
    records.purge(at(500));
    assert_eq!((records.len(), records.bytes()), (0, 0));
}

#[test]
fn the_farthest_goes_first() {
    let mut records = Records::new(local(), 10 * 400);
    (1..100).for_each(|i| place(&mut records, i));
    assert!(records.bytes() <= 10 * 400 && records.len() >= 8, "{} {}", records.len(), records.bytes());
    let mut all: Vec<_> = (1..100).map(|i| identity(i).node_id().position()).collect();
    all.sort_by_key(|position| position.distance(&local()));
    for (i, position) in all.iter().enumerate() {
        assert_eq!(records.find(NOW, position).is_some(), i < records.len(), "{i}");
    }
    let far =
        (100..).find(|i| identity(*i).node_id().position().distance(&local()).leading_zeros() == 0).unwrap();
    assert_eq!(records.store(NOW, wall(NOW), &record(far, 1), own(far)), StoreOutcome::Full);
}

#[test]
fn one_source_fills_only_its_part() {
    let mut records = Records::new(local(), RECORDS_BYTES_MAX);
    let outcomes: Vec<_> = (1..200).map(|i| records.store(NOW, wall(NOW), &record(i, 1), own(1))).collect();
    assert!(outcomes[..RECORDS_PER_SOURCE_MAX].iter().all(|o| *o == StoreOutcome::Stored));
    assert!(outcomes[RECORDS_PER_SOURCE_MAX..].iter().all(|o| *o == StoreOutcome::Full));
    assert_eq!(records.store(NOW, wall(NOW), &record(150, 1), own(2)), StoreOutcome::Stored);
    assert_eq!(
        records.store(NOW, wall(NOW), &record(3, 2), own(1)),
        StoreOutcome::Stored,
        "what it has may change"
    );
    assert_eq!(records.store(NOW, wall(NOW), &record(150, 2), own(1)), StoreOutcome::Full);
    let target = identity(150).node_id().position();
    assert!(records.find(NOW, &target).is_some(), "what is refused leaves alone what is there");
    records.purge(at(3601));
    assert_eq!(records.store(NOW, wall(NOW), &record(7, 1), own(1)), StoreOutcome::Stored, "room comes back");
}

#[test]
fn an_address_finds_its_record_and_no_other() {
    let mut records = Records::new(local(), RECORDS_BYTES_MAX);
    (1..50).for_each(|i| place(&mut records, i));
    for i in 1..50 {
        let target = identity(i).address().position_prefix();
        assert_eq!(records.find(NOW, &target), Some(record(i, 1).bytes()));
        assert!(records.holds(NOW, &target, record(i, 1).bytes()));
        assert!(!records.holds(NOW, &target, record(i, 2).bytes()));
        let mut other = target;
        other.0[14] ^= 1;
        assert_eq!(records.find(NOW, &other), None);
    }
}

#[test]
fn records_nearer_to_another_node_are_all_found() {
    let mut records = Records::new(local(), RECORDS_BYTES_MAX);
    (1..=60).for_each(|i| place(&mut records, i));
    for node in 61..=90 {
        let node = identity(node).node_id().position();
        let mut found: Vec<_> = records.nearer_to(NOW, &node).map(|(position, _)| position).collect();
        let positions = (1..=60).map(|i| identity(i).node_id().position());
        let mut expected: Vec<_> = positions.filter(|p| p.distance(&node) < p.distance(&local())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
    let late = NOW + RECORD_TTL * 3;
    assert_eq!(records.nearer_to(late, &identity(61).node_id().position()).count(), 0, "expired");
}
