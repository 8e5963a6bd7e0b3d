//! What comes from the underlay before there is a session: handshakes, and sealed messages to one who is known by its key.

use std::time::Duration;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::session::REJECT_AFTER;
use crate::proto::session::gate::Admission;
use crate::proto::session::noise::Incoming;
use crate::proto::session::sealed;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::CloseReason;
use crate::proto::wire::envelope::{Envelope, Kind};
use crate::proto::wire::handshake::Response;
use crate::proto::wire::relay::Hop;
use crate::proto::wire::sealed::{
    Message, emit_record_reply, parse_dial, parse_record_reply, parse_record_request,
};

use super::inbound::{SIMULTANEOUS_OPEN, observed};
use super::{Node, Timer};

/// An answered handshake waits this long for its first packet.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(5);
/// A peer heard within this time is not asked whether it lost its keys.
const DOUBT_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// A setup packet that the data path has unmasked and whose mac1 is valid. `loaded`: packets queue up, so senders
    /// have to prove their address first.
    pub fn handle_setup(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: Hop,
        packet: &mut [u8],
        loaded: bool,
    ) {
        let Ok(envelope) = Envelope::reopen(packet) else { return self.drop(DropReason::UnknownKind) };
        let outcome = match envelope.kind {
            Kind::Initiation => self
                .admit(now, source, &envelope, loaded)
                .and_then(|()| self.handle_initiation(now, wall, source, &envelope)),
            Kind::Sealed => self
                .admit(now, source, &envelope, loaded)
                .and_then(|()| self.handle_sealed(now, wall, source, &envelope)),
            Kind::Response => self.handle_response(now, wall, source, &envelope),
            // A cookie reply is keyed by the packet it answers, never by our ID.
            Kind::CookieReply => Err(DropReason::Unauthenticated),
        };
        if let Err(reason) = outcome {
            self.drop(reason);
        }
        self.drain(now, wall);
    }

    /// A setup packet that is not keyed to us, from an endpoint that we sent an initiation to.
    pub fn handle_reply(&mut self, now: Instant, wall: WallTime, source: Hop, packet: &mut [u8]) {
        let mut found = None;
        for peer in self.peers.iter() {
            let Some(pending) = peer.effort.as_ref().and_then(|effort| effort.pending.as_ref()) else {
                continue;
            };
            if pending.targets.contains(&source)
                && let Some(cookie) = pending.initiator.read_cookie(packet)
            {
                found = Some((peer.id, cookie));
                break;
            }
        }
        let Some((id, cookie)) = found else {
            return match self.handle_fetch_cookie(now, wall, source, packet) {
                true => self.drain(now, wall),
                false => self.handle_unauthentic(now, source),
            };
        };
        if let Some(peer) = self.peers.of_mut(&id) {
            let asked_before =
                peer.cookie.is_some_and(|(_, at)| now.saturating_since(at) < Duration::from_secs(1));
            peer.cookie = Some((cookie, now));
            if !asked_before {
                self.attempt(now, wall, id);
            }
        }
        self.drain(now, wall);
    }

    /// Something that is not keyed to us came from where a peer was asked: it may have another secret of the network.
    fn handle_unauthentic(&mut self, now: Instant, source: Hop) {
        self.drop(DropReason::Unauthenticated);
        let Hop::Direct(endpoint) = source else { return };
        let asked = self.peers.iter().filter(|peer| peer.asked_at().contains(&source)).map(|peer| peer.id);
        for id in asked.collect::<Vec<_>>() {
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.unauthentic = Some((endpoint, now));
            }
        }
    }

    fn admit(
        &mut self,
        now: Instant,
        source: Hop,
        envelope: &Envelope<'_>,
        loaded: bool,
    ) -> Result<(), DropReason> {
        match self.gate.admit(now, source, envelope, &self.own_key, loaded, &mut self.rng) {
            Admission::Admit => Ok(()),
            Admission::Refuse => Err(DropReason::RateLimited),
            Admission::Reply(reply) => {
                self.transmit(source, reply);
                Err(DropReason::RateLimited)
            }
        }
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: Hop,
        envelope: &Envelope<'_>,
    ) -> Result<(), DropReason> {
        let incoming = Incoming::open(&self.identity, &self.session_config, envelope)
            .map_err(|_| DropReason::Handshake)?;
        let id = incoming.peer();
        if self.is_replayed(now, id, incoming.timestamp()) {
            self.doubt(now, wall, id);
            return Err(DropReason::Handshake);
        }
        if self.is_ours_to_open(now, id) || self.stopping {
            // Refused is refused for good: it must not come back as a replay.
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.initiated = Some((incoming.timestamp(), now));
            }
            return Ok(());
        }
        if !self.make_room(now, id) {
            return Err(DropReason::QueueFull);
        }
        let index = self.peers.allocate_index(id, &mut self.rng);
        let (timestamp, x25519) = (incoming.timestamp(), *incoming.peer_x25519());
        let accepted = incoming.accept(&self.identity, index, observed(source), now, &mut self.rng);
        let Ok((session, reply)) = accepted else {
            self.peers.release_index(index);
            return Err(DropReason::Handshake);
        };
        self.transmit(source, reply);
        let Some(peer) = self.peers.of_mut(&id) else { return Ok(()) };
        peer.initiated = Some((timestamp, now));
        peer.answered = Some(source);
        peer.x25519 = Some(x25519);
        peer.last_used = now;
        if let Some(old) = peer.next.replace(session) {
            peer.note_untaken(old.established());
            self.peers.release_index(old.local_index());
        }
        self.timers.arm(Timer::Unconfirmed(id), now + UNCONFIRMED_MAX);
        self.dirty = true;
        Ok(())
    }

    /// Sees to it that a peer has a place in the table, at the cost of the one that was silent for longest.
    pub(super) fn make_room(&mut self, now: Instant, id: NodeId) -> bool {
        if self.peers.entry(id, now).is_none() && !self.peers.forget_unconfirmed() {
            let is_configured = |id: &NodeId| self.bootstrap.contains_key(id);
            let Some(quietest) = self.peers.quietest(is_configured) else { return false };
            self.close(now, quietest, CloseReason::Crowded);
        }
        self.peers.entry(id, now).is_some()
    }

    /// An initiation not newer than the last one of the same node. The memory ends with the sessions it could
    /// disturb, so a node whose clock once was far ahead is not locked out.
    fn is_replayed(&self, now: Instant, id: NodeId, timestamp: WallTime) -> bool {
        let last = self.peers.of(&id).and_then(|peer| peer.initiated);
        last.is_some_and(|(seen, at)| timestamp <= seen && now.saturating_since(at) < REJECT_AFTER)
    }

    /// An old initiation is a replay, or by a node that restarted with its clock set back. Ask the node itself where we
    /// know it to be: if it lost its keys, we open the next session.
    fn doubt(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of(&id) else { return };
        match peer.last_proof() {
            Some(proof) if peer.probe.is_none() && now.saturating_since(proof) >= DOUBT_AFTER => {
                self.probe(now, id);
            }
            Some(_) => {}
            None => self.connect(now, wall, id),
        }
    }

    /// Both sides opened at once: the lower node ID stays initiator.
    fn is_ours_to_open(&self, now: Instant, id: NodeId) -> bool {
        let effort = self.peers.of(&id).and_then(|peer| peer.effort.as_ref());
        self.node_id() < id
            && effort.is_some_and(|effort| {
                let young = |sent| now.saturating_since(sent) < SIMULTANEOUS_OPEN;
                effort.attempt == 1 && effort.pending.as_ref().is_some_and(|pending| young(pending.sent))
            })
    }

    fn handle_response(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: Hop,
        envelope: &Envelope<'_>,
    ) -> Result<(), DropReason> {
        let index = Response::parse(envelope.body()).map_err(|_| DropReason::Malformed)?.receiver_index;
        let id = self.peers.at_index(index).ok_or(DropReason::UnknownSession)?;
        let effort = self.peers.of_mut(&id).and_then(|peer| peer.effort.as_mut());
        let pending = effort.and_then(|effort| effort.pending.as_mut()).ok_or(DropReason::UnknownSession)?;
        let (sent, proven) = (pending.sent, pending.targets.contains(&source));
        let established = pending.initiator.finish(envelope, now).map_err(|_| DropReason::Handshake)?;
        self.end_effort(id, true);
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.rtt = Some(now.saturating_since(sent));
        }
        self.note_udp(now, source);
        // Before the peer is told who we are: the record says whether we are behind a NAT.
        self.handle_observed(now, wall, (id, source), established.observed);
        self.install(now, wall, established.session, source, proven);
        Ok(())
    }

    fn handle_sealed(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: Hop,
        envelope: &Envelope<'_>,
    ) -> Result<(), DropReason> {
        // Records are fetched from endpoints that somebody named.
        let Hop::Direct(source) = source else { return Err(DropReason::Relay) };
        let (header, payload) =
            sealed::open(&self.identity, envelope, wall).map_err(|_| DropReason::Unauthenticated)?;
        let signature = sealed::signature(envelope).map_err(|_| DropReason::Malformed)?;
        if !self.replays.first_seen(now, &signature) {
            return Err(DropReason::Replay);
        }
        match header.message {
            Message::RecordRequest => {
                let request = parse_record_request(&payload).map_err(|_| DropReason::Malformed)?;
                let Some(record) = &self.record else { return Err(DropReason::NoRoute) };
                let reply = emit_record_reply(request, &source, record.bytes());
                let (network, message) = (&self.session_config.network, Message::RecordReply);
                let packet = sealed::seal(
                    &self.identity,
                    header.sender,
                    message,
                    &reply,
                    wall,
                    network,
                    &mut self.rng,
                );
                if let Some(packet) = packet.filter(|packet| packet.len() <= envelope.packet_len()) {
                    self.transmit(source, packet);
                }
            }
            Message::RecordReply => {
                let (request, _observed, record) =
                    parse_record_reply(&payload).map_err(|_| DropReason::Malformed)?;
                self.fetched(now, wall, request, header.sender, record, source);
            }
            Message::Dial => {
                let nonce = parse_dial(&payload).map_err(|_| DropReason::Malformed)?;
                return self.handle_dialled(now, wall, header.sender, source, nonce);
            }
        }
        Ok(())
    }
}
