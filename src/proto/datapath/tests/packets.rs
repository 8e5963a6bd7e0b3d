//! Inner packets as kernels make them.

use super::address;
use crate::proto::wire::gso::{Transport, VIRTIO_LEN, Virtio};
use crate::proto::wire::inner::Inner;

pub(super) const FIN: u8 = 1;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

/// What a kernel says of a packet with a partial checksum; `segment_len` 0: not to be cut.
pub(super) fn virtio(packet: &[u8], segment_len: u16) -> Virtio {
    let is_tcp = packet[6] == 6;
    let kind = match (segment_len, is_tcp) {
        (0, _) => 0,
        (_, true) => 4,
        (_, false) => 5,
    };
    let mut bytes = [0; VIRTIO_LEN];
    (bytes[0], bytes[1]) = (1, kind);
    bytes[2..4].copy_from_slice(&100u16.to_ne_bytes());
    bytes[4..6].copy_from_slice(&segment_len.to_ne_bytes());
    bytes[6..8].copy_from_slice(&40u16.to_ne_bytes());
    bytes[8..10].copy_from_slice(&if is_tcp { 16u16 } else { 6 }.to_ne_bytes());
    Virtio::parse(&bytes).unwrap()
}

fn ipv6(protocol: u8, ecn: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, ecn << 4, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(address(1).octets());
    packet.extend(address(2).octets());
    packet.extend(body);
    packet
}

pub(super) fn tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    tcp_ecn(sequence, flags, payload, 0)
}

pub(super) fn tcp_ecn(sequence: u32, flags: u8, payload: &[u8], ecn: u8) -> Vec<u8> {
    let mut body = vec![0x12, 0x34, 0, 80];
    body.extend(sequence.to_be_bytes());
    body.extend([0, 0, 0, 1, 0x80, flags, 0xff, 0xff, 0, 0, 0, 0]);
    body.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
    body.extend(payload);
    ipv6(6, ecn, &body)
}

pub(super) fn udp(payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0x43, 0x21, 0, 53];
    body.extend(((payload.len() + 8) as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    ipv6(17, 0, &body)
}

/// Bytes that tell where they belong.
pub(super) fn stream(start: u32, len: usize) -> Vec<u8> {
    (start..).take(len).map(|i| (i ^ i >> 8 ^ i >> 16).wrapping_mul(37) as u8).collect()
}

/// Sequence, flags and payload of a TCP packet whose checksum is right.
pub(super) fn read_tcp(packet: &[u8]) -> (u32, u8, &[u8]) {
    check(packet);
    let payload = Transport::locate(packet).unwrap().headers_len();
    (u32::from_be_bytes(packet[44..48].try_into().unwrap()), packet[53], &packet[payload..])
}

/// Payload of a UDP packet whose checksum is right.
pub(super) fn read_udp(packet: &[u8]) -> &[u8] {
    check(packet);
    assert_eq!(usize::from(u16::from_be_bytes([packet[44], packet[45]])), packet.len() - 40);
    &packet[48..]
}

/// A whole packet: lengths fit, the checksum is that of RFC 8200 §8.1.
pub(super) fn check(packet: &[u8]) {
    let inner = Inner::parse(packet).unwrap();
    assert_eq!(inner.len, packet.len());
    let pseudo =
        [&packet[8..40], &((packet.len() - 40) as u32).to_be_bytes(), &[0, 0, 0, packet[6]]].concat();
    let words = [&pseudo[..], &packet[40..]].concat();
    let sum: u64 =
        words.chunks(2).map(|w| u64::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    assert_eq!((folded & 0xffff) + (folded >> 16), 0xffff, "checksum of {packet:02x?}");
}
