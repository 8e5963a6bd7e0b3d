//! `azora probe`: how far a connection gets, stage by stage.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use crate::control::counted;
use crate::control::message::{Cause, ProbeReport, ProbeStage};
use crate::control::target::Target;
use crate::engine::{AskError, Handle};
use crate::host::clock;
use crate::proto::node::{self, EFFORT_MAX, PeerState, PingReply, Relayed};
use crate::proto::path::{is_possible, pmtu};
use crate::proto::timer::Instant;
use crate::proto::wire::session::OVERHEAD;

use super::health::{Facts, IS_IT_OPEN, NAME_ONE, UNREACHABLE, is_heard};
use super::status::{ms, mute};
use super::why;

/// How long the handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(8);
/// How long the search for the path's MTU may take.
const MTU_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked at.
const MTU_LOOK: Duration = Duration::from_millis(100);
/// Smallest MTU of an IPv6 link in bytes (RFC 8200 §5).
const INNER_MTU_MIN: usize = 1280;
/// How long one round trip may take.
const RTT_PATIENCE: Duration = Duration::from_secs(2);
/// Round trips measured.
const RTT_SAMPLES: usize = 3;

/// How long checks of a given endpoint are answered for: they go out within 3.3 s.
const TRY_PATIENCE: Duration = Duration::from_secs(4);
/// How often it is looked whether one was.
const TRY_LOOK: Duration = Duration::from_millis(50);

/// What is said of our own address.
pub(super) const OURSELVES: &str = "this is the node itself";
/// What is said when others were asked in vain.
pub(super) const NOT_FOUND: &str = "no node that we know of has a record of it";

/// What is said when nobody answered who was asked.
pub(super) const UNHEARD: &str = "nobody answered who was asked for it";

struct Probe<'h> {
    handle: &'h Handle,
    /// That we listen on.
    port: u16,
    facts: &'h Facts,
    target: Target,
    stages: Vec<ProbeStage>,
}

/// Goes through the stages up to the first that fails.
pub(super) async fn probe(handle: &Handle, facts: &Facts, port: u16, target: Target) -> ProbeReport {
    let mut probe = Probe { handle, port, facts, target, stages: Vec::new() };
    // Which stage ended it stands in the report.
    let _ = probe.run().await;
    ProbeReport { target, stages: probe.stages }
}

