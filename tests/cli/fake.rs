//! The real control server with invented answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use auramesh::control::message::*;
use auramesh::control::server::{self, Handler, Listener, PeerCredentials, answer};
use auramesh::control::target::Target;
use auramesh::proto::identity::{Identity, NodeId};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::run::{Ran, azora_command};

/// A node ID for each number.
pub(crate) fn node_id(seed: u8) -> NodeId {
    Identity::from_seed([seed; 32]).node_id()
}

/// Own node, a healthy peer, a peer that never answers; others that are not reached, and one that does not hear.
pub(crate) const OWN: u8 = 1;
pub(crate) const PEER: u8 = 2;
pub(crate) const SILENT: u8 = 3;
pub(crate) const IDLE: u8 = 5;
pub(crate) const STOPPED: u8 = 6;
pub(crate) const DEAF: u8 = 7;
/// One whose answer takes longer than a daemon should be silent.
pub(crate) const SLOW: u8 = 8;

pub(crate) fn endpoint() -> SocketAddr {
    "198.51.100.7:5747".parse().unwrap()
}

/// A daemon that is none.
pub(crate) struct Fake {
    pub(crate) socket: PathBuf,
    pub(crate) directory: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// A healthy node.
    pub(crate) fn healthy() -> Self {
        Self::start(Vec::new())
    }

    /// A node that nobody knows.
    pub(crate) fn lonely() -> Self {
        Self::lonely_after(Duration::ZERO)
    }

    /// The same, whose socket is not there at first.
    pub(crate) fn lonely_after(pause: Duration) -> Self {
        let health = vec![
            Health {
                code: "no-contacts".into(),
                text: "no other node is known".into(),
                fix: "azora peers add NODEID@IP:PORT".into(),
            },
            Health { code: "clock".into(), text: "the clock is wrong".into(), fix: "set it".into() },
        ];
        Self::answering(pause, health, &[])
    }

    /// A healthy node that has met nobody yet.
    pub(crate) fn new() -> Self {
        Self::answering(Duration::ZERO, Vec::new(), &[])
    }

    /// A node with a peer that does not hear it.
    pub(crate) fn unheard() -> Self {
        Self::answering(Duration::ZERO, Vec::new(), &[PEER, DEAF])
    }

    /// A node that lets everything in.
    pub(crate) fn open() -> Self {
        Self::start(vec![Health { code: "inbound-open".into(), text: "open".into(), fix: "close".into() }])
    }

    fn start(health: Vec<Health>) -> Self {
        Self::answering(Duration::ZERO, health, &[PEER, SILENT, IDLE, STOPPED])
    }

    fn answering(pause: Duration, health: Vec<Health>, peers: &'static [u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/azora.sock");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler = Arc::new(Answers { health, peers, seen: seen.clone() });
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, is_bound) = std::sync::mpsc::sync_channel(1);
        let path = socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::time::sleep(pause).await;
                let listener = Listener::bind(&path).await.unwrap();
                let _ = bound.send(());
                tokio::select! {
                    () = server::serve(listener, handler) => {}
                    _ = stopped => {}
                }
            });
        });
        if pause.is_zero() {
            is_bound.recv().unwrap();
        }
        Self { socket, directory, seen, stop: Some(stop), thread: Some(thread) }
    }

    /// Runs `azora` against it.
    pub(crate) fn azora(&self, arguments: &[&str]) -> Ran {
        azora_command().env("AZORA_SOCKET", &self.socket).args(arguments).output().unwrap().into()
    }

    /// What was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Answers {
    health: Vec<Health>,
    /// Who was met.
    peers: &'static [u8],
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Handler for Answers {
    fn handle(&self, request: Request, _: PeerCredentials) -> BoxFuture<'_, Result<Value, Failure>> {
        self.seen.lock().unwrap().push(request.clone());
        Box::pin(async move {
            if let Request::Wait { timeout_ms } = request
                && !self.health.is_empty()
            {
                tokio::time::sleep(Duration::from_millis(timeout_ms)).await;
            }
            if matches!(request, Request::Ping { target: Target::Node(id), .. } if id == node_id(SLOW)) {
                tokio::time::sleep(Duration::from_millis(3_500)).await;
            }
            self.answer(request)
        })
    }
}

