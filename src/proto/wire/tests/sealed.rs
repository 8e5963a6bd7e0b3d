use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::strategies::{endpoint, junk, node_id, record, signature, wall_time};
use crate::proto::identity::NodeId;
use crate::proto::timer::WallTime;
use crate::proto::wire::envelope::BODY_AT;
use crate::proto::wire::sealed::{
    HEADER_LEN, Header, Message, REQUEST_PAYLOAD_LEN, SIGNATURE_LEN, Sealed, TAG_LEN, emit_record_reply,
    emit_record_request, parse_record_reply, parse_record_request,
};
use crate::proto::wire::{Malformed, SETUP_LEN_MAX};

const LEN_MIN: usize = HEADER_LEN + TAG_LEN + SIGNATURE_LEN;

fn header() -> Header {
    Header {
        hop_limit: 1,
        message: Message::RecordRequest,
        timestamp: WallTime::from_unix_ms(1),
        sender: NodeId([1; 32]),
        recipient: NodeId([2; 32]),
        ephemeral: [3; 32],
    }
}

proptest! {
    #[test]
    fn packets_round_trip(
        hop_limit: u8, message in 1u8..=3, timestamp in wall_time(), sender in node_id(), recipient in node_id(),
        ephemeral: [u8; 32], ciphertext in vec(any::<u8>(), TAG_LEN..900), signature in signature(),
    ) {
        let message = Message::from_number(message).unwrap();
        let header = Header { hop_limit, message, timestamp, sender, recipient, ephemeral };
        let body = [&header.emit()[..], &ciphertext, &signature].concat();
        prop_assert_eq!(Sealed::parse(&body), Ok(Sealed { header, ciphertext: &ciphertext, signature }));
    }

    #[test]
    fn a_packet_has_one_spelling(tail in junk(), header_bytes in vec(any::<u8>(), HEADER_LEN - 2)) {
        let body = [&[1, 0][..], &header_bytes, &tail].concat();
        if let Ok(sealed) = Sealed::parse(&body) {
            let again = [&sealed.header.emit()[..], sealed.ciphertext, &sealed.signature].concat();
            prop_assert_eq!(again, body);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        let _ = Sealed::parse(&bytes);
        let _ = parse_record_request(&bytes);
        let _ = parse_record_reply(&bytes);
    }

    #[test]
    fn payloads_round_trip(request: u64, observed in endpoint(), record in record()) {
        let asked = emit_record_request(request);
        prop_assert_eq!(parse_record_request(&asked), Ok(request));
        let reply = emit_record_reply(request, &observed, record.bytes());
        prop_assert_eq!(parse_record_reply(&reply), Ok((request, observed, record.bytes())));
        prop_assert!(reply.len() <= asked.len(), "no amplification");
    }
}

#[test]
fn the_longest_request_fits_into_a_setup_packet() {
    const { assert!(BODY_AT + LEN_MIN + REQUEST_PAYLOAD_LEN <= SETUP_LEN_MAX) };
}

#[test]
fn bad_packets_are_refused() {
    let good = [&header().emit()[..], &[4; TAG_LEN], &[5; SIGNATURE_LEN]].concat();
    assert_eq!(good.len(), LEN_MIN);
    super::every_truncation_is_refused(&good, |bytes| Sealed::parse(bytes).map(drop).ok());
    let check = |at: usize, value: u8, expected| {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(Sealed::parse(&bytes), Err(expected));
    };
    check(0, 2, Malformed::Version(2));
    check(1, 1, Malformed::Field("flags"));
    check(3, 0, Malformed::Kind(0));
    check(3, 4, Malformed::Kind(4));
}

#[test]
fn a_short_request_is_refused() {
    super::every_truncation_is_refused(&emit_record_request(7), |bytes| parse_record_request(bytes).ok());
}
