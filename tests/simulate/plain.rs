//! Kademlia as in the paper (§2.3), for comparison: one walk with three questions at once, the record at the k closest.

use std::collections::BTreeMap;

use auramesh::proto::dht::{ALPHA, K};
use auramesh::proto::identity::{Distance, NodeId, Position};
use auramesh::proto::wire::control::{Contact, Control, Want};
use auramesh::proto::wire::record::NodeRecord;

use crate::network::Network;

/// Nobody asks longer than this.
const QUESTIONS_MAX: u32 = 500;

/// What a search gave.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) found: bool,
    pub(crate) questions: u32,
    closest: Vec<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Heard,
    Answered,
}

/// What of an answer arrives in a datagram.
fn sent(answer: Control) -> Control {
    let mut bytes = Vec::new();
    answer.emit(&mut bytes);
    Control::parse_all(&bytes).expect("answers are well formed").remove(0)
}

/// Walks from `own` towards `target`.
fn walk(network: &Network<'_>, own: &Position, target: &Position, want: Want) -> Found {
    let mut nodes: BTreeMap<Distance, (Contact, State)> = BTreeMap::new();
    let mut failed: Vec<NodeId> = Vec::new();
    let mut found = Found { found: false, questions: 0, closest: Vec::new() };
    let add = |nodes: &mut BTreeMap<_, _>, failed: &[NodeId], contacts: Vec<Contact>| {
        for contact in contacts.into_iter().filter(|contact| !failed.contains(&contact.node_id)) {
            let distance = contact.node_id.position().distance(target);
            nodes.entry(distance).or_insert((contact, State::Heard));
        }
    };
    add(&mut nodes, &failed, network.members(own));
    while found.questions < QUESTIONS_MAX {
        let next: Vec<(Distance, Contact)> = nodes
            .iter()
            .take(K)
            .filter(|(_, (_, state))| *state == State::Heard)
            .take(ALPHA)
            .map(|(distance, (contact, _))| (*distance, *contact))
            .collect();
        if next.is_empty() {
            break;
        }
        for (distance, contact) in next {
            found.questions += 1;
            let question = Control::Find { request: 0, want, target: *target };
            let answer = network.answer(&contact.node_id, &question).map(sent);
            let Some(Control::Found { record, contacts, .. }) = answer else {
                nodes.remove(&distance);
                failed.push(contact.node_id);
                continue;
            };
            nodes.insert(distance, (contact, State::Answered));
            let record = record.and_then(|bytes| NodeRecord::parse(&bytes).ok());
            if record.is_some_and(|record| record.node_id().address() == target.address()) {
                found.found = true;
                return found;
            }
            add(&mut nodes, &failed, contacts);
        }
    }
    found.closest = nodes.values().take(K).map(|(contact, _)| contact.node_id).collect();
    found
}

/// Places the record of the network's owner at the k closest, and searches it from elsewhere.
pub(crate) fn run(network: &mut Network<'_>, owner: &Position, stranger: &Position, record: &[u8]) -> Found {
    (network.later, network.plain) = (false, true);
    network.kept.borrow_mut().holders.clear();
    for keeper in walk(network, owner, owner, Want::Contacts).closest {
        network.answer(&keeper, &Control::Store { request: 0, record: record.to_vec() });
    }
    network.later = true;
    walk(network, stranger, &owner.address().position_prefix(), Want::Record)
}
