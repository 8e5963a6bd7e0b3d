//! What the property tests draw from: any value that a format can hold.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use crate::proto::identity::{Identity, NodeId, Position};
use crate::proto::timer::WallTime;
use crate::proto::wire::control::{
    CANDIDATES_MAX, CARRIED_LEN_MAX, CloseReason, Contact, Control, Service, SprayStep, StoreOutcome, Want,
};
use crate::proto::wire::handshake::Suite;
use crate::proto::wire::record::{
    Content, NodeRecord, RECORD_ENDPOINTS_MAX, RECORD_LEN_MAX, RECORD_RELAYS_MAX, RECORD_STREAMS_MAX,
    RECORD_TTL_MAX,
};
use crate::proto::wire::relay::Slot;
use crate::proto::wire::routing::{OTHERS_MAX, ROUTED_LEN_MAX, Routing, SEEK_HOPS_MAX};

/// Bytes of any length up to a little more than any datagram.
pub(super) fn junk() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..1600)
}

pub(super) fn endpoint() -> impl Strategy<Value = SocketAddr> {
    let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into());
    let v6 = (any::<[u8; 16]>(), any::<u16>())
        .prop_map(|(ip, port)| SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port));
    prop_oneof![v4, v6]
}

pub(super) fn wall_time() -> impl Strategy<Value = WallTime> {
    any::<u64>().prop_map(WallTime::from_unix_ms)
}

pub(super) fn node_id() -> impl Strategy<Value = NodeId> {
    any::<[u8; 32]>().prop_map(NodeId)
}

pub(super) fn suite() -> impl Strategy<Value = Suite> {
    prop_oneof![Just(Suite::Aes256Gcm), Just(Suite::ChaCha20Poly1305)]
}

pub(super) fn signature() -> impl Strategy<Value = [u8; 64]> {
    vec(any::<u8>(), 64).prop_map(|bytes| bytes.try_into().unwrap())
}

/// What a record can say, exactly as it comes back from the wire.
pub(super) fn content() -> impl Strategy<Value = Content> {
    let endpoints = vec(endpoint(), 0..=RECORD_ENDPOINTS_MAX);
    let relays = vec(contact(), 0..=RECORD_RELAYS_MAX);
    let streams = vec(endpoint(), 0..=RECORD_STREAMS_MAX);
    (any::<u64>(), any::<u32>(), 0..=RECORD_TTL_MAX.as_secs(), any::<u16>(), endpoints, relays, streams)
        .prop_map(|(sequence, issued_s, ttl_s, capabilities, endpoints, relays, streams)| Content {
            sequence,
            issued: WallTime::from_unix_ms(u64::from(issued_s) * 1000),
            ttl: Duration::from_secs(ttl_s),
            capabilities,
            endpoints,
            relays,
            streams,
        })
}

pub(super) fn record() -> impl Strategy<Value = NodeRecord> {
    (any::<[u8; 32]>(), content())
        .prop_map(|(seed, content)| NodeRecord::sign(&Identity::from_seed(seed), content))
}

pub(super) fn contact() -> impl Strategy<Value = Contact> {
    (node_id(), any::<[u8; 32]>(), endpoint()).prop_map(|(node_id, x25519, endpoint)| Contact {
        node_id,
        x25519,
        endpoint,
    })
}

fn service() -> impl Strategy<Value = Service> {
    prop_oneof![Just(Service::None), Just(Service::Signals), Just(Service::Data)]
}

