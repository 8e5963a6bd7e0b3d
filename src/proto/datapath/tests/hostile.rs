//! What an authenticated peer may send: nothing that harms the kernel, or pretends to be somebody else, gets through.

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, proptest};

use super::packets::{ACK, check, stream, tcp, udp};
use super::{Out, address, pair, sessions};
use crate::proto::datapath::{DropReason, SUPERFRAMES_MAX};
use crate::proto::session::transport::{Content, Session};
use crate::proto::wire::gso::{TCP_SEGMENT_LEN_MIN, UDP_SEGMENTS_MAX, VIRTIO_LEN, Virtio};
use crate::proto::wire::handshake::CAPABILITY_FRAMES;
use crate::proto::wire::inner::Inner;
use crate::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD};
use crate::proto::wire::superframe::{Offload, REPEAT_LEN};

/// Seals any plaintext under any slice number.
fn seal(session: &Session, first: u64, kind: Kind, slice: (u8, u8), text: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; OVERHEAD + text.len()];
    packet[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    let content = Content { kind, partial: false, slice };
    session.seal_at(first + u64::from(slice.0), content, &mut packet);
    packet
}

fn frame(offload: Offload, packet: &[u8]) -> Vec<u8> {
    [&offload.emit()[..], packet].concat()
}

/// What the kernel is told of a packet must hold for the packet.
fn check_virtio(virtio: Virtio, packet: &[u8]) {
    let inner = Inner::parse(packet).expect("a whole packet");
    assert_eq!((inner.source, inner.destination, inner.len), (address(1), address(2), packet.len()));
    let bytes: [u8; VIRTIO_LEN] = virtio.emit();
    let field = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    let (headers, segment, start, offset) = (field(2), field(4), field(6), field(8));
    if bytes[0] == 0 {
        assert_eq!(virtio, Virtio::PLAIN);
        return;
    }
    assert!(start >= 40 && start + offset + 2 <= packet.len(), "the checksum is inside of the packet");
    match bytes[1] {
        0 => assert_eq!(segment, 0),
        4 => assert!(segment >= usize::from(TCP_SEGMENT_LEN_MIN) && headers + segment < packet.len()),
        5 => assert!((packet.len() - headers).div_ceil(segment) <= UDP_SEGMENTS_MAX),
        other => panic!("gso_type {other}"),
    }
}

fn checked(out: &Out) {
    out.packets.iter().for_each(|(virtio, packet)| check_virtio(*virtio, packet));
}

#[test]
fn what_the_kernel_must_not_see_is_refused() {
    let refused = |offload: Offload, packet: &[u8], reason| {
        let [ours, _] = sessions(CAPABILITY_FRAMES);
        let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
        let datagram = seal(&ours, 0, Kind::Frames, (0, 1), &frame(offload, packet));
        let mut out = Out::default();
        bob.receive(&[datagram], &mut out);
        assert!(out.packets.is_empty(), "{offload:?}");
        assert_eq!(bob.shared.drops.of(reason), 1, "{offload:?}");
    };
    let cut = |segment_len| Offload { segment_len, partial: true };
    let data = tcp(0, ACK, &stream(0, 1000));
    refused(cut(47), &data, DropReason::Malformed);
    refused(cut(1), &data, DropReason::Malformed);
    refused(Offload { segment_len: 100, partial: false }, &data, DropReason::Malformed);
    refused(cut(100), &tcp(0, 2, &stream(0, 1000)), DropReason::Malformed);
    refused(cut(1), &udp(&stream(0, 1000)), DropReason::Malformed);
    let mut shorter = udp(&stream(0, 100));
    shorter[45] = 50;
    refused(cut(0), &shorter, DropReason::Malformed);
    let mut icmp = udp(&stream(0, 100));
    (icmp[6], icmp[40]) = (58, 129);
    refused(cut(0), &icmp, DropReason::Malformed);
    let mut spoofed = data.clone();
    spoofed[8..24].copy_from_slice(&address(3).octets());
    refused(cut(100), &spoofed, DropReason::Source);
    let mut elsewhere = data.clone();
    elsewhere[24..40].copy_from_slice(&address(3).octets());
    refused(cut(100), &elsewhere, DropReason::Destination);
}

