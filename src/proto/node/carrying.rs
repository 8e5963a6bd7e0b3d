//! As a relay: allocations and channels that others ask us for, and what the data path does with their packets.
//!
//! ```text
//! Allocate ─► `relay::Relay` ─► Allocated          Bind ─► `relay::Relay` ─► Bound, and Invite to the other side
//! publish  ─► a slot on each side of every channel, to where the other side is known to receive
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use crate::proto::datapath::{Carried, DropReason, Forward, Via};
use crate::proto::identity::NodeId;
use crate::proto::relay::ALLOCATION_LIFE;
use crate::proto::timer::Instant;
use crate::proto::wire::control::{Control, Service};
use crate::proto::wire::envelope::RecipientKey;
use crate::proto::wire::relay::Slot;

use super::{Node, Timer};

impl Node {
    /// A client asks for an allocation with us.
    pub(super) fn handle_allocate(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        // Where it is known to receive: what we carry for it goes there.
        let Some(endpoint) = peer.path.endpoint().filter(|_| peer.challenge.is_none()) else { return };
        if !peer.requests.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        let service = self.relay.allocate(now, id, endpoint.ip());
        let seconds = ALLOCATION_LIFE.as_secs() as u16;
        self.send_control(now, id, &[Control::Allocated { seconds, service }]);
        self.arm_relay(now);
    }

    /// A peer asks for a channel through us.
    pub(super) fn handle_bind(
        &mut self,
        now: Instant,
        from: NodeId,
        slot: Slot,
        to: NodeId,
        mut datagram: Vec<u8>,
    ) {
        let Some(peer) = self.peers.of_mut(&from) else { return };
        if peer.path.is_relayed() || !peer.requests.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        // A channel that stands is renewed; a new one has to lead somewhere.
        let possible = !self.relay.is_free(slot) || self.reaches(&to).is_some();
        let (ours, renewed) = (self.channels.contains(&slot), !self.relay.is_free(slot));
        let bound =
            if possible && !ours { self.relay.bind(now, from, slot, to, &mut self.rng) } else { None };
        let service = bound.map_or(Service::None, |(_, service)| service);
        self.send_control(now, from, &[Control::Bound { slot, service }]);
        let Some((far, service)) = bound else { return };
        // The data path knows a channel that stands: nobody has it read everything anew by asking again.
        self.dirty |= !renewed;
        if !self.relay.charge(now, slot, datagram.len() as u64) {
            self.drop(DropReason::Relay);
            datagram.clear();
        }
        self.send_control(now, to, &[Control::Invite { slot: far.slot, peer: from, service, datagram }]);
        self.arm_relay(now);
    }

    /// Where what we carry for a node goes: an endpoint at which it is known to receive.
    pub(super) fn reaches(&self, node: &NodeId) -> Option<SocketAddr> {
        let peer = self.peers.of(node).filter(|peer| peer.current.is_some() && peer.challenge.is_none());
        peer?.path.endpoint()
    }

    pub(super) fn arm_relay(&mut self, now: Instant) {
        match self.relay.poll_timeout() {
            Some(at) => self.timers.arm(Timer::Channels, at.max(now)),
            None => self.timers.disarm(&Timer::Channels),
        }
    }

    /// Channels and allocations that nobody uses any more.
    pub(super) fn end_channels(&mut self, now: Instant) {
        self.dirty |= self.relay.handle_timeout(now);
        self.arm_relay(now);
    }

    /// What the data path is to do with what comes under a slot of others; what it does already, if that is the same.
    pub(super) fn forward(&self, slot: Slot, now_does: Option<&Arc<Carried>>) -> Option<Arc<Carried>> {
        let ([near, far], quota) = self.relay.channel(slot)?;
        let (from, to) = (self.reaches(&near.node)?, self.reaches(&far.node)?);
        let same = now_does.filter(|carried| match &***carried {
            Carried::Forward(old) => old.from == from && old.to == to && Arc::ptr_eq(&old.quota, quota),
            Carried::Ours(_) => false,
        });
        Some(same.cloned().unwrap_or_else(|| {
            let key = RecipientKey::new(&far.node, &self.session_config.network);
            let (via, quota) = (Via { slot: far.slot, key }, quota.clone());
            Arc::new(Carried::Forward(Forward { from, to, via, quota }))
        }))
    }

    /// Whom we carry packets for, and how many channels there are.
    pub(super) fn carrying(&self) -> (Vec<NodeId>, usize) {
        (self.relay.clients().copied().collect(), self.relay.channels().count())
    }
}
