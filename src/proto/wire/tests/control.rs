use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::strategies::{contact, control, junk};
use crate::proto::identity::NodeId;
use crate::proto::wire::Malformed;
use crate::proto::wire::control::{
    CONTACTS_MAX, CONTROL_LEN_MAX, CONTROL_MESSAGES_MAX, Contact, Control, StoreOutcome,
};
use crate::proto::wire::record::RECORD_LEN_MAX;
use crate::proto::wire::routing::ROUTED_LEN_MAX;

fn emitted(messages: &[Control]) -> Vec<u8> {
    let mut out = Vec::new();
    messages.iter().for_each(|message| message.emit(&mut out));
    out
}

proptest! {
    #[test]
    fn messages_round_trip(message in control(), padding in 0usize..64) {
        let mut plaintext = emitted(std::slice::from_ref(&message));
        prop_assert!(plaintext.len() <= CONTROL_LEN_MAX);
        plaintext.resize(plaintext.len() + padding, 0);
        prop_assert_eq!(Control::parse_all(&plaintext), Ok(vec![message]));
    }

    #[test]
    fn several_messages_keep_their_order(nonces in vec(any::<u64>(), 0..=CONTROL_MESSAGES_MAX)) {
        let messages: Vec<_> = nonces.iter().map(|nonce| Control::Ping { nonce: *nonce }).collect();
        prop_assert_eq!(Control::parse_all(&emitted(&messages)), Ok(messages));
    }

    #[test]
    fn unknown_messages_are_left_out(message in control(), kind in 34u8.., value in vec(any::<u8>(), 0..300)) {
        let unknown = [&[kind][..], &(value.len() as u16).to_be_bytes(), &value].concat();
        let known = emitted(std::slice::from_ref(&message));
        let plaintext = [&unknown[..], &known, &unknown].concat();
        prop_assert_eq!(Control::parse_all(&plaintext), Ok(vec![message]));
    }

    #[test]
    fn contacts_are_cut_to_what_fits(
        record in proptest::option::of(vec(any::<u8>(), 1..=RECORD_LEN_MAX)), contacts in vec(contact(), 0..40),
    ) {
        let found = Control::Found { request: 1, record: record.clone(), contacts: contacts.clone() };
        let plaintext = emitted(&[found]);
        prop_assert!(plaintext.len() <= CONTROL_LEN_MAX);
        let parsed = Control::parse_all(&plaintext).unwrap();
        let [Control::Found { record: got, contacts: kept, .. }] = &parsed[..] else { panic!("{parsed:?}") };
        prop_assert_eq!(got, &record);
        prop_assert!(contacts.starts_with(kept), "the closest ones stay");
        let at_least = if record.is_some() { 5 } else { 13 };
        prop_assert!(kept.len() >= contacts.len().min(at_least));
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        if let Ok(messages) = Control::parse_all(&bytes) {
            prop_assert_eq!(Control::parse_all(&emitted(&messages)), Ok(messages));
        }
    }

    #[test]
    fn any_value_of_a_known_type_is_survived(kind in 0u8..26, value in vec(any::<u8>(), 0..200)) {
        let bytes = [&[kind][..], &(value.len() as u16).to_be_bytes(), &value].concat();
        let _ = Control::parse_all(&bytes);
    }

    #[test]
    fn a_message_cut_short_is_refused(message in control(), at: proptest::sample::Index) {
        let plaintext = emitted(std::slice::from_ref(&message));
        let len = at.index(plaintext.len() - 1) + 1;
        prop_assert!(Control::parse_all(&plaintext[..len]).is_err());
    }

    #[test]
    fn a_longer_value_is_refused(nonce: u64, junk in vec(any::<u8>(), 1..20)) {
        let mut plaintext = emitted(&[Control::Ping { nonce }]);
        plaintext.extend(&junk);
        plaintext[2] += junk.len() as u8;
        prop_assert_eq!(Control::parse_all(&plaintext), Err(Malformed::Trailing));
    }
}

