//! Datagrams that are lost, overtaken or doubled: what arrives is right, and as much as can.

use std::collections::BTreeSet;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use rand_core::{Rng as _, SeedableRng};

use super::packets::{ACK, read_tcp, read_udp, stream, tcp, udp, virtio};
use super::{Out, pair};
use crate::proto::datapath::{ASSEMBLY_TIME_MAX, DropReason, SUPERFRAMES_MAX};
use crate::proto::session::Rng;
use crate::proto::wire::handshake::CAPABILITY_FRAMES;

const LEN: usize = 1472;
const SLICE: usize = LEN - 32;

/// Bytes of the TCP stream that came, after checking each.
fn covered(out: &Out) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for plain in out.plain() {
        let (sequence, _, payload) = read_tcp(&plain);
        assert_eq!(payload, stream(sequence, payload.len()), "bytes at {sequence}");
        all.extend(sequence..sequence + payload.len() as u32);
    }
    all
}

#[test]
fn one_lost_datagram_of_a_tcp_packet_costs_no_more_than_itself() {
    let (packet, len) = (tcp(0, ACK, &stream(0, 60_000)), 60_000);
    for lost in 0..42 {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        let (wire, _) = alice.send(&[(packet.clone(), virtio(&packet, 1348))]);
        let mut datagrams = wire.datagrams();
        assert_eq!(datagrams.len(), 42);
        datagrams.remove(lost);
        let mut out = Out::default();
        bob.receive(&datagrams, &mut out);
        assert!(out.packets.is_empty(), "it waits for the missing one");
        bob.wait(&mut out);
        let missing = len - covered(&out).len();
        assert!(missing <= SLICE, "datagram {lost} lost: {missing} bytes");
        assert!(out.packets.len() <= 2);
    }
}

#[test]
fn one_lost_datagram_of_a_udp_packet_costs_the_ones_that_it_touches() {
    let packet = udp(&stream(0, 1200 * 40));
    for lost in 0..34 {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        let (wire, _) = alice.send(&[(packet.clone(), virtio(&packet, 1200))]);
        let mut datagrams = wire.datagrams();
        datagrams.remove(lost);
        let mut out = Out::default();
        bob.receive(&datagrams, &mut out);
        bob.wait(&mut out);
        let plain = out.plain();
        assert!(plain.len() >= 40 - 3, "datagram {lost} lost: {} of 40", plain.len());
        for packet in plain {
            let payload = read_udp(&packet);
            assert!((0..40).any(|i| payload == stream(i * 1200, 1200)));
        }
    }
}

#[test]
fn slices_arrive_in_any_order() {
    let packet = tcp(7, ACK, &stream(7, 60_000));
    for seed in 0..20 {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        let (wire, _) = alice.send(&[(packet.clone(), virtio(&packet, 1348))]);
        let mut datagrams = wire.datagrams();
        let mut rng = Rng::from_seed([seed; 32]);
        for i in (1..datagrams.len()).rev() {
            datagrams.swap(i, rng.next_u32() as usize % (i + 1));
        }
        let mut out = Out::default();
        bob.receive(&datagrams, &mut out);
        assert_eq!((out.packets.len(), covered(&out).len()), (1, 60_000));
    }
}

#[test]
fn without_both_copies_of_the_headers_nothing_is_delivered() {
    let packet = tcp(0, ACK, &stream(0, 30_000));
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    let (wire, _) = alice.send(&[(packet.clone(), virtio(&packet, 1348))]);
    let mut out = Out::default();
    bob.receive(&wire.datagrams()[2..], &mut out);
    bob.wait(&mut out);
    assert!(out.packets.is_empty());
    assert_eq!(bob.shared.drops.of(DropReason::Incomplete), 1);
}

#[test]
fn superframes_with_holes_are_given_up_when_others_need_the_room_or_time_is_over() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    let mut out = Out::default();
    for i in 0..=SUPERFRAMES_MAX as u32 {
        let at = i * 3000;
        let packet = tcp(at, ACK, &stream(at, 3000));
        let (wire, _) = alice.send(&[(packet.clone(), virtio(&packet, 1348))]);
        bob.receive(&wire.datagrams()[..2], &mut out);
        assert_eq!(out.packets.len(), usize::from(i as usize == SUPERFRAMES_MAX), "{i}");
    }
    assert_eq!(bob.reception.poll_timeout(), Some(super::NOW + ASSEMBLY_TIME_MAX));
    bob.wait(&mut out);
    assert_eq!(out.packets.len(), SUPERFRAMES_MAX + 1);
}

proptest! {
    #[test]
    fn whatever_happens_on_the_way_nothing_false_arrives(
        seed: [u8; 32], loss in 0u32..50, swaps in 0u32..50, doubles in 0u32..20, trains in any::<bool>(),
    ) {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        let mut rng = Rng::from_seed(seed);
        let mut draw = |n: u32| rng.next_u32() % n;
        let (mut at, mut out) = (0, Out::default());
        let mut lost_any = false;
        for _ in 0..6 {
            let mut read = Vec::new();
            for _ in 0..=draw(4) {
                let len = [draw(64), draw(1340), draw(5000), draw(60_000)][draw(4) as usize].max(1);
                let packet = tcp(at, ACK, &stream(at, len as usize));
                let segment = if len > 1348 { 1348 } else { 0 };
                at += len;
                read.push((packet.clone(), virtio(&packet, segment)));
            }
            let (wire, _) = alice.send(&read);
            if trains {
                bob.receive_trains(&wire, &mut out);
                continue;
            }
            let mut datagrams = wire.datagrams();
            let sent = datagrams.len();
            datagrams.retain(|_| draw(100) >= loss);
            lost_any |= datagrams.len() < sent;
            for i in 1..datagrams.len() {
                if draw(100) < swaps {
                    datagrams.swap(i, i - 1);
                }
            }
            for i in 0..datagrams.len() {
                if draw(100) < doubles {
                    datagrams.push(datagrams[i].clone());
                }
            }
            bob.receive(&datagrams, &mut out);
        }
        bob.wait(&mut out);
        let got = covered(&out).len();
        prop_assert!(got <= at as usize);
        if !lost_any {
            prop_assert_eq!(got, at as usize);
        }
        let bytes: usize = out.plain().iter().map(|packet| read_tcp(packet).2.len()).sum();
        prop_assert_eq!(bytes, got, "nothing arrives twice");
    }
}
