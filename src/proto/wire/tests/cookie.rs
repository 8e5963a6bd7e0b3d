use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};

use super::strategies::junk;
use crate::proto::wire::cookie::{COOKIE_PADDING_LEN_MIN, COOKIE_REPLY_LEN_MIN, emit, parse};
use crate::proto::wire::envelope::BODY_AT;

proptest! {
    #[test]
    fn round_trips(cookie: [u8; 16], padding in vec(any::<u8>(), COOKIE_PADDING_LEN_MIN..500)) {
        prop_assert_eq!(parse(&emit(&cookie, &padding)[BODY_AT..]), Ok(cookie));
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        prop_assert_eq!(parse(&bytes).is_ok(), bytes.len() >= COOKIE_REPLY_LEN_MIN - BODY_AT);
    }
}

#[test]
fn every_truncation_is_refused() {
    let packet = emit(&[1; 16], &[2; COOKIE_PADDING_LEN_MIN]);
    assert_eq!(packet.len(), COOKIE_REPLY_LEN_MIN);
    super::every_truncation_is_refused(&packet[BODY_AT..], |bytes| parse(bytes).ok());
}
