//! Answers the requests of the control socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::config::DEFAULT_PORT;
use crate::control::message::{
    Cause, Done, Failure, Health, InterfaceStatus, NodeState, OwnNode, PathKind, PingLoss, PingOutcome,
    PingReply, Readiness, RefusedFlow, Request, Status, TraceReport,
};
use crate::control::server::{Handler, PeerCredentials, answer};
use crate::control::target::Target;
use crate::engine::{AskError, Handle};
use crate::host::clock;
use crate::proto::datapath::Shared;
use crate::proto::identity::NodeId;
use crate::proto::node::{self, BOOTSTRAP_MAX, PingFailure};
use crate::proto::path::is_possible;
use crate::stream::Counters;

use super::data::Data;
use super::firewall::Firewall;
use super::health::Facts;
use super::keeper::Keeper;
use super::netcheck;
use super::portmap::PortMapping;
use super::probe::{self, node_target};
use super::status;
use super::trace;
use super::why;

/// How often readiness is looked at while somebody waits for it.
const READY_LOOK: Duration = Duration::from_millis(50);
/// And once that has taken longer than this.
const READY_SOON: Duration = Duration::from_secs(3);
/// Each look makes a whole status: others may wait for very long.
const READY_LOOK_LATER: Duration = Duration::from_millis(500);

/// What answers.
pub(super) struct Answers {
    handle: Handle,
    keeper: Arc<Keeper>,
    firewall: Arc<Firewall>,
    facts: Facts,
    data: Data,
    listen: Vec<SocketAddr>,
    mapping: Arc<PortMapping>,
    /// Where streams are taken.
    taking: Vec<SocketAddr>,
    counters: Arc<Counters>,
}

impl Handler for Answers {
    fn handle(&self, request: Request, origin: PeerCredentials) -> BoxFuture<'_, Result<Value, Failure>> {
        Box::pin(async move {
            let asked = request.changes().then(|| told(&request));
            let answer = self.answer(request).await;
            if let (Some(request), Ok(_)) = (asked, &answer) {
                tracing::info!(user = origin.uid, request, "changed by azora");
            }
            answer
        })
    }
}

/// A request as the log tells of it: as it was asked, without addresses of the underlay.
fn told(request: &Request) -> String {
    let mut asked = serde_json::to_value(request).unwrap_or_default();
    if let Some(fields) = asked.as_object_mut() {
        fields.remove("endpoint");
    }
    asked.to_string()
}

/// The pause before the next look at readiness, for somebody who has waited so long.
pub(super) fn ready_look(waited: Duration) -> Duration {
    if waited < READY_SOON { READY_LOOK } else { READY_LOOK_LATER }
}

fn stopped(error: AskError) -> Failure {
    Failure::new(error.to_string(), "look at the daemon's log")
}

impl Answers {
    pub(super) fn new(
        handle: Handle,
        keeper: Arc<Keeper>,
        firewall: Arc<Firewall>,
        facts: Facts,
        data: Data,
        (listen, taking, counters): (Vec<SocketAddr>, Vec<SocketAddr>, Arc<Counters>),
        mapping: Arc<PortMapping>,
    ) -> Self {
        Self { handle, keeper, firewall, facts, data, listen, mapping, taking, counters }
    }

