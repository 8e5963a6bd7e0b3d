//! What comes from the underlay inside of a session.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::datapath::{DropReason, Notice};
use crate::proto::identity::NodeId;
use crate::proto::path::{self, Heard};
use crate::proto::session::loss::Totals;
use crate::proto::session::transport::Session;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{CloseReason, Control};
use crate::proto::wire::record::NodeRecord;
use crate::proto::wire::relay::Hop;
use crate::proto::wire::routing::Routing;

use super::history::{Lost, Reason};
use super::routes::Wanted;
use super::{Event, Node, PingReply, Timer};

/// While our own initiation is younger than this, the lower node ID stays initiator of a simultaneous open.
pub(super) const SIMULTANEOUS_OPEN: Duration = Duration::from_millis(500);

impl Node {
    /// The data path heard something worth telling.
    pub fn handle_notice(&mut self, now: Instant, wall: WallTime, notice: Notice) {
        match notice {
            Notice::Heard { local_index, source, .. } => self.handle_heard(now, wall, local_index, source),
            Notice::Woke { peer } => {
                if let Some(known) = self.peers.of_mut(&peer) {
                    known.notices += 1;
                    self.dirty = true;
                }
                self.watch(now, peer);
                self.note_active(now, peer);
                self.report_traffic(now, peer);
            }
        }
        self.drain(now, wall);
    }

    fn handle_heard(&mut self, now: Instant, wall: WallTime, index: u32, source: Hop) {
        let own = self.node_id();
        let Some(id) = self.peers.at_index(index) else { return };
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if let Some(session) = peer.next.take_if(|next| next.local_index() == index) {
            self.timers.disarm(&Timer::Unconfirmed(id));
            peer.note_hears_us(now);
            let crossed = peer.current.as_ref().filter(|current| crosses(current, &session));
            if crossed.is_some_and(|current| current.is_initiator() == (own < id)) {
                // Both sides have both sessions now and send on the same one.
                if let Some(old) = peer.replace_previous(Some(session)) {
                    self.peers.release_index(old.local_index());
                }
                self.dirty = true;
                return;
            }
            let proven = peer.answered == Some(source);
            self.end_effort(id, false);
            return self.install(now, wall, session, source, proven);
        }
        peer.notices += 1;
        self.dirty = true;
        // From a stream back to UDP only when that works in both directions.
        let by_stream = |hop: Hop| hop.direct().is_some_and(|endpoint| self.streams.contains(&endpoint));
        let leaves_stream = peer.path.current().is_some_and(by_stream) && !by_stream(source);
        let heard = match leaves_stream {
            true => peer.path.handle_heard_elsewhere(now, source),
            false => peer.path.handle_heard(now, source),
        };
        if heard == Heard::Moved {
            peer.pmtu.handle_hop(source);
            self.note_way(now, id, Reason::Moved);
        }
        self.see_epoch(now, id);
        self.note_heard(now, id);
        match (heard, source) {
            (Heard::Moved, Hop::Direct(_)) => {
                self.watch(now, id);
                self.challenge(now, id);
            }
            (Heard::Elsewhere, hop @ Hop::Direct(_)) => {
                self.check_hop(now, id, hop);
                self.compare(now, id, hop);
            }
            // It has left the way: perhaps ours does not work either.
            (Heard::Elsewhere, hop @ Hop::Relayed(_)) => self.doubt_way(now, wall, id, hop),
            (Heard::Moved, Hop::Relayed(_)) | (Heard::InUse, _) => {}
        }
    }

