//! From what the node says to what the control API says.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::control::message::{
    self, Bucket, DhtRefused, DhtRole, DhtStatus, DhtSummary, LookupReport, LookupStep, NatStatus,
    PathChange, PathKind, PathStatus, PeerState, PeerStatus, PortMappingStatus, RefusedFlow, RelayStatus,
    Silence, StreamsStatus,
};
use crate::control::target::Target;
use crate::proto::datapath::{DropReason, Drops};
use crate::proto::dht::{self, Mode, Outcome};
use crate::proto::identity::NodeId;
use crate::proto::node::{self, StreamStatus};
use crate::proto::policy::{Refused, Rules};
use crate::proto::timer::{Instant, WallTime};
use crate::stream::Counts;

use super::portmap::Found;
use super::why;

/// Milliseconds with fractions.
pub(super) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Seconds to a tenth.
fn s(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

pub(super) fn peer(peer: &node::PeerStatus, now: Instant, port: u16) -> PeerStatus {
    PeerStatus {
        node_id: peer.node_id,
        address: peer.address,
        name: None,
        state: match peer.state {
            node::PeerState::Known => PeerState::Known,
            node::PeerState::Authenticated => PeerState::Authenticated,
            node::PeerState::Flowing => PeerState::Flowing,
        },
        path: match (peer.endpoint, peer.via) {
            (None, _) => PathStatus::NONE,
            (Some(endpoint), None) => PathStatus { tcp: peer.by_stream, ..PathStatus::direct(endpoint) },
            (Some(endpoint), Some((relay, data))) => {
                let via = std::iter::once(relay).chain(peer.beyond.iter().copied()).collect();
                PathStatus { tcp: peer.by_stream, no_data: !data, ..PathStatus::relayed(endpoint, via) }
            }
        },
        standby: peer
            .standby
            .iter()
            .map(|(standby, data)| PathStatus { no_data: !data, ..way(standby) })
            .collect(),
        rtt_ms: peer.rtt.filter(|_| peer.endpoint.is_some()).map(ms),
        loss: peer.loss_per_mille.map(|loss| loss as f64 / 1e3),
        mtu: u16::try_from(peer.mtu).unwrap_or(u16::MAX),
        cipher: peer.cipher.map(String::from),
        session_age_s: peer.session_age.map(s),
        last_rx_s: peer.last_heard.map(s),
        silence: peer.silence.map(silence),
        unanswered_s: peer.unanswered().map(s),
        rx_bytes: peer.bytes_received,
        tx_bytes: peer.bytes_sent,
        drops: BTreeMap::from([("replay".into(), peer.replays)]),
        history: peer.history.iter().map(|change| path_change(change, now)).collect(),
        why_relayed: peer.relayed.as_ref().map(|relayed| match peer.by_stream {
            true => why::no_udp(),
            false => why::relayed(relayed, mute(peer), peer.node_id, port),
        }),
    }
}

const fn silence(silence: node::Silence) -> Silence {
    match silence {
        node::Silence::NoAnswer(_) => Silence::NoAnswer,
        node::Silence::Deaf(_) => Silence::Deaf,
        node::Silence::Stopped => Silence::Stopped,
        node::Silence::Idle => Silence::Idle,
    }
}

/// The relay that a peer is reached through, if it carries nothing but what two nodes need to meet.
pub(super) fn mute(peer: &node::PeerStatus) -> Option<NodeId> {
    peer.via.filter(|(_, data)| !data).map(|(relay, _)| relay)
}

fn way(way: &node::Way) -> PathStatus {
    PathStatus {
        kind: PathKind::through(way.via.len()),
        endpoint: way.endpoint,
        via: way.via.clone(),
        tcp: way.by_stream,
        no_data: false,
    }
}

fn path_change(change: &node::Change, now: Instant) -> PathChange {
    let path = |at: &Option<node::Way>| at.as_ref().map_or(PathStatus::NONE, way);
    PathChange {
        ago_s: s(now.saturating_since(change.at)),
        from: path(&change.from),
        to: path(&change.to),
        why: change.reason.to_string(),
    }
}

/// What was refused so long ago is not told any more.
pub(super) const REFUSED_LIFE: Duration = Duration::from_secs(3600);

/// What was not let in and would not be by `rules`, the last first.
pub(super) fn refused(peers: &[node::PeerStatus], rules: &Rules, now: Instant) -> Vec<RefusedFlow> {
    let all = peers.iter().flat_map(|peer| peer.refused.iter().map(|refused| (peer.node_id, refused)));
    let is_told = |(peer, refused): &(NodeId, &Refused)| {
        now.saturating_since(refused.last) < REFUSED_LIFE && !rules.lets_in(peer, refused)
    };
    let mut all: Vec<_> = all.filter(is_told).collect();
    all.sort_by_key(|(_, refused)| Reverse(refused.last));
    let flow = |(peer, refused): (NodeId, &Refused)| {
        let (proto, rule) = match (refused.protocol, refused.port) {
            (6, Some(port)) => ("tcp".into(), format!(" -p tcp --port {port}")),
            (17, Some(port)) => ("udp".into(), format!(" -p udp --port {port}")),
            (number, _) => (number.to_string(), String::new()),
        };
        let fix = match refused.port {
            Some(_) => format!("azora firewall add in allow{rule} --peer {peer}"),
            None => "no rule lets in this protocol and nothing else".into(),
        };
        RefusedFlow {
            peer,
            proto,
            port: refused.port,
            times: refused.times,
            ago_s: now.saturating_since(refused.last).as_secs(),
            fix,
        }
    };
    all.into_iter().map(flow).collect()
}

pub(super) fn nat(status: &node::Status, found: Found) -> NatStatus {
    let told = status.port_mapping.is_some_and(|(_, told)| told);
    let port_mapping = found.mapping().map(|(protocol, outside)| PortMappingStatus {
        protocol: protocol.into(),
        endpoint: outside.into(),
        told,
    });
    NatStatus {
        mapped: status.mapped,
        firewalled: status.firewalled,
        mapping_varies: status.maps_dependently,
        relays: status
            .relays
            .iter()
            .map(|(node_id, data)| RelayStatus { node_id: *node_id, data: *data })
            .collect(),
        relayed_for: status.relayed.len() as u64,
        channels: status.channels as u64,
        port_mapping,
    }
}

pub(super) fn streams(status: &StreamStatus, listen: &[SocketAddr], counts: Counts) -> StreamsStatus {
    let counters = [
        ("accepted", counts.accepted),
        ("crowded", counts.crowded),
        ("rejected", counts.rejected),
        ("timed-out", counts.timed_out),
        ("malformed", counts.malformed),
        ("taken", counts.opened),
        ("opened", counts.dialled),
        ("failed", counts.dials_failed),
        ("dropped", counts.dropped),
        ("received-bytes", counts.received_bytes),
        ("sent-bytes", counts.sent_bytes),
    ];
    let opened = status.dialled.iter().map(|(node_id, stream)| message::StreamStatus {
        node_id: *node_id,
        endpoint: stream.remote,
        tls: stream.tls,
    });
    StreamsStatus {
        udp_blocked_s: status.blocked.map(s),
        opened: opened.collect(),
        listen: listen.to_vec(),
        taken: status.serving as u64,
        counters: counters.into_iter().map(|(name, count)| (name.into(), count)).collect(),
    }
}

pub(super) fn drops(drops: &Drops) -> BTreeMap<String, u64> {
    DropReason::ALL.iter().map(|reason| (reason.name().into(), drops.of(*reason))).collect()
}

const fn role(mode: Mode) -> DhtRole {
    match mode {
        Mode::Server => DhtRole::Server,
        Mode::Client => DhtRole::Client,
    }
}

/// Nothing to judge by while nobody is known.
fn size(status: &dht::Status) -> Option<u64> {
    (status.contacts > 0).then_some(status.network_size_estimate)
}

pub(super) fn dht_summary(status: &dht::Status) -> DhtSummary {
    DhtSummary {
        mode: role(status.mode),
        contacts: status.contacts as u64,
        network_size_estimate: size(status),
    }
}

pub(super) fn dht_status(status: &dht::Status) -> DhtStatus {
    let bucket = |bucket: &dht::BucketStatus| Bucket {
        distance_bits: u32::from(bucket.distance_bits),
        contacts: bucket.contacts as u32,
        replacements: bucket.replacements as u32,
    };
    DhtStatus {
        mode: role(status.mode),
        contacts: status.contacts as u64,
        network_size_estimate: size(status),
        buckets: status.buckets.iter().rev().map(bucket).collect(),
        network_size_error_percent: status.network_size_error.map(|part| (part * 100.0).round() as u32),
        records_stored: status.records as u64,
        records_bytes: status.records_bytes as u64,
        record_holders: status.publish_holders as u64,
        refused: DhtRefused {
            crowded: status.counters.crowded,
            records_invalid: status.counters.records_invalid,
            records_full: status.counters.records_full,
            unsolicited: status.counters.unsolicited,
            lookups: status.counters.lookups_refused,
        },
    }
}

pub(super) fn lookup(
    target: Target,
    outcome: &Outcome,
    why: Option<(String, String)>,
    wall: WallTime,
) -> LookupReport {
    let record = outcome.record.as_ref();
    let content = record.map(|record| record.content());
    let step = |step: &dht::Step| LookupStep {
        node_id: step.asked,
        round: step.round,
        shared_bits: step.asked.position().distance(&outcome.target).leading_zeros(),
        answered_ms: step.answered.map(ms),
        held: step.held,
        contacts: u32::from(step.contacts),
    };
    let age = |issued: WallTime| Duration::from_millis(wall.as_unix_ms().saturating_sub(issued.as_unix_ms()));
    LookupReport {
        target,
        found: record.is_some(),
        node_id: record.map(|record| record.node_id()),
        endpoints: content.map(|content| content.endpoints.clone()).unwrap_or_default(),
        rounds: outcome.rounds,
        rpcs: outcome.rpcs,
        elapsed_ms: ms(outcome.elapsed),
        holders: outcome.holders.clone(),
        record_age_s: content.map(|content| s(age(content.issued))),
        record_seq: content.map(|content| content.sequence),
        steps: outcome.steps.iter().map(step).collect(),
        unheard: why.map(|(text, fix)| message::Cause { text, fix }),
    }
}
