use proptest::prelude::{prop_assert_eq, proptest};

use super::strategies::{junk, record};
use crate::proto::wire::Malformed;
use crate::proto::wire::announce::{ANNOUNCE_LEN_MAX, Announce, open, seal};
use crate::proto::wire::envelope::NetworkSecret;

proptest! {
    #[test]
    fn round_trips(port in 1u16.., record in record()) {
        let announce = Announce { port, record: record.bytes() };
        let packet = announce.emit();
        prop_assert_eq!(Announce::parse(&packet), Ok(announce));
    }

    #[test]
    fn an_announcement_has_one_spelling(bytes in junk()) {
        let bytes = [b"azora\x01", &bytes[..]].concat();
        if let Ok(announce) = Announce::parse(&bytes) {
            prop_assert_eq!(announce.emit(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        let _ = Announce::parse(&bytes);
    }
}

#[test]
fn a_sealed_announcement_opens_with_its_secret_alone_and_shows_nothing() {
    let plain = Announce { port: 5747, record: &[7; 200] }.emit();
    let (ours, others) = (NetworkSecret([1; 32]), NetworkSecret([2; 32]));
    let sealed = seal(&plain, [1; 8], &ours);
    assert_eq!(open(&sealed, &ours).as_ref(), Some(&plain));
    assert_eq!(open(&sealed, &others), None);
    assert_eq!(open(&sealed, &NetworkSecret::default()), None);
    assert!(Announce::parse(&sealed).is_err());
    for at in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert_eq!(open(&altered, &ours), None, "byte {at}");
    }
    for len in 0..sealed.len() {
        assert_eq!(open(&sealed[..len], &ours), None);
    }
    let runs = |bytes: &[u8]| bytes.windows(4).any(|four| four == [7; 4]);
    assert!(runs(&plain) && !runs(&sealed));
    // Nothing is constant, though the announcement is the same.
    let again = seal(&plain, [2; 8], &ours);
    assert!(sealed.iter().zip(&again).filter(|(a, b)| a == b).count() < 16);
    assert_eq!(open(&seal(&vec![0; ANNOUNCE_LEN_MAX + 1], [1; 8], &ours), &ours), None);
}

#[test]
fn bad_announcements_are_refused() {
    let good = Announce { port: 5747, record: &[] }.emit();
    super::every_truncation_is_refused(&good, |bytes| Announce::parse(bytes).map(|a| a.port).ok());
    let check = |at: usize, value: u8, expected| {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(Announce::parse(&bytes), Err(expected));
    };
    check(0, b'A', Malformed::Field("magic"));
    check(5, 2, Malformed::Version(2));
    let port_zero = [&good[..6], &[0, 0]].concat();
    assert_eq!(Announce::parse(&port_zero), Err(Malformed::Field("port")));
    let long = [good, vec![0; ANNOUNCE_LEN_MAX]].concat();
    assert_eq!(Announce::parse(&long), Err(Malformed::TooLong));
}
