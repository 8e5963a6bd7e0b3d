use std::net::SocketAddr;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::strategies::{endpoint, junk};
use crate::proto::wire::Malformed;
use crate::proto::wire::cursor::Reader;
use crate::proto::wire::endpoint::{ENDPOINT_LEN_MAX, emit, parse};

fn emitted(endpoint: &SocketAddr) -> Vec<u8> {
    let mut out = Vec::new();
    emit(endpoint, &mut out);
    out
}

proptest! {
    #[test]
    fn round_trips(endpoint in endpoint()) {
        let bytes = emitted(&endpoint);
        prop_assert!(bytes.len() <= ENDPOINT_LEN_MAX);
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(parse(&mut reader), Ok(endpoint));
        prop_assert!(reader.is_empty());
    }

    #[test]
    fn any_address_comes_back_as_its_canonical_form(endpoint in any::<SocketAddr>()) {
        let canonical = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        prop_assert_eq!(parse(&mut Reader::new(&emitted(&endpoint))), Ok(canonical));
    }

    #[test]
    fn an_endpoint_has_one_spelling(bytes in junk()) {
        let mut reader = Reader::new(&bytes);
        if let Ok(endpoint) = parse(&mut reader) {
            prop_assert_eq!(&emitted(&endpoint)[..], &bytes[..bytes.len() - reader.len()]);
        }
    }
}

#[test]
fn bad_endpoints_are_refused() {
    let check =
        |bytes: &[u8], expected| assert_eq!(parse(&mut Reader::new(bytes)), Err(expected), "{bytes:?}");
    check(&[5; 20], Malformed::Field("address family"));
    let mapped = [&[6][..], &[0; 10], &[0xff, 0xff, 192, 0, 2, 1], &[0, 80]].concat();
    check(&mapped, Malformed::Field("IPv4-mapped address"));
    for endpoint in ["192.0.2.1:80", "[2001:db8::1]:80"] {
        super::every_truncation_is_refused(&emitted(&endpoint.parse().unwrap()), |bytes| {
            parse(&mut Reader::new(bytes)).ok()
        });
    }
}
