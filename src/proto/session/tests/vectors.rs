//! Whole handshakes, byte by byte, against an implementation in another language.

use serde_json::Value;

use super::super::keys::Chain;
use super::super::transport::Outcome;
use super::*;

fn bytes(case: &Value, name: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(case[name].as_str().unwrap().as_bytes()).unwrap()
}

fn array(case: &Value, name: &str) -> [u8; 32] {
    bytes(case, name).try_into().unwrap()
}

fn number(case: &Value, name: &str) -> u64 {
    case[name].as_u64().unwrap()
}

#[test]
fn golden_vectors() {
    let text = include_str!("../../../../tests/vectors/handshake.json");
    let vectors: Value = serde_json::from_str(text).unwrap();
    let cases = vectors["vectors"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        check_handshake(case);
        check_keys(case);
    }
}

fn node(case: &Value, seed: &str) -> Node {
    let network = NetworkSecret(array(case, "network_secret"));
    let identity = Identity::from_seed(array(case, seed));
    let key = RecipientKey::new(&identity.node_id(), &network);
    let preferred = Suite::from_number(number(case, "suite_preferred") as u8).unwrap();
    Node {
        identity,
        config: Config { suites: number(case, "suites_offered") as u8, preferred, capabilities: 0, network },
        key,
    }
}

fn sealed(session: &Session, kind: Kind, text: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 80];
    packet[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    let len = session.seal(kind, &mut packet, text.len(), 1500, START).unwrap();
    packet.truncate(len);
    packet
}

fn check_handshake(case: &Value) {
    let (alice, bob) = (node(case, "initiator_seed"), node(case, "responder_seed"));
    let mut alice_rng = Rng::from_seed(array(case, "initiator_rng_seed"));
    let mut bob_rng = Rng::from_seed(array(case, "responder_rng_seed"));
    let (mut initiator, initiation) = Initiator::start(
        &alice.identity,
        &alice.config,
        bob.identity.node_id(),
        &bob.identity.x25519_public(),
        number(case, "initiator_index") as u32,
        WallTime::from_unix_ms(number(case, "timestamp_ms")),
        None,
        &mut alice_rng,
    )
    .unwrap();
    assert_eq!(initiation, bytes(case, "initiation"));
    let observed = address(case["observed"].as_str().unwrap());
    let incoming = bob.incoming(&initiation).unwrap();
    let index = number(case, "responder_index") as u32;
    let (theirs, response) = incoming.accept(&bob.identity, index, observed, START, &mut bob_rng).unwrap();
    assert_eq!(response, bytes(case, "response"));
    let established = alice.finish(&mut initiator, &response).unwrap();
    assert_eq!(established.observed, observed);

    let ours = established.session;
    let packets = case["packets"].as_array().unwrap();
    let expected: Vec<_> = packets.iter().map(|packet| bytes(packet, "packet")).collect();
    assert_eq!(sealed(&ours, Kind::Data, b"first"), expected[0]);
    assert_eq!(sealed(&ours.next_sending_epoch(), Kind::Control, b"second"), expected[1]);
    assert_eq!(sealed(&theirs, Kind::Data, b""), expected[2]);
    assert!(open(&theirs, &bob, &expected[1], START).is_ok());
    assert!(open(&theirs, &bob, &expected[0], START).is_ok());
    assert!(open(&ours, &alice, &expected[2], START).is_ok());
}

fn check_keys(case: &Value) {
    let suite = Suite::from_number(number(case, "suite") as u8).unwrap();
    for direction in ["initiator_to_responder", "responder_to_initiator"] {
        let split = array(case, &format!("split_{direction}"));
        let mut chain = Chain::new(&split, &array(case, "handshake_hash"));
        for key in case[&format!("keys_{direction}")].as_array().unwrap() {
            let expected = data_encoding::HEXLOWER.decode(key.as_str().unwrap().as_bytes()).unwrap();
            assert_eq!(chain.key_bytes(suite, 0)[..], expected);
            chain = chain.ratchet();
        }
    }
    // Without the handshake: what the file says of its end belongs to its packets.
    let (initiator, responder) = (node(case, "initiator_seed"), node(case, "responder_seed"));
    let indices = ["initiator_index", "responder_index"].map(|name| number(case, name) as u32);
    let session = |is_initiator| {
        let peer = if is_initiator { &responder } else { &initiator };
        let [ours, theirs] = if is_initiator { indices } else { [indices[1], indices[0]] };
        Session::new(Outcome {
            peer: peer.identity.node_id(),
            peer_key: RecipientKey::new(&peer.identity.node_id(), &initiator.config.network),
            local_index: ours,
            remote_index: theirs,
            suite,
            capabilities: 0,
            threads: (1, 1),
            is_initiator,
            established: START,
            split: ["split_initiator_to_responder", "split_responder_to_initiator"]
                .map(|name| array(case, name).into()),
            handshake_hash: array(case, "handshake_hash"),
        })
    };
    let packets: Vec<_> =
        case["packets"].as_array().unwrap().iter().map(|one| bytes(one, "packet")).collect();
    assert_eq!(sealed(&session(true), Kind::Data, b"first"), packets[0]);
    assert_eq!(sealed(&session(false), Kind::Data, b""), packets[2]);
}
