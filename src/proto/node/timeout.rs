//! What becomes due.

use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::identity::NodeId;
use crate::proto::session::transport::Session;
use crate::proto::session::{EPOCH_OVERLAP, REJECT_AFTER, REKEY_AFTER};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::Control;

use super::command::PingFailure;
use super::connect::EFFORT_MAX;
use super::history::Reason;
use super::peers::Probe;
use super::{Event, Node, Timer};

/// How often a session in use is looked at.
pub(super) const SESSION_LOOK: Duration = Duration::from_secs(1);
/// The same, while there is another way that could be used.
const SESSION_LOOK_STANDBY: Duration = Duration::from_millis(300);
/// Without an answer for this long, another way is tried if there is one.
const SUSPECT_AFTER: Duration = Duration::from_millis(400);
/// And for so many round trips.
const SUSPECT_RTTS: u32 = 3;
/// Least time between two looks.
const LOOK_GAP_MIN: Duration = Duration::from_millis(50);
/// A ping unanswered for this long starts a handshake: the peer may have lost its keys.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_millis(900);
/// When a session that nothing but its keepalives goes over is followed by the next one: two of them before its end.
const REKEY_KEPT_AFTER: Duration = Duration::from_secs(145);
/// The responder of a session renews it this much later than the initiator would (WireGuard paper §6.2).
const RESPONDER_PATIENCE: Duration = Duration::from_secs(15);
/// Wait between two efforts to reach the configured contacts; doubles up to the longest.
pub(super) const BOOTSTRAP_WAIT_MIN: Duration = Duration::from_secs(1);
const BOOTSTRAP_WAIT_MAX: Duration = Duration::from_secs(60);
/// Once others are known too, a configured contact is one of many: whoever all were told of has all of them to answer.
const BOOTSTRAP_AGAIN: Duration = Duration::from_secs(30 * 60);
/// What was due so long ago was due while the machine slept: what was known of the ways may not be true any more.
const ASLEEP: Duration = Duration::from_secs(3);
/// A ping of a command without an answer has failed after this.
pub(super) const PING_LIFE: Duration = Duration::from_secs(10);

