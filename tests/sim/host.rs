//! One simulated machine: a node, its data path, and a kernel that answers pings.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use auramesh::proto::datapath::{
    self, Batch, DropReason, Inward, Notice, Outbound, Outbox, Reception, Shared, Sink, Snapshot, Train, Turn,
};
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::{Identity, NodeId};
use auramesh::proto::node::{Config, Event, Lost, Node, SocketOrder, Transmit};
use auramesh::proto::path::LocalNetwork;
use auramesh::proto::path::spray::SocketId;
use auramesh::proto::policy::Rules;
use auramesh::proto::relay;
use auramesh::proto::session;
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::control::Contact;
use auramesh::proto::wire::envelope::NetworkSecret;
use auramesh::proto::wire::gso::Virtio;
use auramesh::proto::wire::inner::{IcmpError, icmp_error};
use auramesh::proto::wire::relay::Hop;

use crate::network::packet_len;
use crate::packet;

/// MTU of the interface in bytes.
pub(crate) const MTU: usize = 1400;
/// Sockets that a machine may open beside the ordinary one.
const SOCKETS_FREE: usize = 1000;
/// The first port of those.
const OTHER_PORTS: u16 = 20_000;
/// Time from the data path to the control task.
const HAND_OVER: Duration = Duration::from_micros(30);
/// Calendar time at the start of every simulation.
pub(crate) const WALL_START_MS: u64 = 1_800_000_000_000;

/// What a machine is made of, so that it can be started again.
#[derive(Clone)]
pub(crate) struct Machine {
    /// Seed of its identity.
    pub(crate) identity: [u8; 32],
    /// Where it is.
    pub(crate) endpoint: SocketAddr,
    /// Where it is by the other IP version, if it has both.
    pub(crate) also_at: Option<SocketAddr>,
    /// What it knows at the start.
    pub(crate) bootstrap: Vec<(NodeId, SocketAddr)>,
    /// Contacts that it saved.
    pub(crate) remembered: Vec<Contact>,
    /// What may enter unasked.
    pub(crate) rules: Rules,
    /// Whether it serves the DHT.
    pub(crate) mode: Mode,
    /// How far its calendar is off, in milliseconds.
    pub(crate) wall_offset_ms: i64,
    /// Other machines have to prove their address.
    pub(crate) loaded: bool,
    /// Whose packets it carries.
    pub(crate) relay: relay::Config,
    /// Threads that send; the last of them carries all packets.
    pub(crate) threads: u8,
}

impl Machine {
    pub(crate) fn identity(&self) -> Identity {
        Identity::from_seed(self.identity)
    }

    /// Where it sends from.
    pub(crate) fn source(&self, to: SocketAddr) -> IpAddr {
        self.also_at.filter(|own| own.is_ipv4() == to.is_ipv4()).unwrap_or(self.endpoint).ip()
    }
}

/// A running machine.
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) machine: Machine,
    /// What the data path reads now.
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) shared: Arc<Shared>,
    /// Packets that came out of the interface, and when.
    pub(crate) delivered: Vec<(Instant, Vec<u8>)>,
    /// What the node said.
    pub(crate) events: Vec<(Instant, Event)>,
    /// Who was told to be reached, or why it is lost.
    pub(crate) told: Vec<(NodeId, Option<Lost>)>,
    /// Times that the node was woken by a deadline.
    pub(crate) wakeups: u64,
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Bytes sent, without IP and UDP headers.
    pub(crate) sent_bytes: u64,
    /// Datagrams that the own link is too narrow for.
    pub(crate) refused: u64,
    /// Ways found by guessing ports: checks, and how long it took.
    pub(crate) guessed: Vec<(usize, Duration)>,
    /// Sockets that it may open beside the ordinary one.
    pub(crate) sockets_free: usize,
    /// Ports of sockets that are being guessed, and of those kept for an endpoint.
    sprays: BTreeMap<SocketId, u16>,
    kept: BTreeMap<SocketAddr, u16>,
    next_port: u16,
    /// What is to be sent from a port of its own.
    pub(crate) dialled: Vec<Transmit>,
    /// So many notices of the data path find no room in the inbox.
    pub(crate) notices_lost: u32,
    outbox: Outbox,
    reception: Reception,
    control_now: Instant,
    /// The earliest wake-up in the event queue.
    pub(crate) wake_at: Option<Instant>,
    out: Vec<Transmit>,
}

