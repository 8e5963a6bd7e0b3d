use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::strategies::junk;
use crate::proto::identity::Identity;
use crate::proto::wire::envelope::{NetworkSecret, RecipientKey};
use crate::proto::wire::session::{HEADER_LEN, Header, Kind, PACKET_LEN_MIN, mask};
use crate::proto::wire::{Family, Malformed, family};

fn key(seed: u8) -> RecipientKey {
    RecipientKey::new(&Identity::from_seed([seed; 32]).node_id(), &NetworkSecret::default())
}

fn header() -> impl Strategy<Value = Header> {
    let kind = prop_oneof![Just(Kind::Data), Just(Kind::Control)];
    (kind, any::<bool>(), any::<u32>(), any::<u64>())
        .prop_map(|(kind, epoch, receiver_index, counter)| Header { kind, epoch, receiver_index, counter })
}

proptest! {
    #[test]
    fn headers_round_trip(header in header()) {
        prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
    }

    #[test]
    fn a_header_has_one_spelling(bytes: [u8; HEADER_LEN]) {
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(&header.emit()[1..], &bytes[1..]);
        }
    }

    #[test]
    fn masks_hide_the_header_and_come_off(header in header(), sealed in vec(any::<u8>(), 16..200)) {
        let plain = [&header.emit()[..], &sealed].concat();
        let mut packet = plain.clone();
        mask(&key(1), &mut packet).unwrap();
        prop_assert_eq!(family(&packet), Some(Family::Session));
        prop_assert!(packet[1..HEADER_LEN] != plain[1..HEADER_LEN]);
        prop_assert_eq!(&packet[HEADER_LEN..], &sealed[..], "only the header is masked");
        let mut elsewhere = packet.clone();
        mask(&key(2), &mut elsewhere).unwrap();
        prop_assert!(elsewhere != plain, "another recipient's mask does not fit");
        mask(&key(1), &mut packet).unwrap();
        prop_assert_eq!(packet, plain);
    }

    #[test]
    fn masking_any_bytes_twice_changes_nothing(bytes in junk()) {
        let mut masked = bytes.clone();
        let first = mask(&key(1), &mut masked);
        prop_assert_eq!(first.is_ok(), bytes.len() >= PACKET_LEN_MIN);
        prop_assert_eq!(mask(&key(1), &mut masked), first);
        prop_assert_eq!(masked, bytes);
    }
}

#[test]
fn unknown_kinds_flags_and_slices_are_refused() {
    let good = Header { kind: Kind::Data, epoch: false, receiver_index: 1, counter: 2 }.emit();
    let check = |at: usize, value: u8, expected| {
        let mut bytes = good;
        bytes[at] = value;
        assert_eq!(Header::parse(&bytes), Err(expected), "byte {at} = {value}");
    };
    (2..64).for_each(|bits| check(0, 0x40 | bits, Malformed::Kind(bits)));
    (2..=255).for_each(|flags| check(1, flags, Malformed::Field("flags")));
    (1..=255).for_each(|slice| check(2, slice, Malformed::Field("slice")));
    (0..=255).filter(|slices| *slices != 1).for_each(|slices| check(3, slices, Malformed::Field("slice")));
}
