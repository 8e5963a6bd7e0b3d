//! Asks contacts where they see us, now: what network we are in is judged by their answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::path::observed::network;
use crate::proto::path::reach::Verdict;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Control};
use crate::proto::wire::relay::Hop;
use crate::proto::wire::session::OVERHEAD;

use super::Node;

/// Contacts asked in one check.
pub const OBSERVERS_MAX: usize = 16;
/// Questions to one that does not answer, and the time between two.
const QUESTIONS_MAX: u8 = 3;
const QUESTION_GAP: Duration = Duration::from_millis(400);
/// Who asks while the answers to another are this young shares them.
const CHECK_LIFE: Duration = Duration::from_secs(2);

/// What a contact said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Which contact.
    pub node_id: NodeId,
    /// Where it is.
    pub observer: SocketAddr,
    /// Where it sees us.
    pub seen: SocketAddr,
    /// How long the answer took.
    pub rtt: Duration,
}

/// What is known of the network around us.
#[derive(Clone, Debug, Default)]
pub struct Netcheck {
    /// What contacts on the internet said since the check began, one each and IP version.
    pub answers: Vec<Observation>,
    /// Contacts that have not answered yet.
    pub waiting: usize,
    /// Contacts on the internet that we know, IPv4 and IPv6.
    pub contacts: [usize; 2],
    /// Our own addresses.
    pub own: Vec<IpAddr>,
    /// Whether others reach our own global addresses unasked, IPv4 and IPv6.
    pub reach: [Verdict; 2],
    /// Relays of ours, whether they carry data, and how far they are.
    pub relays: Vec<(NodeId, bool, Option<Duration>)>,
    /// Nodes that could be asked to relay.
    pub possible_relays: usize,
    /// A NAT is in between us and the internet.
    pub mapped: bool,
    /// Peers on networks that we are on, which are reached straight by UDP and owe no answer.
    pub near: usize,
    /// Bytes of the largest inner packet that goes in one datagram, and to how many peers that was measured.
    pub mtu: Option<(usize, usize)>,
}

/// A check under way.
#[derive(Debug, Default)]
pub(super) struct Asking {
    begun: Option<Instant>,
    /// By observer: how often it was asked, and when last.
    asked: BTreeMap<(NodeId, SocketAddr), (u8, Instant)>,
    nonces: BTreeMap<u64, (NodeId, SocketAddr, Instant)>,
    answers: BTreeMap<(NodeId, bool), Observation>,
    /// Contacts that we had no session with, and when we began to connect them.
    connecting: BTreeSet<NodeId>,
}

impl Node {
    /// Begins to ask contacts where they see us, unless that has just begun, and connects some that we have no session with.
    pub fn begin_netcheck(&mut self, now: Instant, wall: WallTime) {
        if self.asking.begun.is_some_and(|begun| now.saturating_since(begun) < CHECK_LIFE) {
            return;
        }
        let has_session = |id: &NodeId| self.peers.of(id).is_some_and(|peer| peer.current.is_some());
        let contacts: Vec<Contact> = self
            .known()
            .into_iter()
            .filter(|contact| path::is_global(contact.endpoint.ip()) && !has_session(&contact.node_id))
            .take(OBSERVERS_MAX)
            .collect();
        let configured: Vec<_> = self.bootstrap.keys().filter(|id| !has_session(id)).copied().collect();
        self.asking = Asking { begun: Some(now), ..Asking::default() };
        for contact in &contacts {
            self.learn_contact(now, contact);
        }
        let ids = contacts.iter().map(|contact| contact.node_id).chain(configured).take(OBSERVERS_MAX);
        for id in ids.collect::<BTreeSet<_>>() {
            self.asking.connecting.insert(id);
            self.connect(now, wall, id);
        }
        self.drain(now, wall);
    }

