use std::time::Duration;

use crate::proto::path::udp::{ASK_GAP, CALM_FOR, Step, TRY_AGAIN, Udp, VERDICT_AFTER};
use crate::proto::timer::Instant;

const START: Instant = Instant::from_nanos(1_000_000_000);

/// Lets time pass until `end`; what was to be done, and when.
fn steps(udp: &mut Udp, end: Instant, heard: Option<Instant>) -> Vec<(Duration, Step)> {
    let mut steps = Vec::new();
    while let Some(due) = udp.poll_timeout().filter(|due| *due <= end) {
        let step = udp.handle_timeout(due, heard).unwrap();
        steps.push((due.saturating_since(START), step));
    }
    steps
}

#[test]
fn silence_of_all_is_a_verdict_and_tried_again_every_minute() {
    let mut udp = Udp::new(START);
    assert_eq!(udp.poll_timeout(), None, "nothing is asked without a reason");
    assert!(udp.suspect(START) && !udp.suspect(START));
    let seen = steps(&mut udp, START + VERDICT_AFTER + TRY_AGAIN * 2, None);
    let expected = [
        (Duration::ZERO, Step::Ask),
        (ASK_GAP, Step::Ask),
        (ASK_GAP * 2, Step::Ask),
        (VERDICT_AFTER, Step::Blocked),
        (VERDICT_AFTER + TRY_AGAIN, Step::Try),
        (VERDICT_AFTER + TRY_AGAIN * 2, Step::Try),
    ];
    assert_eq!(seen, expected);
    assert!(udp.is_blocked() && !udp.suspect(START + TRY_AGAIN * 3));
}

#[test]
fn anything_that_came_since_is_an_acquittal() {
    for by_session in [true, false] {
        let mut udp = Udp::new(START);
        udp.suspect(START);
        let came = START + Duration::from_secs(2);
        steps(&mut udp, came, None);
        let heard = if by_session { Some(came) } else { None };
        if !by_session {
            assert!(!udp.handle_heard(came), "no outage has ended");
        }
        let verdict = (VERDICT_AFTER, Step::Open);
        assert_eq!(steps(&mut udp, START + TRY_AGAIN, heard), [verdict]);
        assert!(!udp.suspect(START + VERDICT_AFTER + CALM_FOR / 2), "not again and again");
        assert!(udp.suspect(START + VERDICT_AFTER + CALM_FOR));
    }
    let mut udp = Udp::new(START);
    udp.handle_heard(START);
    udp.suspect(START + ASK_GAP);
    let before = Some(START);
    assert_eq!(steps(&mut udp, START + TRY_AGAIN, before).last().unwrap().1, Step::Blocked, "heard before");
}

#[test]
fn a_change_of_links_is_reason_to_try_and_an_answer_ends_it() {
    let mut udp = Udp::new(START);
    udp.hurry(START);
    assert_eq!(udp.poll_timeout(), None);
    udp.suspect(START);
    steps(&mut udp, START + VERDICT_AFTER, None);
    let now = START + VERDICT_AFTER + ASK_GAP;
    udp.hurry(now);
    assert_eq!(udp.handle_timeout(now, None), Some(Step::Try));
    assert!(udp.handle_heard(now) && !udp.is_blocked() && udp.poll_timeout().is_none());
    assert!(!udp.handle_heard(now));
}
