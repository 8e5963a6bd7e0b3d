//! What the owner asks for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::path;
use crate::proto::policy::Rules;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{CloseReason, Control, Want};
use crate::proto::wire::relay::Hop;

use super::history::Reason;
use super::peers::WAITING_PINGS_MAX;
use super::{Event, Node, Purpose, Ticket, Timer};

/// Most pings of commands on the wire at once.
pub(super) const PINGS_MAX: usize = 256;
/// How long a node is looked for where a command said, after the last command that did.
const NAMED_LIFE: Duration = Duration::from_secs(10);
/// Most configured contacts.
pub const BOOTSTRAP_MAX: usize = 256;

/// Whom a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A node, and perhaps where it can be reached.
    Node(NodeId, Option<SocketAddr>),
    /// Whoever has this address.
    Address(MeshAddress),
}

impl Target {
    /// The address of the target.
    pub fn address(&self) -> MeshAddress {
        match self {
            Self::Node(id, _) => id.address(),
            Self::Address(address) => *address,
        }
    }
}

/// Something that the owner asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Asks a node for a sign of life; ends in [`Event::Ping`].
    Ping(Ticket, Target),
    /// Asks a relay on the way to a node, by its number from 0, for a sign of life; ends in [`Event::Ping`].
    Trace(Ticket, NodeId, u8),
    /// Looks a record up; ends in [`Event::Lookup`].
    Lookup(Ticket, MeshAddress),
    /// What may enter unasked from now on.
    SetRules(Rules),
    /// Says goodbye to all peers; the node opens no more sessions.
    Stop,
}

/// A ping that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingReply {
    /// Who answered.
    pub node_id: NodeId,
    /// How long it took.
    pub rtt: Duration,
    /// From where: of the node, or of the relay before it.
    pub endpoint: SocketAddr,
    /// The relay.
    pub via: Option<NodeId>,
    /// More relays behind that one, nearest first.
    pub beyond: Vec<NodeId>,
    /// By a stream: the endpoint is one of TCP.
    pub by_stream: bool,
    /// The way carries data, too.
    pub data: bool,
}

/// Why a ping did not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingFailure {
    /// Nobody in the DHT has a record of the target.
    #[error("no node with this address is known to the network")]
    NotFound,
    /// Nobody answered who was asked for it.
    #[error("nobody answers who could be asked for that node")]
    Unheard,
    /// The target's record is known, but it does not answer.
    #[error("the node is known but does not answer at any of its endpoints")]
    NoAnswer,
    /// The target is this node.
    #[error("this is our own address")]
    Ourselves,
    /// Too many pings under way.
    #[error("too many pings at once")]
    TooMany,
}

impl Node {
    /// Carries out a command.
    pub fn handle_command(&mut self, now: Instant, wall: WallTime, command: Command) {
        match command {
            Command::Ping(ticket, target) => self.ping(now, wall, ticket, target),
            Command::Trace(ticket, peer, hop) => self.trace(now, ticket, peer, hop),
            Command::Lookup(ticket, address) => {
                let lookup = self.dht.lookup(now, address.position_prefix(), Want::Record);
                self.lookups.insert(lookup, Purpose::Command(ticket));
            }
            Command::SetRules(rules) => {
                self.rules = Arc::new(rules.in_place_of(&self.rules));
                self.dirty = true;
            }
            Command::Stop => self.stop(now),
        }
        self.drain(now, wall);
    }

    /// Adds a contact to start from, or another endpoint of one. False when there are [`BOOTSTRAP_MAX`] already, and
    /// for what can be no contact: ourselves, or an endpoint that is none.
    pub fn add_peer(&mut self, now: Instant, id: NodeId, endpoint: SocketAddr) -> bool {
        let has_room = self.bootstrap.len() < BOOTSTRAP_MAX || self.bootstrap.contains_key(&id);
        if id == self.node_id() || !has_room || !path::is_possible(&endpoint) {
            return false;
        }
        self.relay.set_own(id, true);
        let endpoints = self.bootstrap.entry(id).or_default();
        endpoints.retain(|known| *known != endpoint);
        endpoints.insert(0, endpoint);
        endpoints.truncate(path::CANDIDATES_MAX);
        self.bootstrap_reached.remove(&id);
        self.bootstrap_wait = super::timeout::BOOTSTRAP_WAIT_MIN;
        self.timers.arm(Timer::Bootstrap, now);
        true
    }

