//! A whole node without a machine under it: composes session, path, policy and dht.
//!
//! ```text
//! peer      Known ─packet, query, ping─► Connecting ─response─► Authenticated ─180 s, closed─► Known
//!             ▲                              │ retries after 0.3 s to 2 s                       (keys erased)
//!             └───── given up, told so ◄─────┘
//! address   packet to an unknown one ─► Resolving (DHT lookup) ─record─► a known peer
//!                                            └─nobody has it─► ICMPv6 no route; remembered for a while
//! session   next (we answered, unconfirmed) ─first packet─► current ─newer one─► previous
//! ```
//!
//! Inputs are `handle_*`, each with the time; outputs are drained from `poll_*`; [`Node::snapshot`] is what the data
//! path reads. The folder is cut by direction: `setup` and `inbound`, `outbound`, `timeout`, `command`, and `dispatch`,
//! where one machine's events become another's inputs. `connect` is the way from a name to a session, `mtu` the probes
//! of how long a datagram may be, `relays` the way through others and `channels` what it is known by, `seeking` and
//! `routes` the way through several, `trace` who is on it, `carrying` what we carry for others, `forwards` what we ask
//! the DHT for them, `checks` the way out of that, `spray` the same where ports have to be guessed, `ways` which of
//! several is used, `reach` whether others reach us unasked, `streams` what is done where UDP does not get through,
//! `hopping` where one port of it does not, `netcheck` asks others where we are, `lan` is what neighbours announce,
//! `peers` is the table, `history` what became of the ways to them.

mod carrying;
mod channels;
mod checks;
mod command;
mod connect;
mod dispatch;
mod forwards;
mod history;
mod hopping;
mod inbound;
mod lan;
mod mapping;
mod mtu;
mod netcheck;
mod outbound;
mod peers;
mod probe;
mod reach;
mod relays;
mod routes;
mod seeking;
mod setup;
mod snapshot;
mod spray;
mod status;
mod streams;
mod timeout;
mod trace;
mod ways;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand_core::{Rng as _, SeedableRng};

pub use command::{BOOTSTRAP_MAX, Command, PingFailure, PingReply, Target};
pub use connect::EFFORT_MAX;
pub use dispatch::Refusal;
pub use history::{CHANGES_MAX, Change, Lost, Reason, Relayed, Silence, Way};
pub use netcheck::{Netcheck, OBSERVERS_MAX, Observation};
pub use peers::PEERS_MAX;
pub use relays::{KEEPALIVE, RELAYS_WANTED};
pub use spray::{KEPT_MAX, SPRAY_AGAIN, SPRAY_AGAIN_PROVEN, SPRAYS_MAX, SocketOrder};
pub use status::{PeerState, PeerStatus, Status};
pub use streams::{
    DIAL_ENDPOINTS_MAX, STREAM_PORTS_MAX, STREAMS_DIALLED_MAX, STREAMS_MAX, STREAMS_WANTED, Stream,
    StreamStatus, StreamWanted,
};

use crate::proto::datapath::{DropReason, Shared, Snapshot};
use crate::proto::dht::{Dht, LookupId, Mode, Outcome};
use crate::proto::identity::{Identity, MeshAddress, NodeId};
use crate::proto::limit::TokenBucket;
use crate::proto::path::LocalNetwork;
use crate::proto::path::observed::Observed;
use crate::proto::path::reach::Reach;
use crate::proto::policy::Rules;
use crate::proto::relay::{self, Relay};
use crate::proto::route::Routes;
use crate::proto::session::gate::Gate;
use crate::proto::session::sealed::ReplayCache;
use crate::proto::session::{self, Rng};
use crate::proto::timer::{Deadlines, Instant, WallTime};
use crate::proto::wire::control::Contact;
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::record::NodeRecord;
use crate::proto::wire::relay::Hop;

use channels::Channels;
use connect::Fetch;
use forwards::Forwarded;
use outbound::Resolving;
use peers::Peers;
use relays::Allocation;
use snapshot::Published;
use spray::Sprays;
use streams::Streams;