    async fn answer(&self, request: Request) -> Result<Value, Failure> {
        match request {
            Request::Own => {
                let node_id = self.handle.node_id();
                answer(&OwnNode { node_id, address: node_id.address() })
            }
            Request::Status => answer(&self.status().await?),
            Request::Peers => answer(&self.status().await?.peers),
            Request::Up => self.link(true).await,
            Request::Down => self.link(false).await,
            Request::PeersAdd { node_id, endpoint } => self.add_peer(node_id, endpoint).await,
            Request::PeersRemove { node_id } => {
                if !self
                    .handle
                    .with(move |node, now, _| node.remove_peer(now, node_id))
                    .await
                    .map_err(stopped)?
                {
                    return Err(Failure::new("that node is no peer", "`azora peers` lists them"));
                }
                answer(&Done {})
            }
            Request::Ping { target, timeout_ms, seq, seek_direct } => {
                let address = target.address();
                if seek_direct {
                    self.handle
                        .with(move |node, now, _| node.seek_direct(now, address))
                        .await
                        .map_err(stopped)?;
                }
                answer(&self.ping(target, timeout_ms, seq).await?)
            }
            Request::DhtLookup { target } => {
                let outcome = self.handle.lookup(target.address()).await.map_err(stopped)?;
                let why = match outcome.is_heard() {
                    true => None,
                    false => Some(self.facts.unheard(&self.node_status().await?)),
                };
                answer(&status::lookup(target, &outcome, why, clock::wall()))
            }
            Request::DhtStatus => answer(&status::dht_status(&self.node_status().await?.dht)),
            Request::Probe { target } => {
                answer(&probe::probe(&self.handle, &self.facts, self.port(), target).await)
            }
            Request::Netcheck => {
                answer(&netcheck::netcheck(&self.handle, &self.mapping, self.port()).await.map_err(stopped)?)
            }
            Request::Trace { target } => answer(&self.trace(target).await?),
            Request::FirewallList => answer(&self.firewall.list()),
            Request::FirewallTrace => answer(&self.refused(&self.node_status().await?)),
            Request::FirewallAdd(matches) if matches.peer == Some(self.handle.node_id()) => {
                let next = "name the node that is to be let in: `azora id` there shows its ID";
                Err(Failure::new(probe::OURSELVES, next))
            }
            Request::FirewallAdd(matches) => answer(&self.firewall.clone().add(matches).await?),
            Request::FirewallRemove { index } => {
                self.firewall.clone().remove(index).await?;
                answer(&Done {})
            }
            Request::Wait { timeout_ms } => answer(&self.wait(Duration::from_millis(timeout_ms)).await?),
        }
    }

    pub(super) async fn node_status(&self) -> Result<node::Status, Failure> {
        self.handle.with(|node, now, _| node.status(now)).await.map_err(stopped)
    }

    /// What is wrong, worst first; and what was not let in lately and would not be now, the last first.
    pub(super) async fn look(&self) -> Result<(Vec<Health>, Vec<RefusedFlow>), Failure> {
        let interface = self.keeper.seen().await;
        let status = self.node_status().await?;
        Ok((self.facts.judge(&status, interface.as_ref()), self.refused(&status)))
    }

    fn refused(&self, status: &node::Status) -> Vec<RefusedFlow> {
        status::refused(&status.peers, &self.firewall.rules(), clock::now())
    }

    pub(super) async fn shared(&self) -> Result<Arc<Shared>, Failure> {
        self.handle.with(|node, _, _| node.shared()).await.map_err(stopped)
    }

    async fn add_peer(&self, node_id: NodeId, endpoint: SocketAddr) -> Result<Value, Failure> {
        if node_id == self.handle.node_id() {
            return Err(Failure::new(
                probe::OURSELVES,
                "give the ID of the other node: `azora id` there shows it",
            ));
        }
        if !is_possible(&endpoint) {
            let text = format!("{endpoint} cannot be reached from the underlay");
            return Err(Failure::new(text, "give the node's address outside the mesh and its UDP port"));
        }
        if self.node_status().await?.endpoints.contains(&endpoint) {
            let text = format!("{endpoint} is this node's own address");
            return Err(Failure::new(text, "give the other node's: `ip address` there shows it"));
        }
        let added = self.handle.with(move |node, now, _| node.add_peer(now, node_id, endpoint)).await;
        if !added.map_err(stopped)? {
            let text = format!("there are {BOOTSTRAP_MAX} configured peers already");
            return Err(Failure::new(text, "remove one first: azora peers, azora peers remove NODEID"));
        }
        answer(&Done {})
    }

    async fn link(&self, up: bool) -> Result<Value, Failure> {
        let done = if up { self.keeper.up().await } else { self.keeper.down().await };
        done.map_err(|error| {
            let next = match error.is_permission_denied() {
                true => {
                    format!("as root: ip link set {} {}", self.keeper.name(), if up { "up" } else { "down" })
                }
                false => "azora status shows the interface".into(),
            };
            Failure::new(error.to_string(), &next)
        })?;
        answer(&Done {})
    }