/// What was not let in, as the JSON tells.
fn refused() -> [RefusedFlow; 2] {
    let flow = |proto: &str, port, times, ago_s| {
        let fix = format!("azora firewall add in allow --peer {}", node_id(PEER));
        RefusedFlow { peer: node_id(PEER), proto: proto.into(), port, times, ago_s, fix }
    };
    [flow("tcp", Some(22), 3, 9), flow("132", None, 1, 90)]
}

impl Answers {
    fn answer(&self, request: Request) -> Result<Value, Failure> {
        let silent = Target::Node(node_id(SILENT));
        match request {
            Request::Own => answer(&OwnNode { node_id: node_id(OWN), address: node_id(OWN).address() }),
            Request::Status => answer(&self.status()),
            Request::Peers => answer(&self.status().peers),
            Request::Up | Request::Down | Request::PeersAdd { .. } => answer(&Done {}),
            Request::PeersRemove { .. } => {
                Err(Failure::new("that node is no peer", "`azora peers` lists them"))
            }
            Request::Ping { target, seq, .. } if target == silent => {
                answer(&PingOutcome::Lost(PingLoss { seq, lost: "no record found".into(), fix: None }))
            }
            Request::Ping { seq, .. } => answer(&PingOutcome::Reply(PingReply {
                seq,
                node_id: node_id(PEER),
                rtt_ms: 0.4 + seq as f64,
                path: if seq == 1 { PathKind::Relay } else { PathKind::Direct },
                endpoint: Some(endpoint()),
                tcp: false,
                why_relayed: (seq == 1).then(symmetric),
                via: Vec::new(),
                no_data: seq == 1,
            })),
            Request::DhtLookup { target } if self.peers.is_empty() => answer(&own_copy(target)),
            Request::DhtLookup { target } => answer(&lookup(target, target != silent)),
            Request::DhtStatus => answer(&dht()),
            Request::Probe { target } => answer(&probe(target, target != silent)),
            Request::Netcheck => answer(&netcheck()),
            Request::Trace { target } => answer(&trace(target, target != silent)),
            Request::FirewallList => answer(&[rule(7, FirewallMatch::default()), rule(8, ssh())]),
            Request::FirewallTrace if self.peers.is_empty() => answer(&Vec::<RefusedFlow>::new()),
            Request::FirewallTrace => answer(&refused()),
            Request::FirewallAdd(matches) => answer(&rule(9, matches)),
            Request::FirewallRemove { index: 8 } => answer(&Done {}),
            Request::FirewallRemove { index } => {
                Err(Failure::new(format!("there is no rule {index}"), "`azora firewall list` numbers them"))
            }
            Request::Wait { .. } => answer(&self.readiness()),
            _ => Err(Failure::new("not faked", "fake it")),
        }
    }

    fn readiness(&self) -> Readiness {
        let missing = self.health.iter().map(|health| health.text.clone()).collect();
        Readiness { ready: self.health.is_empty(), missing }
    }