impl Host {
    pub(crate) fn start(machine: Machine, seed: [u8; 32], now: Instant) -> Self {
        let config = Config {
            identity: machine.identity(),
            session: session::Config::new(true, NetworkSecret::default()).with_threads(machine.threads),
            dht_mode: machine.mode,
            dht_auto: machine.mode == Mode::Server,
            relay: machine.relay.clone(),
            rules: machine.rules.clone(),
            mtu: MTU,
            bootstrap: machine.bootstrap.clone(),
            remembered: machine.remembered.clone(),
            seed,
        };
        let mut node = Node::new(config, now);
        let (snapshot, shared) = (node.snapshot(), node.shared());
        let outbox = Outbox::of_thread(machine.threads - 1);
        let mut host = Self {
            node,
            machine,
            snapshot,
            shared,
            delivered: Vec::new(),
            events: Vec::new(),
            told: Vec::new(),
            wakeups: 0,
            sent: 0,
            sent_bytes: 0,
            refused: 0,
            guessed: Vec::new(),
            sockets_free: SOCKETS_FREE,
            sprays: BTreeMap::new(),
            kept: BTreeMap::new(),
            next_port: OTHER_PORTS,
            dialled: Vec::new(),
            notices_lost: 0,
            outbox,
            reception: Reception::new(false),
            control_now: now,
            wake_at: None,
            out: Vec::new(),
        };
        host.settle(now);
        host
    }

    /// Tells the node where its machine is, as a change of links does.
    pub(crate) fn settle(&mut self, now: Instant) {
        let endpoints: Vec<_> = [self.machine.endpoint].into_iter().chain(self.machine.also_at).collect();
        let network = |endpoint: &SocketAddr| LocalNetwork {
            ip: endpoint.ip(),
            prefix_len: if endpoint.is_ipv4() { 24 } else { 64 },
        };
        let local = endpoints.iter().map(network).collect();
        self.node.handle_links(now, self.wall(now), local, endpoints);
    }

    /// Tells the node that its machine is on no network.
    pub(crate) fn unsettle(&mut self, now: Instant) {
        self.node.handle_links(now, self.wall(now), Vec::new(), Vec::new());
    }

    pub(crate) fn id(&self) -> NodeId {
        self.node.node_id()
    }

    pub(crate) fn address(&self) -> Ipv6Addr {
        self.node.address().ipv6()
    }

    pub(crate) fn wall(&self, now: Instant) -> WallTime {
        let ms = WALL_START_MS + now.as_nanos() / 1_000_000;
        WallTime::from_unix_ms(ms.saturating_add_signed(self.machine.wall_offset_ms))
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.shared.drops.of(reason)
    }

    /// The sockets beside the ordinary one: those being guessed, and those kept.
    pub(crate) fn sockets(&self) -> (usize, usize) {
        (self.sprays.len(), self.kept.len())
    }

