//! Guessing ports (`path::spray`): when, towards whom, how often, and the sockets that it takes.
//!
//! ```text
//! Candidates ─► one NAT of the two is hard ─► our relays vouch for the peer ─► sockets and checks ─► answered: one socket is
//!               channels through the peer's relays, so that they can vouch for us                    kept for this endpoint
//! ```
//!
//! What a hostile peer can make us do: send [`PROBES_MAX`] pings of 48 bytes to the address, or [`CHECKS_MAX`] to the
//! endpoint, at which [`VOUCHERS`] relays *that we chose* see it in a session of its own, once in [`SPRAY_AGAIN`] for the peer and
//! for the address. It cannot name somebody else. Whoever runs those relays too can: to one address 96 KB in ten
//! minutes from each node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::path::observed::Mapping;
use crate::proto::path::spray::{Action, Side, SocketId, Spray};
#[cfg(doc)]
use crate::proto::path::spray::{CHECKS_MAX, PROBES_MAX};
use crate::proto::path::spray::{SOCKETS_MAX, SOCKETS_MIN};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Control, SprayStep};
use crate::proto::wire::relay::Hop;
use crate::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE};

use super::history::Reason;
use super::relays::KEEPALIVE;
use super::{Event, Node, Timer};

/// Least time between two sprays towards one peer, and towards one address.
pub const SPRAY_AGAIN: Duration = Duration::from_secs(600);
/// The same after one that found a way: it showed that the peer is there. The way was lost if there is another one.
pub const SPRAY_AGAIN_PROVEN: Duration = Duration::from_secs(10);
/// And after one that did not begin: relays were asked in vain, or the peer was not as far.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Sprays at once, of either side.
pub const SPRAYS_MAX: usize = 2;
/// Peers at once for which relays are asked, and those that are sprayed.
const ASKED_MAX: usize = 8;
/// Sockets kept for the ways that sprays have found.
pub const KEPT_MAX: usize = 64;
/// Relays of ours that have to see the peer where it says; all, if we have fewer.
const VOUCHERS: usize = super::RELAYS_WANTED;
/// Orders to the shell that wait to be drained: two rounds of checks, and what goes with them.
const ORDERS_MAX: usize = 2 * SPRAYS_MAX * SOCKETS_MAX;
/// Addresses remembered that sprays went to; no other is a target meanwhile.
const ADDRESSES_MAX: usize = 256;
/// Ordinary checks get so long, and so many round trips by the relay.
const CHECKS_FIRST: Duration = Duration::from_millis(300);
const CHECKS_FIRST_RTTS: u32 = 2;
/// A socket whose way is not used any more is kept for so long: the way may come back.
const KEPT_UNUSED: Duration = Duration::from_secs(60);

/// What is to be done with sockets beside the ordinary ones: those of a spray, and those kept of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketOrder {
    /// Open so many sockets for a spray, and say how many there are: [`Node::handle_sockets`].
    Open {
        /// Number of the spray.
        spray: u32,
        /// At most so many.
        count: usize,
    },
    /// Send a datagram from one of them.
    Send {
        /// Which one.
        socket: SocketId,
        /// Where to.
        to: SocketAddr,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// All that goes to this endpoint leaves by this socket from now on; the others of the spray are closed.
    Keep {
        /// Which one.
        socket: SocketId,
        /// Where to.
        to: SocketAddr,
    },
    /// Close the sockets of a spray.
    Close {
        /// Number of the spray.
        spray: u32,
    },
    /// Close the socket that was kept for this endpoint.
    Release {
        /// The endpoint.
        to: SocketAddr,
    },
}

/// All that is known of sprays beside the peers.
#[derive(Debug, Default)]
pub(super) struct Sprays {
    /// Sprays so far.
    count: u32,
    /// Addresses that were sprayed, and until when not again.
    targets: BTreeMap<IpAddr, Instant>,
}

/// A socket that was kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    to: SocketAddr,
    /// Since when another way is used.
    unused: Option<Instant>,
}

impl Node {
    /// The next thing to do with extra sockets. Drain these before the datagrams.
    pub fn poll_socket_order(&mut self) -> Option<SocketOrder> {
        self.orders.pop_front()
    }

    fn order(&mut self, order: SocketOrder) {
        if self.orders.len() < ORDERS_MAX || !matches!(order, SocketOrder::Send { .. }) {
            self.orders.push_back(order);
        } else {
            self.drop(DropReason::QueueFull);
        }
    }