    fn status(&self) -> Status {
        let known = if self.health.is_empty() { self.peers } else { &[] };
        let peers = known.iter().map(|seed| peer(*seed)).collect();
        Status {
            version: "0.1.0".into(),
            node_id: node_id(OWN),
            address: node_id(OWN).address(),
            state: NodeState::Running,
            interface: InterfaceStatus { name: "azora0".into(), up: true, mtu: 1420 },
            listen: vec!["0.0.0.0:5747".parse().unwrap(), "[::]:5747".parse().unwrap()],
            endpoints: vec!["203.0.113.7:5747".parse().unwrap()],
            dht: DhtSummary {
                mode: DhtRole::Server,
                contacts: if self.peers.is_empty() && self.health.is_empty() { 0 } else { 37 },
                network_size_estimate: Some(120),
            },
            nat: NatStatus {
                mapped: Some("203.0.113.9:40001".parse().unwrap()),
                firewalled: false,
                mapping_varies: false,
                relays: vec![RelayStatus { node_id: node_id(4), data: true }],
                relayed_for: 2,
                channels: 1,
                port_mapping: Some(PortMappingStatus {
                    protocol: "pcp".into(),
                    endpoint: "203.0.113.9:5747".parse().unwrap(),
                    told: true,
                }),
            },
            streams: StreamsStatus {
                udp_blocked_s: None,
                opened: vec![StreamStatus {
                    node_id: node_id(4),
                    endpoint: "203.0.113.5:443".parse().unwrap(),
                    tls: true,
                }],
                listen: vec!["0.0.0.0:443".parse().unwrap()],
                taken: 2,
                counters: BTreeMap::from([("accepted".into(), 5), ("failed".into(), 0)]),
            },
            data: DataStatus {
                tun_offload: "tcp-udp".into(),
                tun_refused: 0,
                udp_offload: "trains".into(),
                superframes: true,
                ciphers: vec!["aes-256-gcm".into(), "chacha20-poly1305".into()],
            },
            health: self.health.clone(),
            peers,
            drops: BTreeMap::from([("unauthenticated".into(), 0), ("policy".into(), 3)]),
        }
    }
}

fn peer(seed: u8) -> PeerStatus {
    let flowing = seed == PEER || seed == DEAF;
    let silence = match seed {
        SILENT => Some(Silence::NoAnswer),
        IDLE => Some(Silence::Idle),
        STOPPED => Some(Silence::Stopped),
        DEAF => Some(Silence::Deaf),
        _ => None,
    };
    PeerStatus {
        node_id: node_id(seed),
        address: node_id(seed).address(),
        name: None,
        state: if flowing { PeerState::Flowing } else { PeerState::Known },
        path: if flowing { PathStatus::direct(endpoint()) } else { PathStatus::NONE },
        standby: if flowing { vec![PathStatus { no_data: true, ..relayed() }] } else { Vec::new() },
        rtt_ms: flowing.then_some(0.31),
        loss: flowing.then_some(0.0),
        mtu: 1420,
        cipher: flowing.then(|| "aes-256-gcm".into()),
        session_age_s: flowing.then_some(12.0),
        last_rx_s: flowing.then_some(0.4),
        silence,
        unanswered_s: matches!(silence, Some(Silence::NoAnswer | Silence::Deaf)).then_some(14.0),
        rx_bytes: 2048,
        tx_bytes: 100,
        drops: BTreeMap::from([("replay".into(), 0)]),
        history: if flowing { vec![change()] } else { Vec::new() },
        why_relayed: None,
    }
}

/// Why a path is relayed.
pub(crate) fn symmetric() -> Cause {
    let fix = format!("azora ping {} --until-direct looks again", node_id(PEER));
    Cause { text: "both sides are behind symmetric NATs".into(), fix }
}

fn relayed() -> PathStatus {
    PathStatus::relayed("203.0.113.5:5747".parse().unwrap(), vec![node_id(4)])
}

fn change() -> PathChange {
    PathChange {
        ago_s: 75.0,
        from: relayed(),
        to: PathStatus::direct(endpoint()),
        why: "check answered".into(),
    }
}