impl Probe<'_> {
    async fn run(&mut self) -> Option<()> {
        self.key()?;
        self.dht().await?;
        self.candidates().await?;
        self.handshake().await?;
        self.mtu().await?;
        self.rtt().await
    }

    fn stage(&mut self, name: &str, since: Instant, outcome: Result<String, (String, String)>) -> Option<()> {
        let (ok, detail, fix) = match outcome {
            Ok(detail) => (true, detail, None),
            Err((detail, fix)) => (false, detail, Some(fix)),
        };
        let elapsed_ms = ms(clock::now().saturating_since(since));
        self.stages.push(ProbeStage { name: name.into(), ok, detail, fix, elapsed_ms });
        ok.then_some(())
    }

    fn key(&mut self) -> Option<()> {
        let since = clock::now();
        let own = self.target.address() == self.handle.node_id().address();
        let outcome = match self.target.node_id() {
            _ if own => Err(failed(OURSELVES, "probe another node; azora peers lists them")),
            Some(id) => Ok(format!("node {id} has address {}", id.address())),
            None => Ok("only the address is given; the record will tell the key".into()),
        };
        self.stage("key", since, outcome)
    }

    async fn dht(&mut self) -> Option<()> {
        let since = clock::now();
        let outcome = match self.handle.lookup(self.target.address()).await {
            Ok(found) => match &found.record {
                Some(record) if !found.is_heard() && !self.is_reached().await => {
                    let (cause, fix) = match self.silence().await {
                        Some(silence) => silence,
                        None => self.unheard().await,
                    };
                    let own = format!(
                        "record {} of {} is this node's own copy: {} asked, nobody answered",
                        record.content().sequence,
                        record.node_id(),
                        found.rpcs
                    );
                    Err((format!("{cause} ({own})"), fix))
                }
                Some(record) if found.holders.is_empty() => Ok(format!(
                    "record {} of {} is held here; of {} asked none showed it",
                    record.content().sequence,
                    record.node_id(),
                    found.rpcs
                )),
                Some(record) => Ok(format!(
                    "record {} of {} found with {} in {}",
                    record.content().sequence,
                    record.node_id(),
                    counted(found.rpcs, "question"),
                    counted(found.rounds, "round")
                )),
                None if !self.known().await.0.is_empty() => {
                    let nobody = if found.is_heard() { "" } else { "; nobody answered who could be asked" };
                    Ok(format!("no record, but an endpoint is known{nobody}"))
                }
                None if !found.is_heard() => Err(self.unheard().await),
                None => Err(self.silence().await.unwrap_or_else(|| {
                    let fix = "check the ID or address; is that node running and connected? It is found once it has run for a few \
                               seconds with others in reach";
                    failed(format!("{NOT_FOUND} ({} asked)", found.rpcs), fix)
                })),
            },
            Err(error) => Err(failed(error, "look at the daemon's log")),
        };
        self.stage("dht", since, outcome)
    }

    /// Endpoints worth trying, the given one first, and whether a session stands.
    async fn known(&self) -> (Vec<SocketAddr>, bool) {
        let address = self.target.address();
        let peer = self.handle.with(move |node, now, _| {
            node.status(now).peers.into_iter().find(|peer| peer.address == address)
        });
        let (mut candidates, session) = match peer.await.ok().flatten() {
            Some(peer) => (peer.candidates, peer.state != PeerState::Known),
            None => (Vec::new(), false),
        };
        if let Some(given) = self.target.endpoint() {
            candidates.retain(|known| *known != given);
            candidates.insert(0, given);
        }
        candidates.retain(is_possible);
        (candidates, session)
    }

    /// True when the target itself answers, or an endpoint to try was given: a handshake will tell more than others could.
    async fn is_reached(&self) -> bool {
        let address = self.target.address();
        let peer = self.handle.with(move |node, now, _| {
            node.status(now).peers.iter().any(|peer| peer.address == address && is_heard(peer))
        });
        self.target.endpoint().is_some() || peer.await.unwrap_or(false)
    }

    /// As `azora ping` says it.
    async fn silence(&self) -> Option<(String, String)> {
        let status = self.handle.with(|node, now, _| node.status(now)).await.ok()?;
        self.facts.silence(&status, self.target.address())
    }

    /// Why nobody answers who could be asked.
    async fn unheard(&self) -> (String, String) {
        let status = self.handle.with(|node, now, _| node.status(now)).await;
        status.map_or_else(
            |error| failed(error, "look at the daemon's log"),
            |status| self.facts.unheard(&status),
        )
    }

    async fn candidates(&mut self) -> Option<()> {
        let since = clock::now();
        let (candidates, _) = self.known().await;
        let address = self.target.address();
        let facts = self.handle.with(move |node, now, _| node.status(now)).await.ok();
        let peer = facts.as_ref().and_then(|status| status.peers.iter().find(|peer| peer.address == address));
        let list: Vec<_> = candidates.iter().map(ToString::to_string).collect();
        let relays = peer.map(|peer| peer.relays.as_slice()).unwrap_or_default();
        let outcome = if list.is_empty() && relays.is_empty() {
            Err(failed(UNREACHABLE, NAME_ONE))
        } else {
            let ways = list.into_iter().chain(relays.iter().map(|relay| format!("relay {relay}")));
            let ways: Vec<_> = ways.collect();
            Ok(ways.join(", ") + &facts.as_ref().map(|status| nats(status, peer)).unwrap_or_default())
        };
        self.stage("candidates", since, outcome)
    }

    async fn handshake(&mut self) -> Option<()> {
        let since = clock::now();
        let mut answer = self.handle.ping(node_target(self.target), HANDSHAKE_PATIENCE).await;
        let tried = clock::now().saturating_since(since);
        if matches!(answer, Err(AskError::Ping(node::PingFailure::NoAnswer))) && tried < EFFORT_MAX {
            // An effort that was under way ended: its end says nothing of the time since.
            answer = self.handle.ping(node_target(self.target), HANDSHAKE_PATIENCE).await;
        }
        let outcome = match answer {
            Ok(reply) => {
                let way = self.way(&reply).await;
                let elsewhere = self.elsewhere(&reply).await;
                Ok(format!("session with {} at {}{way}{elsewhere}", reply.node_id, reply.endpoint))
            }
            Err(error @ (AskError::Timeout(_) | AskError::Ping(node::PingFailure::NoAnswer))) => {
                Err(match (self.silence().await, self.known().await) {
                    (Some(silence), _) => silence,
                    (None, (_, true)) => {
                        failed("the session stands, but the ping was lost", "try again, look at the link")
                    }
                    (None, (_, false)) => failed(error, IS_IT_OPEN),
                })
            }
            Err(error) => Err(failed(error, "look at the daemon's log")),
        };
        self.stage("handshake", since, outcome)
    }

    /// That a relay is in between, why, and what would change it.
    async fn way(&self, reply: &PingReply) -> String {
        let (id, port) = (reply.node_id, self.port);
        let Some(relay) = reply.via else { return String::new() };
        let relayed = self.handle.with(move |node, now, _| node.relayed_because(now, &id)).await;
        let why = relayed.ok().flatten().map(|relayed| why::relayed(&relayed, None, id, port));
        let why = why.map(|why| format!(": {}; to change that, {}", why.text, why.fix)).unwrap_or_default();
        format!(" through the relay {relay}{why}")
    }

    /// That it was not the given endpoint that answered, and whether that one answers too.
    async fn elsewhere(&self, reply: &PingReply) -> String {
        let direct = reply.via.is_none();
        let Some(given) = self.target.endpoint().filter(|given| !direct || *given != reply.endpoint) else {
            return String::new();
        };
        match self.tried(given).await {
            Some(rtt) => format!(", and at the given {given} in {} ms", ms(rtt)),
            None => format!(", not at the given {given}: no check of it was answered"),
        }
    }

    /// Has an endpoint tried beside the session that stands; how long it took to answer.
    async fn tried(&self, endpoint: SocketAddr) -> Option<Duration> {
        let (address, since) = (self.target.address(), clock::now());
        let begun = self.handle.with(move |node, now, _| node.try_endpoint(now, address, endpoint)).await;
        begun.ok().filter(|begun| *begun)?;
        loop {
            let answered = self.handle.with(move |node, _, _| node.tried(&address)).await.ok()?;
            if answered.is_some() || clock::now().saturating_since(since) >= TRY_PATIENCE {
                return answered;
            }
            sleep(TRY_LOOK).await;
        }
    }

    async fn mtu(&mut self) -> Option<()> {
        let since = clock::now();
        let address = self.target.address();
        let found = loop {
            let look = self.handle.with(move |node, now, _| {
                node.discover_mtu(now, address);
                node.path_mtu(&address)
            });
            match look.await.ok().flatten() {
                Some((len, pmtu::State::Found { .. })) => break Ok(len),
                Some((len, _)) if clock::now().saturating_since(since) >= MTU_PATIENCE => break Err(len),
                Some(_) => sleep(MTU_LOOK).await,
                None => break Err(0),
            }
        };
        let inner = |len: usize| len.saturating_sub(OVERHEAD);
        let outcome = match found {
            Ok(len) if inner(len) < INNER_MTU_MIN => Ok(format!(
                "datagrams of {len} bytes arrive, longer ones do not: packets of more than {} need several, which is slower; \
                 look for a tunnel or a link with a small MTU on the way",
                inner(len)
            )),
            Ok(len) => Ok(format!(
                "datagrams of {len} bytes arrive: packets of up to {} bytes go in one",
                inner(len)
            )),
            Err(0) => Err(failed("the session has ended", "try again, look at the daemon's log")),
            Err(pmtu::BASE_DATAGRAM_LEN) => Err(failed(
                format!("nothing longer than {} bytes was seen to arrive", pmtu::BASE_DATAGRAM_LEN),
                "the path loses most packets, or the other node is too old to answer: try again, look at the link",
            )),
            Err(len) => Err(failed(
                format!("datagrams of {len} bytes arrive, but the search does not end"),
                "the path loses packets: try again, look at the link",
            )),
        };
        self.stage("mtu", since, outcome)
    }

    async fn rtt(&mut self) -> Option<()> {
        let since = clock::now();
        let mut samples = Vec::new();
        for _ in 0..RTT_SAMPLES {
            if let Ok(reply) = self.handle.ping(node_target(self.target), RTT_PATIENCE).await {
                samples.push(ms(reply.rtt));
            }
        }
        samples.sort_by(f64::total_cmp);
        let outcome = match (samples.as_slice(), self.mute_relay().await) {
            ([], _) => Err(failed(
                "the session stands, but pings are lost",
                "the path loses packets: try again, look at the link",
            )),
            (_, Some(cause)) => Err((format!("pings come back, but {}", cause.text), cause.fix)),
            (all, None) => Ok(format!("{} ms median of {} of {RTT_SAMPLES}", all[all.len() / 2], all.len())),
        };
        self.stage("rtt", since, outcome)
    }

    /// Why no program gets through, if the path leads through a relay that carries nothing but what two nodes need to meet.
    async fn mute_relay(&self) -> Option<Cause> {
        let address = self.target.address();
        let peer = self.handle.with(move |node, now, _| {
            node.status(now).peers.into_iter().find(|peer| peer.address == address)
        });
        let peer = peer.await.ok().flatten()?;
        let relayed = peer.relayed.as_ref().unwrap_or(&Relayed::Trying);
        Some(why::relayed(relayed, Some(mute(&peer)?), peer.node_id, self.port))
    }
}

/// The NATs of both sides, as far as they are known.
fn nats(status: &node::Status, peer: Option<&node::PeerStatus>) -> String {
    let other = |is: bool| if is { "symmetric NAT" } else { "NAT or firewall" };
    let symmetric = |is: bool| if is { "symmetric NAT" } else { "NAT" };
    let ours = match status.mapped {
        Some(seen) => {
            Some(format!("; this node is behind a {}, seen at {seen}", symmetric(status.maps_dependently)))
        }
        None => status.firewalled.then(|| "; this node is behind a firewall".to_owned()),
    };
    let theirs = peer
        .filter(|peer| !peer.relays.is_empty())
        .map(|peer| format!("; the other one is behind a {}", other(peer.maps_dependently)));
    format!("{}{}", ours.unwrap_or_default(), theirs.unwrap_or_default())
}

fn failed(detail: impl ToString, fix: &str) -> (String, String) {
    (detail.to_string(), fix.into())
}

/// The target in the node's words.
pub(super) const fn node_target(target: Target) -> node::Target {
    match target {
        Target::Node(id) => node::Target::Node(id, None),
        Target::At(id, endpoint) => node::Target::Node(id, Some(endpoint)),
        Target::Address(address) => node::Target::Address(address),
    }
}
