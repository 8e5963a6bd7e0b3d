use super::*;

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

#[test]
fn due_keys_come_in_order_of_time_and_only_once() {
    let mut d = Deadlines::default();
    d.arm('b', at(20));
    d.arm('a', at(10));
    d.arm('c', at(30));
    d.arm('a', at(25));
    d.disarm(&'c');
    assert_eq!(d.earliest(), Some(at(20)));
    assert_eq!(d.pop_due(at(19)), None);
    assert_eq!(d.pop_due(at(40)), Some('b'));
    assert_eq!(d.pop_due(at(40)), Some('a'));
    assert_eq!(d.pop_due(at(40)), None);
    assert_eq!(d.earliest(), None);
}

#[test]
fn moving_one_key_forever_does_not_grow_the_heap() {
    let mut d = Deadlines::default();
    for ms in 0..10_000 {
        d.arm(1, at(ms));
    }
    assert!(d.heap.len() <= 18, "{} entries for one key", d.heap.len());
}

#[test]
fn instants_saturate() {
    assert_eq!(at(1).saturating_since(at(5)), Duration::ZERO);
    assert_eq!(Instant::from_nanos(u64::MAX) + Duration::from_secs(1), Instant::from_nanos(u64::MAX));
    assert_eq!(at(1) - Duration::from_secs(1), Instant::ZERO);
}
