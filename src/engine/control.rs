//! The control task: owns the node, feeds it and carries out what it says.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::host::clock;
use crate::proto::datapath::{DropReason, Snapshot};
use crate::proto::node::{Command, Event, Node, Refusal, SocketOrder, Ticket, Transmit};
use crate::proto::timer::Instant;
use crate::proto::wire::gso::Virtio;
use crate::tun::Device;
use crate::udp;
use crate::udp::UdpSocket;

use super::handle::{Answer, Ask};
use super::inbox::{Item, LOADED_LEN, Outlet};
use super::kept::Keeper;
use super::plane::socket_for;
use super::sprays::{Heard, Sprays};
use super::{Sockets, Wish};

/// Items taken from the inbox before timers and handles get their turn.
const TURN: usize = 64;
/// "Under load" lasts this long after the inbox was last long (WireGuard, `receive.go`: 1 s).
const LOADED_FOR: Duration = Duration::from_secs(1);

pub(super) struct Control {
    node: Node,
    published: Arc<Snapshot>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    device: Arc<Device>,
    sockets: Sockets,
    keeper: Keeper,
    sprays: Sprays,
    wishes: mpsc::Sender<Wish>,
    answers: BTreeMap<Ticket, Answer>,
    next_ticket: u64,
    loaded_until: Instant,
}

impl Control {
    pub(super) fn new(
        node: Node,
        snapshot: Arc<ArcSwap<Snapshot>>,
        device: Arc<Device>,
        sockets: Sockets,
        keeper: Keeper,
        wishes: mpsc::Sender<Wish>,
    ) -> Self {
        let (published, answers) = (snapshot.load_full(), BTreeMap::new());
        Self {
            node,
            published,
            snapshot,
            device,
            sockets,
            keeper,
            sprays: Sprays::default(),
            wishes,
            answers,
            next_ticket: 0,
            loaded_until: Instant::ZERO,
        }
    }

    /// Runs until every handle is gone.
    pub(super) async fn run(mut self, mut outlet: Outlet, mut asks: mpsc::Receiver<Ask>) {
        loop {
            let due = self.node.poll_timeout();
            let timer = async {
                match due {
                    Some(at) => sleep(at.saturating_since(clock::now())).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                item = outlet.items.recv() => match item {
                    Some(item) => self.take(item, &mut outlet.items),
                    None => return,
                },
                packet = outlet.unrouted.recv() => match packet {
                    Some(packet) => self.node.handle_unrouted(clock::now(), clock::wall(), packet),
                    None => return,
                },
                ask = asks.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => return,
                },
                () = self.sprays.readable() => self.read_sprays(),
                () = timer => {}
            }
            // Packets must not hold up what is due.
            if self.node.poll_timeout().is_some_and(|at| at <= clock::now()) {
                self.node.handle_timeout(clock::now(), clock::wall());
            }
            self.flush();
        }
    }

    fn take(&mut self, first: Item, items: &mut mpsc::Receiver<Item>) {
        let now = clock::now();
        if items.len() >= LOADED_LEN {
            self.loaded_until = now + LOADED_FOR;
        }
        self.handle(first);
        for _ in 1..TURN {
            let Ok(item) = items.try_recv() else { break };
            self.handle(item);
        }
    }

    fn handle(&mut self, item: Item) {
        let (now, wall) = (clock::now(), clock::wall());
        match item {
            Item::Setup { source, mut packet } => {
                self.node.handle_setup(now, wall, source, &mut packet, now < self.loaded_until);
            }
            Item::Reply { source, mut packet } => self.node.handle_reply(now, wall, source, &mut packet),
            Item::Messages { local_index, source, plaintext } => {
                self.node.handle_control(now, wall, local_index, source, &plaintext);
            }
            Item::TooBig { to, len } => self.node.handle_too_big(now, to, len),
            Item::Notice(notice) => self.node.handle_notice(now, wall, notice),
        }
    }

    /// What came to sockets whose ports are being guessed.
    fn read_sprays(&mut self) {
        let now = clock::now();
        for Heard { socket, local_index, source, item } in
            self.sprays.receive(&self.published, &self.node.shared(), now)
        {
            if let Some(source) = source.direct() {
                self.node.handle_socket_heard(now, clock::wall(), local_index, source, socket);
            }
            self.handle(item);
        }
    }

    fn answer(&mut self, ask: Ask) {
        let (now, wall) = (clock::now(), clock::wall());
        match ask {
            Ask::With(work) => work(&mut self.node, now, wall),
            Ask::Ping(target, answer) => {
                let ticket = self.expect(Answer::Ping(answer));
                self.node.handle_command(now, wall, Command::Ping(ticket, target));
            }
            Ask::Trace(peer, hop, answer) => {
                let ticket = self.expect(Answer::Ping(answer));
                self.node.handle_command(now, wall, Command::Trace(ticket, peer, hop));
            }
            Ask::Lookup(address, answer) => {
                let ticket = self.expect(Answer::Lookup(answer));
                self.node.handle_command(now, wall, Command::Lookup(ticket, address));
            }
        }
    }

    fn expect(&mut self, answer: Answer) -> Ticket {
        self.answers.retain(|_, answer| !answer.is_abandoned());
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.answers.insert(ticket, answer);
        ticket
    }