impl Node {
    /// Does all that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, wall: WallTime) {
        let due = self.timers.earliest();
        if due.is_some_and(|due| now.saturating_since(due) >= ASLEEP) {
            self.ask_everywhere(now, wall);
        }
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Handshake(id) => self.attempt(now, wall, id),
                Timer::Session(id) => self.look_at_session(now, wall, id),
                Timer::Mtu(id) => self.probe_timer(now, id),
                Timer::Checks(id) => self.check(now, id),
                Timer::Upgrade(id) => self.offer_candidates(now, id),
                Timer::Spray(id) => self.tend_spray(now, wall, id),
                Timer::Ways(id) => self.look_at_ways(now, wall, id),
                Timer::Reach => self.look_at_reach(now, wall),
                Timer::Relays => self.tend_relays(now, wall),
                Timer::Seek(id) => self.seek_ring(now, wall, id),
                Timer::Carriers => self.keep_carriers(now),
                Timer::Record => self.refresh_record(now, wall),
                Timer::Streams => self.tend_streams(now, wall),
                Timer::Channels => self.end_channels(now),
                Timer::Unconfirmed(id) => self.forget_unconfirmed(id),
                Timer::Resolve(address) => self.resolve_again(now, wall, address),
                Timer::Fetch(request) => self.fetch_attempt(now, wall, request),
                Timer::Bootstrap => self.reach_bootstrap(now, wall),
                Timer::Pings => self.expire_pings(now),
                Timer::Named(id) => self.forget_named(now, id),
            }
        }
        self.dht.handle_timeout(now, wall);
        self.drain(now, wall);
    }

    fn forget_unconfirmed(&mut self, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(session) = peer.next.take() else { return };
        peer.note_untaken(session.established());
        self.peers.release_index(session.local_index());
        self.dirty = true;
    }

    /// Is the session expired, old, unanswered, due for a ratchet step? A session without data is left alone until it
    /// expires; the data path tells us when it sends again.
    fn look_at_session(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(session) = peer.current.clone() else { return };
        if session.is_expired(now) {
            self.forget_sessions(now, id, Reason::Idle);
            return self.refuse_unless_connecting(id);
        }
        if peer.previous.as_ref().is_some_and(|previous| previous.is_expired(now))
            && let Some(previous) = peer.replace_previous(None)
        {
            self.peers.release_index(previous.local_index());
            self.dirty = true;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let packets = peer.data_packets();
        let active = std::mem::replace(&mut peer.seen_packets, packets) != packets;
        if active {
            self.note_active(now, id);
            self.report_traffic(now, id);
        }
        // Nothing is sent over a session with a relay of ours but what keeps it.
        let carries =
            |id: NodeId| self.carries_for_us(now, &id) || self.relay.route_ends(now).any(|end| end == id);
        let in_use = active || self.is_relay_of_ours(&id) || carries(id);
        let Some(peer) = self.peers.of(&id) else { return };
        let (proof, waits) = (peer.last_proof().unwrap_or(now), peer.awaits_answer());
        let unanswered = waits && now.saturating_since(proof) >= PROBE_PATIENCE;
        let lost = peer
            .probe
            .is_some_and(|probe| proof < probe.sent && now.saturating_since(probe.sent) >= PROBE_PATIENCE);
        let abandoned = peer.is_abandoned();
        let due = if active { REKEY_AFTER } else { REKEY_KEPT_AFTER };
        let old = now.saturating_since(session.established())
            >= if session.is_initiator() { due } else { due + RESPONDER_PATIENCE };
        if unanswered {
            self.suspect_udp(now, id);
        }
        if in_use && old || lost && !abandoned {
            self.shake_hands(now, wall, id);
        }
        let rtt = self.peers.of(&id).and_then(|peer| peer.rtt).unwrap_or_default();
        let patience = SUSPECT_AFTER.max(rtt * SUSPECT_RTTS);
        let since = self.peers.of_mut(&id).map_or(now, |peer| peer.unanswered_since(now, patience));
        let suspect = waits && now.saturating_since(since) >= patience;
        let has_standby = self.peers.of(&id).is_some_and(|peer| self.has_standby(now, peer));
        if suspect && has_standby && !abandoned {
            self.race(now, wall, id, Reason::Silent(now.saturating_since(proof)));
        }
        if unanswered {
            self.seek(now, wall, id);
        }
        if unanswered && (active || !lost) {
            self.probe(now, id);
        } else if !unanswered && let Some(peer) = self.peers.of_mut(&id) {
            peer.probe = None;
        }
        self.see_epoch(now, id);
        self.ratchet(now, id, &session);
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let next = match peer.probe {
            Some(probe) if !lost => probe.sent + PROBE_PATIENCE,
            None if waits && has_standby && !suspect => since + patience,
            None if waits => proof.max(session.last_sent().unwrap_or(proof)) + PROBE_PATIENCE,
            _ if active && has_standby => now + SESSION_LOOK_STANDBY,
            _ if active || peer.epoch_grace.is_some() => now + SESSION_LOOK,
            _ => session.established() + REJECT_AFTER,
        };
        let expires = session.established() + REJECT_AFTER;
        let watched = next < expires;
        self.dirty |= std::mem::replace(&mut peer.watched, watched) && !watched;
        self.timers.arm(Timer::Session(id), next.max(now + LOOK_GAP_MIN).min(expires));
        if active && let Some(report) = self.peers.of_mut(&id).and_then(|peer| peer.poll_report(now)) {
            self.send_control(now, id, &[report]);
        }
    }

    /// Has a session looked at soon, if that was not planned anyway.
    pub(super) fn watch(&mut self, now: Instant, id: NodeId) {
        let timer = Timer::Session(id);
        let has_standby = self.peers.of(&id).is_some_and(|peer| self.has_standby(now, peer));
        let at = now + if has_standby { SESSION_LOOK_STANDBY } else { SESSION_LOOK };
        if self.timers.deadline(&timer).is_none_or(|planned| planned > at) {
            self.timers.arm(timer, at);
        }
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.watched = true;
        }
    }

    /// Asks the peer for a sign of life.
    pub(super) fn probe(&mut self, now: Instant, id: NodeId) {
        let nonce = self.rng.next_u64();
        if self.send_control(now, id, &[Control::Ping { nonce }])
            && let Some(peer) = self.peers.of_mut(&id)
        {
            peer.probe.get_or_insert(Probe { nonce, sent: now });
        }
    }

    /// Has the peer moved to its next epoch? The session itself is asked: the notice of the data path may get lost.
    pub(super) fn see_epoch(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let advanced = peer.current.as_ref().is_some_and(|s| s.newest_epoch() > s.receiving_epoch());
        if advanced && peer.epoch_grace.is_none() {
            peer.epoch_grace = Some(now + EPOCH_OVERLAP);
            self.watch(now, id);
        }
    }

    fn ratchet(&mut self, now: Instant, id: NodeId, session: &Session) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if session.wants_ratchet(now) {
            peer.current = peer.current.take().map(|session| session.next_sending_epoch());
            self.dirty = true;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.epoch_grace.take_if(|until| *until <= now).is_some() {
            peer.current = peer.current.take().map(|session| session.next_receiving_epoch());
            self.dirty = true;
        }
    }

    /// Tries the configured contacts that we hold no session with.
    fn reach_bootstrap(&mut self, now: Instant, wall: WallTime) {
        let alone = self.dht.is_alone();
        let is_due = |id: &NodeId| {
            alone
                || self
                    .bootstrap_reached
                    .get(id)
                    .is_none_or(|at| now.saturating_since(*at) >= BOOTSTRAP_AGAIN)
        };
        let absent: Vec<_> = self
            .bootstrap
            .iter()
            .filter(|(id, _)| self.peers.of(id).is_none_or(|peer| peer.current.is_none()) && is_due(id))
            .map(|(id, endpoints)| (*id, endpoints.clone()))
            .collect();
        if !self.bootstrap.is_empty() {
            let wait = if absent.is_empty() { BOOTSTRAP_WAIT_MAX } else { self.bootstrap_wait };
            self.timers.arm(Timer::Bootstrap, now + EFFORT_MAX + wait);
        }
        self.bootstrap_wait = (self.bootstrap_wait * 2).min(BOOTSTRAP_WAIT_MAX);
        for (id, endpoints) in absent {
            if let Some(peer) = self.peers.entry(id, now) {
                endpoints.into_iter().rev().for_each(|endpoint| peer.path.learn(endpoint));
            }
            self.connect(now, wall, id);
        }
    }

    fn expire_pings(&mut self, now: Instant) {
        let expired = |(_, sent): &(_, Instant)| now.saturating_since(*sent) >= PING_LIFE;
        let failed: Vec<_> = self
            .pings
            .iter()
            .filter(|(_, ping)| expired(ping))
            .map(|(nonce, ping)| (*nonce, ping.0))
            .collect();
        for (nonce, ticket) in failed {
            self.pings.remove(&nonce);
            self.event(Event::Ping(ticket, Err(PingFailure::NoAnswer)));
        }
        if let Some(sent) = self.pings.values().map(|(_, sent)| *sent).min() {
            self.timers.arm(Timer::Pings, sent + PING_LIFE);
        }
    }
}
