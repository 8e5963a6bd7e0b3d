use std::net::Ipv4Addr;

use proptest::prelude::{any, prop_assert_eq, proptest};

use super::strategies::junk;
use crate::proto::wire::Malformed;
use crate::proto::wire::portmap::{ADDRESS_REQUEST, MapRequest, PORTMAP_LEN_MAX, Response};

fn request() -> MapRequest {
    MapRequest {
        nonce: *b"twelve bytes",
        client: Ipv4Addr::new(192, 168, 1, 2),
        inside: 5747,
        outside: 40_000,
        address: Ipv4Addr::new(20, 1, 0, 2),
        lifetime_s: 7200,
    }
}

/// The bytes of RFC 6887 §7.1 and §11.1, RFC 6886 §3.2 and §3.3.
#[test]
fn requests_are_spelt_as_in_the_standards() {
    let mapped = |ip: [u8; 4]| [&[0; 10][..], &[0xff, 0xff], &ip].concat();
    let pcp = [
        &[2, 1, 0, 0, 0, 0, 0x1c, 0x20][..],
        &mapped([192, 168, 1, 2]),
        b"twelve bytes",
        &[17, 0, 0, 0, 0x16, 0x73, 0x9c, 0x40],
        &mapped([20, 1, 0, 2]),
    ]
    .concat();
    assert_eq!(request().emit_pcp(), pcp);
    assert_eq!(pcp.len(), 60);
    assert_eq!(request().emit_nat_pmp(), [0, 1, 0, 0, 0x16, 0x73, 0x9c, 0x40, 0, 0, 0x1c, 0x20]);
    assert_eq!(ADDRESS_REQUEST, [0, 0]);
}

proptest! {
    #[test]
    fn a_granted_request_is_read_back(
        nonce in any::<[u8; 12]>(),
        (inside, outside) in any::<(u16, u16)>(),
        address in any::<u32>(),
        (lifetime_s, epoch_s) in any::<(u32, u32)>(),
    ) {
        let address = Ipv4Addr::from(address);
        let request = MapRequest { nonce, inside, outside, address, lifetime_s, ..request() };
        let mut answer = request.emit_pcp();
        answer[1] |= 0x80;
        answer[8..24].fill(0);
        answer[8..12].copy_from_slice(&epoch_s.to_be_bytes());
        let expected = Response::Mapped { epoch_s, nonce, inside, outside, address, lifetime_s };
        prop_assert_eq!(Response::parse(&answer), Ok(expected));
        answer[3] = 8;
        prop_assert_eq!(Response::parse(&answer), Ok(Response::Refused { nonce, code: 8 }));
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        let _ = Response::parse(&bytes);
    }
}

#[test]
fn nat_pmp_is_read() {
    let check = |bytes: &[u8], expected| assert_eq!(Response::parse(bytes), Ok(expected), "{bytes:?}");
    let address = Ipv4Addr::new(20, 1, 0, 2);
    check(&[0, 128, 0, 0, 0, 0, 0, 9, 20, 1, 0, 2], Response::PmpAddress { epoch_s: 9, address });
    let mapped = Response::PmpMapped { epoch_s: 9, inside: 5747, outside: 40_000, lifetime_s: 7200 };
    check(&[0, 129, 0, 0, 0, 0, 0, 9, 0x16, 0x73, 0x9c, 0x40, 0, 0, 0x1c, 0x20], mapped);
    check(&[0, 129, 0, 3, 0, 0, 0, 9], Response::PmpRefused { code: 3 });
    check(&[0, 129, 0, 1, 0, 0, 0, 9], Response::WrongVersion);
    let wrong = [&[1, 0x81, 0, 1][..], &[0; 20]].concat();
    check(&wrong, Response::WrongVersion);
}

#[test]
fn bad_answers_are_refused() {
    let mut good = request().emit_pcp();
    good[1] |= 0x80;
    super::every_truncation_is_refused(&good, |bytes| Response::parse(bytes).ok());
    super::every_truncation_is_refused(&[0, 128, 0, 0, 0, 0, 0, 9, 20, 1, 0, 2], |bytes| {
        Response::parse(bytes).ok()
    });
    let check = |at: usize, value: u8, expected| {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(Response::parse(&bytes), Err(expected), "byte {at}");
    };
    check(0, 3, Malformed::Version(3));
    check(1, 1, Malformed::Kind(1));
    check(1, 0x82, Malformed::Kind(2));
    check(36, 6, Malformed::Field("protocol"));
    assert_eq!(Response::parse(&vec![0x80; PORTMAP_LEN_MAX + 1]), Err(Malformed::TooLong));
    // An outside address that is not IPv4 is none.
    good[44] = 0x20;
    let parsed = Response::parse(&good);
    assert!(matches!(parsed, Ok(Response::Mapped { address: Ipv4Addr::UNSPECIFIED, .. })), "{parsed:?}");
}