#[test]
fn a_spoofed_superframe_is_refused_in_one_train_in_pieces_or_with_holes() {
    let [ours, _] = sessions(CAPABILITY_FRAMES);
    let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
    let honest = tcp(0, ACK, &stream(0, 4000));
    let mut packet = honest.clone();
    packet[8..24].copy_from_slice(&address(3).octets());
    let offload = Offload { segment_len: 1300, partial: true };
    let [honest, spoofed] = [honest, packet].map(|packet| frame(offload, &packet));
    let slice_of = |frame: &[u8], first, number: u8| {
        let text = match number {
            0 => frame[..1440].to_vec(),
            1 => [&frame[..REPEAT_LEN], &frame[1440..2880 - REPEAT_LEN]].concat(),
            _ => frame[2880 - REPEAT_LEN..].to_vec(),
        };
        seal(&ours, first, Kind::Slice, (number, 3), &text)
    };
    let slice = |first, number| slice_of(&spoofed, first, number);
    let train = |frame: &[u8], first| [0, 1, 2].map(|number| slice_of(frame, first, number)).concat();
    let datagram_len = slice(0, 0).len();
    let mut out = Out::default();
    bob.receive(&[slice(0, 0), slice(0, 1), slice(0, 2)], &mut out);
    bob.receive(&[slice(10, 1), slice(10, 2)], &mut out);
    bob.wait(&mut out);
    bob.receive_train(&train(&spoofed, 20), datagram_len, &mut out);
    assert!(out.packets.is_empty());
    assert_eq!(bob.shared.drops.of(DropReason::Source), 3);
    // Of the three ways, this is the one without any copy: it is taken when nothing is wrong.
    bob.receive_train(&train(&honest, 30), datagram_len, &mut out);
    assert_eq!(out.packets.len(), 1);
}

/// Slices that contradict each other, never complete, or state lengths that they do not have.
#[test]
fn contradicting_slices_are_dropped_and_places_are_bounded() {
    let [ours, _] = sessions(CAPABILITY_FRAMES);
    let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
    let mut out = Out::default();
    for i in 0..1000u64 {
        let text = vec![0x60; 1100 + i as usize % 300];
        bob.receive(&[seal(&ours, i * 100, Kind::Slice, ((i % 60) as u8, 64), &text)], &mut out);
    }
    let short = seal(&ours, 200_000, Kind::Slice, (0, 2), &[0x60; 100]);
    bob.receive(&[short], &mut out);
    bob.wait(&mut out);
    assert!(out.packets.is_empty());
    let incomplete = bob.shared.drops.of(DropReason::Incomplete);
    assert!(incomplete >= 1000 - SUPERFRAMES_MAX as u64, "{incomplete}");
}

#[test]
fn a_superframe_that_would_begin_before_the_first_counter_is_dropped() {
    let [ours, _] = sessions(CAPABILITY_FRAMES);
    let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
    let mut packet = vec![0; OVERHEAD + 1440];
    ours.seal_at(1, Content { kind: Kind::Slice, partial: false, slice: (5, 9) }, &mut packet);
    let mut out = Out::default();
    bob.receive(&[packet], &mut out);
    assert_eq!((bob.shared.drops.of(DropReason::Malformed), bob.reception.poll_timeout()), (1, None));
    bob.receive(&[seal(&ours, 300, Kind::Slice, (0, 2), &[0x60; 1440])], &mut out);
    bob.wait(&mut out);
}

proptest! {
    #[test]
    fn any_frames_are_survived(bytes in vec(any::<u8>(), 0..1440)) {
        let [ours, _] = sessions(CAPABILITY_FRAMES);
        let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
        let mut out = Out::default();
        bob.receive(&[seal(&ours, 0, Kind::Frames, (0, 1), &bytes)], &mut out);
        checked(&out);
    }

    #[test]
    fn damaged_packets_are_told_truly_or_refused(
        segment_len in 0u16..0x8000, partial: bool, at in 0usize..100, value: u8, len in 0usize..1300, is_tcp: bool,
    ) {
        let [ours, _] = sessions(CAPABILITY_FRAMES);
        let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
        let mut packet = if is_tcp { tcp(0, ACK, &stream(0, len)) } else { udp(&stream(0, len)) };
        if let Some(byte) = packet.get_mut(at) {
            *byte = value;
        }
        let frame = frame(Offload { segment_len, partial }, &packet);
        let mut out = Out::default();
        bob.receive(&[seal(&ours, 0, Kind::Frames, (0, 1), &frame)], &mut out);
        checked(&out);
        let plain = out.plain();
        if partial {
            plain.iter().filter(|packet| matches!(packet[6], 6 | 17)).for_each(|packet| check(packet));
        }
        prop_assert!(plain.len() <= 1 + len);
    }

    #[test]
    fn any_slices_are_survived(
        slices in vec((0u64..4, 0u8..64, 2u8..=64, vec(any::<u8>(), 0..40), 0usize..1500, any::<bool>()), 1..30),
    ) {
        let [ours, _] = sessions(CAPABILITY_FRAMES);
        let [_, mut bob] = pair(CAPABILITY_FRAMES, 1472);
        let good = frame(Offload { segment_len: 100, partial: true }, &tcp(0, ACK, &stream(0, 60_000)));
        let mut out = Out::default();
        for (first, number, count, mut text, len, is_good) in slices {
            text.resize(len, 0x60);
            if is_good {
                let start = usize::from(number % count) * 1440;
                let part = good.get(start..good.len().min(start + len)).unwrap_or_default();
                text[..part.len()].copy_from_slice(part);
            }
            let slice = (number % count, count);
            bob.receive(&[seal(&ours, first * 64, Kind::Slice, slice, &text)], &mut out);
        }
        bob.wait(&mut out);
        checked(&out);
    }
}
