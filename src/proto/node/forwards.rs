//! Questions to nodes of the DHT that we ask for others, who do not reach them (as R5N does, Evans and Grothoff 2011).
//!
//! ```text
//! asker ── Forward(to, target) ──► we ── Find(target) ──► to
//!       ◄── Found ────────────────    ◄── Found ─────────┘       one question and one answer for each
//! ```
//!
//! Whoever handed out a contact is asked to ask it: it reached it lately. What the answer says needs no trust in us:
//! records are signed, and contacts are hearsay anyway.

use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::datapath::DropReason;
use crate::proto::identity::{NodeId, Position};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Control, Want};

use super::Node;

/// Questions that are asked for others at once.
const FORWARDS_MAX: usize = 256;
/// How long an answer is waited for.
const FORWARD_LIFE: Duration = Duration::from_secs(5);

/// A question that we ask for somebody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forwarded {
    from: NodeId,
    /// How the asker names it.
    request: u64,
    to: NodeId,
    until: Instant,
}

impl Node {
    /// A peer has us ask another node.
    pub(super) fn handle_forward(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: NodeId,
        (request, to): (u64, NodeId),
        (want, target): (Want, Position),
    ) {
        let Some(peer) = self.peers.of_mut(&from) else { return };
        if peer.challenge.is_some() || !peer.requests.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        self.forwards.retain(|_, forwarded| now < forwarded.until);
        // Only to where somebody has answered us.
        let contact = self.dht.contact(to).filter(|_| to != from);
        let Some(contact) = contact.filter(|_| self.forwards.len() < FORWARDS_MAX) else {
            return self.drop(DropReason::Relay);
        };
        if self.reaches(&to).is_none() && !self.reach_outs.take(now) {
            return self.drop(DropReason::RateLimited);
        }
        if self.learn_contact(now, &contact) {
            let ours = self.rng.next_u64();
            self.forwards.insert(ours, Forwarded { from, request, to, until: now + FORWARD_LIFE });
            self.send_or_stage(now, wall, to, Control::Find { request: ours, want, target });
        }
    }

    /// Passes an answer back to whom it is for; false when it is ours.
    pub(super) fn pass_back(
        &mut self,
        now: Instant,
        from: NodeId,
        request: u64,
        record: &Option<Vec<u8>>,
        contacts: &[Contact],
    ) -> bool {
        let is_its = |forwarded: &Forwarded| forwarded.to == from;
        if !self.forwards.get(&request).is_some_and(is_its) {
            return false;
        }
        if let Some(forwarded) = self.forwards.remove(&request).filter(|forwarded| now < forwarded.until) {
            let (request, record, contacts) = (forwarded.request, record.clone(), contacts.to_vec());
            self.send_control(now, forwarded.from, &[Control::Found { request, record, contacts }]);
        }
        true
    }
}