/// A message about routes.
pub(super) fn routing() -> impl Strategy<Value = Routing> {
    let slot = || any::<u64>().prop_map(Slot);
    let nodes = |max| vec(node_id(), 0..=max);
    let datagram = || vec(any::<u8>(), 0..=ROUTED_LEN_MAX);
    let want = prop_oneof![Just(Want::Contacts), Just(Want::Record), Just(Want::Nothing)];
    let bind = (slot(), node_id(), node_id(), service(), nodes(OTHERS_MAX), 0..=OTHERS_MAX, datagram());
    prop_oneof![
        (any::<u64>(), 1..=SEEK_HOPS_MAX, node_id(), nodes(RECORD_RELAYS_MAX))
            .prop_map(|(nonce, ttl, target, relays)| Routing::Seek { nonce, ttl, target, relays }),
        (any::<u64>(), service(), nodes(OTHERS_MAX)).prop_map(|(nonce, service, hops)| Routing::Sought {
            nonce,
            service,
            hops
        }),
        bind.prop_map(|(slot, origin, peer, service, mut next, at, datagram)| {
            let passed = next.split_off(at.min(next.len()));
            Routing::Bind { slot, origin, peer, service, next, passed, datagram }
        }),
        (slot(), node_id(), service(), vec(node_id(), 1..=OTHERS_MAX + 1), datagram()).prop_map(
            |(slot, peer, service, passed, datagram)| Routing::Invite {
                slot,
                peer,
                service,
                passed,
                datagram
            }
        ),
        (any::<bool>(), any::<u64>(), slot(), 0..=OTHERS_MAX as u8)
            .prop_map(|(answer, nonce, slot, left)| Routing::Trace { answer, nonce, slot, left }),
        (any::<u64>(), node_id(), want, any::<[u8; 32]>()).prop_map(|(request, to, want, target)| {
            Routing::Forward { request, to, want, target: Position(target) }
        }),
    ]
}

/// A control message that fits into a plaintext of its own.
pub(super) fn control() -> impl Strategy<Value = Control> {
    let record = || vec(any::<u8>(), 1..=RECORD_LEN_MAX);
    let want = prop_oneof![Just(Want::Contacts), Just(Want::Record), Just(Want::Nothing)];
    let reason = prop_oneof![Just(CloseReason::Stopping), Just(CloseReason::Crowded)];
    let outcome = prop_oneof![
        Just(StoreOutcome::Stored),
        Just(StoreOutcome::Old),
        Just(StoreOutcome::Full),
        Just(StoreOutcome::Refused),
    ];
    let step = prop_oneof![Just(SprayStep::Ready), Just(SprayStep::Open), Just(SprayStep::Over)];
    let datagram = || vec(any::<u8>(), 0..=CARRIED_LEN_MAX);
    let slot = || any::<u64>().prop_map(Slot);
    prop_oneof![
        Just(Control::Allocate),
        routing().prop_map(Control::Routing),
        (any::<u16>(), service()).prop_map(|(seconds, service)| Control::Allocated { seconds, service }),
        (slot(), node_id(), datagram()).prop_map(|(slot, peer, datagram)| Control::Bind {
            slot,
            peer,
            datagram
        }),
        (slot(), service()).prop_map(|(slot, service)| Control::Bound { slot, service }),
        (slot(), node_id(), service(), datagram())
            .prop_map(|(slot, peer, service, datagram)| Control::Invite { slot, peer, service, datagram }),
        (any::<bool>(), any::<bool>(), vec(endpoint(), 0..=CANDIDATES_MAX))
            .prop_map(|(answer, dependent, endpoints)| Control::Candidates { answer, dependent, endpoints }),
        step.prop_map(|step| Control::Spray { step }),
        (any::<Option<bool>>(), node_id(), endpoint()).prop_map(|(answer, peer, endpoint)| Control::Vouch {
            answer,
            peer,
            endpoint
        }),
        any::<u64>().prop_map(|nonce| Control::Ping { nonce }),
        (any::<u64>(), endpoint()).prop_map(|(nonce, observed)| Control::Pong { nonce, observed }),
        record().prop_map(|record| Control::Hello { record }),
        reason.prop_map(|reason| Control::Close { reason }),
        (any::<u64>(), any::<u16>())
            .prop_map(|(token, datagram_len)| Control::MtuProbe { token, datagram_len }),
        (any::<u64>(), any::<u16>())
            .prop_map(|(token, datagram_len)| Control::MtuAck { token, datagram_len }),
        any::<(u64, u64)>().prop_map(|(sent, received)| Control::Received { sent, received }),
        (any::<u64>(), want, any::<[u8; 32]>()).prop_map(|(request, want, target)| Control::Find {
            request,
            want,
            target: Position(target)
        }),
        (any::<u64>(), proptest::option::of(record()), vec(contact(), 0..=5))
            .prop_map(|(request, record, contacts)| Control::Found { request, record, contacts }),
        (any::<u64>(), record()).prop_map(|(request, record)| Control::Store { request, record }),
        (any::<u64>(), outcome).prop_map(|(request, outcome)| Control::Stored { request, outcome }),
        any::<u64>().prop_map(|nonce| Control::Dial { nonce }),
        any::<u64>().prop_map(|nonce| Control::Dialled { nonce }),
    ]
}
