use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};

use crate::proto::identity::Identity;
use crate::proto::wire::Malformed;
use crate::proto::wire::envelope::{NetworkSecret, RecipientKey};
use crate::proto::wire::stream::{
    DATAGRAM_LEN_MIN, DATAGRAMS_MAX, Datagrams, MESSAGE_HEADER_LEN, MESSAGE_LEN_MAX, TICKET_LETTERS,
    is_ticket, ticket,
};

const NOW_MS: u64 = 1_800_000_000_000;
const HOUR_MS: u64 = 3_600_000;

fn key(secret: u8) -> RecipientKey {
    RecipientKey::new(&Identity::from_seed([5; 32]).node_id(), &NetworkSecret([secret; 32]))
}

fn message(datagram_len: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    Datagrams { datagram_len, bytes }.emit(&key(0), &mut message);
    message
}

proptest! {
    #[test]
    fn trains_round_trip(bytes in vec(any::<u8>(), DATAGRAM_LEN_MIN..4000), of: usize) {
        let least = bytes.len().div_ceil(DATAGRAMS_MAX).max(DATAGRAM_LEN_MIN);
        let datagram_len = least + of % (bytes.len() - least + 1);
        let datagrams = Datagrams { datagram_len, bytes: &bytes };
        let message = message(datagram_len, &bytes);
        prop_assert_eq!(Datagrams::parse(&key(0), &message), Ok(datagrams));
    }

    #[test]
    fn any_bytes_are_a_message_or_not(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(datagrams) = Datagrams::parse(&key(0), &bytes) {
            prop_assert_eq!(message(datagrams.datagram_len, datagrams.bytes), bytes);
        }
    }

    #[test]
    fn a_changed_ticket_is_none(nonce: [u8; 6], at in 0..TICKET_LETTERS, to in "[A-Za-z0-9_-]") {
        let good = ticket(&key(0), NOW_MS, nonce);
        let mut changed = good.clone();
        changed.replace_range(at..=at, &to);
        prop_assert_eq!(is_ticket(&key(0), NOW_MS, changed.as_bytes()), changed == good);
    }
}

#[test]
fn what_would_be_very_many_datagrams_is_no_message() {
    let bytes = [7; 2000];
    for datagram_len in [0, 1, DATAGRAM_LEN_MIN, bytes.len() / (DATAGRAMS_MAX + 1), bytes.len() + 1] {
        let parsed = Datagrams::parse(&key(0), &message(datagram_len, &bytes)).map(|d| d.datagram_len);
        assert_eq!(parsed, Err(Malformed::Field("datagram length")), "{datagram_len}");
    }
    let long = vec![0; MESSAGE_LEN_MAX + 1];
    assert_eq!(Datagrams::parse(&key(0), &long), Err(Malformed::TooLong));
    assert_eq!(Datagrams::parse(&key(0), &[0; 17]), Err(Malformed::Truncated));
}

/// The length is the only part of a message that is not sealed before.
#[test]
fn no_bit_of_a_message_is_the_same_in_all() {
    let (mut ones, mut zeros) = (u16::MAX, u16::MAX);
    for n in 0..200_u32 {
        let bytes = blake3::hash(&n.to_be_bytes());
        let head = message(DATAGRAM_LEN_MIN, bytes.as_bytes());
        let head = u16::from_be_bytes([head[0], head[MESSAGE_HEADER_LEN - 1]]);
        (ones, zeros) = (ones & head, zeros & !head);
    }
    assert_eq!((ones, zeros), (0, 0));
}

#[test]
fn tickets_are_for_one_node_of_one_network_and_a_few_hours() {
    let nonce = [1, 2, 3, 4, 5, 6];
    let good = ticket(&key(0), NOW_MS, nonce);
    assert_eq!(good.len(), TICKET_LETTERS);
    for (at, valid) in [(0, true), (HOUR_MS, true), (2 * HOUR_MS + 1, false)] {
        assert_eq!(is_ticket(&key(0), NOW_MS + at, good.as_bytes()), valid, "{at} ms later");
        assert_eq!(is_ticket(&key(0), NOW_MS - at, good.as_bytes()), valid, "{at} ms before");
    }
    let other = RecipientKey::new(&Identity::from_seed([6; 32]).node_id(), &NetworkSecret::default());
    assert!(!is_ticket(&other, NOW_MS, good.as_bytes()) && !is_ticket(&key(1), NOW_MS, good.as_bytes()));
    assert_ne!(ticket(&key(0), NOW_MS, [1, 2, 3, 4, 5, 7])[8..], good[8..]);
    for junk in ["", "/", "0", "AAAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA", "%%%%"] {
        assert!(!is_ticket(&key(0), NOW_MS, junk.as_bytes()), "{junk}");
    }
}
