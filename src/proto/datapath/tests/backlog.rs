//! How long the interface's queue is, and what its senders notice.

use std::time::Duration;

use super::packets::{ACK, FIN, PSH, read_tcp, read_udp, stream, tcp_ecn, udp, virtio};
use super::{End, NOW, Out, pair};
use crate::proto::datapath::backlog::{
    Backlog, INTERVAL, PROBE_EVERY, PROBE_LOST, ProbeDue, SIGNAL_EVERY, SIGNAL_KEPT, STEP_BYTES, STEP_DELAY,
    TARGET,
};
use crate::proto::datapath::{DropReason, ecn};
use crate::proto::timer::Instant;
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::handshake::CAPABILITY_FRAMES;

const SEGMENT: usize = 1348;
const MS: Duration = Duration::from_millis(1);

const SENT: Option<ProbeDue> = Some(ProbeDue { lost: false });

/// A probe that waits for `delay` behind `bytes`; true when the next large packet has to carry a signal.
fn probe(backlog: &mut Backlog, now: Instant, delay: Duration, bytes: u64) -> bool {
    backlog.note_read(now, 1);
    assert_eq!(backlog.poll_probe(now), SENT, "a probe is due");
    backlog.note_read(now, bytes as usize);
    backlog.handle_probe(now + delay, now);
    backlog.note_read(now + delay, 0)
}

#[test]
fn a_probe_goes_only_while_large_packets_come_and_one_at_a_time() {
    let mut backlog = Backlog::default();
    assert_eq!(backlog.poll_probe(NOW), None, "nothing was read");
    backlog.note_read(NOW, 60_000);
    assert_eq!(backlog.poll_probe(NOW), SENT);
    backlog.note_read(NOW, 60_000);
    assert_eq!(backlog.poll_probe(NOW + 10 * PROBE_EVERY), None, "one is on its way");
    assert_eq!(backlog.poll_probe(NOW + PROBE_LOST), Some(ProbeDue { lost: true }));
    let (sent, done) = (NOW + PROBE_LOST, NOW + PROBE_LOST + PROBE_EVERY / 4);
    backlog.handle_probe(done, sent);
    backlog.note_read(done, 60_000);
    assert_eq!(backlog.poll_probe(done), None, "too early for the next one");
    assert_eq!(backlog.poll_probe(sent + PROBE_EVERY), SENT);
    backlog.handle_probe(sent + PROBE_EVERY, sent + PROBE_EVERY);
    assert_eq!(backlog.poll_probe(sent + 10 * PROBE_EVERY), None, "nothing more was read");
    backlog.note_read(sent, 60_000);
    backlog.note_empty(sent);
    assert_eq!(backlog.poll_probe(sent + 10 * PROBE_EVERY), None, "there is no queue");
}

#[test]
fn many_bytes_that_wait_are_a_signal_but_not_at_once_again() {
    let mut backlog = Backlog::default();
    assert!(!probe(&mut backlog, NOW, STEP_DELAY, STEP_BYTES - 1), "few bytes");
    assert!(!probe(&mut backlog, NOW + MS, STEP_DELAY / 2, STEP_BYTES), "a fast machine");
    assert!(probe(&mut backlog, NOW + 2 * MS, STEP_DELAY, STEP_BYTES));
    assert!(!backlog.note_read(NOW + 3 * MS, 1), "one packet carries it");
    assert!(!probe(&mut backlog, NOW + 3 * MS, STEP_DELAY, STEP_BYTES));
    assert!(probe(&mut backlog, NOW + 3 * MS + SIGNAL_EVERY, STEP_DELAY, STEP_BYTES));
}

#[test]
fn a_probe_counts_once_and_one_that_was_given_up_tells_no_bytes() {
    let mut backlog = Backlog::default();
    backlog.note_read(NOW, 1);
    assert_eq!(backlog.poll_probe(NOW), SENT);
    backlog.note_read(NOW, STEP_BYTES as usize);
    backlog.handle_probe(NOW + MS, NOW - MS);
    assert!(!backlog.note_read(NOW + MS, 0));
    backlog.handle_probe(NOW + MS, NOW);
    assert!(backlog.note_read(NOW + MS, 0), "the right one");
    backlog.handle_probe(NOW + SIGNAL_EVERY + MS, NOW);
    assert!(!backlog.note_read(NOW + SIGNAL_EVERY + MS, 0));
}

#[test]
fn a_signal_that_no_packet_carries_soon_is_forgotten() {
    for (later, told) in [(SIGNAL_KEPT - MS, true), (SIGNAL_KEPT, false)] {
        let mut backlog = Backlog::default();
        backlog.note_read(NOW, 1);
        assert_eq!(backlog.poll_probe(NOW), SENT);
        backlog.note_read(NOW, STEP_BYTES as usize);
        backlog.handle_probe(NOW + MS, NOW);
        assert_eq!(backlog.note_read(NOW + MS + later, 1), told);
    }
}

