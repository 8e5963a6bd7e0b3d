use super::*;
use std::time::Duration;

#[test]
fn burst_then_rate() {
    let t0 = Instant::ZERO;
    let mut bucket = TokenBucket::new(10, 3, t0);
    let taken = (0..5).filter(|_| bucket.take(t0)).count();
    assert_eq!(taken, 3);
    assert!(!bucket.is_full(t0));
    assert!(!bucket.take(t0 + Duration::from_millis(99)));
    assert!(bucket.take(t0 + Duration::from_millis(100)));
    assert!(bucket.is_full(t0 + Duration::from_secs(60)));
    let taken = (0..50).filter(|_| bucket.take(t0 + Duration::from_secs(60))).count();
    assert_eq!(taken, 3);
}

#[test]
fn time_going_back_gives_nothing() {
    let later = Instant::from_nanos(5_000_000_000);
    let mut bucket = TokenBucket::new(1, 1, later);
    assert!(bucket.take(later));
    assert!(!bucket.take(Instant::ZERO));
    assert!(!bucket.take(later));
}

#[test]
fn a_shared_bucket_gives_burst_then_rate() {
    let t0 = Instant::from_nanos(7);
    let bucket = SharedBucket::new(1000, 300);
    assert!(bucket.take(t0, 300));
    assert!(!bucket.take(t0, 1), "empty");
    assert!(!bucket.take(t0 + Duration::from_millis(99), 100));
    assert!(bucket.take(t0 + Duration::from_millis(100), 100));
    assert_eq!(bucket.full_at(), t0 + Duration::from_millis(400));
    assert!(!bucket.take(t0 + Duration::from_secs(60), 301), "more than the burst");
    assert!(bucket.take(t0 + Duration::from_secs(60), 300));
    assert!(!bucket.take(t0, 1), "time going back gives nothing");
}

#[test]
fn a_shared_bucket_without_a_limit_never_ends() {
    let bucket = SharedBucket::new(u64::MAX, u64::MAX);
    assert!((0..1000).all(|_| bucket.take(Instant::from_nanos(1), 1 << 30)));
}
