use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode};
use etherparse::{IcmpEchoHeader, Icmpv6Type};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

use super::packets::{Chain, DESTINATION, SOURCE};
use super::strategies::junk;
use crate::proto::wire::Malformed;
use crate::proto::wire::inner::{Fragment, Inner, Quoted, Traffic, destination};

const ICMPV6: u8 = 58;

/// Chains of extension headers; fragments only as the first one.
fn chain() -> impl Strategy<Value = Chain> {
    let fragment = option::of((any::<bool>(), any::<u32>()).prop_map(|(more, id)| (0, more, id)));
    (any::<bool>(), any::<bool>(), fragment).prop_map(|(hop_by_hop, destination_options, fragment)| Chain {
        hop_by_hop,
        destination_options,
        fragment,
    })
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..1200)
}

/// Reads `packet`, alone and with padding behind it, and compares what was seen of it.
fn check(packet: &[u8], chain: Chain, traffic: Traffic) {
    let expected = Inner {
        source: SOURCE,
        destination: DESTINATION,
        len: packet.len(),
        fragment: chain.fragment.map(|(_, _, id)| Fragment { id }),
        traffic,
    };
    assert_eq!(Inner::parse(packet), Ok(expected));
    assert_eq!(Inner::parse(&[packet, &[0; 15]].concat()), Ok(expected), "padding is no part of it");
    assert_eq!(destination(packet), Ok(DESTINATION));
}

proptest! {
    #[test]
    fn udp_is_seen(chain in chain(), source: u16, destination: u16, payload in payload()) {
        let packet = chain.udp(source, destination, &payload);
        check(&packet, chain, Traffic::Udp { source, destination });
    }

    #[test]
    fn tcp_is_seen(chain in chain(), ports: (u16, u16), syn: bool, ack: bool, payload in payload()) {
        let packet = chain.tcp(ports, syn, ack, &payload);
        let traffic = Traffic::Tcp { source: ports.0, destination: ports.1, opens: syn && !ack };
        check(&packet, chain, traffic);
    }

    #[test]
    fn echo_is_seen(chain in chain(), id: u16, seq: u16, payload in payload()) {
        let header = IcmpEchoHeader { id, seq };
        check(&chain.icmp(Icmpv6Type::EchoRequest(header), &payload), chain, Traffic::EchoRequest(id));
        check(&chain.icmp(Icmpv6Type::EchoReply(header), &payload), chain, Traffic::EchoReply(id));
    }

    #[test]
    fn errors_show_what_they_are_about(chain in chain(), ports: (u16, u16), mtu: u32) {
        let quoted = Chain::default().udp(ports.0, ports.1, b"quoted");
        let about = Quoted { source: SOURCE, destination: DESTINATION, protocol: 17, ports };
        let too_big = chain.icmp(Icmpv6Type::PacketTooBig { mtu }, &quoted);
        check(&too_big, chain, Traffic::Error { mtu: Some(mtu), about });
        let unreachable = chain.icmp(Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute), &quoted);
        check(&unreachable, chain, Traffic::Error { mtu: None, about });
        let exceeded = chain.icmp(Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded), &quoted);
        check(&exceeded, chain, Traffic::Error { mtu: None, about });
    }

    #[test]
    fn later_fragments_have_no_ports(offset in 1u16..8191, more: bool, id: u32, payload in payload()) {
        let chain = Chain { fragment: Some((offset * 8, more, id)), ..Chain::default() };
        check(&chain.udp(1, 2, &payload), chain, Traffic::Tail);
    }

    #[test]
    fn every_truncation_is_refused(chain in chain(), payload in vec(any::<u8>(), 0..64)) {
        super::every_truncation_is_refused(&chain.udp(1, 2, &payload), |b| Inner::parse(b).ok());
        super::every_truncation_is_refused(&chain.tcp((1, 2), true, false, &payload), |b| Inner::parse(b).ok());
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        let _ = Inner::parse(&bytes);
        let _ = destination(&bytes);
    }

    #[test]
    fn any_header_chain_is_survived(next_header: u8, bytes in vec(any::<u8>(), 0..200)) {
        let packet = ipv6(next_header, &bytes);
        if let Ok(inner) = Inner::parse(&packet) {
            prop_assert_eq!(inner.len, packet.len());
            prop_assert_eq!(inner.destination, destination(&packet).unwrap());
        }
    }

    #[test]
    fn any_flipped_byte_is_survived(chain in chain(), at: proptest::sample::Index, value: u8) {
        let mut packet = chain.tcp((1, 2), true, true, b"payload");
        let at = at.index(packet.len());
        packet[at] = value;
        if let Ok(inner) = Inner::parse(&packet) {
            prop_assert!(inner.len <= packet.len());
        }
    }
}