    async fn ping(&self, target: Target, timeout_ms: u64, seq: u64) -> Result<PingOutcome, Failure> {
        let failure = match self.handle.ping(node_target(target), Duration::from_millis(timeout_ms)).await {
            Ok(reply) => {
                let via: Vec<_> = reply.via.into_iter().chain(reply.beyond.iter().copied()).collect();
                return Ok(PingOutcome::Reply(PingReply {
                    seq,
                    node_id: reply.node_id,
                    rtt_ms: status::ms(reply.rtt),
                    path: PathKind::through(via.len()),
                    endpoint: Some(reply.endpoint),
                    tcp: reply.by_stream,
                    why_relayed: self.why_relayed(&reply).await?,
                    via,
                    no_data: !reply.data,
                }));
            }
            Err(AskError::Ping(PingFailure::Ourselves)) => {
                return Err(Failure::new(probe::OURSELVES, "ping another node; azora peers lists them"));
            }
            Err(error @ AskError::Stopped) => return Err(stopped(error)),
            Err(AskError::Ping(failure @ PingFailure::TooMany)) => {
                return Ok(PingOutcome::Lost(PingLoss { seq, lost: failure.to_string(), fix: None }));
            }
            Err(AskError::Timeout(_)) => format!("no reply in {timeout_ms} ms"),
            Err(AskError::Ping(PingFailure::Unheard)) => probe::UNHEARD.into(),
            Err(AskError::Ping(PingFailure::NotFound)) => probe::NOT_FOUND.into(),
            Err(AskError::Ping(PingFailure::NoAnswer)) => "no answer".into(),
        };
        let (lost, fix) = self.cause(target, failure).await?;
        Ok(PingOutcome::Lost(PingLoss { seq, lost, fix }))
    }

    async fn trace(&self, target: Target) -> Result<TraceReport, Failure> {
        let mut report = trace::trace(&self.handle, target).await?;
        if let Some(lost) = report.lost.take() {
            let (lost, fix) = self.cause(target, lost).await?;
            (report.lost, report.fix) = (Some(lost), fix);
        }
        Ok(report)
    }

    /// Why a node does not answer and what to do, as far as it is known; `failure` is what was seen.
    async fn cause(&self, target: Target, failure: String) -> Result<(String, Option<String>), Failure> {
        let silence = self.facts.silence(&self.node_status().await?, target.address());
        Ok(silence.map_or((failure, None), |(cause, fix)| (cause, Some(fix))))
    }

    /// Why a reply came through a relay.
    async fn why_relayed(&self, reply: &node::PingReply) -> Result<Option<Cause>, Failure> {
        let (id, port) = (reply.node_id, self.port());
        let Some(relay) = reply.via else { return Ok(None) };
        let mute = (!reply.data).then_some(relay);
        let relayed =
            self.handle.with(move |node, now, _| node.relayed_because(now, &id)).await.map_err(stopped)?;
        Ok(relayed.as_ref().map(|relayed| why::relayed(relayed, mute, id, port)))
    }

    /// The UDP port that a router would have to forward.
    fn port(&self) -> u16 {
        self.listen.first().map_or(DEFAULT_PORT, SocketAddr::port)
    }

    pub(super) async fn status(&self) -> Result<Status, Failure> {
        let (node, now) = (self.node_status().await?, clock::now());
        let shared = self.shared().await?;
        let interface = self.keeper.inspect().await;
        let up = interface.as_ref().is_some_and(|i| i.up);
        let state = match (self.keeper.is_wanted(), up) {
            (false, _) => NodeState::Down,
            (true, true) => NodeState::Running,
            (true, false) => NodeState::Starting,
        };
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            node_id: self.handle.node_id(),
            address: self.handle.node_id().address(),
            state,
            interface: InterfaceStatus {
                name: self.keeper.name().into(),
                up,
                mtu: interface.as_ref().map_or(0, |i| u16::try_from(i.mtu).unwrap_or(u16::MAX)),
            },
            listen: self.listen.clone(),
            endpoints: node.endpoints.clone(),
            dht: status::dht_summary(&node.dht),
            nat: status::nat(&node, self.mapping.found()),
            streams: status::streams(&node.streams, &self.taking, self.counters.counts()),
            data: self.data.status(),
            health: self.facts.judge(&node, interface.as_ref()),
            peers: node.peers.iter().map(|peer| status::peer(peer, now, self.port())).collect(),
            drops: status::drops(&shared.drops),
        })
    }

    async fn wait(&self, patience: Duration) -> Result<Readiness, Failure> {
        let start = Instant::now();
        loop {
            let missing = self.missing().await?;
            if missing.is_empty() || start.elapsed() >= patience {
                return Ok(Readiness { ready: missing.is_empty(), missing });
            }
            sleep(ready_look(start.elapsed()).min(patience.saturating_sub(start.elapsed()))).await;
        }
    }

    async fn missing(&self) -> Result<Vec<String>, Failure> {
        let node = self.node_status().await?;
        let mut missing = Vec::new();
        if !self.keeper.inspect().await.is_some_and(|i| i.up && i.has_address && i.has_route) {
            missing.push(format!("the interface {} is not up", self.keeper.name()));
        }
        missing.extend(self.facts.unready(&node));
        Ok(missing)
    }
}
