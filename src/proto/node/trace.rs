//! Signs of life of the relays on a channel, for `trace`: each is asked by way of those before it.
//!
//! ```text
//! we ── Trace(slot a, left 2) ──► relay ── Trace(slot b, left 1) ──► relay ── Trace(slot c, left 0) ──► relay
//!    ◄─────────────────────────────────── answers, back by the same slots ───────────────────┘
//! ```

use rand_core::Rng as _;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::relay::End;
use crate::proto::timer::Instant;
use crate::proto::wire::control::Control;
use crate::proto::wire::relay::{HOPS_MAX, Hop, Slot};
use crate::proto::wire::routing::Routing;

use super::command::{PINGS_MAX, PingFailure};
use super::{Event, Node, PingReply, Ticket, Timer};

/// A nonce says in its lowest bits which relay it is for.
const HOP_MASK: u64 = HOPS_MAX as u64 - 1;

impl Node {
    /// Asks relay number `hop`, from 0, on the way to a peer for a sign of life; ends in [`Event::Ping`].
    pub(super) fn trace(&mut self, now: Instant, ticket: Ticket, peer: NodeId, hop: u8) {
        let way =
            self.peers.of(&peer).filter(|peer| peer.current.is_some()).and_then(|peer| peer.path.current());
        let slot = way.and_then(|way| way.slot());
        let relay = way.and_then(|way| self.relay_of(way));
        let (Some(slot), Some(relay), true) = (slot, relay, hop < HOPS_MAX) else {
            return self.event(Event::Ping(ticket, Err(PingFailure::NotFound)));
        };
        let nonce = self.rng.next_u64() & !HOP_MASK | u64::from(hop);
        let message = Routing::Trace { answer: false, nonce, slot, left: hop };
        if self.pings.len() >= PINGS_MAX || !self.send_control(now, relay, &[Control::Routing(message)]) {
            return self.event(Event::Ping(ticket, Err(PingFailure::TooMany)));
        }
        self.pings.insert(nonce, (ticket, now));
        if self.timers.deadline(&Timer::Pings).is_none() {
            self.timers.arm(Timer::Pings, now + super::timeout::PING_LIFE);
        }
    }

    /// A neighbour asks us, or somebody behind us on the channel, for a sign of life, or one comes back.
    pub(super) fn handle_trace(
        &mut self,
        now: Instant,
        from: NodeId,
        (answer, nonce): (bool, u64),
        slot: Slot,
        left: u8,
    ) {
        if answer && self.relay_of(Hop::Relayed(slot)) == Some(from) {
            return self.handle_traced(now, nonce, slot);
        }
        let across = self.relay.across(End { node: from, slot });
        if !self.peers.of_mut(&from).is_some_and(|peer| peer.requests.take(now)) {
            return self.drop(DropReason::RateLimited);
        }
        let Some((far, _)) = across else { return self.drop(DropReason::Relay) };
        let (to, message) = match (answer, left.checked_sub(1)) {
            (true, _) => (far.node, Routing::Trace { answer, nonce, slot: far.slot, left }),
            (false, None) => (from, Routing::Trace { answer: true, nonce, slot, left }),
            (false, Some(left)) => (far.node, Routing::Trace { answer, nonce, slot: far.slot, left }),
        };
        self.send_control(now, to, &[Control::Routing(message)]);
    }

    fn handle_traced(&mut self, now: Instant, nonce: u64, slot: Slot) {
        let relays = self.via(Hop::Relayed(slot));
        let endpoint = self.endpoint_of(Hop::Relayed(slot));
        let hop = (nonce & HOP_MASK) as usize;
        let (Some(node_id), Some(endpoint)) = (relays.get(hop).copied(), endpoint) else { return };
        if let Some((ticket, sent)) = self.pings.remove(&nonce) {
            let (endpoint, by_stream) = self.streams.shown(endpoint);
            let (via, beyond, data) = (None, Vec::new(), self.carries_data(Hop::Relayed(slot)));
            let rtt = now.saturating_since(sent);
            let reply = PingReply { node_id, rtt, endpoint, via, beyond, by_stream, data };
            self.event(Event::Ping(ticket, Ok(reply)));
        }
    }
}
