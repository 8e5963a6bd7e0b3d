//! What becomes due.

use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::identity::NodeId;
use crate::proto::session::transport::Session;
use crate::proto::session::{REJECT_AFTER, REKEY_AFTER};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::Control;

use super::peers::{Probe, last_heard};
use super::{Node, Timer};

/// How often a session in use is looked at.
pub(super) const SESSION_LOOK: Duration = Duration::from_secs(1);
/// A ping unanswered for this long starts a handshake: the peer may have lost its keys.
const PROBE_PATIENCE: Duration = Duration::from_millis(900);
/// The responder of a session renews it this much later than the initiator would (WireGuard paper §6.2).
const RESPONDER_PATIENCE: Duration = Duration::from_secs(15);
/// Wait between two attempts to reach the configured contacts; doubles up to the longest.
pub(super) const BOOTSTRAP_WAIT_MIN: Duration = Duration::from_secs(1);
const BOOTSTRAP_WAIT_MAX: Duration = Duration::from_secs(60);
/// Pings of commands are forgotten after this.
const PING_LIFE: Duration = Duration::from_secs(60);

impl Node {
    /// Does all that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, wall: WallTime) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Handshake(id) => self.attempt(now, wall, id),
                Timer::Session(id) => self.look_at_session(now, wall, id),
                Timer::Unconfirmed(id) => self.forget_unconfirmed(id),
                Timer::Resolve(address) => self.resolve_again(now, wall, address),
                Timer::Fetch(request) => self.fetch_attempt(now, wall, request),
                Timer::Bootstrap => self.reach_bootstrap(now, wall),
            }
        }
        self.dht.handle_timeout(now, wall);
        self.drain(now, wall);
    }

    fn forget_unconfirmed(&mut self, id: NodeId) {
        if let Some(session) = self.peers.of_mut(&id).and_then(|peer| peer.next.take()) {
            self.peers.release_index(session.local_index());
            self.dirty = true;
        }
    }

    /// Is the session expired, old, unanswered, due for a ratchet step? A session without traffic is left alone
    /// until it expires; the data path wakes us when it sends again.
    fn look_at_session(&mut self, now: Instant, wall: WallTime, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(session) = peer.current.clone() else { return };
        if session.is_expired(now) {
            return self.forget_sessions(id);
        }
        if let Some(previous) = peer.previous.take_if(|previous| previous.is_expired(now)) {
            self.peers.release_index(previous.local_index());
            self.dirty = true;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let packets = (session.packets_sent() + session.packets_received()).saturating_sub(peer.control_sent);
        let active = std::mem::replace(&mut peer.seen_packets, packets) != packets;
        let unanswered = session.last_sent() > session.last_received()
            && now.saturating_since(last_heard(&session)) >= PROBE_PATIENCE;
        let lost = peer.probe.is_some_and(|probe| {
            last_heard(&session) < probe.sent && now.saturating_since(probe.sent) >= PROBE_PATIENCE
        });
        let old = now.saturating_since(session.established())
            >= if session.is_initiator() { REKEY_AFTER } else { REKEY_AFTER + RESPONDER_PATIENCE };
        if active && old || lost {
            self.shake_hands(now, wall, id);
        }
        if unanswered && (active || !lost) {
            self.probe(now, id);
        } else if !unanswered && let Some(peer) = self.peers.of_mut(&id) {
            peer.probe = None;
        }
        self.ratchet(now, id, &session);
        let expires = session.established() + REJECT_AFTER;
        let next = if active || unanswered && !lost { now + SESSION_LOOK } else { expires };
        self.timers.arm(Timer::Session(id), next.min(expires));
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
        let absent: Vec<_> = self
            .bootstrap
            .iter()
            .filter(|(id, _)| self.peers.of(id).is_none_or(|peer| peer.current.is_none()))
            .map(|(id, endpoint)| (*id, *endpoint))
            .collect();
        self.bootstrap_wait = if absent.is_empty() {
            BOOTSTRAP_WAIT_MAX
        } else {
            (self.bootstrap_wait * 2).min(BOOTSTRAP_WAIT_MAX)
        };
        if !self.bootstrap.is_empty() {
            self.timers.arm(Timer::Bootstrap, now + self.bootstrap_wait);
        }
        for (id, endpoint) in absent {
            if let Some(peer) = self.peers.entry(id, now) {
                peer.path.learn(endpoint);
            }
            self.connect(now, wall, id);
        }
        self.pings.retain(|_, (_, sent)| now.saturating_since(*sent) < PING_LIFE);
    }
}
