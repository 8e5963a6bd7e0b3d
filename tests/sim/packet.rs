//! Inner packets, as a kernel would write them into the interface.

use std::net::Ipv6Addr;

use auramesh::proto::wire::inner::icmp_checksum;

/// An IPv6 packet with any payload.
pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

fn icmp(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    message.extend(body);
    let checksum = icmp_checksum(&source, &destination, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    ipv6(source, destination, 58, &message)
}

/// An ICMPv6 echo request with a body of `len` bytes.
pub(crate) fn echo_request(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    id: u16,
    sequence: u16,
    len: usize,
) -> Vec<u8> {
    let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
    icmp(source, destination, 128, [a, b, c, d], &vec![0x5a; len])
}

/// The reply to an echo request.
pub(crate) fn echo_reply(request: &[u8]) -> Option<Vec<u8>> {
    let is_request = request.len() >= 48 && request[6] == 58 && request[40] == 128;
    is_request.then(|| {
        let rest = std::array::from_fn(|i| request[44 + i]);
        icmp(address(request, 24), address(request, 8), 129, rest, &request[48..])
    })
}

/// Identifier and sequence of an echo reply.
pub(crate) fn is_echo_reply(packet: &[u8]) -> Option<(u16, u16)> {
    let is_reply = packet.len() >= 48 && packet[6] == 58 && packet[40] == 129;
    is_reply
        .then(|| (u16::from_be_bytes([packet[44], packet[45]]), u16::from_be_bytes([packet[46], packet[47]])))
}

/// Type, code and parameter of an ICMPv6 error.
pub(crate) fn icmp_error(packet: &[u8]) -> Option<(u8, u8, u32)> {
    let is_error = packet.len() >= 48 && packet[6] == 58 && packet[40] < 128;
    is_error.then(|| {
        (packet[40], packet[41], u32::from_be_bytes([packet[44], packet[45], packet[46], packet[47]]))
    })
}

/// A TCP segment without payload.
pub(crate) fn tcp(source: Ipv6Addr, destination: Ipv6Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut segment = ports.0.to_be_bytes().to_vec();
    segment.extend(ports.1.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    ipv6(source, destination, 6, &segment)
}

/// SYN, as the first segment of a connection has it.
pub(crate) const SYN: u8 = 0b10;
/// SYN and ACK, as the answer has them.
pub(crate) const SYN_ACK: u8 = 0b1_0010;

/// A UDP datagram.
pub(crate) fn udp(source: Ipv6Addr, destination: Ipv6Addr, ports: (u16, u16), body: &[u8]) -> Vec<u8> {
    let mut datagram = ports.0.to_be_bytes().to_vec();
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend((8 + body.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(body);
    ipv6(source, destination, 17, &datagram)
}

fn address(packet: &[u8], at: usize) -> Ipv6Addr {
    Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| packet[at + i]))
}