    /// The peer has said where it may be reached. Ordinary checks are under way; if they are likely to come to nothing,
    /// what a spray needs is prepared beside them.
    pub(super) fn plan_spray(&mut self, now: Instant, wall: WallTime, id: NodeId, endpoints: &[SocketAddr]) {
        let Some(peer) = self.peers.of(&id) else { return };
        let mapping = self.observed.mapping(now, true, |ip| self.is_own(ip));
        let side = match (mapping, peer.maps_dependently) {
            (Mapping::Dependent, false) => Side::Hard,
            (Mapping::Independent, true) => Side::Easy,
            _ => return,
        };
        let is_public = |endpoint: &&SocketAddr| endpoint.is_ipv4() && path::is_global(endpoint.ip());
        let Some(target) = endpoints.iter().find(is_public).copied() else { return };
        let is_soon = now < peer.spray_after && peer.spray_after <= now + SPRAY_AGAIN_PROVEN;
        if is_soon && peer.path.is_relayed() && peer.spray.is_none() {
            let (timer, at) = (Timer::Upgrade(id), peer.spray_after);
            if self.timers.deadline(&timer).is_none_or(|planned| planned > at) {
                self.timers.arm(timer, at);
            }
            return;
        }
        let possible = peer.path.is_relayed()
            && peer.spray.is_none()
            && self.peers.iter().filter(|peer| peer.spray.is_some()).count() < ASKED_MAX
            && now >= peer.spray_after
            && path::is_admissible(&target, &self.local)
            && self.observed.endpoint(now, true).is_some_and(|(own, _)| own.ip() != target.ip())
            && self.relays().next().is_some();
        let begins = now + CHECKS_FIRST.max(peer.rtt.unwrap_or_default() * CHECKS_FIRST_RTTS);
        if !possible || !self.may_spray(now, id, target) {
            return;
        }
        self.sprays.count += 1;
        let spray = Spray::new(now, begins, side, self.sprays.count, target, &mut self.rng);
        self.release(now, id);
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.spray = Some(spray);
        }
        self.tend_spray(now, wall, id);
    }

    /// True when neither the target nor the node has had too many sprays.
    fn may_spray(&mut self, now: Instant, id: NodeId, target: SocketAddr) -> bool {
        self.sprays.targets.retain(|_, until| now < *until);
        let others = || self.peers.iter().filter(|peer| peer.id != id);
        let (targets, ip) = (&self.sprays.targets, target.ip());
        targets.len() < ADDRESSES_MAX
            && !targets.contains_key(&ip)
            && others().filter(|peer| is_spraying(peer)).count() < SPRAYS_MAX
            && others().filter(|peer| peer.kept.is_some()).count() < KEPT_MAX
    }

    /// Does what is due for a peer: of its spray, or for the socket that was kept of one.
    pub(super) fn tend_spray(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let begins = self.peers.of(&id).and_then(|peer| peer.spray.as_ref());
        let begins = begins.filter(|spray| spray.is_about_to_begin(now)).map(Spray::target);
        if let Some(target) = begins {
            if !self.may_spray(now, id, target) {
                return self.end_spray(now, id);
            }
            self.sprays.targets.insert(target.ip(), now + SPRAY_AGAIN);
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.spray_after = now + SPRAY_AGAIN;
            }
        }
        loop {
            let Some(peer) = self.peers.of_mut(&id) else { return };
            let needed = peer.path.is_relayed() && peer.current.is_some();
            let Some(spray) = peer.spray.as_mut() else { return self.tend_kept(now, id) };
            if !needed {
                return self.end_spray(now, id);
            }
            let Some(action) = spray.poll(now) else {
                let due = spray.poll_timeout();
                return self.timers.arm(Timer::Spray(id), due);
            };
            match action {
                Action::Introduce => drop(self.channels_to(now, wall, id)),
                Action::Ask => self.ask_relays(now, id),
                Action::Say(step) => {
                    self.send_control(now, id, &[Control::Spray { step }]);
                }
                Action::Open => {
                    let spray = spray.number();
                    self.order(SocketOrder::Open { spray, count: SOCKETS_MAX });
                }
                Action::Check { to, socket, nonce } => self.send_guess(now, id, to, socket, nonce),
                Action::End => return self.end_spray(now, id),
            }
        }
    }

    /// Asks our relays whether the peer is where it says.
    fn ask_relays(&mut self, now: Instant, id: NodeId) {
        let Some(spray) = self.peers.of(&id).and_then(|peer| peer.spray.as_ref()) else { return };
        let endpoint = spray.target();
        let silent = self.relays().map(|(relay, _)| relay).filter(|relay| !spray.has_vouched(relay));
        for relay in silent.collect::<Vec<_>>() {
            self.send_control(now, relay, &[Control::Vouch { answer: None, peer: id, endpoint }]);
        }
    }

    /// Somebody asks where a node is that it has a channel to through us, or one of our relays answers.
    pub(super) fn handle_vouch(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: NodeId,
        (answer, peer, endpoint): (Option<bool>, NodeId, SocketAddr),
    ) {
        let Some(yes) = answer else { return self.vouch(now, from, peer, endpoint) };
        let needed = self.relays().count().min(VOUCHERS);
        let ours = self.is_relay_of_ours(&from);
        let spray = self.peers.of_mut(&peer).and_then(|peer| peer.spray.as_mut());
        if let Some(spray) = spray.filter(|spray| yes && ours && spray.target() == endpoint) {
            spray.handle_vouched(now, from, needed);
            self.tend_spray(now, wall, peer);
        }
    }

    /// As a relay: says whether a node is seen at an endpoint, to somebody that it has a channel with.
    fn vouch(&mut self, now: Instant, from: NodeId, peer: NodeId, endpoint: SocketAddr) {
        if self.peers.of_mut(&from).is_none_or(|asker| !asker.requests.take(now)) {
            return self.drop(DropReason::RateLimited);
        }
        let joins = |ends: [NodeId; 2]| ends == [from, peer] || ends == [peer, from];
        let joined = self.relay.channels().any(|channel| joins(channel.ends.map(|end| end.node)));
        let is_there = |seen: SocketAddr| {
            seen.ip() == endpoint.ip() && (endpoint.port() == 0 || seen.port() == endpoint.port())
        };
        let yes = joined && self.reaches(&peer).is_some_and(is_there);
        self.send_control(now, from, &[Control::Vouch { answer: Some(yes), peer, endpoint }]);
    }

    /// The peer says how far it is.
    pub(super) fn handle_spray(&mut self, now: Instant, wall: WallTime, id: NodeId, step: SprayStep) {
        if let Some(spray) = self.peers.of_mut(&id).and_then(|peer| peer.spray.as_mut()) {
            spray.handle_step(step);
            self.tend_spray(now, wall, id);
        }
    }

    /// So many sockets of a spray are open.
    pub fn handle_sockets(&mut self, now: Instant, wall: WallTime, number: u32, opened: usize) {
        let Some(id) = self.spray_with(number) else {
            return self.order(SocketOrder::Close { spray: number });
        };
        if let Some(spray) = self.peers.of_mut(&id).and_then(|peer| peer.spray.as_mut()) {
            spray.handle_sockets(now, opened);
            if opened < SOCKETS_MIN {
                self.event(Event::SocketsMissing(opened));
            }
            self.tend_spray(now, wall, id);
        }
    }

    fn spray_with(&self, number: u32) -> Option<NodeId> {
        let is_it =
            |peer: &&super::peers::Peer| peer.spray.as_ref().is_some_and(|spray| spray.number() == number);
        self.peers.iter().find(is_it).map(|peer| peer.id)
    }

    /// A packet of the session with this index came to a socket of a spray. Tell this before the packet itself.
    pub fn handle_socket_heard(
        &mut self,
        now: Instant,
        wall: WallTime,
        index: u32,
        source: SocketAddr,
        socket: SocketId,
    ) {
        let Some(id) = self.peers.at_index(index) else { return };
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(spray) = peer.spray.as_mut().filter(|spray| spray.number() == socket.spray) else { return };
        if !spray.handle_heard(now, source, socket.number) {
            return;
        }
        peer.kept = Some(Kept { to: source, unused: None });
        peer.path.learn(source);
        peer.path.checks.retry(now, source);
        self.order(SocketOrder::Keep { socket, to: source });
        self.check(now, id);
        self.tend_spray(now, wall, id);
    }

    /// A ping came straight from the address that is being sprayed: a check of the other side has got through.
    pub(super) fn handle_guessed(&mut self, now: Instant, id: NodeId, source: Hop) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(endpoint) = source.direct() else { return };
        let is_its = |spray: &Spray| {
            spray.side() == Side::Easy && spray.began().is_some() && spray.target().ip() == endpoint.ip()
        };
        if peer.spray.as_ref().is_some_and(is_its) {
            peer.path.checks.retry(now, endpoint);
            self.check(now, id);
        }
    }

    /// A way without a relay works.
    pub(super) fn note_direct(&mut self, now: Instant, id: NodeId, hop: Hop) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(spray) = &peer.spray else { return };
        let Some(began) = spray.began() else { return self.end_spray(now, id) };
        let (took, checks) = (now.saturating_since(began), spray.checks());
        let (target, side) = (spray.target(), spray.side());
        if hop.direct().is_some_and(|endpoint| endpoint.ip() == target.ip()) {
            peer.spray_after = now + SPRAY_AGAIN_PROVEN;
            self.sprays.targets.remove(&target.ip());
        }
        if side == Side::Hard && hop == Hop::Direct(target) && peer.kept.is_some() {
            // Its other sockets are closed already.
            peer.spray = None;
        }
        self.event(Event::Guessed { peer: id, checks, took });
        self.end_spray(now, id);
    }

    /// Ends a spray and tells the peer.
    fn end_spray(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.spray.as_ref().is_some_and(|spray| spray.began().is_some()) && peer.path.is_relayed() {
            self.send_control(now, id, &[Control::Spray { step: SprayStep::Over }]);
        }
        if let Some(peer) = self.peers.of_mut(&id)
            && peer.spray.as_ref().is_some_and(|spray| spray.began().is_none())
        {
            peer.spray_after = peer.spray_after.max(now + ASK_AGAIN);
        }
        self.drop_spray(now, id);
        self.tend_kept(now, id);
    }

    /// Ends a spray.
    fn drop_spray(&mut self, now: Instant, id: NodeId) {
        self.timers.disarm(&Timer::Spray(id));
        let Some(spray) = self.peers.of_mut(&id).and_then(|peer| peer.spray.take()) else { return };
        if spray.side() == Side::Hard && spray.began().is_some() {
            self.order(SocketOrder::Close { spray: spray.number() });
            self.release(now, id);
        }
    }

    /// Gives the socket back that was kept for a peer.
    fn release(&mut self, now: Instant, id: NodeId) {
        let Some(Kept { to, .. }) = self.peers.of_mut(&id).and_then(|peer| peer.kept.take()) else { return };
        // A node that was started anew under another key is at the same endpoint.
        let uses = |peer: &&super::peers::Peer| peer.path.endpoint() == Some(to) && peer.current.is_some();
        let Some(heir) = self.peers.iter().find(uses).map(|peer| peer.id) else {
            return self.order(SocketOrder::Release { to });
        };
        if let Some(heir) = self.peers.of_mut(&heir) {
            heir.kept = Some(Kept { to, unused: None });
        }
        self.timers.arm(Timer::Spray(heir), now);
    }

    /// We are somewhere else: no port counts any more.
    pub(super) fn end_sprays(&mut self, now: Instant) {
        let spraying = self.peers.iter().filter(|peer| peer.spray.is_some()).map(|peer| peer.id);
        let spraying: Vec<_> = spraying.collect();
        spraying.into_iter().for_each(|id| self.end_spray(now, id));
    }

    /// The session with a peer has ended.
    pub(super) fn forget_sockets(&mut self, now: Instant, id: NodeId) {
        self.drop_spray(now, id);
        self.release(now, id);
    }

    /// Keeps the mapping behind a kept socket, which nothing but itself keeps open, while the session lives: a new one
    /// would have another port. Without use, the socket is given back.
    fn tend_kept(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(kept) = peer.kept.as_mut() else { return self.timers.disarm(&Timer::Spray(id)) };
        let used = peer.path.current() == Some(Hop::Direct(kept.to));
        kept.unused = if used { None } else { Some(kept.unused.unwrap_or(now)) };
        if kept.unused.is_some_and(|since| now.saturating_since(since) >= KEPT_UNUSED) {
            return self.release(now, id);
        }
        let sent = peer.current.as_ref().and_then(|session| session.last_sent()).unwrap_or_default();
        let quiet = now.saturating_since(sent) >= KEEPALIVE;
        self.timers.arm(Timer::Spray(id), if quiet || !used { now } else { sent } + KEEPALIVE);
        if used && quiet {
            self.probe(now, id);
        }
    }

    /// Sends a ping that is likely to get lost, which is no reason to doubt the session or the path.
    fn send_guess(&mut self, now: Instant, id: NodeId, to: SocketAddr, socket: Option<u16>, nonce: u64) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let (Some(session), Some(spray)) = (&peer.current, &peer.spray) else { return };
        let spray = spray.number();
        let mut packet = vec![0; HEADER_LEN];
        Control::Ping { nonce }.emit(&mut packet);
        let len = packet.len() - HEADER_LEN;
        packet.resize(packet.len() + PADDING_MULTIPLE + OVERHEAD, 0);
        let waited = peer.awaits_answer();
        let Ok(total) = session.seal(Kind::Control, &mut packet, len, len + PADDING_MULTIPLE, now) else {
            return self.forget_sessions(now, id, Reason::Idle);
        };
        packet.truncate(total);
        peer.control_packets += 1;
        if !waited {
            peer.replied = Some(now);
        }
        peer.losses.excuse(session.local_index());
        peer.trials.handle_check(Hop::Direct(to));
        match socket {
            Some(number) => {
                let socket = SocketId { spray, number };
                self.order(SocketOrder::Send { socket, to, datagram: packet });
            }
            None => self.transmit(to, packet),
        }
    }
}

fn is_spraying(peer: &super::peers::Peer) -> bool {
    peer.spray.as_ref().is_some_and(|spray| spray.began().is_some())
}