    /// What came of it so far; asks those whose session stands by now. Repeat it until nobody is waited for, or the
    /// time is over.
    pub fn poll_netcheck(&mut self, now: Instant) -> Netcheck {
        for (id, endpoint) in self.observers() {
            self.ask_observer(now, id, endpoint);
        }
        let silent = self.asking.asked.keys().filter(|(id, at)| !self.has_answered(id, at));
        let unconnected = self.asking.connecting.iter().filter(|id| {
            self.peers.of(id).is_some_and(|peer| peer.current.is_none() && peer.effort.is_some())
        });
        let waiting = silent.count() + unconnected.count();
        let measured: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| {
                peer.current.is_some() && matches!(peer.pmtu.state(), path::pmtu::State::Found { .. })
            })
            .map(|peer| peer.pmtu.datagram_len() - OVERHEAD)
            .collect();
        let relays = self.relays().map(|(id, service)| {
            let rtt = self.peers.of(&id).and_then(|peer| peer.rtt);
            (id, service == crate::proto::wire::control::Service::Data, rtt)
        });
        Netcheck {
            answers: self.asking.answers.values().copied().collect(),
            waiting,
            contacts: [true, false].map(|v4| self.contacts_of(v4)),
            own: self.local.iter().map(|network| network.ip).collect(),
            reach: [true, false].map(|v4| self.reach_verdict(v4)),
            relays: relays.collect(),
            possible_relays: self.possible_relays(now).len(),
            mapped: self.mapped,
            near: self.peers.iter().filter(|peer| self.is_near(peer)).count(),
            mtu: measured.iter().max().map(|mtu| (*mtu, measured.len())),
        }
    }

    /// An answer to one of our questions; true when it is one.
    pub(super) fn handle_netcheck_pong(&mut self, now: Instant, nonce: u64, seen: SocketAddr) -> bool {
        let Some((node_id, observer, sent)) = self.asking.nonces.remove(&nonce) else { return false };
        if seen.port() != 0 && seen.is_ipv4() == observer.is_ipv4() {
            let rtt = now.saturating_since(sent);
            let answer = Observation { node_id, observer, seen, rtt };
            self.asking.answers.insert((node_id, observer.is_ipv4()), answer);
        }
        true
    }

    fn has_answered(&self, id: &NodeId, at: &SocketAddr) -> bool {
        self.asking.answers.contains_key(&(*id, at.is_ipv4()))
    }

    /// Whom to ask: peers on the internet that we send to directly, each network once.
    fn observers(&self) -> Vec<(NodeId, SocketAddr)> {
        let mut networks = BTreeSet::new();
        let direct = self.peers.iter().filter(|peer| peer.may_be_probed() && peer.kept.is_none());
        let direct = direct.filter_map(|peer| {
            let endpoint = peer.path.endpoint().filter(|endpoint| path::is_global(endpoint.ip()))?;
            networks.insert(network(endpoint.ip())).then_some((peer.id, endpoint))
        });
        direct.take(OBSERVERS_MAX).collect()
    }

    fn ask_observer(&mut self, now: Instant, id: NodeId, endpoint: SocketAddr) {
        let (times, last) = self.asking.asked.get(&(id, endpoint)).copied().unwrap_or((0, now));
        let due = times == 0 || now.saturating_since(last) >= QUESTION_GAP;
        let room = times > 0 || self.asking.asked.len() < OBSERVERS_MAX;
        if self.has_answered(&id, &endpoint) || times >= QUESTIONS_MAX || !due || !room {
            return;
        }
        let nonce = self.rng.next_u64();
        if self.send_control_by(now, id, Hop::Direct(endpoint), &[Control::Ping { nonce }]) {
            self.asking.asked.insert((id, endpoint), (times + 1, now));
            self.asking.nonces.insert(nonce, (id, endpoint, now));
        }
    }

    /// Contacts and peers with an endpoint on the internet, of one IP version.
    fn contacts_of(&self, v4: bool) -> usize {
        let counts = |endpoint: &SocketAddr| endpoint.is_ipv4() == v4 && path::is_global(endpoint.ip());
        let known = self.known().into_iter().filter(|contact| counts(&contact.endpoint));
        let configured = self.bootstrap.iter().filter(|(_, endpoints)| endpoints.iter().any(counts));
        let peers = self.peers.iter().filter(|peer| peer.path.candidates().iter().any(counts));
        let ids = known.map(|contact| contact.node_id).chain(configured.map(|(id, _)| *id));
        ids.chain(peers.map(|peer| peer.id)).collect::<BTreeSet<_>>().len()
    }
}
