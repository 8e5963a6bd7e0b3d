use super::envelope::{BODY_AT, Kind, NetworkSecret, Opening, RecipientKey};
use super::*;
use crate::proto::identity::Identity;

fn key(seed: u8) -> RecipientKey {
    RecipientKey::new(&Identity::from_seed([seed; 32]).node_id(), &NetworkSecret::default())
}

#[test]
fn an_envelope_opens_for_its_recipient_only() {
    let mut packet = vec![0; BODY_AT];
    packet.extend(b"some body that is longer than one mask block of sixty-four bytes, so two");
    key(1).close(Kind::Sealed, None, [9; 16], &mut packet);
    let wire = packet.clone();
    assert_eq!(key(2).open(&mut packet).err(), Some(Opening::NotForUs));
    assert_eq!(packet, wire, "a packet that is not for us is left as it came");
    let envelope = key(1).open(&mut packet).unwrap();
    assert_eq!(envelope.kind, Kind::Sealed);
    assert!(envelope.body().starts_with(b"some body"));
    assert!(!envelope.proves(&[7; 16]));
}

#[test]
fn another_network_is_another_recipient() {
    let id = Identity::from_seed([1; 32]).node_id();
    let mut packet = vec![0; BODY_AT + 20];
    RecipientKey::new(&id, &NetworkSecret([1; 32])).close(Kind::Sealed, None, [9; 16], &mut packet);
    assert_eq!(key(1).open(&mut packet).err(), Some(Opening::NotForUs));
}

#[test]
fn a_cookie_is_proven_by_mac2() {
    let mut packet = vec![0; BODY_AT + 20];
    key(1).close(Kind::Initiation, Some(&[7; 16]), [9; 16], &mut packet);
    let envelope = key(1).open(&mut packet).unwrap();
    assert!(envelope.proves(&[7; 16]));
    assert!(!envelope.proves(&[8; 16]));
}

#[test]
fn every_bit_of_an_envelope_but_mac2_is_authenticated() {
    let mut packet = vec![0; BODY_AT + 40];
    key(1).close(Kind::Initiation, None, [9; 16], &mut packet);
    for at in 0..packet.len() {
        let mut changed = packet.clone();
        changed[at] ^= 1;
        let opened = key(1).open(&mut changed).is_ok();
        assert_eq!(opened, (17..33).contains(&at), "byte {at}");
    }
}

#[test]
fn session_headers_are_masked_and_come_back() {
    let header =
        session::Header { kind: session::Kind::Data, epoch: true, receiver_index: 7, counter: 1 << 40 };
    let mut packet = header.emit().to_vec();
    packet.extend([5; 32]);
    session::mask(&key(1), &mut packet).unwrap();
    assert_ne!(packet[1..16], header.emit()[1..]);
    assert_eq!(family(&packet), Some(Family::Session));
    session::mask(&key(1), &mut packet).unwrap();
    let bytes = packet[..16].try_into().unwrap();
    assert_eq!(session::Header::parse(&bytes), Ok(header));
}
