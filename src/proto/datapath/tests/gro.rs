//! UDP datagrams to the interface several at once: programs must see what they would have seen one by one.

use proptest::collection::vec;
use proptest::prelude::*;

use super::packets::{stream, tcp, udp, virtio};
use super::{Out, Reception, pair};
use crate::proto::wire::gso::{UDP_SEGMENTS_MAX, Virtio};
use crate::proto::wire::session::SLICES_MAX;

const EVERYTHING: u16 = u16::MAX;

/// A packet, and what its kernel says of it.
type Packet = (Vec<u8>, Virtio);

fn datagram(number: usize, len: usize) -> Packet {
    let packet = udp(&stream(number as u32 * 7919, len));
    let virtio = virtio(&packet, 0);
    (packet, virtio)
}

/// What comes out of the other end, whose interface takes several datagrams at once or does not.
fn across(packets: &[Packet], joins: bool) -> Out {
    let [mut alice, mut bob] = pair(EVERYTHING, 1452);
    bob.reception = Reception::new(joins);
    let (wire, _) = alice.send(packets);
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    out
}

/// The packets as given to the kernel.
fn lens(out: &Out) -> Vec<usize> {
    out.packets.iter().map(|(_, packet)| packet.len()).collect()
}

#[test]
fn datagrams_of_one_flow_are_one_packet() {
    let packets: Vec<_> = (0..40).map(|n| datagram(n, 100)).collect();
    let out = across(&packets, true);
    assert_eq!(lens(&out), [48 + 40 * 100]);
    assert!(out.packets[0].0.is_udp_train());
    assert_eq!(out.plain(), across(&packets, false).plain());
}

#[test]
fn each_large_datagram_has_a_datagram_of_its_own_and_is_joined_too() {
    let packets: Vec<_> = (0..40).map(|n| datagram(n, 1300)).collect();
    let out = across(&packets, true);
    assert_eq!(lens(&out), [48 + 40 * 1300]);
    assert_eq!(out.plain(), across(&packets, false).plain());
}

#[test]
fn a_shorter_one_ends_a_packet_and_a_longer_one_begins_the_next() {
    let sizes = [100, 100, 60, 60, 60, 100, 0, 100, 100];
    let packets: Vec<_> = sizes.iter().enumerate().map(|(n, len)| datagram(n, *len)).collect();
    let out = across(&packets, true);
    assert_eq!(lens(&out), [48 + 260, 48 + 120, 48 + 100, 48, 48 + 200]);
    assert_eq!(out.plain(), across(&packets, false).plain());
}

#[test]
fn packets_have_no_more_datagrams_than_pieces_and_no_more_bytes_than_udp_states() {
    let most = usize::from(SLICES_MAX);
    assert!(most <= UDP_SEGMENTS_MAX, "what the kernel cuts");
    let packets: Vec<_> = (0..most + 2).map(|n| datagram(n, 10)).collect();
    assert_eq!(lens(&across(&packets, true)), [48 + most * 10, 48 + 20]);
    // More than any kernel gives at once.
    let [mut alice, mut bob] = pair(EVERYTHING, 1452);
    bob.reception = Reception::new(true);
    let (mut wire, _) = alice.send(&(0..49).map(|n| datagram(n, 1370)).collect::<Vec<_>>());
    wire.0[0].bytes = wire.0.iter().flat_map(|train| train.bytes.clone()).collect();
    wire.0.truncate(1);
    let mut out = Out::default();
    bob.receive_trains(&wire, &mut out);
    assert_eq!(lens(&out), [48 + 47 * 1370, 48 + 2 * 1370]);
}

/// What must differ for two datagrams to stay apart.
#[test]
fn other_headers_are_another_flow() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 5] = [
        ("traffic class", |packet| packet[1] ^= 0x10),
        ("flow label", |packet| packet[3] ^= 1),
        ("hop limit", |packet| packet[7] -= 1),
        ("source port", |packet| packet[41] ^= 1),
        ("destination port", |packet| packet[43] ^= 1),
    ];
    for (what, change) in changes {
        let mut packets = vec![datagram(0, 100), datagram(1, 100), datagram(2, 100)];
        change(&mut packets[1].0);
        let out = across(&packets, true);
        assert_eq!(lens(&out), [148; 3], "{what}");
        assert_eq!(out.plain(), across(&packets, false).plain(), "{what}");
    }
}

/// A complete checksum may be wrong, which only its own datagram may suffer from.
#[test]
fn datagrams_with_complete_checksums_stay_alone() {
    let packets: Vec<_> = (0..3).map(|n| (datagram(n, 100).0, Virtio::PLAIN)).collect();
    assert_eq!(lens(&across(&packets, true)), [148; 3]);
}

fn any_packet() -> impl Strategy<Value = (u8, usize)> {
    (0..5u8, prop_oneof![0..4usize, 60..64usize, 1300..1304usize, 0..1350usize])
}

proptest! {
    /// Joined or one by one, programs see the same packets in the same order.
    #[test]
    fn programs_see_the_same(kinds in vec(any_packet(), 1..80)) {
        let packet = |(number, (kind, len)): (usize, &(u8, usize))| -> Packet {
            let (mut packet, virtio) = datagram(number, *len);
            match kind {
                0 => {
                    let packet = tcp(number as u32, 16, &stream(0, *len));
                    let virtio = super::packets::virtio(&packet, 0);
                    return (packet, virtio);
                }
                1 => return (packet, Virtio::PLAIN),
                2 => packet[43] ^= 1,
                _ => {}
            }
            (packet, virtio)
        };
        let packets: Vec<_> = kinds.iter().enumerate().map(packet).collect();
        prop_assert_eq!(across(&packets, true).plain(), across(&packets, false).plain());
    }
}