    /// True when a socket of the machine has this port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        let mut others = self.sprays.values().chain(self.kept.values());
        port == self.machine.endpoint.port() || others.any(|other| *other == port)
    }

    /// A datagram from the underlay to one of the machine's ports.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        port: u16,
        datagram: &mut [u8],
    ) {
        if let Some(socket) = self.sprays.iter().find(|(_, other)| **other == port).map(|(id, _)| *id) {
            return self.handle_guessed(now, source, socket, datagram);
        }
        let (data, now) = (now, self.control_time(now));
        let snapshot = self.snapshot.clone();
        let len = datagram.len();
        let mut kernel = Kernel::default();
        let mut turn = Turn { snapshot: &snapshot, shared: &self.shared, now: data, out: &mut kernel };
        self.reception.handle_train(&mut turn, source, 0, datagram, len);
        self.take(now, &snapshot, kernel);
    }

    /// A datagram to a socket whose port is being guessed.
    fn handle_guessed(&mut self, now: Instant, source: SocketAddr, socket: SocketId, datagram: &mut [u8]) {
        let (data, now) = (now, self.control_time(now));
        let (snapshot, len) = (self.snapshot.clone(), datagram.len());
        let mut kernel = Kernel::default();
        let mut turn = Turn { snapshot: &snapshot, shared: &self.shared, now: data, out: &mut kernel };
        Reception::new(false).handle_train(&mut turn, source, 0, datagram, len);
        let heard = kernel.notices.iter().filter_map(|notice| match notice {
            Notice::Heard { local_index, .. } => Some(*local_index),
            Notice::Woke { .. } => None,
        });
        for index in heard.chain(kernel.control.iter().map(|(index, ..)| *index)) {
            self.node.handle_socket_heard(now, self.wall(now), index, source, socket);
        }
        let Kernel { notices, control, .. } = kernel;
        self.take(now, &snapshot, Kernel { notices, control, ..Kernel::default() });
    }

    /// Does with the machine's sockets what the node wants.
    fn carry_out(&mut self, now: Instant, order: SocketOrder, out: &mut Vec<(u16, Transmit)>) {
        match order {
            SocketOrder::Open { spray, count } => {
                let opened = count.min(self.sockets_free - self.sprays.len() - self.kept.len());
                for number in 0..opened as u16 {
                    self.sprays.insert(SocketId { spray, number }, self.next_port);
                    self.next_port += 1;
                }
                let now = self.control_time(now);
                self.node.handle_sockets(now, self.wall(now), spray, opened);
            }
            SocketOrder::Send { socket, to, datagram } => {
                out.extend(self.sprays.get(&socket).map(|port| (*port, Transmit { to, datagram })));
            }
            SocketOrder::Keep { socket, to } => {
                self.kept.extend(self.sprays.remove(&socket).map(|port| (to, port)));
                self.sprays.retain(|id, _| id.spray != socket.spray);
            }
            SocketOrder::Close { spray } => self.sprays.retain(|id, _| id.spray != spray),
            SocketOrder::Release { to } => drop(self.kept.remove(&to)),
        }
    }

    /// When the data path wants to be woken.
    pub(crate) fn reception_timeout(&self) -> Option<Instant> {
        self.reception.poll_timeout()
    }

    /// Superframes whose slices stay away are given up.
    pub(crate) fn handle_reception_timeout(&mut self, now: Instant) {
        let (snapshot, mut kernel) = (self.snapshot.clone(), Kernel::default());
        let mut turn = Turn { snapshot: &snapshot, shared: &self.shared, now, out: &mut kernel };
        self.reception.handle_timeout(&mut turn);
        let now = self.control_time(now);
        self.take(now, &snapshot, kernel);
    }

    fn take(&mut self, now: Instant, snapshot: &Snapshot, kernel: Kernel) {
        let wall = self.wall(now);
        self.out.extend(kernel.forwarded);
        for notice in kernel.notices {
            if self.notices_lost > 0 {
                self.notices_lost -= 1;
                datapath::notice_lost(snapshot, notice);
            } else {
                self.node.handle_notice(now, wall, notice);
            }
        }
        for packet in kernel.packets {
            self.deliver(now, packet);
        }
        for (index, source, messages) in kernel.control {
            self.node.handle_control(now, wall, index, source, &messages);
        }
        for (source, mut packet) in kernel.setup {
            let loaded = self.machine.loaded;
            self.node.handle_setup(now, wall, source, &mut packet, loaded);
        }
        for (source, mut packet) in kernel.replies {
            self.node.handle_reply(now, wall, source, &mut packet);
        }
    }

    /// A packet that a program of the machine sends to the mesh.
    pub(crate) fn send(&mut self, now: Instant, packet: &[u8]) {
        let (snapshot, shared) = (self.snapshot.clone(), self.shared.clone());
        let mut wire = Wire(&mut self.out);
        let mut batch = Batch::new(&snapshot, &shared, &mut self.outbox, &mut wire, now);
        let (verdict, notice) = batch.push(packet, Virtio::PLAIN);
        batch.flush();
        match verdict {
            Outbound::Queue => {
                let now = self.control_time(now);
                self.node.handle_unrouted(now, self.wall(now), packet.to_vec());
            }
            Outbound::TooBig(mtu) => self.answer(now, IcmpError::TooBig(mtu), packet),
            Outbound::Sent | Outbound::Drop(_) => {}
        }
        if let Some(notice) = notice {
            let now = self.control_time(now);
            self.node.handle_notice(now, self.wall(now), notice);
        }
    }

    /// When the control task comes to it: later than the data path, and never earlier than before.
    pub(crate) fn control_time(&mut self, now: Instant) -> Instant {
        self.control_now = self.control_now.max(now + HAND_OVER);
        self.control_now
    }

    fn answer(&mut self, now: Instant, error: IcmpError, packet: &[u8]) {
        let answer = icmp_error(error, &self.address(), packet);
        self.delivered.extend(answer.map(|answer| (now, answer)));
    }

    fn deliver(&mut self, now: Instant, packet: Vec<u8>) {
        let reply = packet::echo_reply(&packet);
        self.delivered.push((now, packet));
        if let Some(reply) = reply {
            self.send(now, &reply);
        }
    }

    /// Publishes what changed, then hands out what is to be sent, and from which port, as the engine does.
    pub(crate) fn flush(&mut self, now: Instant, interface_mtu: usize) -> Vec<(u16, Transmit)> {
        let mut out = Vec::new();
        while let Some(order) = self.node.poll_socket_order() {
            self.carry_out(now, order, &mut out);
        }
        let from_interface = std::mem::take(&mut self.out);
        let mut waiting = from_interface.into_iter();
        while let Some(transmit) = waiting.next().or_else(|| self.node.poll_transmit()) {
            let len = transmit.datagram.len();
            if packet_len(transmit.to, len) > interface_mtu {
                self.refused += 1;
                let now = self.control_time(now);
                self.node.handle_too_big(now, transmit.to, len);
            } else {
                let port = self.kept.get(&transmit.to).copied();
                out.push((port.unwrap_or(self.machine.endpoint.port()), transmit));
            }
        }
        self.snapshot = self.node.snapshot();
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::ToInterface(packet) => self.delivered.push((now, packet)),
                Event::PeerReached(id, _) => self.told.push((id, None)),
                Event::PeerLost(id, why) => self.told.push((id, Some(why))),
                Event::PeerUp(_)
                | Event::UdpBlocked(_)
                | Event::RecordChanged
                | Event::SocketsMissing(_)
                | Event::WantStream(_)
                | Event::HangUp(_) => {}
                Event::Guessed { checks, took, .. } => self.guessed.push((checks, took)),
                Event::Dial(transmit) => self.dialled.push(transmit),
                event @ (Event::Ping(..) | Event::Lookup(..)) => self.events.push((now, event)),
            }
        }
        self.sent += out.len() as u64;
        self.sent_bytes += out.iter().map(|(_, transmit)| transmit.datagram.len() as u64).sum::<u64>();
        out
    }

    /// Round trip of the echo reply with this identifier and sequence, if it came.
    pub(crate) fn echo_reply_at(&self, id: u16, sequence: u16) -> Option<Instant> {
        let wanted = Some((id, sequence));
        self.delivered.iter().find(|(_, packet)| packet::is_echo_reply(packet) == wanted).map(|(at, _)| *at)
    }

    /// The first ICMPv6 error that came out of the interface, and when.
    pub(crate) fn icmp_error(&self) -> Option<(Instant, (u8, u8, u32))> {
        self.delivered.iter().find_map(|(at, packet)| packet::icmp_error(packet).map(|error| (*at, error)))
    }
}