/// Most datagrams, events or interface packets waiting to be drained; more are dropped and counted.
pub const OUTPUT_MAX: usize = 16_384;
/// Announcements of strangers on the link that are looked at, per second.
pub const ANNOUNCE_RATE_PER_S: u32 = 10;
/// Own record's time to live.
pub const RECORD_TTL: Duration = Duration::from_secs(3600);

/// What a node is made of.
pub struct Config {
    /// Who it is.
    pub identity: Identity,
    /// Suites and network of its sessions.
    pub session: session::Config,
    /// Whether it serves the DHT.
    pub dht_mode: Mode,
    /// Serves the DHT only while no NAT is in between.
    pub dht_auto: bool,
    /// Whose packets it carries.
    pub relay: relay::Config,
    /// What may enter unasked.
    pub rules: Rules,
    /// Largest inner packet in bytes.
    pub mtu: usize,
    /// Contacts to start from.
    pub bootstrap: Vec<(NodeId, SocketAddr)>,
    /// Contacts saved before the last stop.
    pub remembered: Vec<Contact>,
    /// All randomness of the node follows from this.
    pub seed: [u8; 32],
}

/// Names a command, so that its outcome finds back to who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The datagram.
    pub datagram: Vec<u8>,
}

/// What became true.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet for our own interface: an ICMPv6 error.
    ToInterface(Vec<u8>),
    /// A session with a peer stands.
    PeerUp(NodeId),
    /// A peer that packets go to, or that is configured, has been reached by this way; told once until it is lost.
    PeerReached(NodeId, Way),
    /// A peer that was reached is no more.
    PeerLost(NodeId, Lost),
    /// UDP does not get through any more, or does again.
    UdpBlocked(bool),
    /// A ping of a [`Command::Ping`] or [`Command::Trace`] came back, or will not.
    Ping(Ticket, Result<PingReply, PingFailure>),
    /// The lookup of a [`Command::Lookup`] ended.
    Lookup(Ticket, Box<Outcome>),
    /// A datagram to send from a port that is used for nothing else.
    Dial(Transmit),
    /// Our record changed: announce it on the links.
    RecordChanged,
    /// Ports were guessed until a straight way was found.
    Guessed {
        /// To whom.
        peer: NodeId,
        /// Checks that it took, of the easy side; sockets, of the hard side.
        checks: usize,
        /// And how long.
        took: Duration,
    },
    /// Only so many sockets could be opened to have their ports guessed, which are too few.
    SocketsMissing(usize),
    /// A stream is wanted.
    WantStream(StreamWanted),
    /// The stream behind this endpoint is not wanted any more.
    HangUp(SocketAddr),
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The next attempt of a handshake.
    Handshake(NodeId),
    /// A look at a session: unanswered, old, expired?
    Session(NodeId),
    /// A probe of the path's MTU.
    Mtu(NodeId),
    /// The next connectivity checks.
    Checks(NodeId),
    /// The next exchange of candidates.
    Upgrade(NodeId),
    /// The next step in guessing ports, or a look at the socket that was kept.
    Spray(NodeId),
    /// The next look at the ways to a peer in use.
    Ways(NodeId),
    /// A question whether we are reached.
    Reach,
    /// A look at our relays.
    Relays,
    /// The next ring of a search for a route.
    Seek(NodeId),
    /// A sign of life of those who carry something.
    Carriers,
    /// Our record is not true any more.
    Record,
    /// A look at streams, and whether UDP gets through.
    Streams,
    /// The end of channels that we carry.
    Channels,
    /// An unconfirmed session of a responder.
    Unconfirmed(NodeId),
    /// The next attempt to resolve an address.
    Resolve(MeshAddress),
    /// The next attempt to fetch a record.
    Fetch(u64),
    /// The next attempt to reach the configured contacts.
    Bootstrap,
    /// Pings that were not answered.
    Pings,
    /// The end of an endpoint that a command named.
    Named(NodeId),
}

