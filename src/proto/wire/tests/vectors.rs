//! `tests/vectors/wire.json`: what another implementation makes of the formats.

use std::time::Duration;

use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::proto::identity::{Identity, NodeId, Position};
use crate::proto::timer::WallTime;
use crate::proto::wire::control::{CloseReason, Contact, Control, StoreOutcome, Want};
use crate::proto::wire::envelope::{BODY_AT, Kind, NetworkSecret, RecipientKey};
use crate::proto::wire::record::{Content, NodeRecord};
use crate::proto::wire::{cookie, sealed, session};

/// One case, with typed access to its fields.
struct Case(Value);

impl Case {
    fn bytes(&self, field: &str) -> Vec<u8> {
        HEXLOWER.decode(self.0[field].as_str().unwrap().as_bytes()).unwrap()
    }

    fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        self.bytes(field).try_into().unwrap()
    }

    fn number<T: TryFrom<u64>>(&self, field: &str) -> T {
        self.0[field].as_u64().and_then(|n| n.try_into().ok()).unwrap()
    }

    /// Index into the values of an enumeration whose first one has the number `first`.
    fn choice(&self, field: &str, first: usize) -> usize {
        self.number::<usize>(field) - first
    }

    fn parsed<T: std::str::FromStr>(&self, field: &str) -> T {
        self.0[field].as_str().unwrap().parse().ok().unwrap()
    }

    fn has(&self, field: &str) -> bool {
        !self.0[field].is_null()
    }

    fn list(&self, field: &str) -> Vec<Self> {
        self.0[field].as_array().unwrap().iter().cloned().map(Case).collect()
    }

    fn key(&self) -> RecipientKey {
        RecipientKey::new(&NodeId(self.array("recipient")), &NetworkSecret(self.array("network_secret")))
    }
}

fn check_all(group: &str, check: impl Fn(&Case)) {
    let text = include_str!("../../../../tests/vectors/wire.json");
    let cases = Case(serde_json::from_str(text).unwrap()).list(group);
    assert!(cases.len() >= 2, "{group}");
    cases.iter().for_each(check);
}

#[test]
fn envelopes() {
    check_all("envelope", |case| {
        let kind = Kind::from_bits(case.number("kind")).unwrap();
        let cookie = case.has("cookie").then(|| case.array("cookie"));
        let mut packet = [vec![0; BODY_AT], case.bytes("body")].concat();
        case.key().close(kind, cookie.as_ref(), case.array("filler"), &mut packet);
        assert_eq!(packet, case.bytes("packet"));
        let envelope = case.key().open(&mut packet).unwrap();
        assert_eq!((envelope.kind, envelope.body()), (kind, &case.bytes("body")[..]));
        assert!(cookie.is_none_or(|cookie| envelope.proves(&cookie)));
    });
}

#[test]
fn cookie_replies() {
    check_all("cookie_reply", |case| {
        let key = case.key().for_cookie_reply(&case.array("answered_mac1"));
        let mut packet = cookie::emit(&case.array("cookie"), &case.bytes("padding"));
        key.close(Kind::CookieReply, None, case.array("filler"), &mut packet);
        assert_eq!(packet, case.bytes("packet"));
        let envelope = key.open(&mut packet).unwrap();
        assert_eq!(cookie::parse(envelope.body()), Ok(case.array("cookie")));
    });
}

#[test]
fn session_headers() {
    check_all("session_header", |case| {
        let header = session::Header {
            kind: session::Kind::from_bits(case.number("kind")).unwrap(),
            epoch: case.0["epoch"].as_bool().unwrap(),
            partial: case.0["partial"].as_bool().unwrap(),
            slice: (case.number("slice"), case.number("slices")),
            receiver_index: case.number("receiver_index"),
            counter: case.number("counter"),
        };
        assert_eq!(header.emit()[..], case.bytes("header"));
        assert_eq!(session::Header::parse(&case.array("header")), Ok(header));
        let mut packet = [case.bytes("header"), case.bytes("sealed")].concat();
        session::mask(&case.key(), &mut packet).unwrap();
        assert_eq!(packet, case.bytes("packet"));
    });
}

#[test]
fn records() {
    check_all("record", |case| {
        let content = Content {
            sequence: case.number("sequence"),
            issued: WallTime::from_unix_ms(case.number::<u64>("issued_s") * 1000),
            ttl: Duration::from_secs(case.number("ttl_s")),
            capabilities: case.number("capabilities"),
            endpoints: serde_json::from_value(case.0["endpoints"].clone()).unwrap(),
            relays: Vec::new(),
            streams: Vec::new(),
        };
        let record = NodeRecord::sign(&Identity::from_seed(case.array("seed")), content);
        assert_eq!(record.bytes(), case.bytes("bytes"));
        assert_eq!(NodeRecord::parse(&case.bytes("bytes")), Ok(record));
    });
}

#[test]
fn sealed_headers() {
    check_all("sealed_header", |case| {
        let header = sealed::Header {
            hop_limit: case.number("hop_limit"),
            message: sealed::Message::from_number(case.number("message")).unwrap(),
            timestamp: WallTime::from_unix_ms(case.number("timestamp_ms")),
            sender: NodeId(case.array("sender")),
            recipient: NodeId(case.array("recipient")),
            ephemeral: case.array("ephemeral"),
        };
        assert_eq!(header.emit()[..], case.bytes("header"));
        let body = [case.bytes("header"), vec![0; sealed::TAG_LEN + sealed::SIGNATURE_LEN]].concat();
        assert_eq!(sealed::Sealed::parse(&body).unwrap().header, header);
    });
}

#[test]
fn control_messages() {
    check_all("control", |case| {
        let message = control(case);
        let mut bytes = Vec::new();
        message.emit(&mut bytes);
        assert_eq!(bytes, case.bytes("bytes"), "{message:?}");
        assert_eq!(Control::parse_all(&bytes), Ok(vec![message]));
    });
}

fn control(case: &Case) -> Control {
    match case.number("type") {
        1u8 => Control::Ping { nonce: case.number("nonce") },
        2 => Control::Pong { nonce: case.number("nonce"), observed: case.parsed("observed") },
        3 => Control::Hello { record: case.bytes("record") },
        4 => {
            Control::Close { reason: [CloseReason::Stopping, CloseReason::Crowded][case.choice("reason", 1)] }
        }
        16 => Control::Find {
            request: case.number("request"),
            want: [Want::Contacts, Want::Record][case.choice("want", 1)],
            target: Position(case.array("target")),
        },
        17 => Control::Found {
            request: case.number("request"),
            record: case.has("record").then(|| case.bytes("record")),
            contacts: case.list("contacts").iter().map(contact).collect(),
        },
        18 => Control::Store { request: case.number("request"), record: case.bytes("record") },
        19 => Control::Stored {
            request: case.number("request"),
            outcome: [StoreOutcome::Stored, StoreOutcome::Old, StoreOutcome::Full, StoreOutcome::Refused]
                [case.choice("outcome", 0)],
        },
        other => panic!("type {other}"),
    }
}

fn contact(case: &Case) -> Contact {
    Contact {
        node_id: NodeId(case.array("node_id")),
        x25519: case.array("x25519"),
        endpoint: case.parsed("endpoint"),
    }
}