/// What comes out of the data path.
#[derive(Default)]
struct Kernel {
    notices: Vec<Notice>,
    packets: Vec<Vec<u8>>,
    control: Vec<(u32, Hop, Vec<u8>)>,
    setup: Vec<(Hop, Vec<u8>)>,
    replies: Vec<(Hop, Vec<u8>)>,
    forwarded: Vec<Transmit>,
}

impl Inward for Kernel {
    fn deliver(&mut self, _: Virtio, pieces: &[&[u8]]) {
        self.packets.push(pieces.concat());
    }

    fn control(&mut self, local_index: u32, source: Hop, messages: &[u8]) {
        self.control.push((local_index, source, messages.to_vec()));
    }

    fn setup(&mut self, source: Hop, packet: &[u8]) {
        self.setup.push((source, packet.to_vec()));
    }

    fn reply(&mut self, source: Hop, packet: &[u8]) {
        self.replies.push((source, packet.to_vec()));
    }

    fn forward(&mut self, train: Train<'_>) {
        Wire(&mut self.forwarded).send(&[train]);
    }

    fn notify(&mut self, notice: Notice) {
        self.notices.push(notice);
    }
}

/// Trains, taken apart.
struct Wire<'a>(&'a mut Vec<Transmit>);

impl Sink for Wire<'_> {
    fn send(&mut self, trains: &[Train<'_>]) {
        for train in trains {
            let datagrams = train.bytes.chunks(train.datagram_len);
            self.0.extend(datagrams.map(|d| Transmit { to: train.to, datagram: d.to_vec() }));
        }
    }
}

/// A duration in words for what a test prints.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