/// Why a lookup runs.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Resolve(MeshAddress),
    Command(Ticket),
}

/// One node.
pub struct Node {
    identity: Identity,
    session_config: session::Config,
    own_key: RecipientKey,
    mtu: usize,
    rules: Arc<Rules>,
    shared: Arc<Shared>,
    rng: Rng,
    gate: Gate,
    replays: ReplayCache,
    announces: TokenBucket,
    /// Checks that go to endpoints.
    checks: TokenBucket,
    /// Renewals of our record that others bring about.
    renewals: TokenBucket,
    dht: Dht,
    dht_auto: bool,
    peers: Peers,
    relay: Relay,
    allocations: BTreeMap<NodeId, Allocation>,
    channels: Channels,
    routes: Routes,
    /// Questions to the DHT that we ask for others, by their numbers.
    forwards: BTreeMap<u64, Forwarded>,
    /// Handshakes that searches of others bring about.
    reach_outs: TokenBucket,
    /// When relays with data were last looked for although there were enough without.
    looked_for_data: Option<Instant>,
    observed: Observed,
    sprays: Sprays,
    streams: Streams,
    /// Whether we are reached unasked over IPv4 and over IPv6.
    reach: [Reach; 2],
    /// What others have us dial.
    dials: TokenBucket,
    /// A NAT or a firewall is in between us and the internet.
    mapped: bool,
    /// Where we are is news to others, and who is near to us: until then a lookup may miss somebody.
    new_here_until: Instant,
    resolving: BTreeMap<MeshAddress, Resolving>,
    unreachable: BTreeMap<MeshAddress, (Instant, Duration)>,
    fetches: BTreeMap<u64, Fetch>,
    bootstrap: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// When a session with one of them began last, since we are where we are.
    bootstrap_reached: BTreeMap<NodeId, Instant>,
    bootstrap_wait: Duration,
    lookups: BTreeMap<LookupId, Purpose>,
    pings: BTreeMap<u64, (Ticket, Instant)>,
    /// The last check of the network around us.
    asking: netcheck::Asking,
    local: Vec<LocalNetwork>,
    endpoints: Vec<SocketAddr>,
    /// Where this machine refused to send to the last time, and why.
    refused: BTreeMap<SocketAddr, Refusal>,
    /// A port of the router's that leads to us, as the router says.
    port_mapping: Option<SocketAddr>,
    /// Our UDP ports hop.
    hops: bool,
    record: Option<NodeRecord>,
    twin: Option<lan::Twin>,
    last_timestamp: WallTime,
    timers: Deadlines<Timer>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    orders: VecDeque<SocketOrder>,
    stopping: bool,
    draining: bool,
    snapshot: Arc<Snapshot>,
    published: Published,
    dirty: bool,
}

