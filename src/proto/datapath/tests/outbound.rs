//! What leaves, and that it arrives whole when nothing is lost.

use super::packets::{ACK, FIN, PSH, read_tcp, read_udp, stream, tcp, tcp_ecn, udp, virtio};
use super::{Out, Outbound, pair};
use crate::proto::datapath::{Batch, DropReason, Room};
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::handshake::CAPABILITY_FRAMES;

const LEN: usize = 1472;

fn large_tcp(len: usize) -> (Vec<u8>, Virtio) {
    let packet = tcp(1000, ACK | PSH | FIN, &stream(1000, len));
    let virtio = virtio(&packet, 1348);
    (packet, virtio)
}

#[test]
fn a_large_packet_travels_as_one_train_and_arrives_in_one_piece() {
    for datagram_len in [1232, 1280, LEN, 8952] {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, datagram_len);
        for len in [1500, 2 * datagram_len, 20_000, 60_000] {
            let (packet, virtio) = large_tcp(len);
            let (wire, _) = alice.send(&[(packet.clone(), virtio)]);
            assert_eq!(wire.0.len(), if len < datagram_len - 200 { 1 } else { wire.0.len() });
            assert!(wire.0.iter().all(|train| train.datagram_len <= datagram_len));
            let mut out = Out::default();
            bob.receive_trains(&wire, &mut out);
            assert_eq!(out.packets.len(), 1, "{len} bytes in datagrams of {datagram_len}");
            let (got, bytes) = &out.packets[0];
            assert_eq!(got.offload(), virtio.offload());
            assert_eq!(bytes[..56], packet[..56]);
            assert_eq!(bytes[58..], packet[58..], "all but the checksum, which is computed anew");
            let mut at = 1000;
            for plain in out.plain() {
                let (sequence, flags, payload) = read_tcp(&plain);
                assert_eq!((sequence, payload), (at, &stream(at, payload.len())[..]));
                at += payload.len() as u32;
                assert_eq!(flags & FIN != 0, at == 1000 + len as u32, "FIN on the last segment only");
            }
            assert_eq!(at, 1000 + len as u32);
        }
    }
}

#[test]
fn small_packets_share_a_datagram() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    let packets: Vec<_> = (0..40u32).map(|i| udp(&stream(i, 64))).collect();
    let read: Vec<_> = packets.iter().map(|packet| (packet.clone(), virtio(packet, 0))).collect();
    let (wire, _) = alice.send(&read);
    assert_eq!(wire.0.len(), 1, "one train");
    assert_eq!(wire.datagrams().len(), 40_usize.div_ceil((LEN - 32) / 114));
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    let got: Vec<_> = out.plain();
    assert_eq!(got.len(), 40);
    assert!(got.iter().enumerate().all(|(i, packet)| read_udp(packet) == stream(i as u32, 64)));
}

#[test]
fn full_packets_get_a_datagram_each_and_one_train() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, 1452);
    let packets: Vec<_> = (0..30u32).map(|i| udp(&stream(i, 1420 - 48))).collect();
    let read: Vec<_> = packets.iter().map(|packet| (packet.clone(), virtio(packet, 0))).collect();
    let (wire, _) = alice.send(&read);
    assert_eq!((wire.0.len(), wire.0[0].datagram_len, wire.datagrams().len()), (1, 1452, 30));
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    let got = out.plain();
    assert!(got.len() == 30 && got.iter().all(|packet| read_udp(packet).len() == 1372));
}

#[test]
fn order_is_kept_and_congestion_marks_are_not_mixed() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    let mut read = Vec::new();
    let mut at = 0;
    for (i, len) in [10, 1300, 200, 5000, 90, 90, 1390, 30_000, 1].into_iter().enumerate() {
        let packet = tcp_ecn(at, ACK, &stream(at, len), if i % 4 == 3 { 2 } else { 0 });
        let virtio = virtio(&packet, if len > 1348 { 1348 } else { 0 });
        read.push((packet, virtio));
        at += len as u32;
    }
    let (wire, verdicts) = alice.send(&read);
    assert!(verdicts.iter().all(|verdict| *verdict == Outbound::Sent));
    assert_eq!(wire.0.iter().filter(|train| train.ecn == 2).count(), 2);
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    let mut next = 0;
    for plain in out.plain() {
        let (sequence, _, payload) = read_tcp(&plain);
        assert_eq!((sequence, payload), (next, &stream(next, payload.len())[..]));
        next += payload.len() as u32;
    }
    assert_eq!(next, at);
}

#[test]
fn a_peer_without_frames_gets_whole_packets() {
    let [mut alice, mut bob] = pair(0, LEN);
    let (packet, virtio) = large_tcp(40_000);
    let small = tcp(0, ACK, b"x");
    let (wire, verdicts) =
        alice.send(&[(packet, virtio), (small.clone(), super::packets::virtio(&small, 0))]);
    assert_eq!(verdicts, [Outbound::Sent; 2]);
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    assert!(out.packets.iter().all(|(virtio, packet)| *virtio == Virtio::PLAIN && packet.len() <= 1420));
    let total: usize = out.packets.iter().map(|(_, packet)| read_tcp(packet).2.len()).sum();
    assert_eq!(total, 40_001);
    let too_big = udp(&[0; 1420]);
    let (_, verdicts) = alice.send(&[(too_big, Virtio::PLAIN)]);
    assert_eq!(verdicts, [Outbound::TooBig(1440)]);
}

