//! Asking peers to dial us, and dialling those who ask: `path::reach` says what follows.
//!
//! What is dialled goes only where the question came from, once, to a peer that has shown that it receives there, and at
//! [`DIALS_PER_S`] for everybody together: nobody can have us send to somebody else, or more than they send.

use std::net::SocketAddr;

use rand_core::Rng as _;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::path::reach::Verdict;
use crate::proto::session::sealed;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::Control;
use crate::proto::wire::relay::Hop;
use crate::proto::wire::sealed::Message;

use super::{Event, Node, Timer, Transmit};

/// Datagrams a second that we dial, and how many at once.
pub(super) const DIALS_PER_S: u32 = 2;
pub(super) const DIALS_BURST: u32 = 16;
/// What is dialled is padded by less than this many bytes at random.
const DIAL_PADDING_MAX: u32 = 64;

impl Node {
    /// Whether others reach us unasked over one family at a global address of ours.
    pub(super) fn reach_verdict(&self, v4: bool) -> Verdict {
        self.reach[usize::from(!v4)].verdict()
    }

    /// We have been seen: perhaps somebody can be asked whether we are reached there.
    pub(super) fn hurry_reach(&mut self, now: Instant) {
        let due = [true, false].into_iter().any(|v4| self.asks_reach(now, v4));
        if due && self.timers.deadline(&Timer::Reach).is_none() {
            self.timers.arm(Timer::Reach, now);
        }
    }

    /// True when it is not known whether we are reached at the global address at which we are seen.
    fn asks_reach(&self, now: Instant, v4: bool) -> bool {
        let seen = self.observed.endpoint(now, v4).is_some_and(|(seen, _)| self.is_own(seen.ip()));
        seen && self.reach[usize::from(!v4)].is_due(now)
    }

    /// Asks, and takes what was not answered for an answer.
    pub(super) fn look_at_reach(&mut self, now: Instant, wall: WallTime) {
        for (at, v4) in [true, false].into_iter().enumerate() {
            self.reach[at].handle_timeout(now);
            while self.asks_reach(now, v4) {
                let Some((peer, endpoint)) = self.whom_to_ask(v4) else {
                    self.reach[at].note_nobody(now);
                    break;
                };
                let nonce = self.rng.next_u64();
                self.reach[at].ask(now, peer, endpoint, nonce);
                self.send_control(now, peer, &[Control::Dial { nonce }]);
            }
        }
        self.judge_place(now, wall);
        match self.reach.iter().filter_map(|reach| reach.poll_timeout()).min() {
            Some(at) => self.timers.arm(Timer::Reach, at.max(now + path::reach::DIAL_PATIENCE / 2)),
            None => self.timers.disarm(&Timer::Reach),
        }
    }

    /// A peer on the internet that can add to what is known: any of them, so that nobody can see to it that it is asked.
    fn whom_to_ask(&mut self, v4: bool) -> Option<(NodeId, SocketAddr)> {
        let reach = &self.reach[usize::from(!v4)];
        let possible = self.peers.iter().filter(|peer| peer.may_be_probed()).filter_map(|peer| {
            let endpoint = peer.path.endpoint()?;
            let global = path::is_global(endpoint.ip()) && endpoint.is_ipv4() == v4;
            (global && reach.is_useful(endpoint)).then_some((peer.id, endpoint))
        });
        let possible: Vec<_> = possible.collect();
        let n = self.rng.next_u64() as usize % possible.len().max(1);
        possible.get(n).copied()
    }

    /// True when something of ours may have gone to an endpoint, so that a firewall lets in what comes from there.
    fn may_have_sent_to(&self, now: Instant, endpoint: SocketAddr) -> bool {
        let hop = Hop::Direct(endpoint);
        self.peers.iter().map(|peer| &peer.path).any(|path| {
            let known = path.current() == Some(hop) || path.candidates().contains(&endpoint);
            known || path.checks.has_tried(hop) || path.choice.is_known(now, hop)
        })
    }

    /// A peer asks to be dialled.
    pub(super) fn handle_dial(&mut self, now: Instant, wall: WallTime, id: NodeId, source: Hop, nonce: u64) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Hop::Direct(to) = source else { return self.drop(DropReason::Relay) };
        // Where the peer is known to receive: anybody's address may be in the header of a packet.
        let proven = peer.challenge.is_none() && peer.path.current() == Some(source);
        if !proven || !path::is_global(to.ip()) || !peer.requests.take(now) || !self.dials.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        let mut payload = nonce.to_be_bytes().to_vec();
        payload.resize(payload.len() + (self.rng.next_u32() % DIAL_PADDING_MAX) as usize, 0);
        let network = &self.session_config.network;
        let sealed = sealed::seal(&self.identity, id, Message::Dial, &payload, wall, network, &mut self.rng);
        let Some(datagram) = sealed else { return };
        self.event(Event::Dial(Transmit { to, datagram }));
        self.send_control(now, id, &[Control::Dialled { nonce }]);
    }

    /// What a peer dialled has come: from a port that we never sent to.
    pub(super) fn handle_dialled(
        &mut self,
        now: Instant,
        wall: WallTime,
        id: NodeId,
        source: SocketAddr,
        nonce: u64,
    ) -> Result<(), DropReason> {
        if self.may_have_sent_to(now, source) {
            return Err(DropReason::Unauthenticated);
        }
        let reach = &mut self.reach[usize::from(source.is_ipv6())];
        if !reach.handle_dial(now, id, nonce) {
            return Err(DropReason::Unauthenticated);
        }
        self.judge_place(now, wall);
        Ok(())
    }
}
