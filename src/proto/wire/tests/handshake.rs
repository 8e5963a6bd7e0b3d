use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};

use super::strategies::{endpoint, junk, node_id, signature, suite, wall_time};
use crate::proto::wire::Malformed;
use crate::proto::wire::envelope::BODY_AT;
use crate::proto::wire::handshake::{
    INITIATION_NOISE_AT, Initiation, InitiationPayload, RESPONSE_NOISE_AT, Response, ResponsePayload, Suite,
};

proptest! {
    #[test]
    fn initiations_round_trip(sender_index: u32, noise in vec(any::<u8>(), 0..1100)) {
        let mut packet = Initiation::emit(sender_index, noise.len());
        packet[INITIATION_NOISE_AT..].copy_from_slice(&noise);
        prop_assert_eq!(Initiation::parse(&packet[BODY_AT..]), Ok(Initiation { sender_index, noise: &noise }));
    }

    #[test]
    fn responses_round_trip(sender_index: u32, receiver_index: u32, noise in vec(any::<u8>(), 0..1100)) {
        let mut packet = Response::emit(sender_index, receiver_index, noise.len());
        packet[RESPONSE_NOISE_AT..].copy_from_slice(&noise);
        let response = Response { sender_index, receiver_index, noise: &noise };
        prop_assert_eq!(Response::parse(&packet[BODY_AT..]), Ok(response));
    }

    #[test]
    fn initiation_payloads_round_trip(
        node_id in node_id(), timestamp in wall_time(), suites: u8, preferred in suite(), capabilities: u16,
        signature in signature(), padding in 0usize..900,
    ) {
        let payload = InitiationPayload { node_id, timestamp, suites, preferred, capabilities, signature };
        let bytes = payload.emit(padding);
        prop_assert_eq!(bytes.len(), InitiationPayload::LEN + padding);
        prop_assert_eq!(InitiationPayload::parse(&bytes), Ok(payload));
    }

    #[test]
    fn response_payloads_round_trip(
        suite in suite(), capabilities: u16, signature in signature(), observed in endpoint(),
        padding in 0usize..900,
    ) {
        let payload = ResponsePayload { suite, capabilities, signature, observed };
        prop_assert_eq!(ResponsePayload::parse(&payload.emit(padding)), Ok(payload));
    }

    #[test]
    fn any_bytes_are_survived(bytes in junk()) {
        let _ = Initiation::parse(&bytes);
        let _ = Response::parse(&bytes);
        let _ = InitiationPayload::parse(&bytes);
        let _ = ResponsePayload::parse(&bytes);
    }

    #[test]
    fn unknown_items_are_skipped(kind in 1u8.., value in vec(any::<u8>(), 0..300), padding in 0usize..50) {
        let item = [&[kind][..], &(value.len() as u16).to_be_bytes(), &value].concat();
        let bytes = [initiation_payload().emit(0), item.clone(), vec![0; padding]].concat();
        prop_assert_eq!(InitiationPayload::parse(&bytes), Ok(initiation_payload()));
        let bytes = [response_payload().emit(0), item, vec![0; padding]].concat();
        prop_assert_eq!(ResponsePayload::parse(&bytes), Ok(response_payload()));
    }
}

fn initiation_payload() -> InitiationPayload {
    InitiationPayload {
        node_id: crate::proto::identity::NodeId([3; 32]),
        timestamp: crate::proto::timer::WallTime::from_unix_ms(1),
        suites: 6,
        preferred: Suite::ChaCha20Poly1305,
        capabilities: 0,
        signature: [4; 64],
    }
}

fn response_payload() -> ResponsePayload {
    ResponsePayload {
        suite: Suite::Aes256Gcm,
        capabilities: 0,
        signature: [4; 64],
        observed: "192.0.2.1:5".parse().unwrap(),
    }
}

#[test]
fn every_truncation_is_refused() {
    super::every_truncation_is_refused(&initiation_payload().emit(0), |b| InitiationPayload::parse(b).ok());
    super::every_truncation_is_refused(&response_payload().emit(0), |b| ResponsePayload::parse(b).ok());
    super::every_truncation_is_refused(&Initiation::emit(1, 0)[BODY_AT..], |b| {
        Initiation::parse(b).map(drop).ok()
    });
    super::every_truncation_is_refused(&Response::emit(1, 2, 0)[BODY_AT..], |b| {
        Response::parse(b).map(drop).ok()
    });
}

#[test]
fn bad_versions_suites_items_and_padding_are_refused() {
    assert_eq!(Initiation::parse(&[2, 0, 0, 0, 0]), Err(Malformed::Version(2)));
    assert_eq!(Response::parse(&[0; 9]), Err(Malformed::Version(0)));
    let check = |tail: &[u8], expected| {
        let bytes = [initiation_payload().emit(0), tail.to_vec()].concat();
        assert_eq!(InitiationPayload::parse(&bytes), Err(expected), "{tail:?}");
        let bytes = [response_payload().emit(0), tail.to_vec()].concat();
        assert_eq!(ResponsePayload::parse(&bytes), Err(expected), "{tail:?}");
    };
    check(&[0, 0, 1], Malformed::Field("padding"));
    check(&[9], Malformed::Truncated);
    check(&[9, 0xff, 0xff], Malformed::Truncated);
    check(&[9, 0, 2, 0], Malformed::Truncated);
    let mut bytes = initiation_payload().emit(0);
    bytes[41] = 3;
    assert_eq!(InitiationPayload::parse(&bytes), Err(Malformed::Field("suite")));
}
