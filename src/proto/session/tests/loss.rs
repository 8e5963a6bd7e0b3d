//! When a path counts as lossy.

use super::*;
use crate::proto::session::loss::{CALM_FOR, JUDGED_MIN, Losses, REPORT_EVERY, Reporter, Totals};

const SESSION: u32 = 7;

/// A path that is judged once a second by a thousand datagrams.
#[derive(Default)]
struct Path {
    losses: Losses,
    now: Instant,
    totals: Totals,
}

impl Path {
    /// One second in which so many of a thousand datagrams get lost; whether packets are cut afterwards.
    fn loses(&mut self, lost: u64) -> bool {
        self.now += Duration::from_secs(1);
        self.totals.sent += 1000;
        self.totals.received += 1000 - lost;
        self.losses.handle_report(self.now, SESSION, self.totals);
        self.losses.cuts()
    }
}

#[test]
fn one_percent_is_where_cutting_begins() {
    let mut path = Path::default();
    assert!(!path.loses(0) && !path.loses(10));
    assert_eq!(path.losses.per_mille(path.now), Some(10));
    assert!(path.loses(11));
    assert_eq!(path.losses.per_mille(path.now), Some(11));
}

#[test]
fn it_ends_when_the_path_was_calm_for_long_enough() {
    let mut path = Path::default();
    assert!(path.loses(50));
    for _ in 0..CALM_FOR.as_secs() {
        assert!(path.loses(5));
    }
    assert!(!path.loses(5), "calm for ten seconds");
    assert!(path.loses(20));
    for _ in 0..3 {
        (0..CALM_FOR.as_secs()).for_each(|_| assert!(path.loses(0)));
        assert!(path.loses(6), "neither lossy nor calm: it begins anew");
    }
    (0..CALM_FOR.as_secs()).for_each(|_| assert!(path.loses(0)));
    assert!(!path.loses(0));
}

/// Probes of what the path carries are sent to be lost.
#[test]
fn probes_are_no_loss() {
    let mut path = Path::default();
    for excused in [true, false] {
        (0..if excused { 20 } else { 0 }).for_each(|_| path.losses.excuse(SESSION));
        assert_eq!(path.loses(20), !excused);
    }
}

/// A probe is missed when its sending thread is heard again: while others carry the data, many reports later.
#[test]
fn a_probe_is_excused_until_it_is_missed() {
    let mut path = Path::default();
    (0..20).for_each(|_| path.losses.excuse(SESSION));
    (0..5).for_each(|_| assert!(!path.loses(0)));
    assert!(!path.loses(20));
    assert!(path.loses(20), "each only once");
}

#[test]
fn probes_of_another_session_excuse_nothing() {
    let mut path = Path::default();
    (0..20).for_each(|_| path.losses.excuse(SESSION + 1));
    assert!(path.loses(20));
    let mut path = Path::default();
    for session in [SESSION + 1, SESSION] {
        (0..10).for_each(|_| path.losses.excuse(session));
    }
    assert!(path.loses(21));
}

/// Nobody knows what the path did while nothing was sent.
#[test]
fn silence_is_not_calm() {
    let mut path = Path::default();
    assert!(path.loses(50) && path.loses(0));
    path.now += CALM_FOR * 10;
    assert_eq!(path.losses.per_mille(path.now), None);
    assert!(path.loses(0));
    (1..CALM_FOR.as_secs()).for_each(|_| assert!(path.loses(0)));
    assert!(!path.loses(0));
}

#[test]
fn a_few_datagrams_are_no_evidence() {
    let mut path = Path::default();
    for i in 1..JUDGED_MIN {
        path.losses.handle_report(path.now, SESSION, Totals { sent: i, received: 0 });
        assert!(!path.losses.cuts());
    }
    path.losses.handle_report(path.now, SESSION, Totals { sent: JUDGED_MIN, received: 0 });
    assert!(path.losses.cuts(), "together they are");
    assert_eq!(path.losses.per_mille(path.now), Some(1000));
}

#[test]
fn each_session_counts_from_the_beginning() {
    let mut path = Path::default();
    assert!(!path.loses(0) && !path.loses(0));
    path.losses.handle_report(path.now, SESSION + 1, Totals { sent: 500, received: 500 });
    assert!(!path.losses.cuts());
    path.losses.handle_report(path.now, SESSION + 2, Totals { sent: 500, received: 400 });
    assert!(path.losses.cuts());
}

/// Whatever a peer says: no panic, and nothing but a way to send.
#[test]
fn nonsense_is_survived() {
    let mut path = Path::default();
    for sent in [0, 99, 1000, u64::MAX, 5, u64::MAX / 2] {
        for received in [0, u64::MAX, 3] {
            path.losses.handle_report(path.now, SESSION, Totals { sent, received });
        }
    }
}

#[test]
fn a_receiver_reports_once_a_second_and_only_what_is_much() {
    let (mut reporter, start) = (Reporter::default(), Instant::from_nanos(5_000_000_000));
    let totals = |sent| Totals { sent, received: sent };
    let half = REPORT_EVERY / 2;
    assert_eq!(reporter.poll(start, 1, totals(JUDGED_MIN - 1)), None, "too few");
    assert_eq!(reporter.poll(start, 1, totals(JUDGED_MIN)), Some(totals(JUDGED_MIN)));
    assert_eq!(reporter.poll(start + half, 1, totals(10_000)), None, "too early");
    assert_eq!(reporter.poll(start + half * 2, 1, totals(10_000)), Some(totals(10_000)));
    assert_eq!(reporter.poll(start + half * 4, 1, totals(10_000 + JUDGED_MIN - 1)), None, "nearly idle");
    assert_eq!(reporter.poll(start + half * 9, 2, totals(300)), Some(totals(300)), "another session");
}
