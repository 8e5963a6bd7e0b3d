use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::strategies::junk;
use crate::proto::identity::Identity;
use crate::proto::wire::envelope::{BODY_AT, Envelope, Kind, MAC2_AT, NetworkSecret, Opening, RecipientKey};
use crate::proto::wire::{FAMILY_MASK, FAMILY_SETUP, Family, Malformed, SETUP_LEN_MAX, family};

fn key(seed: u8) -> RecipientKey {
    RecipientKey::new(&Identity::from_seed([seed; 32]).node_id(), &NetworkSecret::default())
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Initiation), Just(Kind::Response), Just(Kind::CookieReply), Just(Kind::Sealed)]
}

fn closed(kind: Kind, cookie: Option<&[u8; 16]>, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; BODY_AT];
    packet.extend(body);
    key(1).close(kind, cookie, [9; 16], &mut packet);
    packet
}

proptest! {
    #[test]
    fn round_trips(kind in kind(), cookie: [u8; 16], body in vec(any::<u8>(), 0..=SETUP_LEN_MAX - BODY_AT)) {
        let mut packet = closed(kind, Some(&cookie), &body);
        prop_assert_eq!(family(&packet), Some(Family::Setup));
        let len = packet.len();
        let envelope = key(1).open(&mut packet).unwrap();
        prop_assert_eq!(envelope.kind, kind);
        prop_assert_eq!(envelope.body(), &body[..]);
        prop_assert_eq!(envelope.packet_len(), len);
        prop_assert!(envelope.proves(&cookie));
        let again = Envelope::reopen(&mut packet).unwrap();
        prop_assert_eq!((again.kind, again.body()), (kind, &body[..]));
    }

    #[test]
    fn any_bytes_are_refused_and_left_as_they_came(mut bytes in junk()) {
        let wire = bytes.clone();
        prop_assert!(key(1).open(&mut bytes).is_err());
        prop_assert_eq!(bytes, wire);
    }

    #[test]
    fn other_recipients_and_networks_see_nothing(body in vec(any::<u8>(), 0..200), secret: [u8; 32]) {
        let wire = closed(Kind::Sealed, None, &body);
        let id = Identity::from_seed([1; 32]).node_id();
        for other in [key(2), RecipientKey::new(&id, &NetworkSecret(secret))] {
            let mut packet = wire.clone();
            prop_assert_eq!(other.open(&mut packet).err(), Some(Opening::NotForUs));
            prop_assert_eq!(&packet, &wire, "a packet that is not for us is left as it came");
        }
    }
}

#[test]
fn every_truncation_and_trailing_byte_breaks_mac1() {
    let wire = closed(Kind::Initiation, None, &[7; 100]);
    super::every_truncation_is_refused(&wire, |bytes| key(1).open(&mut bytes.to_vec()).ok().map(|e| e.kind));
    for junk in [0, 1, 0xff] {
        let mut longer = wire.clone();
        longer.push(junk);
        assert_eq!(key(1).open(&mut longer).err(), Some(Opening::NotForUs));
    }
}

#[test]
fn every_bit_of_an_envelope_but_mac2_is_authenticated() {
    let wire = closed(Kind::Initiation, None, &[0; 40]);
    for bit in 0..wire.len() * 8 {
        let mut changed = wire.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let opened = key(1).open(&mut changed).is_ok();
        assert_eq!(opened, (MAC2_AT..BODY_AT).contains(&(bit / 8)), "bit {bit}");
    }
}

#[test]
fn length_family_and_kind_are_told_apart() {
    let check = |packet: &[u8], expected| {
        let mut opened = packet.to_vec();
        assert_eq!(key(1).open(&mut opened).err(), Some(Opening::Malformed(expected)));
        assert_eq!(opened, packet, "left as it came");
    };
    check(&[FAMILY_SETUP; BODY_AT - 1], Malformed::Truncated);
    check(&[FAMILY_SETUP; SETUP_LEN_MAX + 1], Malformed::TooLong);
    check(&[0x40; BODY_AT], Malformed::Field("family"));
    for bits in (0..64).filter(|bits| Kind::from_bits(*bits).is_err()) {
        check(&of_kind_bits(bits), Malformed::Kind(bits));
    }
}

/// A packet with a valid mac1 and any kind, made without the code under test.
fn of_kind_bits(bits: u8) -> Vec<u8> {
    let material = [&Identity::from_seed([1; 32]).node_id().0[..], &[0; 32]].concat();
    let (mac, mask) = ("auramesh v1 mac1", "auramesh v1 mask");
    let mac1 = blake3::keyed_hash(&blake3::derive_key(mac, &material), &[FAMILY_SETUP | bits]);
    let mac1 = &mac1.as_bytes()[..16];
    let mask = blake3::keyed_hash(&blake3::derive_key(mask, &material), mac1).as_bytes()[0];
    [&[FAMILY_SETUP | bits ^ mask & !FAMILY_MASK][..], mac1, &[9; 16]].concat()
}

#[test]
fn a_cookie_is_proven_by_mac2() {
    let mut packet = closed(Kind::Initiation, Some(&[7; 16]), &[1; 20]);
    let envelope = key(1).open(&mut packet).unwrap();
    assert!(envelope.proves(&[7; 16]));
    assert!(!envelope.proves(&[8; 16]));
    let mut packet = closed(Kind::Initiation, None, &[1; 20]);
    assert!(!key(1).open(&mut packet).unwrap().proves(&[7; 16]), "filler proves nothing");
}

#[test]
fn a_cookie_reply_opens_for_one_mac1_only() {
    let mut packet = vec![0; BODY_AT + 32];
    key(1).for_cookie_reply(&[3; 16]).close(Kind::CookieReply, None, [9; 16], &mut packet);
    for (seed, mac1) in [(1, [4; 16]), (2, [3; 16])] {
        let other = key(seed).for_cookie_reply(&mac1).open(&mut packet).err();
        assert_eq!(other, Some(Opening::NotForUs));
    }
    assert_eq!(key(1).open(&mut packet).err(), Some(Opening::NotForUs), "not under the key of initiations");
    assert!(key(1).for_cookie_reply(&[3; 16]).open(&mut packet).is_ok());
}
