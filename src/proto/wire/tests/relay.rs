use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use crate::proto::identity::Identity;
use crate::proto::wire::envelope::{NetworkSecret, RecipientKey};
use crate::proto::wire::relay::{Header, KIND, RELAY_OVERHEAD, Slot, seal};
use crate::proto::wire::session::{HEADER_LEN, Kind, PACKET_LEN_MIN, mask};
use crate::proto::wire::{FAMILY_MASK, Family, Malformed, family};

fn key(seed: u8) -> RecipientKey {
    RecipientKey::new(&Identity::from_seed([seed; 32]).node_id(), &NetworkSecret::default())
}

proptest! {
    #[test]
    fn headers_round_trip(hop_limit: u8, slot: u64) {
        let header = Header { hop_limit, slot: Slot(slot) };
        prop_assert_eq!(Header::parse(&header.emit()), Some(Ok(header)));
    }

    #[test]
    fn a_header_has_one_spelling(mut bytes: [u8; HEADER_LEN], kind in 3u8..6) {
        bytes[0] = bytes[0] & FAMILY_MASK | kind;
        match Header::parse(&bytes) {
            None => prop_assert!(kind != KIND),
            Some(Ok(header)) => prop_assert_eq!(&header.emit()[1..], &bytes[1..]),
            Some(Err(_)) => prop_assert!(kind == KIND && bytes[1..2] != [0] || bytes[3..8] != [0; 5]),
        }
    }

    #[test]
    fn only_the_recipient_reads_the_slot_and_nothing_else_changes(
        hop_limit: u8, slot: u64, datagram in vec(any::<u8>(), PACKET_LEN_MIN..200),
    ) {
        let header = Header { hop_limit, slot: Slot(slot) };
        let mut packet = [&[0; RELAY_OVERHEAD][..], &datagram].concat();
        seal(&key(1), header, &mut packet).unwrap();
        prop_assert_eq!(family(&packet), Some(Family::Session));
        prop_assert!(packet[1..HEADER_LEN] != header.emit()[1..]);
        prop_assert_eq!(&packet[RELAY_OVERHEAD..], &datagram[..]);
        let mut elsewhere = packet.clone();
        mask(&key(2), &mut elsewhere).unwrap();
        prop_assert!(elsewhere[..HEADER_LEN] != header.emit());
        mask(&key(1), &mut packet).unwrap();
        prop_assert_eq!(&packet[..HEADER_LEN], &header.emit()[..]);
    }
}

#[test]
fn the_kind_is_no_session_packets() {
    assert_eq!(Kind::from_bits(KIND), Err(Malformed::Kind(KIND)));
}

#[test]
fn what_is_too_short_to_be_a_datagram_is_not_relayed() {
    let header = Header { hop_limit: 1, slot: Slot(1) };
    let mut packet = [0; RELAY_OVERHEAD + PACKET_LEN_MIN];
    assert!(seal(&key(1), header, &mut packet).is_ok());
    assert!(seal(&key(1), header, &mut packet[1..]).is_err());
}
