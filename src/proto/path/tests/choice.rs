use std::time::Duration;

use rand_core::{Rng as _, SeedableRng};

use crate::proto::path::choice::*;
use crate::proto::timer::Instant;
use crate::proto::wire::relay::{Hop, Slot};

const T0: Instant = Instant::from_nanos(1_000_000_000);

fn v4() -> Hop {
    Hop::Direct("20.1.0.2:5747".parse().unwrap())
}

fn v6() -> Hop {
    Hop::Direct("[2a0f:1::2]:5747".parse().unwrap())
}

fn relay() -> Hop {
    Hop::Relayed(Slot(7))
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A node that asks by all its ways every half a second, and does as the choice says.
struct Chooser {
    choice: Choice,
    now: Instant,
    current: Hop,
    changes: usize,
}

impl Chooser {
    fn new(current: Hop) -> Self {
        Self { choice: Choice::default(), now: T0, current, changes: 0 }
    }

    /// One round; `None` is a lost question.
    fn round(&mut self, ways: &[(Hop, Option<Duration>)]) {
        for (hop, _) in ways {
            self.choice.note_asked(self.now, *hop);
        }
        for (hop, rtt) in ways {
            let Some(rtt) = rtt else { continue };
            let (at, current) = (self.now + *rtt, Some(self.current));
            if let Some(better) = self.choice.handle_answer(at, current, *hop, *rtt, |_| true) {
                (self.current, self.changes) = (better, self.changes + 1);
            }
        }
        self.now += ms(1100);
        if let Some(other) = self.choice.fallback(self.now, self.current, |_| true) {
            (self.current, self.changes) = (other, self.changes + 1);
        }
    }
}

#[test]
fn of_equal_ways_that_over_ipv6_is_chosen_and_kept() {
    for first in [v4(), v6()] {
        let mut chooser = Chooser::new(first);
        (0..50).for_each(|_| chooser.round(&[(v4(), Some(ms(20))), (v6(), Some(ms(20)))]));
        assert_eq!((chooser.current, chooser.changes), (v6(), usize::from(first == v4())));
    }
}

#[test]
fn another_way_has_to_be_better_by_five_milliseconds_and_a_tenth_three_times() {
    let changes = |before: u64, after: u64, rounds: usize| {
        let mut chooser = Chooser::new(v4());
        (0..20).for_each(|_| chooser.round(&[(v4(), Some(ms(before)))]));
        (0..rounds).for_each(|_| chooser.round(&[(v4(), Some(ms(before))), (relay(), Some(ms(after)))]));
        chooser.changes
    };
    // 20 ms are the relay's, and the variation of what is new counts until it is known better.
    assert_eq!(changes(60, 34, 40), 1, "6 ms and a tenth");
    assert_eq!(changes(60, 36, 40), 0, "4 ms");
    assert_eq!(changes(400, 345, 60), 0, "35 ms, but no tenth");
    assert_eq!(changes(400, 330, 60), 1, "50 ms");
    assert_eq!(changes(400, 10, SAMPLES_WANTED as usize - 1), 0, "not yet three times");
    assert_eq!(changes(400, 10, SAMPLES_WANTED as usize), 1, "three times");
}

#[test]
fn jitter_and_losses_that_are_the_same_everywhere_change_nothing() {
    for seed in 0..40 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut chooser = Chooser::new(v4());
        let mut draw = |spread: u64| rng.next_u64() % spread;
        let mut settled = 0;
        for round in 0..600 {
            let rtt = |draw: &mut dyn FnMut(u64) -> u64| {
                (draw(20) > 0).then(|| ms(40) + Duration::from_micros(draw(8000)))
            };
            let rtts = [rtt(&mut draw), rtt(&mut draw)];
            // A lost question alone makes no way silent that answers the next one.
            chooser.round(&[(v4(), rtts[0].or(Some(ms(45)))), (v6(), rtts[1].or(Some(ms(45))))]);
            if round == 20 {
                settled = chooser.changes;
            }
        }
        assert!(settled <= 2, "seed {seed}: {settled} changes at the beginning");
        assert!(chooser.changes - settled <= 1, "seed {seed}: {} changes later", chooser.changes - settled);
    }
}

#[test]
fn a_way_that_becomes_bad_is_left_and_taken_again_when_the_other_does() {
    let mut chooser = Chooser::new(v4());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    for phase in 0..6 {
        let before = chooser.changes;
        for _ in 0..60 {
            let mut rtt = |bad: bool| Some(ms(if bad { 120 } else { 30 } + rng.next_u64() % 6));
            let ways = [(v4(), rtt(phase % 2 == 0)), (v6(), rtt(phase % 2 == 1))];
            chooser.round(&ways);
        }
        assert_eq!(chooser.current, if phase % 2 == 0 { v6() } else { v4() }, "phase {phase}");
        assert_eq!(chooser.changes, before + 1, "phase {phase}");
    }
}

