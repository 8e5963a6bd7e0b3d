//! One simulated machine: a node, its data path, and a kernel that answers pings.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use auramesh::proto::datapath::{self, DropReason, INNER_LEN_MAX, Inbound, Outbound, Shared, Snapshot};
use auramesh::proto::dht::Mode;
use auramesh::proto::identity::{Identity, NodeId};
use auramesh::proto::node::{Config, Event, Node, Transmit};
use auramesh::proto::path::LocalNetwork;
use auramesh::proto::policy::Rules;
use auramesh::proto::session;
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::control::Contact;
use auramesh::proto::wire::envelope::NetworkSecret;
use auramesh::proto::wire::inner::{IcmpError, icmp_error};
use auramesh::proto::wire::session::{HEADER_LEN, OVERHEAD, PADDING_MULTIPLE};

use crate::packet;

/// MTU of the interface in bytes.
pub(crate) const MTU: usize = 1400;
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
}

impl Machine {
    pub(crate) fn identity(&self) -> Identity {
        Identity::from_seed(self.identity)
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
    /// Times that the node was woken by a deadline.
    pub(crate) wakeups: u64,
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Bytes sent, without IP and UDP headers.
    pub(crate) sent_bytes: u64,
    /// So many notices of the data path find no room in the inbox.
    pub(crate) notices_lost: u32,
    control_now: Instant,
    /// The earliest wake-up in the event queue.
    pub(crate) wake_at: Option<Instant>,
    out: Vec<Transmit>,
}

impl Host {
    pub(crate) fn start(machine: Machine, seed: [u8; 32], now: Instant) -> Self {
        let config = Config {
            identity: machine.identity(),
            session: session::Config::new(true, NetworkSecret::default()),
            dht_mode: machine.mode,
            rules: machine.rules.clone(),
            mtu: MTU,
            bootstrap: machine.bootstrap.clone(),
            remembered: machine.remembered.clone(),
            seed,
        };
        let mut node = Node::new(config, now);
        let (snapshot, shared) = (node.snapshot(), node.shared());
        let mut host = Self {
            node,
            machine,
            snapshot,
            shared,
            delivered: Vec::new(),
            events: Vec::new(),
            wakeups: 0,
            sent: 0,
            sent_bytes: 0,
            notices_lost: 0,
            control_now: now,
            wake_at: None,
            out: Vec::new(),
        };
        host.settle(now);
        host
    }

    /// Tells the node where its machine is, as a change of links does.
    pub(crate) fn settle(&mut self, now: Instant) {
        let endpoint = self.machine.endpoint;
        let local =
            vec![LocalNetwork { ip: endpoint.ip(), prefix_len: if endpoint.is_ipv4() { 24 } else { 64 } }];
        self.node.handle_links(now, self.wall(now), local, vec![endpoint]);
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

    /// A datagram from the underlay.
    pub(crate) fn handle_datagram(&mut self, now: Instant, source: SocketAddr, datagram: &mut [u8]) {
        let (data, now) = (now, self.control_time(now));
        let wall = self.wall(now);
        let snapshot = self.snapshot.clone();
        let (verdict, notice) = datapath::inbound(&snapshot, &self.shared, source, datagram, data);
        let verdict = match verdict {
            Inbound::Deliver(packet) => Kernel::Deliver(packet.to_vec()),
            Inbound::Control { local_index, messages } => Kernel::Control(local_index, messages.to_vec()),
            Inbound::Setup => Kernel::Setup,
            Inbound::Reply => Kernel::Reply,
            Inbound::Drop(_) => Kernel::Nothing,
        };
        if let Some(notice) = notice {
            if self.notices_lost > 0 {
                self.notices_lost -= 1;
                datapath::notice_lost(&snapshot, notice);
            } else {
                self.node.handle_notice(now, wall, notice);
            }
        }
        match verdict {
            Kernel::Deliver(packet) => self.deliver(now, packet),
            Kernel::Control(index, messages) => self.node.handle_control(now, wall, index, &messages),
            Kernel::Setup => {
                let loaded = self.machine.loaded;
                self.node.handle_setup(now, wall, source, datagram, loaded);
            }
            Kernel::Reply => self.node.handle_reply(now, wall, source, datagram),
            Kernel::Nothing => {}
        }
    }

    /// A packet that a program of the machine sends to the mesh.
    pub(crate) fn send(&mut self, now: Instant, packet: &[u8]) {
        let mut buffer = vec![0; HEADER_LEN + packet.len() + OVERHEAD + PADDING_MULTIPLE];
        buffer[HEADER_LEN..HEADER_LEN + packet.len()].copy_from_slice(packet);
        let snapshot = self.snapshot.clone();
        let (verdict, notice) = datapath::outbound(&snapshot, &self.shared, &mut buffer, packet.len(), now);
        match verdict {
            Outbound::Send { len, to } => {
                buffer.truncate(len);
                self.out.push(Transmit { to, datagram: buffer });
            }
            Outbound::Queue if packet.len() <= INNER_LEN_MAX => {
                let now = self.control_time(now);
                self.node.handle_unrouted(now, self.wall(now), packet.to_vec());
            }
            Outbound::Queue => self.answer(now, IcmpError::TooBig(INNER_LEN_MAX as u32), packet),
            Outbound::TooBig(mtu) => self.answer(now, IcmpError::TooBig(mtu), packet),
            Outbound::Drop(_) => {}
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

    /// Publishes what changed, then hands out what is to be sent, as the engine does.
    pub(crate) fn flush(&mut self, now: Instant) -> Vec<Transmit> {
        self.snapshot = self.node.snapshot();
        let mut out = std::mem::take(&mut self.out);
        while let Some(transmit) = self.node.poll_transmit() {
            out.push(transmit);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::ToInterface(packet) => self.delivered.push((now, packet)),
                Event::PeerUp(_) | Event::RecordChanged => {}
                event @ (Event::Ping(..) | Event::Lookup(..)) => self.events.push((now, event)),
            }
        }
        self.sent += out.len() as u64;
        self.sent_bytes += out.iter().map(|transmit| transmit.datagram.len() as u64).sum::<u64>();
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

/// A verdict without the borrow of the datagram.
enum Kernel {
    Deliver(Vec<u8>),
    Control(u32, Vec<u8>),
    Setup,
    Reply,
    Nothing,
}

/// A duration in words for what a test prints.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