#[test]
fn lengths_are_checked_before_anything_is_taken() {
    let check = |plaintext: &[u8], expected| assert_eq!(Control::parse_all(plaintext), Err(expected));
    check(&[3, 0xff, 0xff, 1, 2, 3], Malformed::Truncated);
    check(&[1], Malformed::Truncated);
    check(&emitted(&vec![Control::Ping { nonce: 1 }; CONTROL_MESSAGES_MAX + 1]), Malformed::TooLong);
    check(&emitted(&[Control::Hello { record: vec![1; RECORD_LEN_MAX + 1] }]), Malformed::TooLong);
    check(
        &emitted(&[Control::Store { request: 1, record: vec![1; RECORD_LEN_MAX + 1] }]),
        Malformed::TooLong,
    );
    let record = Some(vec![1; RECORD_LEN_MAX + 1]);
    check(&emitted(&[Control::Found { request: 1, record, contacts: Vec::new() }]), Malformed::TooLong);
    check(&[0, 0, 0, 7], Malformed::Field("padding"));
}

#[test]
fn more_contacts_than_k_are_refused() {
    let endpoint = "192.0.2.1:80".parse().unwrap();
    let contact = Contact { node_id: NodeId([1; 32]), x25519: [2; 32], endpoint };
    let one = emitted(&[Control::Found { request: 1, record: None, contacts: vec![contact] }]);
    let (head, contact) = one.split_at(3 + 10);
    let mut plaintext = [head, &contact.repeat(CONTACTS_MAX + 1)].concat();
    let len = (plaintext.len() - 3) as u16;
    plaintext[1..3].copy_from_slice(&len.to_be_bytes());
    assert_eq!(Control::parse_all(&plaintext), Err(Malformed::TooLong));
}

#[test]
fn routes_are_no_longer_than_they_may_be() {
    let bytes =
        |number: u8, value: &[u8]| [&[number][..], &(value.len() as u16).to_be_bytes(), value].concat();
    let check = |number, value: &[u8], expected| {
        assert_eq!(Control::parse_all(&bytes(number, value)), Err(expected), "{number}");
    };
    let seek = |ttl: u8, relays: usize| [&[0; 8][..], &[ttl], &[1; 32], &[2; 32].repeat(relays)].concat();
    check(20, &seek(0, 0), Malformed::Field("hops left"));
    check(20, &seek(4, 0), Malformed::Field("hops left"));
    check(20, &seek(3, 4), Malformed::TooLong);
    check(21, &[&[0; 8][..], &[2], &[2; 32].repeat(4)].concat(), Malformed::TooLong);
    let bind = |next: u8, passed: u8| {
        let nodes = [3; 32].repeat(usize::from(next) + usize::from(passed));
        [&[0; 8][..], &[1; 64], &[2, next, passed], &nodes].concat()
    };
    assert!(Control::parse_all(&bytes(22, &bind(1, 2))).is_ok());
    check(22, &bind(2, 2), Malformed::TooLong);
    check(22, &bind(255, 255), Malformed::TooLong);
    check(22, &[&bind(1, 1)[..], &[9; ROUTED_LEN_MAX + 1]].concat(), Malformed::TooLong);
    let invite = |n: u8| [&[0; 8][..], &[1; 32], &[2, n], &[3; 32].repeat(n.into())].concat();
    check(23, &invite(0), Malformed::Field("relays passed"));
    check(23, &invite(5), Malformed::Field("relays passed"));
    check(24, &[&[2][..], &[0; 17]].concat(), Malformed::Field("flags"));
    check(24, &[&[0; 17][..], &[4]].concat(), Malformed::Field("relays left"));
}

#[test]
fn one_bad_message_spoils_the_plaintext() {
    let mut plaintext = emitted(&[
        Control::Ping { nonce: 1 },
        Control::Stored { request: 1, outcome: StoreOutcome::Refused },
    ]);
    *plaintext.last_mut().unwrap() = 4;
    assert_eq!(Control::parse_all(&plaintext), Err(Malformed::Field("outcome")));
}

#[test]
fn a_probe_is_padded_to_any_length() {
    let probe = Control::MtuProbe { token: 7, datagram_len: 8972 };
    let mut plaintext = emitted(std::slice::from_ref(&probe));
    plaintext.resize(8972 - 32, 0);
    assert_eq!(Control::parse_all(&plaintext), Ok(vec![probe]));
    *plaintext.last_mut().unwrap() = 1;
    assert_eq!(Control::parse_all(&plaintext), Err(Malformed::Field("padding")));
}
