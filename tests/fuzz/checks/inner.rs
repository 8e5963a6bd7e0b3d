//! Inner packets and the errors about them.

use std::net::Ipv6Addr;

use auramesh::proto::wire::inner::{
    IPV6_HEADER_LEN, IPV6_MTU_MIN, IcmpError, Inner, Traffic, destination, icmp_checksum, icmp_error,
};

const ROUTER: Ipv6Addr = Ipv6Addr::new(0x600, 0, 0, 0, 0, 0, 0, 9);

/// A packet is read without what pads it; errors about it are well-formed and never answered by another error.
pub(crate) fn inner(data: &[u8]) {
    let to = destination(data);
    let Ok(inner) = Inner::parse(data) else {
        assert_eq!(icmp_error(IcmpError::NoRoute, &ROUTER, data), None);
        return;
    };
    assert_eq!(to, Ok(inner.destination));
    assert!(inner.len >= IPV6_HEADER_LEN);
    assert_eq!(Inner::parse(&data[..inner.len]), Ok(inner));
    assert!(Inner::parse(&data[..inner.len - 1]).is_err());
    assert!(inner.traffic != Traffic::Tail || inner.fragment.is_some());
    for error in [IcmpError::NoRoute, IcmpError::AddressUnreachable, IcmpError::TooBig(1280)] {
        if let Some(packet) = icmp_error(error, &ROUTER, data) {
            check_error(&inner, &data[..inner.len], &packet);
        }
    }
}

fn check_error(about: &Inner, invoking: &[u8], packet: &[u8]) {
    assert!(
        !about.source.is_multicast() && !about.source.is_unspecified() && !about.destination.is_multicast()
    );
    assert!(!matches!(about.traffic, Traffic::Error { .. } | Traffic::Tail));
    assert!(packet.len() <= IPV6_MTU_MIN);
    assert_eq!(destination(packet), Ok(about.source));
    let mut message = packet[IPV6_HEADER_LEN..].to_vec();
    assert!(invoking.starts_with(&message[8..]));
    assert!(packet.len() == IPV6_MTU_MIN || message.len() == 8 + invoking.len());
    let checksum = [message[2], message[3]];
    message[2..4].fill(0);
    assert_eq!(icmp_checksum(&ROUTER, &about.source, &message).to_be_bytes(), checksum);
    assert_eq!(icmp_error(IcmpError::NoRoute, &ROUTER, packet), None);
}
