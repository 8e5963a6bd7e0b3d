use std::net::Ipv6Addr;

use etherparse::{IcmpEchoHeader, Icmpv6Slice, Icmpv6Type, Ipv6Slice};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::packets::{Chain, DESTINATION, SOURCE, udp_between};
use super::strategies::junk;
use crate::proto::wire::inner::{
    IPV6_HEADER_LEN, IPV6_MTU_MIN, IcmpError, Inner, Quoted, Traffic, icmp_checksum, icmp_error,
};

const ROUTER: Ipv6Addr = Ipv6Addr::new(0x6cd, 0, 0, 0, 0, 0, 0, 9);
const ICMPV6: u8 = 58;

fn error() -> impl Strategy<Value = IcmpError> {
    prop_oneof![
        Just(IcmpError::NoRoute),
        Just(IcmpError::AddressUnreachable),
        any::<u32>().prop_map(IcmpError::TooBig)
    ]
}

proptest! {
    #[test]
    fn errors_are_valid_packets_for_the_sender(error in error(), payload in vec(any::<u8>(), 0..1400)) {
        let invoking = Chain::default().udp(7, 8, &payload);
        let padded = [&invoking[..], &[0xee; 15]].concat();
        let packet = icmp_error(error, &ROUTER, &padded).unwrap();
        prop_assert!(packet.len() <= IPV6_MTU_MIN);

        let slice = Ipv6Slice::from_slice(&packet).unwrap();
        prop_assert_eq!(slice.header().source_addr(), ROUTER);
        prop_assert_eq!(slice.header().destination_addr(), SOURCE);
        let icmp = Icmpv6Slice::from_slice(slice.payload().payload).unwrap();
        prop_assert!(icmp.is_checksum_valid(ROUTER.octets(), SOURCE.octets()));
        let (kind, code) = match error {
            IcmpError::NoRoute => (1, 0),
            IcmpError::AddressUnreachable => (1, 3),
            IcmpError::TooBig(_) => (2, 0),
        };
        prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (kind, code));
        let quoted = &packet[IPV6_HEADER_LEN + 8..];
        prop_assert!(invoking.starts_with(quoted), "the quote holds no padding");
        prop_assert!(quoted.len() == invoking.len() || packet.len() == IPV6_MTU_MIN, "as much as possible");

        let mtu = if let IcmpError::TooBig(mtu) = error { Some(mtu) } else { None };
        let about = Quoted { source: SOURCE, destination: DESTINATION, protocol: 17, ports: (7, 8) };
        prop_assert_eq!(Inner::parse(&packet).unwrap().traffic, Traffic::Error { mtu, about });
    }

    #[test]
    fn no_error_is_about_an_error(first in error(), second in error()) {
        let packet = icmp_error(first, &ROUTER, &Chain::default().udp(7, 8, &[])).unwrap();
        prop_assert_eq!(icmp_error(second, &ROUTER, &packet), None);
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk(), error in error()) {
        let _ = icmp_error(error, &ROUTER, &bytes);
    }

    #[test]
    fn checksums_of_any_message_verify(mut message in vec(any::<u8>(), 8..1300)) {
        message[2..4].fill(0);
        let checksum = icmp_checksum(&SOURCE, &DESTINATION, &message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let slice = Icmpv6Slice::from_slice(&message).unwrap();
        prop_assert!(slice.is_checksum_valid(SOURCE.octets(), DESTINATION.octets()));
    }
}

fn answered(packet: &[u8]) -> bool {
    icmp_error(IcmpError::NoRoute, &ROUTER, packet).is_some()
}

/// RFC 4443 §2.4(e).
#[test]
fn errors_are_sent_only_where_they_may_be() {
    let raw = |kind, payload: &[u8]| {
        Chain::default().icmp(Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [0; 4] }, payload)
    };
    let quoted = Chain::default().udp(1, 2, &[]);
    for kind in 0..128 {
        assert!(!answered(&raw(kind, &quoted)), "about ICMPv6 error of type {kind}");
        assert!(!answered(&raw(kind, &[])), "about ICMPv6 error of type {kind} without a quote");
    }
    assert!(!answered(&raw(137, &[0; 32])), "about a redirect");
    let echo = IcmpEchoHeader { id: 1, seq: 1 };
    assert!(answered(&Chain::default().icmp(Icmpv6Type::EchoRequest(echo), &[])), "about an echo request");
    let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    assert!(answered(&udp_between(SOURCE, DESTINATION)));
    assert!(!answered(&udp_between(SOURCE, multicast)), "to a multicast address");
    assert!(!answered(&udp_between(multicast, DESTINATION)), "from a multicast address");
    assert!(!answered(&udp_between(Ipv6Addr::UNSPECIFIED, DESTINATION)), "from no address");
    let later = Chain { fragment: Some((8, true, 1)), ..Chain::default() };
    assert!(!answered(&later.udp(1, 2, &[])), "about a later fragment");
    let first = Chain { fragment: Some((0, true, 1)), ..Chain::default() };
    assert!(answered(&first.udp(1, 2, &[0; 16])), "about a first fragment");
    assert!(!answered(&[]) && !answered(&[0x45; 40]), "about what is no IPv6 packet");
    assert_eq!(Inner::parse(&raw(5, &[])).unwrap().traffic, Traffic::Other(ICMPV6));
}
