use std::time::Duration;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::strategies::{content, endpoint, junk, record};
use crate::proto::identity::{Identity, NodeId};
use crate::proto::timer::WallTime;
use crate::proto::wire::Malformed;
use crate::proto::wire::record::{
    Content, NodeRecord, RECORD_ENDPOINTS_MAX, RECORD_FUTURE_MAX, RECORD_LEN_MAX, RECORD_TTL_MAX, RecordError,
};

const NOW_MS: u64 = 1_800_000_000_000;
const SIGNATURE_LEN: usize = 64;
const NODE_ID_AT: usize = 16;
const ITEMS_AT: usize = 82;

fn identity() -> Identity {
    Identity::from_seed([7; 32])
}

fn plain() -> Content {
    Content {
        sequence: 5,
        issued: WallTime::from_unix_ms(NOW_MS),
        ttl: Duration::from_secs(3600),
        capabilities: 1,
        endpoints: vec!["192.0.2.1:5747".parse().unwrap(), "[2001:db8::1]:5747".parse().unwrap()],
        relays: Vec::new(),
        streams: Vec::new(),
    }
}

/// Signs any bytes as if they were a record of `identity()`.
fn signed(unsigned: &[u8]) -> Vec<u8> {
    let signature = identity().sign(&[b"auramesh v1 node record", unsigned].concat());
    [unsigned, &signature].concat()
}

fn unsigned() -> Vec<u8> {
    let bytes = NodeRecord::sign(&identity(), plain()).bytes().to_vec();
    bytes[..bytes.len() - SIGNATURE_LEN].to_vec()
}

proptest! {
    #[test]
    fn round_trips(seed: [u8; 32], content in content()) {
        let identity = Identity::from_seed(seed);
        let record = NodeRecord::sign(&identity, content.clone());
        prop_assert!(record.bytes().len() <= RECORD_LEN_MAX);
        prop_assert_eq!(record.content(), &content);
        prop_assert_eq!((record.node_id(), record.x25519()), (identity.node_id(), identity.x25519_public()));
        prop_assert_eq!(record.serves_dht(), content.capabilities & 1 == 1);
        prop_assert_eq!(NodeRecord::parse(record.bytes()), Ok(record));
    }

    #[test]
    fn what_was_signed_is_what_is_parsed(
        issued_ms in 0..=u64::from(u32::MAX) * 1000, ttl_s: u32,
        endpoints in proptest::collection::vec(endpoint(), 0..20),
    ) {
        let ttl = Duration::from_secs(u64::from(ttl_s));
        let issued = WallTime::from_unix_ms(issued_ms);
        let record = NodeRecord::sign(&identity(), Content { issued, ttl, endpoints, ..plain() });
        prop_assert!(record.content().endpoints.len() <= RECORD_ENDPOINTS_MAX);
        prop_assert!(record.content().ttl <= RECORD_TTL_MAX);
        prop_assert_eq!(NodeRecord::parse(record.bytes()), Ok(record));
    }

    #[test]
    fn any_bytes_are_refused(bytes in junk()) {
        prop_assert!(NodeRecord::parse(&bytes).is_err());
    }

    #[test]
    fn any_signed_items_are_survived(items in junk()) {
        let bytes = signed(&[&unsigned()[..ITEMS_AT], &items].concat());
        if let Ok(record) = NodeRecord::parse(&bytes) {
            prop_assert!(record.content().endpoints.len() <= RECORD_ENDPOINTS_MAX);
            prop_assert_eq!(record.bytes(), &bytes[..]);
        }
    }

    #[test]
    fn every_changed_bit_is_refused(record in record(), bit: proptest::sample::Index) {
        let mut bytes = record.bytes().to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(NodeRecord::parse(&bytes).is_err(), "bit {}", bit);
        prop_assert!(NodeRecord::parse_again(&bytes, |_| Some(&record)).is_err(), "held, bit {}", bit);
        prop_assert_eq!(NodeRecord::parse_again(record.bytes(), |_| Some(&record)), Ok(record.clone()));
    }

    #[test]
    fn another_key_does_not_sign_for_this_one(record in record(), other in any::<[u8; 32]>()) {
        let other = Identity::from_seed(other).node_id();
        let mut bytes = record.bytes().to_vec();
        bytes[NODE_ID_AT..NODE_ID_AT + 32].copy_from_slice(other.as_bytes());
        prop_assert_eq!(NodeRecord::parse(&bytes), Err(RecordError::Signature));
    }
}

