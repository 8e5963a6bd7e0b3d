//! What peers tell each other.

use std::sync::LazyLock;

use auramesh::proto::identity::Identity;
use auramesh::proto::timer::WallTime;
use auramesh::proto::wire::announce::Announce;
use auramesh::proto::wire::control::{CONTROL_LEN_MAX, Control};
use auramesh::proto::wire::cursor::Reader;
use auramesh::proto::wire::endpoint as wire_endpoint;
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::record::{NodeRecord, RECORD_ENDPOINTS_MAX, RECORD_LEN_MAX, RECORD_TTL_MAX};
use auramesh::proto::wire::stream::{DATAGRAMS_MAX, Datagrams, is_ticket};

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::from_seed([1; 32]));
static KEY: LazyLock<RecipientKey> =
    LazyLock::new(|| RecipientKey::new(&IDENTITY.node_id(), &NetworkSecret::default()));

/// An announcement has one spelling.
pub(crate) fn announce(data: &[u8]) {
    if let Ok(announce) = Announce::parse(data) {
        assert_eq!(announce.emit(), data);
        assert!(announce.port != 0 && announce.record.len() <= RECORD_LEN_MAX);
        let _ = NodeRecord::parse(announce.record);
    }
}

/// An endpoint has one spelling.
pub(crate) fn endpoint(data: &[u8]) {
    let mut reader = Reader::new(data);
    if let Ok(endpoint) = wire_endpoint::parse(&mut reader) {
        assert_eq!(endpoint.ip(), endpoint.ip().to_canonical());
        let mut out = Vec::new();
        wire_endpoint::emit(&endpoint, &mut out);
        assert_eq!(out, data[..data.len() - reader.len()]);
    }
}

/// Messages come back as they were, but for contacts that do not fit.
pub(crate) fn control(data: &[u8]) {
    let Ok(messages) = Control::parse_all(data) else { return };
    for message in messages {
        let mut plaintext = Vec::new();
        message.emit(&mut plaintext);
        assert!(plaintext.len() <= CONTROL_LEN_MAX);
        let again = Control::parse_all(&plaintext).expect("what was emitted parses");
        match (&message, &again[..]) {
            (
                Control::Found { request, record, contacts },
                [Control::Found { request: request_again, record: record_again, contacts: kept }],
            ) => {
                assert_eq!((request, record), (request_again, record_again));
                assert!(contacts.starts_with(kept));
            }
            (message, again) => assert_eq!(again, std::slice::from_ref(message)),
        }
    }
}

/// A stranger's record, then the same bytes under a signature that verifies.
pub(crate) fn record(data: &[u8]) {
    if let Ok(record) = NodeRecord::parse(data) {
        check_record(&record, data);
    }
    let mut bytes = data.to_vec();
    let Some(node_id) = bytes.get_mut(16..48) else { return };
    node_id.copy_from_slice(IDENTITY.node_id().as_bytes());
    let signature = IDENTITY.sign(&[b"auramesh v1 node record", &bytes[..]].concat());
    bytes.extend(signature);
    if let Ok(record) = NodeRecord::parse(&bytes) {
        check_record(&record, &bytes);
        let again = NodeRecord::sign(&IDENTITY, record.content().clone());
        assert_eq!(again.content(), record.content());
        assert_eq!(NodeRecord::parse(again.bytes()), Ok(again));
    }
}

fn check_record(record: &NodeRecord, bytes: &[u8]) {
    assert_eq!(record.bytes(), bytes);
    assert!(record.node_id().is_usable());
    assert!(bytes.len() <= RECORD_LEN_MAX);
    assert!(record.content().endpoints.len() <= RECORD_ENDPOINTS_MAX);
    for wall_ms in [0, record.content().issued.as_unix_ms(), u64::MAX] {
        if let Ok(left) = record.remaining(WallTime::from_unix_ms(wall_ms)) {
            assert!(left <= RECORD_TTL_MAX);
        }
    }
}

/// A message of a stream has one spelling, and few datagrams; no bytes are a ticket by chance.
pub(crate) fn stream(data: &[u8]) {
    assert!(!is_ticket(&KEY, 1_800_000_000_000, data));
    let Ok(datagrams) = Datagrams::parse(&KEY, data) else { return };
    assert!(datagrams.bytes.chunks(datagrams.datagram_len).count() <= DATAGRAMS_MAX);
    let mut again = Vec::new();
    datagrams.emit(&KEY, &mut again);
    assert_eq!(again, data);
}