    /// Asks a peer at a new endpoint to show that it receives there. Until it has, its requests have no answers:
    /// they are longer than requests, and the endpoint may be somebody else's.
    pub(super) fn challenge(&mut self, now: Instant, id: NodeId) {
        let nonce = self.rng.next_u64();
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.challenge = Some(nonce);
        }
        self.send_control(now, id, &[Control::Ping { nonce }]);
    }

    /// Control messages of an authenticated peer.
    pub fn handle_control(
        &mut self,
        now: Instant,
        wall: WallTime,
        index: u32,
        source: Hop,
        plaintext: &[u8],
    ) {
        let Some(id) = self.peers.at_index(index) else { return self.drop(DropReason::UnknownSession) };
        if let Some(peer) = self.peers.of_mut(&id)
            && peer.current.as_ref().is_some_and(|session| session.local_index() == index)
        {
            peer.control_packets += 1;
            peer.control_received += 1;
            self.see_epoch(now, id);
            self.note_heard(now, id);
        }
        self.note_udp(now, source);
        match Control::parse_all(plaintext) {
            Ok(messages) => {
                let about_ways = |m: &Control| {
                    matches!(m, Control::Ping { .. } | Control::Pong { .. } | Control::Received { .. })
                };
                let question = !messages.is_empty() && messages.iter().all(about_ways);
                if let Some(peer) = self.peers.of_mut(&id).filter(|_| question)
                    && peer.path.handle_question(now, source)
                {
                    peer.notices += 1;
                    self.dirty = true;
                }
                let mut answered = false;
                for message in messages {
                    // One packet is worth one pong, or one acknowledgement.
                    let asks = matches!(message, Control::Ping { .. } | Control::MtuProbe { .. });
                    if asks && std::mem::replace(&mut answered, true) {
                        self.drop(DropReason::RateLimited);
                        continue;
                    }
                    self.handle_message(now, wall, (id, index, source), message);
                }
            }
            Err(_) => self.drop(DropReason::Malformed),
        }
        if self.peers.of(&id).is_some_and(|peer| peer.record.is_none()) {
            self.greet_again(now, id);
        }
        self.drain(now, wall);
    }

    fn handle_message(
        &mut self,
        now: Instant,
        wall: WallTime,
        (id, index, source): (NodeId, u32, Hop),
        message: Control,
    ) {
        match message {
            Control::Ping { nonce } => {
                let Some(peer) = self.peers.of_mut(&id) else { return };
                // Who only receives looks at the session when it is asked.
                let report = peer.poll_report(now);
                let pong = Control::Pong { nonce, observed: observed(source) };
                // The way back is that of the question (RFC 8445 §7.3): it is the way that is asked about.
                let messages: Vec<_> = std::iter::once(pong).chain(report).collect();
                self.send_control_by(now, id, source, &messages);
                self.handle_guessed(now, id, source);
                self.check_hop(now, id, source);
                if self.peers.of(&id).is_some_and(|peer| !self.is_settled(now, peer, source)) {
                    self.doubt_way(now, wall, id, source);
                }
            }
            Control::Pong { nonce, observed } => {
                let asked = self.handle_netcheck_pong(now, nonce, observed);
                if self.handle_pong(now, id, nonce) || asked {
                    self.handle_observed(now, wall, (id, source), observed);
                }
            }
            Control::Allocate => self.handle_allocate(now, id),
            Control::Allocated { service, .. } => self.handle_allocated(now, wall, id, service),
            Control::Bind { slot, peer, datagram } => self.handle_bind(now, id, slot, peer, datagram),
            Control::Bound { slot, service } => self.handle_bound(now, wall, id, slot, service),
            Control::Invite { slot, peer, service, mut datagram } => {
                self.handle_invite(now, wall, id, (slot, peer, service), &mut datagram);
            }
            Control::Routing(message) => self.handle_routing(now, wall, id, message),
            Control::Candidates { answer, dependent, endpoints } => {
                self.handle_candidates(now, wall, id, answer, dependent, endpoints);
            }
            Control::Spray { step } => self.handle_spray(now, wall, id, step),
            Control::Vouch { answer, peer, endpoint } => {
                self.handle_vouch(now, wall, id, (answer, peer, endpoint));
            }
            Control::Hello { record } => self.handle_hello(now, wall, id, &record),
            Control::Close { reason } => self.handle_close(now, id, index, reason),
            Control::MtuProbe { token, datagram_len } => {
                self.send_control(now, id, &[Control::MtuAck { token, datagram_len }]);
            }
            Control::MtuAck { token, datagram_len } => {
                self.handle_mtu_ack(now, id, token, datagram_len);
            }
            Control::Received { sent, received } => {
                self.handle_received(now, id, index, Totals { sent, received });
            }
            Control::Find { .. } | Control::Store { .. } => self.handle_request(now, wall, id, &message),
            Control::Found { request, record, mut contacts } => {
                if self.pass_back(now, id, request, &record, &contacts) {
                    return;
                }
                contacts.retain(|contact| path::is_admissible(&contact.endpoint, &self.local));
                self.dht.handle_reply(now, wall, id, Control::Found { request, record, contacts });
            }
            Control::Stored { .. } => self.dht.handle_reply(now, wall, id, message),
            Control::Dial { nonce } => self.handle_dial(now, wall, id, source, nonce),
            Control::Dialled { nonce } => {
                self.reach.iter_mut().for_each(|reach| reach.handle_dialled(id, nonce));
            }
        }
    }

    /// What neighbours say to each other about routes.
    fn handle_routing(&mut self, now: Instant, wall: WallTime, id: NodeId, message: Routing) {
        match message {
            Routing::Seek { nonce, ttl, target, relays } => {
                self.handle_seek(now, wall, id, (nonce, ttl), target, &relays);
            }
            Routing::Sought { nonce, service, hops } => {
                self.handle_sought(now, id, (nonce, service), hops);
            }
            Routing::Bind { slot, origin, peer, service, next, passed, datagram } => {
                let wanted = Wanted { slot, origin, peer, service, next, passed };
                self.handle_route_bind(now, id, wanted, datagram);
            }
            Routing::Invite { slot, peer, service, passed, mut datagram } => {
                self.handle_route_invite(now, wall, id, (slot, peer, service), &passed, &mut datagram);
            }
            Routing::Trace { answer, nonce, slot, left } => {
                self.handle_trace(now, id, (answer, nonce), slot, left);
            }
            Routing::Forward { request, to, want, target } => {
                self.handle_forward(now, wall, id, (request, to), (want, target));
            }
        }
    }

    /// True when it answers a ping of ours, from where the peer is known to receive.
    fn handle_pong(&mut self, now: Instant, id: NodeId, nonce: u64) -> bool {
        let Some(peer) = self.peers.of_mut(&id) else { return false };
        let proven = peer.challenge.take_if(|challenge| *challenge == nonce).is_some();
        let mut asked = proven;
        if let Some(probe) = peer.probe.take_if(|probe| probe.nonce == nonce) {
            asked = true;
            peer.rtt = Some(now.saturating_since(probe.sent));
            peer.proved = Some(now);
        }
        let guessed = peer.spray.as_mut().and_then(|spray| spray.handle_answer(now, nonce));
        let checked = peer.path.checks.handle_answer(now, nonce).or(guessed);
        if let (Some((hop, rtt)), Some(trial)) = (checked, &mut peer.trial) {
            trial.handle_answer(hop, rtt);
        }
        let (hop, challenged) = (peer.path.current(), peer.challenge.is_some());
        if proven {
            // What we carry for it goes there now.
            self.dirty = true;
            self.probe_mtu(now, id);
        }
        if let Some((hop, rtt)) = checked {
            self.handle_checked(now, id, hop, rtt);
        }
        let reached = hop.and_then(|hop| {
            Some((self.endpoint_of(hop)?, self.relay_of(hop), self.beyond(hop), self.carries_data(hop)))
        });
        if let (Some((ticket, sent)), Some((endpoint, via, beyond, data))) =
            (self.pings.remove(&nonce), reached)
        {
            let rtt = now.saturating_since(sent);
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.rtt = Some(rtt);
            }
            asked = true;
            let (endpoint, by_stream) = self.streams.shown(endpoint);
            let reply = PingReply { node_id: id, rtt, endpoint, via, beyond, by_stream, data };
            self.event(Event::Ping(ticket, Ok(reply)));
        }
        self.sighted(now, id);
        let answered = asked || checked.is_some();
        if let Some(peer) = self.peers.of_mut(&id).filter(|_| answered) {
            peer.note_hears_us(now);
            self.note_heard(now, id);
        }
        answered && !challenged
    }

    fn handle_hello(&mut self, now: Instant, wall: WallTime, id: NodeId, bytes: &[u8]) {
        match NodeRecord::parse(bytes) {
            Ok(record) if record.node_id() == id => {
                let Some(peer) = self.peers.of_mut(&id) else { return };
                let known = peer.record.as_ref() == Some(&record);
                if std::mem::replace(&mut peer.introduced, true) && known {
                    // It says so again because it has not heard who we are.
                    self.greet_again(now, id);
                }
                if self.learn_record(now, wall, record) {
                    self.report_up(now, id);
                }
            }
            _ => self.drop(DropReason::Malformed),
        }
    }

    /// How much of what we sent in a session came.
    fn handle_received(&mut self, now: Instant, id: NodeId, index: u32, totals: Totals) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(session) = peer.current.as_ref().filter(|session| session.local_index() == index) else {
            return;
        };
        if totals.sent > session.packets_sent() || totals.received > totals.sent {
            return self.drop(DropReason::Malformed);
        }
        let cut = peer.losses.cuts();
        peer.losses.handle_report(now, index, totals);
        self.dirty |= cut != peer.losses.cuts();
    }

    /// The peer forgets the session: so do we, and shake hands again when there is something to send.
    fn handle_close(&mut self, now: Instant, id: NodeId, index: u32, reason: CloseReason) {
        let Some(peer) = self.peers.of(&id) else { return };
        if peer.current.as_ref().is_some_and(|session| session.local_index() == index) {
            // It may start anew without knowing anybody.
            self.bootstrap_reached.remove(&id);
            if reason == CloseReason::Stopping {
                self.note_lost(now, id, Lost::Stopped);
            }
            self.forget_sessions(now, id, Reason::Crowded);
            self.refuse_unless_connecting(id);
        }
    }

    fn handle_request(&mut self, now: Instant, wall: WallTime, id: NodeId, request: &Control) {
        let within_rate = self.peers.of_mut(&id).is_some_and(|peer| peer.requests.take(now));
        if !within_rate {
            return self.drop(DropReason::RateLimited);
        }
        if let Some(nonce) = self.peers.of(&id).and_then(|peer| peer.challenge) {
            // The first one may be lost.
            self.send_control(now, id, &[Control::Ping { nonce }]);
            return self.drop(DropReason::RateLimited);
        }
        if let Some(mut reply) = self.dht.handle_request(now, wall, id, request) {
            if let Control::Found { contacts, .. } = &mut reply
                && let Some(is_ipv4) = self.only_version(&id)
            {
                *contacts = self.dht.named_to(now, std::mem::take(contacts), is_ipv4);
            }
            self.send_control(now, id, &[reply]);
        }
    }

    /// Whether a peer has IPv4 or IPv6, when its record shows that it has only one of them.
    fn only_version(&self, id: &NodeId) -> Option<bool> {
        let endpoints = &self.peers.of(id)?.record.as_ref()?.content().endpoints;
        let is_ipv4 = endpoints.first()?.is_ipv4();
        endpoints.iter().all(|endpoint| endpoint.is_ipv4() == is_ipv4).then_some(is_ipv4)
    }
}

/// What we tell somebody of the endpoint that its packet came from: nothing, when a relay is in between.
pub(super) fn observed(source: Hop) -> SocketAddr {
    source.direct().unwrap_or(SocketAddr::from(([0; 4], 0)))
}

/// True when two sessions come from handshakes that crossed on the way.
fn crosses(current: &Session, next: &Session) -> bool {
    let (a, b) = (current.established(), next.established());
    let apart = a.saturating_since(b).max(b.saturating_since(a));
    current.is_initiator() != next.is_initiator() && apart < SIMULTANEOUS_OPEN
}