/// Probes are given up before they come back, all of them.
#[test]
fn a_queue_longer_than_the_life_of_a_probe_is_signalled() {
    let mut backlog = Backlog::default();
    let (mut sent, mut signals) = (Vec::new(), 0);
    for ms in 0..3000 {
        let now = NOW + ms * MS;
        signals += u32::from(backlog.note_read(now, 3000));
        if backlog.poll_probe(now).is_some() {
            sent.push(now);
        }
        if let Some(due) = sent.first().copied().filter(|sent| now.saturating_since(*sent) >= 2 * PROBE_LOST)
        {
            sent.remove(0);
            backlog.handle_probe(now, due);
        }
    }
    assert!(signals > 5, "{signals} signals");
}

/// The queue of a slow link: few bytes, long delay.
#[test]
fn a_standing_queue_is_signalled_more_and_more_often_until_it_is_short() {
    let mut backlog = Backlog::default();
    let mut signals = Vec::new();
    let mut now = NOW;
    while now < NOW + 10 * INTERVAL {
        if probe(&mut backlog, now, TARGET, 3000) {
            signals.push(now.saturating_since(NOW));
        }
        now += MS;
    }
    let gaps: Vec<_> = signals.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(signals[0] >= INTERVAL && signals[0] <= INTERVAL + 2 * MS, "{signals:?}");
    assert!(gaps.len() > 10 && gaps[0] >= INTERVAL - 2 * MS, "{gaps:?}");
    // The control law: the n-th gap is an interval divided by the root of n.
    for (n, gap) in gaps.iter().enumerate() {
        let law = INTERVAL.div_f64(((n + 1) as f64).sqrt());
        assert!(gap.abs_diff(law) <= 2 * MS, "gap {n} is {gap:?}, by the law {law:?}");
    }
    // Short or empty once: a burst is no standing queue.
    assert!(!probe(&mut backlog, now, TARGET / 2, 3000));
    assert!((1..90).all(|ms| !probe(&mut backlog, now + ms * MS, TARGET, 3000)));
    backlog.note_empty(now + 95 * MS);
    assert!((96..190).all(|ms| !probe(&mut backlog, now + ms * MS, TARGET, 3000)));
}

/// An end whose next large packet has to carry a signal.
fn full(end: &mut End) {
    let backlog = &mut end.outbox.backlog;
    backlog.note_read(NOW - MS, 1);
    assert_eq!(backlog.poll_probe(NOW - MS), SENT);
    backlog.note_read(NOW - MS, STEP_BYTES as usize);
    backlog.handle_probe(NOW, NOW - MS);
}

fn large_tcp(ecn: u8, len: usize) -> (Vec<u8>, Virtio) {
    let packet = tcp_ecn(1000, ACK | PSH | FIN, &stream(1000, len), ecn);
    let virtio = virtio(&packet, SEGMENT as u16);
    (packet, virtio)
}

#[test]
fn a_sender_without_marks_misses_the_last_segment_of_one_packet() {
    for (cut, len) in
        [(false, 20 * SEGMENT), (false, 20 * SEGMENT + 7), (true, 5 * SEGMENT), (false, SEGMENT + 1)]
    {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, 1472);
        if cut {
            alice.cut();
        }
        full(&mut alice);
        let (wire, _) = alice.send(&[large_tcp(0, len), large_tcp(0, len)]);
        let mut out = Out::default();
        bob.receive_trains(&wire, &mut out);
        let left = (len - 1) / SEGMENT * SEGMENT;
        let mut got = Vec::new();
        for plain in out.plain() {
            let (sequence, flags, payload) = read_tcp(&plain);
            assert_eq!(payload, stream(sequence, payload.len()));
            got.push((sequence as usize - 1000 + payload.len(), flags & FIN != 0));
        }
        assert_eq!(
            got[left / SEGMENT - 1],
            (left, false),
            "the first packet ends early, its end is not the flow's"
        );
        assert_eq!(got.last(), Some(&(len, true)), "the second is whole");
        assert_eq!(alice.shared.drops.of(DropReason::Congestion), 1);
    }
}

#[test]
fn a_sender_that_takes_marks_gets_one_and_loses_nothing() {
    for codepoint in [1, 2] {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, 1472);
        full(&mut alice);
        let (wire, _) = alice.send(&[large_tcp(codepoint, 30_000), large_tcp(codepoint, 30_000)]);
        let mut out = Out::default();
        bob.receive_trains(&wire, &mut out);
        let got: Vec<_> = out.packets.iter().map(|(_, packet)| (ecn::of(packet), packet.len())).collect();
        assert_eq!(got, [(3, 30_072), (codepoint, 30_072)]);
        assert_eq!(alice.shared.drops.of(DropReason::Congestion), 0);
    }
}

#[test]
fn datagrams_and_small_packets_are_let_through_and_the_next_flow_is_told() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, 1472);
    full(&mut alice);
    let datagrams = udp(&stream(0, 10_000));
    let small = udp(b"small");
    let packets = [
        (datagrams.clone(), virtio(&datagrams, 1000)),
        (small.clone(), virtio(&small, 0)),
        large_tcp(0, 2 * SEGMENT),
    ];
    let (wire, _) = alice.send(&packets);
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    let plain = out.plain();
    let bytes: usize =
        plain.iter().filter(|packet| packet[6] == 17).map(|packet| read_udp(packet).len()).sum();
    assert_eq!(bytes, 10_000 + b"small".len());
    assert_eq!(plain.iter().filter(|packet| packet[6] == 6).count(), 1, "one of two segments");
}