/// The engine reads the packet after a large one straight into the layout on the wire, whatever it turns out to be.
#[test]
fn packets_read_into_the_expected_layout_are_the_same() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    let mut read = Vec::new();
    let mut at = 0;
    for len in [30_000, 60_000, 100, 60_000, 1300, 1393, 1394, 1395, 2000, 5, 50_000, 3000] {
        let packet = tcp(at, ACK, &stream(at, len));
        let virtio = virtio(&packet, if len > 1348 { 1348 } else { 0 });
        read.push((packet, virtio));
        at += len as u32;
    }
    let mut wire = super::Wire::default();
    let mut wide = 0;
    let mut batch = Batch::new(&alice.snapshot, &alice.shared, &mut alice.outbox, &mut wire, super::NOW);
    for (packet, virtio) in &read {
        let mut rest = &packet[..];
        let mut fill = |piece: &mut [u8]| {
            let part = rest.split_off(..piece.len().min(rest.len())).unwrap();
            piece[..part.len()].copy_from_slice(part);
        };
        match batch.outbox().room() {
            Room::Flat(room) => fill(room),
            Room::Wide(room) => {
                wide += 1;
                room.for_each(fill);
            }
        }
        assert_eq!(batch.push_read(packet.len(), *virtio).0, Outbound::Sent);
    }
    batch.flush();
    assert!(wide >= 5, "{wide}");
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    let mut next = 0;
    for plain in out.plain() {
        let (sequence, _, payload) = read_tcp(&plain);
        assert_eq!((sequence, payload), (next, &stream(next, payload.len())[..]));
        next += payload.len() as u32;
    }
    assert_eq!(next, at);
}

#[test]
fn what_does_not_belong_on_the_mesh_is_dropped() {
    let [mut alice, _] = pair(CAPABILITY_FRAMES, LEN);
    let mut foreign = udp(b"x");
    foreign[8..24].copy_from_slice(&super::address(3).octets());
    let mut elsewhere = udp(b"x");
    elsewhere[24] = 0x20;
    let mut unknown = udp(b"x");
    unknown[24..40].copy_from_slice(&super::address(9).octets());
    let packets = [foreign, elsewhere, unknown, b"no packet at all".to_vec(), Vec::new()];
    let (wire, verdicts) = alice.send(&packets.map(|packet| (packet, Virtio::PLAIN)));
    let drop = Outbound::Drop;
    let expected = [
        drop(DropReason::SourceNotOurs),
        drop(DropReason::NotMesh),
        Outbound::Queue,
        drop(DropReason::NotIpv6),
        drop(DropReason::NotIpv6),
    ];
    assert_eq!(verdicts, expected);
    assert!(wire.0.is_empty());
}

/// On a path that loses much: each part of a large packet is a datagram of its own, and nothing waits for anything.
#[test]
fn large_packets_are_cut_where_much_gets_lost() {
    let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
    alice.cut();
    let (packet, virtio) = large_tcp(60_000);
    let udp_packet = udp(&stream(0, 1200 * 30));
    let small = tcp(61_000, ACK, &stream(61_000, 10));
    let read = [
        (packet.clone(), virtio),
        (small.clone(), super::packets::virtio(&small, 0)),
        (udp_packet.clone(), super::packets::virtio(&udp_packet, 1200)),
    ];
    let (wire, verdicts) = alice.send(&read);
    assert_eq!(verdicts, [Outbound::Sent; 3]);
    let datagrams = wire.datagrams();
    assert_eq!(datagrams.len(), 60_000_usize.div_ceil(1348) + 30);
    assert!(wire.0.len() <= 6, "they still travel in trains: {}", wire.0.len());
    for lost in 0..datagrams.len() {
        let [_, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        let mut out = Out::default();
        let there = datagrams.iter().enumerate().filter(|(at, _)| *at != lost);
        bob.receive_marked(there.map(|(_, datagram)| (datagram, 0)), &mut out);
        assert_eq!(bob.reception.poll_timeout(), None, "nothing waits");
        let packets = out.plain().len();
        assert!(packets + 2 >= datagrams.len() && packets <= datagrams.len() + 1, "{packets}");
    }
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    let plain = out.plain();
    let (tcp_part, udp_part) = plain.split_at(60_000_usize.div_ceil(1348) + 1);
    let mut at = 1000;
    for packet in tcp_part {
        let (sequence, flags, payload) = read_tcp(packet);
        assert_eq!((sequence, payload), (at, &stream(at, payload.len())[..]), "in order and whole");
        at += payload.len() as u32;
        assert_eq!(flags & FIN != 0, at == 61_000, "FIN on the last segment only");
    }
    assert_eq!(at, 61_010);
    for (i, packet) in udp_part.iter().enumerate() {
        assert_eq!(read_udp(packet), stream(i as u32 * 1200, 1200));
    }
    assert_eq!(udp_part.len(), 30);
}

/// What cannot be cut, or not into parts that fit, stays a superframe.
#[test]
fn what_cannot_be_cut_is_a_superframe_even_there() {
    for (packet, segment_len) in [(udp(&stream(0, 3000)), 0), (tcp(0, ACK, &stream(0, 9000)), 3000)] {
        let [mut alice, mut bob] = pair(CAPABILITY_FRAMES, LEN);
        alice.cut();
        let (wire, verdicts) = alice.send(&[(packet.clone(), virtio(&packet, segment_len))]);
        assert_eq!((verdicts, wire.0.len()), (vec![Outbound::Sent], 1));
        let mut out = Out::default();
        bob.receive_trains(&wire, &mut out);
        assert_eq!((out.packets.len(), out.packets[0].1.len()), (1, packet.len()));
    }
}
