//! From a name to a session: fetch the record if only the ID is known, shake hands, try again, give up.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::datapath::DropReason;
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::path;
use crate::proto::session::gate::{COOKIE_LIFETIME, read_cookie};
use crate::proto::session::noise::Initiator;
use crate::proto::session::sealed;
use crate::proto::session::transport::Session;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::SETUP_LEN_MAX;
use crate::proto::wire::control::{CARRIED_LEN_MAX, Contact, Control};
use crate::proto::wire::envelope::{MAC_LEN, RecipientKey};
use crate::proto::wire::inner::IcmpError;
use crate::proto::wire::record::NodeRecord;
use crate::proto::wire::relay::Hop;
use crate::proto::wire::routing::ROUTED_LEN_MAX;
use crate::proto::wire::sealed::{Message, emit_record_request};

use super::command::PingFailure;
use super::history::{Lost, Reason};
use super::peers::{Effort, Peer, Pending};
use super::seeking::ATTEMPTS_BEFORE_SEEK;
use super::{Event, Node, Purpose, Timer};

/// A record request is padded by less than this many bytes at random, within the longest setup packet.
const FETCH_PADDING_MAX: usize = 320;
/// Waits between the first attempts of a handshake or of a record fetch. With 30 % loss both ways, six attempts within
/// [`EFFORT_MAX`] leave 2 % of the handshakes to the next effort.
const ATTEMPT_WAITS_MS: [u64; 5] = [300, 600, 1000, 1000, 1000];
/// Wait between later attempts, long enough for any round trip: a new attempt ends the one before.
const ATTEMPT_WAIT_MAX: Duration = Duration::from_secs(2);
/// A handshake nobody waits for with packets is given up after this.
pub const EFFORT_MAX: Duration = Duration::from_secs(5);
/// A handshake that packets wait for is given up after this.
pub(super) const EFFORT_WITH_PACKETS_MAX: Duration = Duration::from_secs(15);
/// After this many attempts a fresh record is looked up: the peer may have moved.
const ATTEMPTS_BEFORE_LOOKUP: u32 = 2;
/// After this many without an answer UDP may be blocked as such.
const ATTEMPTS_BEFORE_DOUBT: u32 = 2;
/// Most record fetches at once.
const FETCHES_MAX: usize = 64;
/// Attempts of one record fetch.
const FETCH_ATTEMPTS_MAX: u32 = 6;

/// A responder leaves the search for a straight way to the initiator for this long.
const OTHERS_TURN: Duration = Duration::from_secs(2);
/// Most introductions repeated in one session, and the time between two.
const REPEATS_MAX: u8 = 4;
const REPEAT_GAP: Duration = Duration::from_millis(500);

/// Asking a node of which only ID and endpoint are known for its record.
pub(super) struct Fetch {
    node_id: NodeId,
    endpoint: SocketAddr,
    attempt: u32,
    /// What opens a cookie reply to the last attempt.
    cookie_key: Option<RecipientKey>,
    /// What the node asked us to prove our address by, and when.
    cookie: Option<([u8; MAC_LEN], Instant)>,
}

impl Node {
    /// Makes sure that there is a session with a peer, or an effort to get one.
    pub(super) fn connect(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of(&id) else { return };
        if peer.current.is_none() {
            self.shake_hands(now, wall, id);
        }
    }

    /// Starts a handshake, unless one is under way; an old session stays in use until the new one stands.
    pub(super) fn shake_hands(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        self.shake_hands_by(now, wall, id, false);
    }

    /// The same for a node that is to be a relay: not through others, which might need relays themselves.
    pub(super) fn connect_directly(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        if self.peers.of(&id).is_some_and(|peer| peer.current.is_none()) {
            self.shake_hands_by(now, wall, id, true);
        }
    }

