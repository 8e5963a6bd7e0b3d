use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::strategies::junk;
use crate::proto::identity::Identity;
use crate::proto::wire::envelope::{NetworkSecret, RecipientKey};
use crate::proto::wire::session::{HEADER_LEN, Header, Kind, PACKET_LEN_MIN, SLICES_MAX, mask};
use crate::proto::wire::{Family, Malformed, family};

fn key(seed: u8) -> RecipientKey {
    RecipientKey::new(&Identity::from_seed([seed; 32]).node_id(), &NetworkSecret::default())
}

fn header() -> impl Strategy<Value = Header> {
    let whole = prop_oneof![Just(Kind::Control), Just(Kind::Frames)];
    let slice = (2..=SLICES_MAX).prop_flat_map(|slices| (0..slices, Just(slices)));
    let content = prop_oneof![
        whole.prop_map(|kind| (kind, false, (0, 1))),
        any::<bool>().prop_map(|partial| (Kind::Data, partial, (0, 1))),
        slice.prop_map(|slice| (Kind::Slice, false, slice)),
    ];
    (content, any::<bool>(), any::<u32>(), any::<u64>()).prop_map(
        |((kind, partial, slice), epoch, receiver_index, counter)| Header {
            kind,
            epoch,
            partial,
            slice,
            receiver_index,
            counter,
        },
    )
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
    let good = |kind, slice| {
        Header { kind, epoch: false, partial: false, slice, receiver_index: 1, counter: 2 }.emit()
    };
    let check = |good: [u8; HEADER_LEN], at: usize, value: u8, expected| {
        let mut bytes = good;
        bytes[at] = value;
        assert_eq!(Header::parse(&bytes).err(), expected, "byte {at} = {value}");
    };
    let (flags, slice) = (Some(Malformed::Field("flags")), Some(Malformed::Field("slice")));
    for kind in [Kind::Data, Kind::Control, Kind::Frames] {
        let good = good(kind, (0, 1));
        (4..64).for_each(|bits| check(good, 0, 0x40 | bits, Some(Malformed::Kind(bits))));
        let known = if kind == Kind::Data { 4 } else { 2 };
        (known..=255).for_each(|value| check(good, 1, value, flags));
        (1..=255).for_each(|value| check(good, 2, value, slice));
        (0..=255).filter(|slices| *slices != 1).for_each(|value| check(good, 3, value, slice));
    }
    let good = good(Kind::Slice, (1, 3));
    (2..=255).for_each(|value| check(good, 1, value, flags));
    (0..=2).for_each(|value| check(good, 2, value, None));
    (3..=255).for_each(|value| check(good, 2, value, slice));
    (0..=1).for_each(|value| check(good, 3, value, slice));
    (2..=SLICES_MAX).for_each(|value| check(good, 3, value, None));
    (SLICES_MAX + 1..=255).for_each(|value| check(good, 3, value, slice));
}