    /// Publishes what changed, then sends: an answer to what we send must find its session.
    fn flush(&mut self) {
        let snapshot = self.node.snapshot();
        if !Arc::ptr_eq(&snapshot, &self.published) {
            self.snapshot.store(snapshot.clone());
            self.published = snapshot;
        }
        while let Some(order) = self.node.poll_socket_order() {
            self.carry_out(order);
        }
        while let Some(transmit) = self.node.poll_transmit() {
            self.send(&transmit);
        }
        while let Some(event) = self.node.poll_event() {
            self.report(event);
        }
    }

    fn carry_out(&mut self, order: SocketOrder) {
        match order {
            SocketOrder::Open { spray, count } => {
                let kept = self.keeper.published().load();
                let any = SocketAddr::from(([0; 4], 0));
                let opened = self.sprays.open(spray, count, socket_for(&self.sockets, &kept, any));
                self.node.handle_sockets(clock::now(), clock::wall(), spray, opened);
            }
            SocketOrder::Send { socket, to, datagram } => {
                if !self.sprays.send(socket, to, &datagram) {
                    self.node.shared().drops.count(DropReason::Io);
                }
            }
            SocketOrder::Keep { socket, to } => {
                if let Some(socket) = self.sprays.take(socket) {
                    self.keeper.keep(to, socket);
                }
            }
            SocketOrder::Close { spray } => self.sprays.close(spray),
            SocketOrder::Release { to } => self.keeper.release(to),
        }
    }

    fn send(&mut self, transmit: &Transmit) {
        let kept = self.keeper.published().load();
        let socket = socket_for(&self.sockets, &kept, transmit.to);
        match socket.map(|socket| socket.send_to(&transmit.datagram, transmit.to)) {
            Some(Ok(_)) => self.node.handle_sent(transmit.to, None),
            // An answer to a probe, most likely; the node sends a shorter one.
            Some(Err(error)) if udp::is_too_big(&error) => {
                self.node.handle_too_big(clock::now(), transmit.to, transmit.datagram.len());
            }
            Some(Err(error)) if udp::is_filtered(&error) => {
                self.node.shared().drops.count(DropReason::Filtered);
                self.node.handle_sent(transmit.to, Some(Refusal::Filter));
            }
            Some(Err(error)) if udp::is_routeless(&error) => {
                self.node.shared().drops.count(DropReason::Io);
                self.node.handle_sent(transmit.to, Some(Refusal::NoRoute));
            }
            Some(Err(_)) | None => self.node.shared().drops.count(DropReason::Io),
        }
    }

    /// Sends from a port that nobody has sent to.
    fn dial(&self, transmit: &Transmit) {
        let sockets = self.sockets.iter().map(|socket| socket.local_addr().ip());
        let own = sockets.filter(|ip| ip.is_ipv4() == transmit.to.is_ipv4()).min();
        let sent = own.and_then(|ip| {
            let socket = UdpSocket::bind(SocketAddr::new(ip, 0)).ok()?;
            socket.send_to(&transmit.datagram, transmit.to).ok()
        });
        if sent.is_none() {
            self.node.shared().drops.count(DropReason::Io);
        }
    }

    fn report(&mut self, event: Event) {
        match event {
            Event::ToInterface(packet) => {
                if self.device.send(Virtio::PLAIN, &[&packet]).is_err() {
                    self.node.shared().drops.count(DropReason::Io);
                }
            }
            Event::Dial(transmit) => self.dial(&transmit),
            Event::PeerUp(id) => tracing::debug!(peer = %id, "session established"),
            Event::PeerReached(id, way) => {
                tracing::info!(peer = %id, relays = way.via.len(), tcp = way.by_stream, "peer reached");
            }
            Event::PeerLost(id, why) => tracing::info!(peer = %id, %why, "peer lost"),
            Event::UdpBlocked(true) => tracing::info!("UDP does not get through: TCP is tried"),
            Event::UdpBlocked(false) => tracing::info!("UDP gets through again"),
            Event::RecordChanged => tracing::debug!("own record renewed"),
            Event::Guessed { peer, checks, took } => {
                tracing::debug!(%peer, checks, took_ms = took.as_millis() as u64, "way found by guessing ports");
            }
            Event::SocketsMissing(opened) => tracing::info!(
                opened,
                "too few descriptors to have ports guessed: the peer stays on a relay; LimitNOFILE= in the unit, or \
                 `ulimit -n`, allows more"
            ),
            // Without room, or nobody to carry it out, the node asks again.
            Event::WantStream(wanted) => drop(self.wishes.try_send(Wish::Open(wanted))),
            Event::HangUp(endpoint) => drop(self.wishes.try_send(Wish::HangUp(endpoint))),
            Event::Ping(ticket, outcome) => {
                if let Some(Answer::Ping(answer)) = self.answers.remove(&ticket) {
                    let _ = answer.send(outcome);
                }
            }
            Event::Lookup(ticket, outcome) => {
                if let Some(Answer::Lookup(answer)) = self.answers.remove(&ticket) {
                    let _ = answer.send(*outcome);
                }
            }
        }
    }
}