impl Node {
    /// A node that knows nobody yet; it starts to look for others when [`Node::handle_links`] tells it where it is.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut rng = Rng::from_seed(config.seed);
        let node_id = config.identity.node_id();
        let own_key = RecipientKey::new(&node_id, &config.session.network);
        let mut dht = Dht::new(node_id, config.dht_mode, child_seed(&mut rng), now);
        dht.remember(config.remembered);
        let mut flow_secret = [0; 16];
        rng.fill_bytes(&mut flow_secret);
        let shared = Arc::new(Shared {
            flows: crate::proto::policy::Flows::new(flow_secret),
            drops: Default::default(),
        });
        let rules = Arc::new(config.rules);
        let snapshot = Arc::new(Snapshot::empty(config.identity.address(), own_key.clone(), rules.clone()));
        let mut node = Self {
            gate: Gate::new(&mut rng, now),
            replays: ReplayCache::new(now),
            checks: TokenBucket::new(checks::CHECKS_PER_S, checks::CHECKS_BURST, now),
            renewals: TokenBucket::new(dispatch::RENEWALS_PER_S, dispatch::RENEWALS_BURST, now),
            announces: TokenBucket::new(ANNOUNCE_RATE_PER_S, 2 * ANNOUNCE_RATE_PER_S, now),
            identity: config.identity,
            session_config: config.session,
            own_key,
            mtu: config.mtu,
            rules,
            shared,
            rng,
            dht,
            dht_auto: config.dht_auto,
            peers: Peers::default(),
            relay: Relay::new(config.relay),
            allocations: BTreeMap::new(),
            channels: Channels::default(),
            routes: Routes::new(node_id, now),
            forwards: BTreeMap::new(),
            reach_outs: TokenBucket::new(seeking::REACH_OUTS_PER_S, seeking::REACH_OUTS_BURST, now),
            looked_for_data: None,
            observed: Observed::default(),
            sprays: Sprays::default(),
            reach: Default::default(),
            dials: TokenBucket::new(reach::DIALS_PER_S, reach::DIALS_BURST, now),
            streams: Streams::new(now),
            mapped: false,
            new_here_until: now,
            resolving: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            fetches: BTreeMap::new(),
            bootstrap: BTreeMap::new(),
            bootstrap_reached: BTreeMap::new(),
            bootstrap_wait: timeout::BOOTSTRAP_WAIT_MIN,
            lookups: BTreeMap::new(),
            pings: BTreeMap::new(),
            asking: netcheck::Asking::default(),
            local: Vec::new(),
            endpoints: Vec::new(),
            refused: BTreeMap::new(),
            port_mapping: None,
            hops: false,
            record: None,
            twin: None,
            last_timestamp: WallTime::default(),
            timers: Deadlines::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            orders: VecDeque::new(),
            stopping: false,
            draining: false,
            snapshot,
            published: Published::default(),
            dirty: false,
        };
        for (id, endpoint) in config.bootstrap {
            node.add_peer(now, id, endpoint);
        }
        node
    }

    /// Our name.
    pub const fn node_id(&self) -> NodeId {
        self.identity.node_id()
    }

    /// Our address.
    pub fn address(&self) -> MeshAddress {
        self.identity.address()
    }

    /// Our own record, once we know where we are.
    pub const fn record(&self) -> Option<&NodeRecord> {
        self.record.as_ref()
    }

    /// What the threads of the data path share with us.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// What the data path is to read from now on. Ask after every change.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        let ended = self.relay.touched() > 0 || self.peers.have_lost_sessions();
        if self.dirty || ended || self.peers.touched() > PEERS_MAX {
            self.publish();
        }
        self.snapshot.clone()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What became true next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Node::handle_timeout`].
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        [self.timers.earliest(), self.dht.poll_timeout()].into_iter().flatten().min()
    }

    /// The contacts to save, best first.
    pub fn known(&self) -> Vec<Contact> {
        self.dht.known().collect()
    }

    fn transmit(&mut self, by: impl Into<Hop>, datagram: Vec<u8>) {
        let (to, datagram) = match by.into() {
            Hop::Direct(endpoint) => (endpoint, datagram),
            Hop::Relayed(slot) => match self.relayed(slot, &datagram) {
                Some(relayed) => relayed,
                None => return self.drop(DropReason::Relay),
            },
        };
        if self.transmits.len() < OUTPUT_MAX {
            self.transmits.push_back(Transmit { to, datagram });
        } else {
            self.drop(DropReason::QueueFull);
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() < OUTPUT_MAX {
            self.events.push_back(event);
        } else {
            self.drop(DropReason::QueueFull);
        }
    }

    fn drop(&self, reason: DropReason) {
        self.shared.drops.count(reason);
    }

    /// Wall time that never goes back, for handshakes (WireGuard paper §5.1).
    fn timestamp(&mut self, wall: WallTime) -> WallTime {
        self.last_timestamp = wall.max(WallTime::from_unix_ms(self.last_timestamp.as_unix_ms() + 1));
        self.last_timestamp
    }
}

fn child_seed(rng: &mut Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}
