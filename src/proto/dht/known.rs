//! Nodes that answered us once: where a restart, an outage or a split network starts again.
//!
//! More than the table: full buckets turn nodes away, and silent nodes lose their place there. Here they stay, are
//! asked again now and then, and go to disk. A node of a part of the network that was cut off is found again this way.

use std::collections::BTreeMap;
use std::time::Duration;

use super::diversity::{Network, PER_NETWORK_IN_TABLE_MAX};
use crate::proto::identity::NodeId;
use crate::proto::timer::Instant;
use crate::proto::wire::control::Contact;

/// Most known nodes, in memory and on disk.
pub const KNOWN_MAX: usize = 1000;

/// The known nodes.
#[derive(Debug, Default)]
pub(super) struct Known {
    nodes: BTreeMap<NodeId, Entry>,
}

#[derive(Debug)]
struct Entry {
    contact: Contact,
    /// Last sign of life; `None` for what came from disk.
    seen: Option<Instant>,
    /// Last question.
    tried: Option<Instant>,
    /// Questions without an answer since the last sign of life.
    failures: u8,
}

impl Entry {
    /// Lower is better. Nodes that fail go behind all that do not.
    fn rank(&self) -> (u8, std::cmp::Reverse<Option<Instant>>, NodeId) {
        (self.failures, std::cmp::Reverse(self.seen), self.contact.node_id)
    }
}

impl Known {
    /// A node answered at this endpoint.
    pub(super) fn handle_seen(&mut self, now: Instant, contact: Contact) {
        if self.admits(&contact) {
            let entry = Entry { contact, seen: Some(now), tried: Some(now), failures: 0 };
            self.nodes.insert(contact.node_id, entry);
            self.shrink();
        }
    }

    /// A node answered where we knew it.
    pub(super) fn handle_answer(&mut self, now: Instant, node_id: NodeId) {
        if let Some(entry) = self.nodes.get_mut(&node_id) {
            (entry.seen, entry.failures) = (Some(now), 0);
        }
    }

    /// A node from an earlier run.
    pub(super) fn remember(&mut self, contact: Contact) {
        if !self.nodes.contains_key(&contact.node_id) && self.nodes.len() < KNOWN_MAX && self.admits(&contact)
        {
            self.nodes.insert(contact.node_id, Entry { contact, seen: None, tried: None, failures: 0 });
        }
    }

    /// A node did not answer.
    pub(super) fn handle_miss(&mut self, node_id: NodeId) {
        if let Some(entry) = self.nodes.get_mut(&node_id) {
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    /// Takes the `n` nodes that were tried longest ago among those wanted, noting that they are tried now. Nodes
    /// never tried come in order of quality. What has been heard since `fresh` is not tried.
    pub(super) fn take_for_probe(
        &mut self,
        now: Instant,
        n: usize,
        fresh: Duration,
        wanted: impl Fn(&Contact) -> bool,
    ) -> Vec<Contact> {
        let is_fresh = |entry: &Entry| {
            entry.failures == 0 && entry.seen.is_some_and(|at| now.saturating_since(at) < fresh)
        };
        let tried = self.nodes.values().filter(|entry| wanted(&entry.contact) && !is_fresh(entry));
        let mut waiting: Vec<_> = tried.map(|entry| (entry.tried, entry.rank())).collect();
        let n = n.min(waiting.len());
        if n > 0 && n < waiting.len() {
            waiting.select_nth_unstable(n);
        }
        waiting.truncate(n);
        waiting.sort_unstable();
        let mut chosen = Vec::with_capacity(n);
        for (_, (_, _, node_id)) in waiting {
            if let Some(entry) = self.nodes.get_mut(&node_id) {
                entry.tried = Some(now);
                chosen.push(entry.contact);
            }
        }
        chosen
    }

    /// Where a node was last.
    pub(super) fn contact(&self, node_id: NodeId) -> Option<&Contact> {
        self.nodes.get(&node_id).map(|entry| &entry.contact)
    }

    /// All, best first.
    pub(super) fn best_first(&self) -> Vec<Contact> {
        let mut entries: Vec<_> = self.nodes.values().collect();
        entries.sort_unstable_by_key(|entry| entry.rank());
        entries.into_iter().map(|entry| entry.contact).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn remove(&mut self, node_id: NodeId) {
        self.nodes.remove(&node_id);
    }

    /// One network may hold few places, or it could push out all others.
    fn admits(&self, contact: &Contact) -> bool {
        let Some(network) = Network::of_contact(contact) else { return true };
        let others = self.nodes.values().map(|entry| &entry.contact);
        let same = others.filter(|o| o.node_id != contact.node_id && Network::of_contact(o) == Some(network));
        same.count() < PER_NETWORK_IN_TABLE_MAX
    }

    fn shrink(&mut self) {
        if self.nodes.len() > KNOWN_MAX
            && let Some(worst) = self.nodes.values().max_by_key(|entry| entry.rank())
        {
            let node_id = worst.contact.node_id;
            self.nodes.remove(&node_id);
        }
    }
}