/// A packet with any next header and payload.
fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Chain::default().udp(0, 0, &[]);
    packet.truncate(40);
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = next_header;
    packet.extend(payload);
    packet
}

#[test]
fn what_is_no_ipv6_packet_is_refused() {
    assert_eq!(Inner::parse(&[]), Err(Malformed::Truncated));
    assert_eq!(Inner::parse(&[0x60]), Err(Malformed::Truncated));
    assert_eq!(Inner::parse(&ipv6(59, &[0; 9])[..48]), Err(Malformed::Truncated));
    assert_eq!(Inner::parse(&[0x45; 40]), Err(Malformed::Field("IP version")));
    assert_eq!(destination(&[0x45; 40]), Err(Malformed::Field("IP version")));
    assert_eq!(destination(&[0x60; 39]), Err(Malformed::Truncated));
    // Jumbo payload (RFC 2675): length 0, the true one in a hop-by-hop option.
    let mut jumbo = ipv6(0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]);
    jumbo[4..6].copy_from_slice(&[0, 0]);
    assert_eq!(Inner::parse(&jumbo), Err(Malformed::Field("IPv6 header chain")));
}

#[test]
fn first_fragments_must_hold_the_ports() {
    let check = |protocol: u8, len_min: usize| {
        let first = |len| ipv6(44, &[&[protocol, 0, 0, 1, 0, 0, 0, 7][..], &vec![0; len]].concat());
        for len in 0..len_min {
            assert_eq!(Inner::parse(&first(len)), Err(Malformed::Truncated), "{len} bytes of {protocol}");
        }
        assert!(Inner::parse(&first(len_min)).is_ok());
    };
    check(6, 14);
    check(17, 8);
    check(ICMPV6, 8);
}

#[test]
fn a_second_fragment_header_is_refused() {
    let atomic = [44, 0, 0, 0, 0, 0, 0, 1];
    let later = [17, 0, 0, 8 | 1, 0, 0, 0, 2];
    let packet = ipv6(44, &[&atomic[..], &later, &[0; 16]].concat());
    assert_eq!(Inner::parse(&packet), Err(Malformed::Field("fragment header")));
}

#[test]
fn options_in_the_wrong_order_are_refused() {
    let hop_by_hop = [17, 0, 1, 4, 0, 0, 0, 0];
    let destination_options = [0, 0, 1, 4, 0, 0, 0, 0];
    let packet = ipv6(60, &[&destination_options[..], &hop_by_hop, &[0; 8]].concat());
    assert_eq!(Inner::parse(&packet), Err(Malformed::Field("IPv6 header chain")));
}

#[test]
fn other_protocols_are_named() {
    let check = |next_header: u8, payload: &[u8], expected| {
        assert_eq!(Inner::parse(&ipv6(next_header, payload)).map(|inner| inner.traffic), expected);
    };
    check(59, &[], Ok(Traffic::Other(59)));
    check(50, &[1; 20], Ok(Traffic::Other(50)));
    check(132, &[1; 20], Ok(Traffic::Other(132)));
    check(ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0], Ok(Traffic::Other(ICMPV6)));
    check(ICMPV6, &[1, 0, 0, 0, 0, 0, 0, 0], Err(Malformed::Truncated));
    let of_ipv4 = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0x45; 48]].concat();
    check(ICMPV6, &of_ipv4, Err(Malformed::Field("IP version")));
}