fn lookup(target: Target, found: bool) -> LookupReport {
    LookupReport {
        unheard: None,
        target,
        found,
        node_id: found.then(|| node_id(PEER)),
        endpoints: if found { vec![endpoint()] } else { Vec::new() },
        rounds: 2,
        rpcs: 7,
        elapsed_ms: 3.1,
        holders: if found { vec![node_id(OWN)] } else { Vec::new() },
        record_age_s: found.then_some(40.0),
        record_seq: found.then_some(3),
        steps: vec![
            LookupStep {
                node_id: node_id(OWN),
                round: 1,
                shared_bits: 3,
                answered_ms: Some(1.2),
                held: found,
                contacts: 20,
            },
            LookupStep {
                node_id: node_id(SILENT),
                round: 2,
                shared_bits: 11,
                answered_ms: None,
                held: false,
                contacts: 0,
            },
        ],
    }
}

/// What a node has kept that can ask nobody.
fn own_copy(target: Target) -> LookupReport {
    let unheard =
        Cause { text: "no other node is known yet".into(), fix: "azora peers add NODEID@IP:PORT".into() };
    let walk =
        LookupReport { rounds: 0, rpcs: 0, holders: Vec::new(), steps: Vec::new(), ..lookup(target, true) };
    LookupReport { unheard: Some(unheard), ..walk }
}

fn dht() -> DhtStatus {
    DhtStatus {
        mode: DhtRole::Server,
        contacts: 37,
        network_size_estimate: None,
        buckets: vec![Bucket { distance_bits: 256, contacts: 20, replacements: 4 }],
        network_size_error_percent: None,
        records_stored: 11,
        records_bytes: 3600,
        record_holders: 20,
        refused: DhtRefused { records_invalid: 2, crowded: 1, ..DhtRefused::default() },
    }
}

fn netcheck() -> NetcheckReport {
    let check = |name: &str, verdict, detail: &str, fix: Option<&str>| NetcheckEntry {
        name: name.into(),
        verdict,
        detail: detail.into(),
        fix: fix.map(Into::into),
    };
    NetcheckReport {
        global_v4: Some(endpoint()),
        global_v6: None,
        checks: vec![
            check("UDP", NetcheckVerdict::Yes, "2 contacts on the internet answered", None),
            check("IPv6", NetcheckVerdict::No, "this machine does not have a global IPv6 address", None),
            check(
                "MappingVariesByDestIP",
                NetcheckVerdict::Unknown,
                "needs 2 contacts in different networks",
                Some("azora peers add NODEID@IP:PORT"),
            ),
        ],
        relays: vec![RelayCheck { node_id: node_id(4), data: true, rtt_ms: Some(1.5) }],
        mtu: Some(1420),
    }
}

/// A path of two relays, the second of which is silent.
fn trace(target: Target, works: bool) -> TraceReport {
    let hop = |seed: u8, endpoint, rtt_ms| TraceHop {
        node_id: node_id(seed),
        address: node_id(seed).address(),
        endpoint,
        relay: seed != PEER,
        rtt_ms,
    };
    if !works {
        let lost = Some("no record found".into());
        return TraceReport { target, node_id: None, hops: Vec::new(), lost, fix: None };
    }
    let hops = vec![hop(4, Some(endpoint()), Some(1.5)), hop(5, None, None), hop(PEER, None, Some(4.25))];
    TraceReport { target, node_id: Some(node_id(PEER)), hops, lost: None, fix: None }
}

fn probe(target: Target, works: bool) -> ProbeReport {
    let stage = |name: &str, ok: bool| ProbeStage {
        name: name.into(),
        ok,
        detail: format!("{name} seen at {}", endpoint()),
        fix: (!ok).then(|| "open UDP port 5747 there".into()),
        elapsed_ms: 1.5,
    };
    ProbeReport { target, stages: vec![stage("key", true), stage("handshake", works)] }
}

pub(crate) fn ssh() -> FirewallMatch {
    FirewallMatch { proto: Some(FirewallProtocol::Tcp), port: Some(22), peer: Some(node_id(PEER)) }
}

const fn rule(index: u32, matches: FirewallMatch) -> FirewallRule {
    FirewallRule { index, matches }
}