    /// Forgets a contact and ends its sessions. False when there is no such peer.
    pub fn remove_peer(&mut self, now: Instant, id: NodeId) -> bool {
        self.relay.set_own(id, false);
        self.bootstrap_reached.remove(&id);
        let known = self.bootstrap.remove(&id).is_some() | self.peers.of(&id).is_some();
        self.close(now, id, CloseReason::Crowded);
        self.refuse_staged(id);
        for ticket in self.peers.remove(&id).into_iter().flat_map(|peer| peer.waiting_pings) {
            self.event(Event::Ping(ticket, Err(PingFailure::NoAnswer)));
        }
        known
    }

    fn ping(&mut self, now: Instant, wall: WallTime, ticket: Ticket, target: Target) {
        let address = target.address();
        if address == self.address() {
            return self.event(Event::Ping(ticket, Err(PingFailure::Ourselves)));
        }
        if let Target::Node(id, Some(endpoint)) = target {
            self.learn_named(now, id, endpoint);
        }
        let known = self.peers.at_address(&address);
        let session = known.and_then(|id| self.peers.of(&id)).and_then(|peer| peer.current.as_ref());
        if let (Some(id), true) = (known, session.is_some_and(|session| session.is_expired(now))) {
            self.forget_sessions(now, id, Reason::Idle);
        }
        match known {
            Some(id) if self.peers.of(&id).is_some_and(|peer| peer.current.is_some()) => {
                self.send_ping(now, id, ticket)
            }
            Some(id) => {
                let waiting = self.peers.of_mut(&id).map(|peer| &mut peer.waiting_pings);
                match waiting.filter(|waiting| waiting.len() < WAITING_PINGS_MAX) {
                    Some(waiting) => waiting.push(ticket),
                    None => return self.event(Event::Ping(ticket, Err(PingFailure::TooMany))),
                }
                self.connect(now, wall, id);
            }
            None => self.resolve(now, wall, address, None, Some(ticket)),
        }
    }

    /// Has a node tried at an endpoint that a command names.
    fn learn_named(&mut self, now: Instant, id: NodeId, endpoint: SocketAddr) {
        let Some(peer) = self.peers.entry(id, now) else { return };
        let known = peer.path.candidates().contains(&endpoint);
        peer.path.learn(endpoint);
        if !known && let Some(before) = peer.named.replace(endpoint) {
            self.lose_unanswered(now, id, before);
        }
        self.timers.arm(Timer::Named(id), now + NAMED_LIFE);
    }

    /// Whoever did not answer where a command looked for it is not looked for there any more, and who is known by nothing
    /// else not at all.
    pub(super) fn forget_named(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.effort.is_some() || peer.is_awaited() {
            return self.timers.arm(Timer::Named(id), now + NAMED_LIFE);
        }
        if let Some(endpoint) = peer.named.take() {
            self.lose_unanswered(now, id, endpoint);
        }
        let Some(peer) = self.peers.of(&id) else { return };
        let is_known =
            peer.record.is_some() || peer.last_heard().is_some() || self.bootstrap.contains_key(&id);
        if !is_known && peer.sessions().next().is_none() && peer.path.candidates().is_empty() {
            self.peers.remove(&id);
            self.dirty = true;
        }
    }

    fn lose_unanswered(&mut self, now: Instant, id: NodeId, endpoint: SocketAddr) {
        let configured = self.bootstrap.get(&id).is_some_and(|endpoints| endpoints.contains(&endpoint));
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let said = peer.record.as_ref().is_some_and(|record| record.content().endpoints.contains(&endpoint));
        let hop = Hop::Direct(endpoint);
        let answered = peer.path.current() == Some(hop) || peer.path.choice.is_known(now, hop);
        if !(configured || said || answered) {
            peer.path.lose(endpoint);
        }
    }

    pub(super) fn send_ping(&mut self, now: Instant, id: NodeId, ticket: Ticket) {
        let nonce = self.rng.next_u64();
        if self.pings.len() < PINGS_MAX && self.send_control(now, id, &[Control::Ping { nonce }]) {
            self.pings.insert(nonce, (ticket, now));
            if self.timers.deadline(&Timer::Pings).is_none() {
                self.timers.arm(Timer::Pings, now + super::timeout::PING_LIFE);
            }
        } else {
            self.event(Event::Ping(ticket, Err(PingFailure::TooMany)));
        }
    }

    /// Ends the sessions with a peer and tells it so.
    pub(super) fn close(&mut self, now: Instant, id: NodeId, reason: CloseReason) {
        self.send_control(now, id, &[Control::Close { reason }]);
        self.end_effort(id, false);
        self.forget_sessions(now, id, Reason::Crowded);
    }

    fn stop(&mut self, now: Instant) {
        self.stopping = true;
        let ids: Vec<_> =
            self.peers.iter().filter(|peer| peer.current.is_some()).map(|peer| peer.id).collect();
        for id in ids {
            self.close(now, id, CloseReason::Stopping);
        }
    }
}
