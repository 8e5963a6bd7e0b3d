//! What a stranger's datagram meets first.

use std::sync::LazyLock;

use auramesh::proto::identity::Identity;
use auramesh::proto::wire::envelope::{
    BODY_AT, Kind, MAC_LEN, MAC2_AT, NetworkSecret, Opening, RecipientKey,
};
use auramesh::proto::wire::handshake::{
    INITIATION_NOISE_AT, Initiation, InitiationPayload, RESPONSE_NOISE_AT, Response, ResponsePayload,
};
use auramesh::proto::wire::relay;
use auramesh::proto::wire::sealed::{
    Sealed, emit_record_reply, emit_record_request, parse_record_reply, parse_record_request,
};
use auramesh::proto::wire::session::{HEADER_LEN, Header, mask};
use auramesh::proto::wire::{SETUP_LEN_MAX, cookie as cookie_reply};

const KINDS: [Kind; 4] = [Kind::Initiation, Kind::Response, Kind::CookieReply, Kind::Sealed];

static KEY: LazyLock<RecipientKey> =
    LazyLock::new(|| RecipientKey::new(&Identity::from_seed([1; 32]).node_id(), &NetworkSecret::default()));

/// A stranger's bytes stay as they are; any body comes back; one changed byte is seen.
pub(crate) fn envelope(data: &[u8]) {
    let mut stranger = data.to_vec();
    if KEY.open(&mut stranger).is_err() {
        assert_eq!(stranger, data);
    }
    let [kind, cookie, at, change, body @ ..] = data else { return };
    let kind = KINDS[usize::from(kind % 4)];
    let cookie = [*cookie; MAC_LEN];
    let mut packet = vec![0; BODY_AT];
    packet.extend(&body[..body.len().min(SETUP_LEN_MAX - BODY_AT)]);
    let plain = packet.clone();
    KEY.close(kind, Some(&cookie), [0; MAC_LEN], &mut packet);

    let mut changed = packet.clone();
    let at = usize::from(*at) * 5 % changed.len();
    changed[at] ^= change;
    let opened = KEY.open(&mut changed).map(|envelope| envelope.proves(&cookie));
    match opened {
        Ok(proven) => assert!((*change == 0) || (MAC2_AT..BODY_AT).contains(&at) && !proven),
        Err(refusal) => assert!(*change != 0 && (at == 0 || refusal == Opening::NotForUs)),
    }

    let opened = KEY.open(&mut packet).expect("what was closed opens");
    assert_eq!((opened.kind, opened.body()), (kind, &plain[BODY_AT..]));
    assert!(opened.proves(&cookie));
}

/// A cookie comes back, through its envelope too.
pub(crate) fn cookie(data: &[u8]) {
    let Ok(cookie) = cookie_reply::parse(data) else { return };
    let mut packet = cookie_reply::emit(&cookie, &data[MAC_LEN..]);
    assert_eq!(&packet[BODY_AT..], data);
    if packet.len() > SETUP_LEN_MAX {
        return;
    }
    let key = KEY.for_cookie_reply(&cookie);
    key.close(Kind::CookieReply, None, [0; MAC_LEN], &mut packet);
    assert_eq!(KEY.open(&mut packet).err(), Some(Opening::NotForUs));
    let opened = key.open(&mut packet).expect("what was closed opens");
    assert_eq!(cookie_reply::parse(opened.body()), Ok(cookie));
}

/// Bodies and payloads of the handshake, read and written back.
pub(crate) fn handshake(data: &[u8]) {
    if let Ok(Initiation { sender_index, noise }) = Initiation::parse(data) {
        let mut packet = Initiation::emit(sender_index, noise.len());
        packet[INITIATION_NOISE_AT..].copy_from_slice(noise);
        assert_eq!(&packet[BODY_AT..], data);
    }
    if let Ok(Response { sender_index, receiver_index, noise }) = Response::parse(data) {
        let mut packet = Response::emit(sender_index, receiver_index, noise.len());
        packet[RESPONSE_NOISE_AT..].copy_from_slice(noise);
        assert_eq!(&packet[BODY_AT..], data);
    }
    if let Ok(payload) = InitiationPayload::parse(data) {
        assert!(data.starts_with(&payload.emit(0)));
        assert_eq!(InitiationPayload::parse(&payload.emit(99)), Ok(payload));
    }
    if let Ok(payload) = ResponsePayload::parse(data) {
        assert!(data.starts_with(&payload.emit(0)));
        assert_eq!(ResponsePayload::parse(&payload.emit(99)), Ok(payload));
    }
}

/// Masks come off as they went on; a header has one spelling.
pub(crate) fn session_header(data: &[u8]) {
    let mut packet = data.to_vec();
    let masked = mask(&KEY, &mut packet);
    assert_eq!(mask(&KEY, &mut packet), masked);
    assert_eq!(packet, data);
    let Some(bytes) = data.first_chunk::<HEADER_LEN>() else { return };
    if let Ok(header) = Header::parse(bytes) {
        assert_eq!(header.emit()[1..], bytes[1..]);
        assert_eq!(Header::parse(&header.emit()), Ok(header));
    }
    if let Some(Ok(header)) = relay::Header::parse(bytes) {
        assert_eq!(header.emit()[1..], bytes[1..]);
        assert_eq!(relay::Header::parse(&header.emit()), Some(Ok(header)));
    }
}

/// Sealed bodies and their payloads, read and written back.
pub(crate) fn sealed(data: &[u8]) {
    if let Ok(sealed) = Sealed::parse(data) {
        assert_eq!([&sealed.header.emit()[..], sealed.ciphertext, &sealed.signature].concat(), data);
    }
    if let Ok(request) = parse_record_request(data) {
        assert_eq!(emit_record_request(request)[..8], data[..8]);
    }
    if let Ok((request, observed, record)) = parse_record_reply(data) {
        assert_eq!(emit_record_reply(request, &observed, record), data);
    }
}