#[test]
fn every_truncation_and_trailing_byte_is_refused() {
    let good = signed(&unsigned());
    super::every_truncation_is_refused(&good, |bytes| NodeRecord::parse(bytes).ok());
    assert!(NodeRecord::parse(&[&good[..], &[0]].concat()).is_err());
}

#[test]
fn unusable_keys_are_refused() {
    let mut small_order = [0; 32];
    small_order[0] = 1;
    for key in [[0; 32], [0xff; 32], small_order] {
        let mut bytes = signed(&unsigned());
        bytes[NODE_ID_AT..NODE_ID_AT + 32].copy_from_slice(&key);
        assert_eq!(NodeRecord::parse(&bytes), Err(RecordError::Signature), "{:?}", NodeId(key));
    }
}

#[test]
fn a_valid_signature_does_not_excuse_the_format() {
    let check = |unsigned: &[u8], expected| {
        assert_eq!(NodeRecord::parse(&signed(unsigned)), Err(RecordError::Malformed(expected)));
    };
    let with = |at: usize, value: &[u8]| {
        let mut bytes = unsigned();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    check(&with(0, &[2]), Malformed::Version(2));
    check(&with(1, &[1]), Malformed::Field("flags"));
    check(&with(14, &7201u16.to_be_bytes()), Malformed::Field("time to live"));
    let header = &unsigned()[..ITEMS_AT];
    let items = |items: &[u8]| [header, items].concat();
    let v4 = [1, 7, 4, 192, 0, 2, 1, 0, 80];
    check(&items(&v4.repeat(RECORD_ENDPOINTS_MAX + 1)), Malformed::TooLong);
    check(&items(&[1, 8, 4, 192, 0, 2, 1, 0, 80, 0]), Malformed::Trailing);
    check(&items(&[1, 6, 4, 192, 0, 2, 1, 0]), Malformed::Truncated);
    check(&items(&[9]), Malformed::Truncated);
    check(&items(&[9, 255, 0]), Malformed::Truncated);
    check(&items(&[9; RECORD_LEN_MAX]), Malformed::TooLong);
}

#[test]
fn unknown_items_are_skipped_and_kept_in_the_bytes() {
    let bytes = signed(&[&unsigned()[..], &[9, 2, 0xaa, 0xbb], &[0, 0]].concat());
    let record = NodeRecord::parse(&bytes).unwrap();
    assert_eq!(record.content(), &plain());
    assert_eq!(record.bytes(), bytes, "others can verify what they get from us");
}

#[test]
fn records_hold_from_shortly_before_issue_to_the_end_of_their_time() {
    let record = NodeRecord::sign(&identity(), plain());
    let check = |wall_ms: u64, expected| {
        assert_eq!(record.remaining(WallTime::from_unix_ms(wall_ms)), expected, "at {wall_ms}");
    };
    let (future_ms, ttl_ms) = (RECORD_FUTURE_MAX.as_millis() as u64, 3_600_000);
    check(NOW_MS, Ok(Duration::from_secs(3600)));
    check(NOW_MS + 1000, Ok(Duration::from_secs(3599)));
    check(NOW_MS + ttl_ms - 1, Ok(Duration::from_millis(1)));
    check(NOW_MS + ttl_ms, Err(RecordError::Expired));
    check(u64::MAX, Err(RecordError::Expired));
    check(NOW_MS - future_ms, Ok(Duration::from_secs(3600)));
    check(NOW_MS - future_ms - 1, Err(RecordError::Future));
    check(0, Err(RecordError::Future));
}