    pub(super) fn shake_hands_by(&mut self, now: Instant, wall: WallTime, id: NodeId, direct_only: bool) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.last_used = now;
        if let Some(effort) = peer.effort.as_mut().filter(|_| !direct_only) {
            // Somebody waits for the peer itself now.
            effort.direct_only = false;
        }
        if self.stopping || peer.effort.as_ref().is_some_and(|e| e.attempt > 0 || peer.x25519.is_none()) {
            return;
        }
        if peer.x25519.is_some() {
            peer.effort = Some(Effort { started: now, attempt: 0, direct_only, pending: None });
            return self.attempt(now, wall, id);
        }
        let mut candidates = peer.path.candidates().to_vec();
        let (address, awaited) = (peer.address, peer.is_awaited());
        peer.effort = Some(Effort { started: now, attempt: 0, direct_only, pending: None });
        if peer.abandoned.is_some() {
            self.refresh_hop(wall, id);
            candidates.extend(self.peers.of(&id).and_then(|peer| peer.path.hop()));
        }
        // The data path passes on what comes from where it was asked.
        self.dirty = true;
        self.timers.arm(Timer::Handshake(id), now + EFFORT_MAX);
        // The endpoint that was configured may be out of date, and the network know better.
        if candidates.is_empty() || awaited {
            self.look_up_record(now, address);
        }
        for endpoint in candidates {
            self.fetch(now, wall, id, endpoint);
        }
    }

    /// The next attempt of a handshake, or the end of the effort.
    pub(super) fn attempt(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        self.refresh_hop(wall, id);
        let timestamp = self.timestamp(wall);
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let awaited = peer.is_awaited();
        let Some(effort) = &mut peer.effort else { return };
        let patience = if peer.staged.is_empty() { EFFORT_MAX } else { EFFORT_WITH_PACKETS_MAX };
        let targets = peer.path.targets(effort.attempt);
        let Some(x25519) = peer.x25519.filter(|_| now.saturating_since(effort.started) < patience) else {
            return self.give_up(now, wall, id);
        };
        let attempt = effort.attempt;
        effort.attempt += 1;
        let cookie = peer.cookie.filter(|(_, at)| now.saturating_since(*at) < COOKIE_LIFETIME);
        let address = peer.address;
        // Somebody waits, or sent into a session that is dead.
        let missed = awaited || peer.current.is_some();
        // An old session is renewed on the way that works.
        let by_relays = !effort.direct_only && (peer.current.is_none() || attempt > 0);
        let has_relays = peer.record.as_ref().is_some_and(|record| !record.content().relays.is_empty());
        if let Some(old) = effort.pending.take() {
            self.peers.release_index(old.initiator.local_index());
        }
        if attempt >= ATTEMPTS_BEFORE_DOUBT {
            self.suspect_udp(now, id);
        }
        self.want_stream(now, id);
        let mut targets = self.with_stream(&id, targets);
        let wants_record = attempt == ATTEMPTS_BEFORE_LOOKUP && missed || targets.is_empty() && !has_relays;
        if wants_record {
            self.look_up_record(now, address);
        }
        let index = self.peers.allocate_index(id, &mut self.rng);
        if by_relays && attempt >= ATTEMPTS_BEFORE_SEEK {
            self.seek(now, wall, id);
        }
        let len_max = match by_relays {
            true if attempt >= ATTEMPTS_BEFORE_SEEK || self.has_routes(now, id) => ROUTED_LEN_MAX,
            true if has_relays => CARRIED_LEN_MAX,
            true | false => SETUP_LEN_MAX,
        };
        let started = loop {
            let started = Initiator::start(
                &self.identity,
                &self.session_config,
                id,
                &x25519,
                index,
                timestamp,
                cookie.as_ref().map(|(cookie, _)| cookie),
                &mut self.rng,
            );
            // One in twenty is too long for a relay.
            if started.as_ref().map_or(true, |(_, packet)| packet.len() <= len_max) {
                break started;
            }
        };
        let Ok((initiator, packet)) = started else {
            self.peers.release_index(index);
            self.drop(DropReason::Handshake);
            return self.give_up(now, wall, id);
        };
        for target in &targets {
            self.transmit(*target, packet.clone());
        }
        if by_relays {
            targets.extend(self.send_through_relays(now, wall, id, &packet));
        }
        if let Some(effort) = self.peers.of_mut(&id).and_then(|peer| peer.effort.as_mut()) {
            effort.pending = Some(Pending { initiator, packet, targets, sent: now });
        }
        let wait = self.jittered(backoff(attempt));
        self.timers.arm(Timer::Handshake(id), now + wait);
        self.dirty = true;
    }

    /// Ends an effort that led nowhere and tells everybody who waited.
    fn give_up(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let had_session = peer.current.is_some();
        if !had_session || peer.awaits_answer() {
            self.note_lost(now, id, Lost::NoAnswer);
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let (effort, pings) = (peer.effort.take(), std::mem::take(&mut peer.waiting_pings));
        let staged = peer.staged.take();
        peer.outbox.clear();
        peer.abandoned = Some((now, peer.data_packets()));
        if let Some(pending) = effort.and_then(|effort| effort.pending) {
            self.peers.release_index(pending.initiator.local_index());
        }
        self.timers.disarm(&Timer::Handshake(id));
        self.dirty = true;
        for packet in &staged {
            self.refuse(IcmpError::AddressUnreachable, packet);
        }
        for ticket in pings {
            self.event(Event::Ping(ticket, Err(PingFailure::NoAnswer)));
        }
        if !had_session {
            self.dht.handle_peer_failed(now, id);
        }
        self.lose_relay(now, id);
        self.drain(now, wall);
    }

    /// Ends the effort of a handshake that succeeded or is not needed any more.
    pub(super) fn end_effort(&mut self, id: NodeId, keep_index: bool) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let pending = peer.effort.take().and_then(|effort| effort.pending);
        if let (Some(pending), false) = (pending, keep_index) {
            self.peers.release_index(pending.initiator.local_index());
        }
        self.timers.disarm(&Timer::Handshake(id));
        self.dirty = true;
    }

    /// Asks a node for its record, knowing nothing but its ID and an endpoint.
    pub(super) fn fetch(&mut self, now: Instant, wall: WallTime, node_id: NodeId, endpoint: SocketAddr) {
        let running = self.fetches.values().any(|f| f.node_id == node_id && f.endpoint == endpoint);
        if running || self.fetches.len() >= FETCHES_MAX || !path::is_possible(&endpoint) {
            return;
        }
        let request = self.rng.next_u64();
        self.fetches.insert(request, Fetch { node_id, endpoint, attempt: 0, cookie_key: None, cookie: None });
        self.fetch_attempt(now, wall, request);
    }

    /// The next attempt of a record fetch, or its end.
    pub(super) fn fetch_attempt(&mut self, now: Instant, wall: WallTime, request: u64) {
        let Some(fetch) = self.fetches.get_mut(&request) else { return };
        if fetch.attempt == FETCH_ATTEMPTS_MAX {
            self.fetches.remove(&request);
            return;
        }
        fetch.attempt += 1;
        let (node_id, endpoint, wait) = (fetch.node_id, fetch.endpoint, backoff(fetch.attempt - 1));
        let known = fetch.cookie.or_else(|| self.peers.of(&node_id)?.cookie);
        let cookie = known.filter(|(_, at)| now.saturating_since(*at) < COOKIE_LIFETIME);
        if fetch.attempt > ATTEMPTS_BEFORE_DOUBT {
            self.suspect_udp(now, node_id);
        }
        let mut payload = emit_record_request(request);
        // A first datagram of one fixed length would give us away.
        payload.resize(payload.len() + self.rng.next_u32() as usize % FETCH_PADDING_MAX, 0);
        let network = &self.session_config.network;
        let message = Message::RecordRequest;
        if let Some(mut packet) =
            sealed::seal(&self.identity, node_id, message, &payload, wall, network, &mut self.rng)
        {
            if let Some((cookie, _)) = cookie {
                sealed::prove(&mut packet, &node_id, network, &cookie);
            }
            let key = sealed::cookie_key(&packet, &node_id, network);
            if let Some(fetch) = self.fetches.get_mut(&request) {
                fetch.cookie_key = key;
            }
            self.transmit(endpoint, packet);
        }
        let wait = self.jittered(wait);
        self.timers.arm(Timer::Fetch(request), now + wait);
    }

    /// Perhaps a cookie reply to a record request, which is repeated with the cookie at once; false when it is none.
    pub(super) fn handle_fetch_cookie(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: Hop,
        packet: &[u8],
    ) -> bool {
        let found = self.fetches.iter_mut().find_map(|(request, fetch)| {
            let asked = Hop::Direct(fetch.endpoint) == source;
            let cookie = read_cookie(fetch.cookie_key.as_ref().filter(|_| asked)?, packet)?;
            Some((*request, fetch, cookie))
        });
        let Some((request, fetch, cookie)) = found else { return false };
        let asked_before =
            fetch.cookie.is_some_and(|(_, at)| now.saturating_since(at) < Duration::from_secs(1));
        fetch.cookie = Some((cookie, now));
        let node_id = fetch.node_id;
        if let Some(peer) = self.peers.of_mut(&node_id) {
            // For the handshake that follows.
            peer.cookie = Some((cookie, now));
        }
        if !asked_before {
            self.fetch_attempt(now, wall, request);
        }
        true
    }

    /// A record came in answer to a fetch.
    pub(super) fn fetched(
        &mut self,
        now: Instant,
        wall: WallTime,
        request: u64,
        from: NodeId,
        record: &[u8],
        source: SocketAddr,
    ) {
        let Some(fetch) = self.fetches.get(&request).filter(|fetch| fetch.node_id == from) else {
            return self.drop(DropReason::Handshake);
        };
        let node_id = fetch.node_id;
        match NodeRecord::parse(record) {
            Ok(record) if record.node_id() == node_id => {
                self.fetches.remove(&request);
                self.timers.disarm(&Timer::Fetch(request));
                self.learn_record(now, wall, record);
                let peer = self.peers.of_mut(&node_id);
                if let Some(peer) = peer.filter(|peer| peer.path.hop() != Some(source)) {
                    peer.path.learn(source);
                }
                self.connect(now, wall, node_id);
            }
            _ => self.drop(DropReason::Malformed),
        }
    }

    /// Takes what a verified record says of its node; older records and records out of date say nothing.
    pub(super) fn learn_record(&mut self, now: Instant, wall: WallTime, record: NodeRecord) -> bool {
        let id = record.node_id();
        if id == self.node_id() {
            // Others keep it for us, and it is found when our own address is looked up.
            return false;
        }
        if record.remaining(wall).is_err() {
            self.drop(DropReason::Malformed);
            return false;
        }
        let local = std::mem::take(&mut self.local);
        let endpoints: Vec<_> =
            record.content().endpoints.iter().filter(|e| path::is_admissible(e, &local)).copied().collect();
        self.local = local;
        let Some(peer) = self.peers.entry(id, now) else { return false };
        let sequence = peer.record.as_ref().map(|old| old.content().sequence);
        let newest = sequence <= Some(record.content().sequence);
        if newest && sequence != Some(record.content().sequence) {
            peer.x25519 = Some(record.x25519());
            // In front of what was known: this is where the node says it is now.
            endpoints.into_iter().rev().for_each(|endpoint| peer.path.learn(endpoint));
            peer.record = Some(record.clone());
        }
        self.dht.handle_record(now, wall, record);
        newest
    }

    /// Takes a contact that somebody handed out, already known to be admissible.
    pub(super) fn learn_contact(&mut self, now: Instant, contact: &Contact) -> bool {
        let Some(peer) = self.peers.entry(contact.node_id, now) else { return false };
        peer.x25519.get_or_insert(contact.x25519);
        peer.path.learn_more([contact.endpoint]);
        true
    }

    /// A session stands: use it, tell the other side who we are, and send what waited. `proven`: what we sent to
    /// `source` arrived there.
    pub(super) fn install(
        &mut self,
        now: Instant,
        wall: WallTime,
        session: Session,
        source: Hop,
        proven: bool,
    ) {
        let id = session.peer();
        let initiated = session.is_initiator();
        self.channels.note_answered(source);
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.path.handle_heard(now, source);
        peer.path.switch(source);
        peer.pmtu.handle_hop(source);
        peer.challenge = None;
        let awaited = !peer.staged.is_empty();
        let reason = if peer.racing { peer.race_reason } else { Reason::Handshake };
        if let Some(old) = peer.adopt(session, now) {
            self.peers.release_index(old.local_index());
        }
        self.note_way(now, id, reason);
        self.tell_reached(id);
        if self.bootstrap.contains_key(&id) {
            self.bootstrap_reached.insert(id, now);
        }
        self.unreachable.remove(&id.address());
        self.dirty = true;
        // Nobody else's endpoint is behind a slot.
        if !proven && source.direct().is_some() {
            self.challenge(now, id);
        }
        self.greet(now, id);
        self.timers.arm(Timer::Session(id), now + super::timeout::SESSION_LOOK);
        self.watch(now, id);
        self.expect_traffic(now, id, awaited);
        self.release_staged(now, id);
        let pings = self.peers.of_mut(&id).map(|p| std::mem::take(&mut p.waiting_pings)).unwrap_or_default();
        for ticket in pings {
            self.send_ping(now, id, ticket);
        }
        self.report_up(now, id);
        self.event(Event::PeerUp(id));
        match source {
            Hop::Relayed(_) if initiated => self.look_for_direct(now, id),
            Hop::Relayed(_) => self.timers.arm(Timer::Upgrade(id), now + OTHERS_TURN),
            Hop::Direct(_) => {
                self.renew_at_relay(now, id);
                self.retry_through(now, id);
                self.sighted(now, id);
            }
        }
        self.drain(now, wall);
    }

    /// Sends our record and the control messages that waited.
    fn greet(&mut self, now: Instant, id: NodeId) {
        // Without a record an empty packet still confirms the session.
        let hello = self.hello();
        self.send_control(now, id, hello.as_slice());
        let waiting = self.peers.of_mut(&id).map(|p| std::mem::take(&mut p.outbox)).unwrap_or_default();
        for message in waiting {
            self.send_control(now, id, &[message]);
        }
    }

    fn hello(&self) -> Option<Control> {
        self.record.as_ref().map(|record| Control::Hello { record: record.bytes().to_vec() })
    }

    /// Introduces us again: the peer, or we, may have missed it.
    pub(super) fn greet_again(&mut self, now: Instant, id: NodeId) {
        let Some(hello) = self.hello() else { return };
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let due = peer.challenge.is_none() && peer.repeats < REPEATS_MAX;
        if due && now.saturating_since(peer.greeted) >= REPEAT_GAP {
            (peer.repeats, peer.greeted) = (peer.repeats + 1, now);
            self.send_control(now, id, &[hello]);
        }
    }

    /// Tells the DHT of a peer that answered at its endpoint.
    pub(super) fn report_up(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of(&id) else { return };
        if let (Some(record), Some(x25519), Some(endpoint)) =
            (&peer.record, peer.x25519, self.contact_endpoint(peer))
        {
            let contact = Contact { node_id: id, x25519, endpoint };
            self.dht.handle_peer_up(now, contact, record.serves_dht());
            self.ask_elsewhere(now, id, endpoint);
            self.hurry_relays(now);
        }
    }

    /// Asks a peer where its record says that it is reached by the other IP version, so that those who have no other can
    /// be told of it: our word sends strangers there.
    fn ask_elsewhere(&mut self, now: Instant, id: NodeId, known: SocketAddr) {
        let is_other = |endpoint: &&SocketAddr| endpoint.is_ipv4() != known.is_ipv4();
        if !self.endpoints.iter().any(|own| is_other(&own)) {
            return;
        }
        let Some(record) = self.peers.of(&id).and_then(|peer| peer.record.as_ref()) else { return };
        let said = record.content().endpoints.iter().filter(is_other);
        let endpoint = said.copied().find(|endpoint| path::is_admissible(endpoint, &self.local));
        if let Some(endpoint) = endpoint.filter(|endpoint| self.dht.may_be_also_at(now, id, *endpoint)) {
            self.ask(now, id, Hop::Direct(endpoint));
        }
    }

    /// Forgets all sessions with a peer; their keys are wiped.
    pub(super) fn forget_sessions(&mut self, now: Instant, id: NodeId, why: Reason) {
        // A session that nobody waits for ends as it should: the peer is asked again when there is something to send.
        if !self.stopping && self.peers.of(&id).is_some_and(Peer::awaits_answer) {
            self.note_lost(now, id, Lost::NoAnswer);
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.heard = peer.last_heard();
        let sessions = [peer.current.take(), peer.previous.take(), peer.next.take()];
        sessions.iter().flatten().for_each(|session| peer.count_past(session));
        (peer.probe, peer.epoch_grace, peer.racing) = (None, None, false);
        (peer.active_at, peer.looked_at, peer.surveyed_at) = (None, None, None);
        peer.compare_at = None;
        peer.path.checks.stop();
        peer.path.choice.clear();
        for session in sessions.into_iter().flatten() {
            self.peers.release_index(session.local_index());
        }
        self.timers.disarm(&Timer::Session(id));
        self.timers.disarm(&Timer::Mtu(id));
        self.timers.disarm(&Timer::Checks(id));
        self.timers.disarm(&Timer::Upgrade(id));
        self.timers.disarm(&Timer::Ways(id));
        self.timers.disarm(&Timer::Unconfirmed(id));
        self.forget_sockets(now, id);
        self.dirty = true;
        self.note_way(now, id, why);
    }

    /// A session has ended: what waited for it is refused, unless the next one is on its way.
    pub(super) fn refuse_unless_connecting(&mut self, id: NodeId) {
        if self.peers.of(&id).is_some_and(|peer| peer.effort.is_none()) {
            self.refuse_staged(id);
        }
    }

    /// A fresh lookup ended for a peer that did not answer, or whose key was not known.
    pub(super) fn retry_with_record(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let best = peer.path.candidates().first();
        let relayed = peer.record.as_ref().is_some_and(|record| !record.content().relays.is_empty());
        let pending = peer.effort.as_ref().and_then(|effort| effort.pending.as_ref());
        match pending {
            Some(pending)
                if relayed && pending.targets.iter().all(|hop| hop.slot().is_none())
                    || best.is_some_and(|best| !pending.targets.contains(&Hop::Direct(*best))) =>
            {
                self.attempt(now, wall, id);
            }
            Some(_) => {}
            None if peer.effort.is_some() && peer.x25519.is_some() => self.shake_hands(now, wall, id),
            None => {}
        }
    }

    pub(super) fn look_up_record(&mut self, now: Instant, address: MeshAddress) {
        let lookup =
            self.dht.lookup(now, address.position_prefix(), crate::proto::wire::control::Want::Record);
        self.lookups.insert(lookup, Purpose::Resolve(address));
    }

    /// A duration up to a quarter longer, so that nodes do not move in step.
    pub(super) fn jittered(&mut self, wait: Duration) -> Duration {
        wait + wait.mul_f64(f64::from(self.rng.next_u32() >> 8) / f64::from(1 << 24) / 4.0)
    }
}

fn backoff(attempt: u32) -> Duration {
    ATTEMPT_WAITS_MS.get(attempt as usize).map_or(ATTEMPT_WAIT_MAX, |ms| Duration::from_millis(*ms))
}
