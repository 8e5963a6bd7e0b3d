//! Congestion marks: what a router on the underlay says reaches the programs at the end (RFC 6040).

use super::packets::{ACK, read_tcp, stream, tcp_ecn, virtio};
use super::{End, Out, pair};
use crate::proto::datapath::DropReason;
use crate::proto::wire::handshake::CAPABILITY_FRAMES;

const LEN: usize = 1472;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Inner, outer, and what leaves the tunnel; `None`: nothing (RFC 6040 §4.2, figure 4).
const ROWS: [(u8, u8, Option<u8>); 16] = [
    (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
    (NOT_ECT, ECT_0, Some(NOT_ECT)),
    (NOT_ECT, ECT_1, Some(NOT_ECT)),
    (NOT_ECT, CE, None),
    (ECT_0, NOT_ECT, Some(ECT_0)),
    (ECT_0, ECT_0, Some(ECT_0)),
    (ECT_0, ECT_1, Some(ECT_1)),
    (ECT_0, CE, Some(CE)),
    (ECT_1, NOT_ECT, Some(ECT_1)),
    (ECT_1, ECT_0, Some(ECT_1)),
    (ECT_1, ECT_1, Some(ECT_1)),
    (ECT_1, CE, Some(CE)),
    (CE, NOT_ECT, Some(CE)),
    (CE, ECT_0, Some(CE)),
    (CE, ECT_1, Some(CE)),
    (CE, CE, Some(CE)),
];

/// A packet of Alice's with its traffic class and flow label set to more than the codepoint.
fn sent(alice: &mut End, inner: u8, len: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut packet = tcp_ecn(0, ACK, &stream(0, len), inner);
    packet[0] |= 0x0a;
    packet[1] |= 0xcf;
    let virtio = virtio(&packet, if len > 1348 { 1348 } else { 0 });
    let (wire, _) = alice.send(&[(packet.clone(), virtio)]);
    assert!(wire.0.iter().all(|train| train.ecn == inner), "the inner codepoint is copied outwards");
    (packet, wire.datagrams())
}

fn check(bob: &End, out: &Out, sent: &[u8], row: (u8, u8, Option<u8>)) {
    let congestion = bob.shared.drops.of(DropReason::Congestion);
    let Some(expected) = row.2 else {
        assert_eq!((out.packets.len(), congestion), (0, 1), "{row:?}");
        return;
    };
    assert_eq!(congestion, 0, "{row:?}");
    assert!(!out.packets.is_empty(), "{row:?}");
    for plain in out.plain() {
        read_tcp(&plain);
        assert_eq!(plain[1] >> 4 & 3, expected, "{row:?}");
        let (mut got, mut all) = (plain[..4].to_vec(), sent[..4].to_vec());
        (got[1], all[1]) = (got[1] & 0xcf, all[1] & 0xcf);
        assert_eq!(got, all, "nothing else of the first four bytes changes");
    }
}

/// Whole packets, frames and slices: each row of the table, the mark on every datagram.
#[test]
fn marks_are_combined_as_the_table_says() {
    for (capabilities, len) in [(0, 500), (CAPABILITY_FRAMES, 500), (CAPABILITY_FRAMES, 20_000)] {
        for row in ROWS {
            let [mut alice, mut bob] = pair(capabilities, LEN);
            let (packet, datagrams) = sent(&mut alice, row.0, len);
            let mut out = Out::default();
            let mut train = datagrams.concat();
            let End { snapshot, shared, reception, .. } = &mut bob;
            let mut turn = super::Turn { snapshot, shared, now: super::NOW, out: &mut out };
            reception.handle_train(&mut turn, super::endpoint(1), row.1, &mut train, datagrams[0].len());
            check(&bob, &out, &packet, row);
        }
    }
}

/// Slices that come one by one: a mark on any of them is a mark on the packet.
#[test]
fn one_marked_slice_marks_the_superframe() {
    for row in ROWS {
        for marked in 0..15 {
            let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
            let (packet, datagrams) = sent(&mut alice, row.0, 20_000);
            assert_eq!(datagrams.len(), 15);
            let mut out = Out::default();
            let ecn = |at| if at == marked { row.1 } else { NOT_ECT };
            let datagrams: Vec<_> = datagrams.iter().enumerate().rev().collect();
            bob.receive_marked(datagrams.iter().map(|(at, datagram)| (*datagram, ecn(*at))), &mut out);
            check(&bob, &out, &packet, row);
        }
    }
}

/// What is salvaged of a superframe with a hole has the mark too.
#[test]
fn the_mark_survives_a_lost_slice() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    let (packet, datagrams) = sent(&mut alice, ECT_0, 20_000);
    let mut out = Out::default();
    let there = datagrams.iter().enumerate().filter(|(at, _)| *at != 7);
    bob.receive_marked(there.map(|(at, datagram)| (datagram, if at == 12 { CE } else { ECT_0 })), &mut out);
    bob.wait(&mut out);
    assert_eq!(out.packets.len(), 2);
    check(&bob, &out, &packet, (ECT_0, CE, Some(CE)));
}

/// ECT(1) is a weaker mark than CE, in whatever order they come.
#[test]
fn the_strongest_mark_counts() {
    for order in [[CE, ECT_1], [ECT_1, CE]] {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        let (packet, datagrams) = sent(&mut alice, ECT_0, 20_000);
        let mut out = Out::default();
        let ecn = |at| order.get(at).copied().unwrap_or(ECT_0);
        bob.receive_marked(datagrams.iter().enumerate().map(|(at, datagram)| (datagram, ecn(at))), &mut out);
        check(&bob, &out, &packet, (ECT_0, CE, Some(CE)));
    }
}