#[test]
fn a_lossy_way_is_left_for_one_that_is_a_little_longer() {
    let mut chooser = Chooser::new(v4());
    (0..20).for_each(|_| chooser.round(&[(v4(), Some(ms(20))), (v6(), Some(ms(40)))]));
    assert_eq!(chooser.current, v4());
    let lossy = |n: usize| (!n.is_multiple_of(3)).then_some(ms(20));
    for n in 0..60 {
        chooser.choice.note_asked(chooser.now, v4());
        let current = Some(chooser.current);
        for (hop, rtt) in [(v4(), lossy(n)), (v6(), Some(ms(40)))] {
            chooser.choice.note_asked(chooser.now, hop);
            let Some(rtt) = rtt else { continue };
            let to = chooser.choice.handle_answer(chooser.now + rtt, current, hop, rtt, |_| true);
            chooser.current = to.unwrap_or(chooser.current);
        }
        chooser.now += ms(1100);
    }
    assert_eq!(chooser.current, v6());
}

#[test]
fn a_silent_way_gives_way_to_one_that_answers() {
    let mut choice = Choice::default();
    for hop in [v4(), v6()] {
        choice.note_asked(T0, hop);
        choice.handle_answer(T0 + ms(20), Some(v4()), hop, ms(20), |_| true);
    }
    let asked = T0 + ms(500);
    choice.note_asked(asked - ms(1), v4());
    choice.note_asked(asked, v4());
    choice.note_asked(asked, v6());
    assert_eq!(choice.fallback(asked + SILENT_MIN, v4(), |_| true), None, "nobody has answered");
    choice.handle_answer(asked + ms(20), Some(v4()), v6(), ms(20), |_| true);
    assert_eq!(choice.fallback(asked + ms(148), v4(), |_| true), None, "it may only be slow");
    assert_eq!(choice.fallback(asked + SILENT_MIN, v4(), |_| true), Some(v6()));
    assert_eq!(choice.fallback(asked + SILENT_MIN, v4(), |_| false), None, "of no use");
    choice.handle_answer(asked + ms(200), Some(v4()), v4(), ms(200), |_| true);
    assert_eq!(choice.fallback(asked + ms(300), v4(), |_| true), None);
}

/// However long a firewall let nothing through, the straight way is as good as before when it does again.
#[test]
fn an_outage_that_is_over_is_not_held_against_a_way() {
    let mut chooser = Chooser::new(v4());
    let round = |chooser: &mut Chooser, direct: Option<Duration>| {
        chooser.round(&[(v4(), direct), (relay(), Some(ms(1)))]);
    };
    (0..6).for_each(|_| round(&mut chooser, Some(ms(1))));
    (0..12).for_each(|_| round(&mut chooser, None));
    assert_eq!(chooser.current, relay(), "it is left");
    (0..6).for_each(|_| round(&mut chooser, Some(ms(1))));
    assert_eq!((chooser.current, chooser.changes), (v4(), 2), "and taken again");
}

#[test]
fn the_standby_is_the_best_of_those_that_answered_lately() {
    let mut choice = Choice::default();
    assert_eq!(choice.standby(T0, Some(v4())), None);
    for (hop, rtt) in [(v4(), 10), (v6(), 40), (relay(), 30)] {
        choice.note_asked(T0, hop);
        choice.handle_answer(T0, Some(v4()), hop, ms(rtt), |_| true);
    }
    assert_eq!(choice.standby(T0, Some(v4())), Some(v6()), "20 ms are the relay's");
    assert_eq!(choice.standby(T0, Some(v6())), Some(v4()));
    let later = T0 + KNOWN_FOR;
    assert_eq!(choice.standby(later, Some(v4())), None, "long ago");
    assert!(!choice.is_known(later, v6()) && choice.is_known(later - ms(1), v6()));
}

#[test]
fn no_more_ways_are_remembered_than_there_is_room_for() {
    let mut choice = Choice::default();
    choice.handle_answer(T0, Some(v4()), v4(), ms(5), |_| true);
    for n in 0..100 {
        choice.note_asked(T0, Hop::Relayed(Slot(n)));
    }
    assert!(choice.is_known(T0, v4()), "what answered stays");
    assert_eq!(choice.rtt(v4()), Some(ms(5)));
}

/// Taken for another reason than its score, as soon as it was found: what it was ahead of is no question any more.
#[test]
fn a_way_that_led_and_is_in_use_leaves_nothing_undecided() {
    let mut chooser = Chooser::new(relay());
    (0..10).for_each(|_| chooser.round(&[(relay(), Some(ms(40)))]));
    chooser.round(&[(relay(), Some(ms(40))), (v4(), Some(ms(30)))]);
    assert_eq!((chooser.current, chooser.choice.is_undecided(chooser.now, Some(relay()))), (relay(), true));
    chooser.current = v4();
    (0..10).for_each(|_| chooser.round(&[(relay(), Some(ms(40))), (v4(), Some(ms(30)))]));
    assert!(!chooser.choice.is_undecided(chooser.now, Some(v4())));
}
