//! When UDP does not get through: streams over TCP, which the shell opens for us, and the way back.
//!
//! ```text
//! silence ─► `path::udp` ─ blocked ─► Event::WantStream ─► shell ─► handle_stream_opened ─► a session, relays: as behind a NAT
//! UDP answers ─► checks to all that were reached by streams ─► streams without use are hung up
//! ```
//!
//! A stream is to us an endpoint of this machine's loopback, behind which the shell passes datagrams on. Only the shell
//! names such endpoints: from strangers they are not admissible, and what is seen from there is no vote.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::path::udp::{Step, Udp};
use crate::proto::path::{self, LocalNetwork};
use crate::proto::session::transport::Session;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{Contact, Want};
use crate::proto::wire::relay::Hop;

use super::history::Reason;
use super::peers::{Peer, last_heard};
use super::{Event, Node, Timer, hopping};

/// Streams that a node without UDP keeps: one in use, one ready.
pub const STREAMS_WANTED: usize = 2;
/// Streams that it opens at most, with those to relays of others.
pub const STREAMS_DIALLED_MAX: usize = 8;
/// Streams of which the shell may tell.
pub const STREAMS_MAX: usize = 1024;
/// TCP endpoints that one dial may try.
pub const DIAL_ENDPOINTS_MAX: usize = 4;
/// Most ports at which configured contacts are tried.
pub const STREAM_PORTS_MAX: usize = 4;
/// Dials remembered, so that who did not answer is not tried again at once.
const DIALS_MAX: usize = 64;
/// The shell gives up earlier than this.
const DIAL_LIFE: Duration = Duration::from_secs(20);
/// Wait after a dial that failed; doubles up to the longest.
const DIAL_WAIT_MIN: Duration = Duration::from_secs(2);
const DIAL_WAIT_MAX: Duration = Duration::from_secs(60);
/// A stream that ends sooner was none.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// How often streams are looked at while there are any of ours.
const LOOK: Duration = Duration::from_secs(5);
/// A stream that is not used any more is kept for this long.
const UNUSED_FOR: Duration = Duration::from_secs(15);
/// Peers and contacts asked whether UDP gets through.
const ASKED_MAX: usize = 4;
/// Records of contacts looked up to find more nodes that take streams, and how often.
const LOOKUPS_MAX: usize = 4;
const LOOKUP_GAP: Duration = Duration::from_secs(10);
/// Contacts kept to be looked up.
const NAMED_MAX: usize = 16;
/// Peers for which a way without a relay is looked for when UDP is back.
const UPGRADED_MAX: usize = 64;
/// UDP endpoints of one peer that are tried while a stream leads to it.
const TRIED_MAX: usize = 2;

/// A stream that the shell holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The other end of the TCP connection.
    pub remote: SocketAddr,
    /// Whom we dialled; `None` when we were.
    pub peer: Option<NodeId>,
    /// It is inside of TLS.
    pub tls: bool,
}

/// A stream that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamWanted {
    /// To whom.
    pub node_id: NodeId,
    /// Where it may take streams, at most [`DIAL_ENDPOINTS_MAX`].
    pub at: Vec<SocketAddr>,
}

/// What a node says of its streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamStatus {
    /// For how long UDP has been blocked.
    pub blocked: Option<Duration>,
    /// Streams that we opened.
    pub dialled: Vec<(NodeId, Stream)>,
    /// Streams that others opened to us.
    pub serving: usize,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    stream: Stream,
    since: Instant,
    /// Attempts that failed before.
    failures: u32,
    /// Since when nothing has gone by it, while UDP works.
    unused: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    /// Until when the shell is at it.
    until: Option<Instant>,
    failures: u32,
    not_before: Instant,
}

/// Streams, by the endpoint where they are to be found.
pub(super) struct Streams {
    udp: Udp,
    open: BTreeMap<SocketAddr, Open>,
    dials: BTreeMap<NodeId, Attempt>,
    /// Where configured contacts are tried; none when we dial nobody.
    ports: Vec<u16>,
    /// Where we take streams.
    own: Vec<SocketAddr>,
    looked_up: Option<Instant>,
    /// Contacts that only a stream may lead to, if they take any.
    named: BTreeSet<NodeId>,
    /// The verdict that others were last told of.
    streamed: bool,
}

impl Streams {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            udp: Udp::new(now),
            open: BTreeMap::new(),
            dials: BTreeMap::new(),
            ports: Vec::new(),
            own: Vec::new(),
            looked_up: None,
            named: BTreeSet::new(),
            streamed: false,
        }
    }

    /// True for endpoints that are streams.
    pub(super) fn contains(&self, endpoint: &SocketAddr) -> bool {
        self.open.contains_key(endpoint)
    }

    /// True for streams that we opened.
    pub(super) fn is_dialled(&self, endpoint: &SocketAddr) -> bool {
        self.open.get(endpoint).is_some_and(|open| open.stream.peer.is_some())
    }

    pub(super) const fn is_blocked(&self) -> bool {
        self.udp.is_blocked()
    }

    /// Where we take streams.
    pub(super) fn own(&self) -> &[SocketAddr] {
        &self.own
    }

    /// Our stream to a node.
    pub(super) fn to(&self, id: &NodeId) -> Option<SocketAddr> {
        self.open.iter().find(|(_, open)| open.stream.peer == Some(*id)).map(|(endpoint, _)| *endpoint)
    }

    fn dialled(&self) -> impl Iterator<Item = (SocketAddr, NodeId)> + '_ {
        self.open.iter().filter_map(|(endpoint, open)| Some((*endpoint, open.stream.peer?)))
    }

    /// After `failures` and one more, a node is not dialled for a while.
    fn postpone(&mut self, now: Instant, id: NodeId, failures: u32) {
        let wait = DIAL_WAIT_MIN * 2u32.saturating_pow(failures.min(8));
        let not_before = now + wait.min(DIAL_WAIT_MAX);
        self.dials.insert(id, Attempt { until: None, failures: failures + 1, not_before });
    }

    fn running(&self, now: Instant) -> usize {
        self.dials.values().filter(|dial| dial.until.is_some_and(|until| now < until)).count()
    }

    /// The other end of the connection, for people; and whether it is TCP.
    pub(super) fn shown(&self, endpoint: SocketAddr) -> (SocketAddr, bool) {
        self.open.get(&endpoint).map_or((endpoint, false), |open| (open.stream.remote, true))
    }

    pub(super) fn status(&self, now: Instant) -> StreamStatus {
        let dialled: Vec<_> =
            self.open.values().filter_map(|open| Some((open.stream.peer?, open.stream))).collect();
        let blocked = self.udp.blocked_since().map(|since| now.saturating_since(since));
        StreamStatus { blocked, serving: self.open.len() - dialled.len(), dialled }
    }
}

impl Node {
    /// Dials streams when UDP does not get through; configured contacts that do not say where they take them are tried at
    /// these TCP ports, the first [`STREAM_PORTS_MAX`]. Without ports, nobody is dialled.
    pub fn set_stream_ports(&mut self, mut ports: Vec<u16>) {
        ports.truncate(STREAM_PORTS_MAX);
        self.streams.ports = ports;
    }

    /// We take streams there: others are told.
    pub fn set_stream_endpoints(&mut self, now: Instant, wall: WallTime, endpoints: Vec<SocketAddr>) {
        if self.streams.own != endpoints {
            self.streams.own = endpoints;
            if self.record.is_some() {
                self.renew_record(now, wall);
            }
        }
    }

    /// The shell holds a stream, behind an endpoint of this machine.
    pub fn handle_stream_opened(
        &mut self,
        now: Instant,
        wall: WallTime,
        endpoint: SocketAddr,
        stream: Stream,
    ) {
        if self.streams.open.len() >= STREAMS_MAX || self.stopping {
            return self.event(Event::HangUp(endpoint));
        }
        let dial = stream.peer.and_then(|id| self.streams.dials.remove(&id));
        let failures = dial.map_or(0, |dial| dial.failures);
        self.streams.open.insert(endpoint, Open { stream, since: now, failures, unused: None });
        if let Some(id) = stream.peer {
            self.use_stream(now, wall, id, endpoint);
        }
        self.timers.arm(Timer::Streams, now);
        self.drain(now, wall);
    }

    fn use_stream(&mut self, now: Instant, wall: WallTime, id: NodeId, endpoint: SocketAddr) {
        if !self.make_room(now, id) {
            return;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let hop = Hop::Direct(endpoint);
        peer.path.learn(endpoint);
        if peer.current.is_some() {
            if peer.path.current().is_none() {
                self.switch_way(now, id, hop, Reason::Checked);
                self.release_staged(now, id);
            }
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.path.checks.add(now, hop);
            }
            return self.check(now, id);
        }
        match (peer.x25519.is_some(), peer.effort.is_some()) {
            (true, true) => self.attempt(now, wall, id),
            (false, true) => self.fetch(now, wall, id, endpoint),
            (_, false) => self.shake_hands(now, wall, id),
        }
    }

    /// A stream has ended.
    pub fn handle_stream_closed(&mut self, now: Instant, wall: WallTime, endpoint: SocketAddr) {
        let Some(closed) = self.streams.open.remove(&endpoint) else { return };
        let users = self.peers.iter().filter(|peer| peer.path.candidates().contains(&endpoint));
        for id in users.map(|peer| peer.id).collect::<Vec<_>>() {
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.path.lose(endpoint);
            }
            self.note_way(now, id, Reason::Hangup);
        }
        self.dirty = true;
        if let Some(relay) = closed.stream.peer {
            if now.saturating_since(closed.since) < SHORT_LIFE {
                self.streams.postpone(now, relay, closed.failures);
            }
            // What went through it takes another way.
            let through =
                |peer: &&Peer| peer.path.current().is_some_and(|hop| self.relay_of(hop) == Some(relay));
            for id in self.peers.iter().filter(through).map(|peer| peer.id).collect::<Vec<_>>() {
                self.race(now, wall, id, Reason::Hangup);
            }
        }
        self.timers.arm(Timer::Streams, now);
        self.drain(now, wall);
    }

    /// The shell did not reach anybody, or somebody else.
    pub fn handle_dial_failed(&mut self, now: Instant, id: NodeId) {
        if let Some(failures) = self.streams.dials.get(&id).map(|dial| dial.failures) {
            self.streams.postpone(now, id, failures);
        }
        self.timers.arm(Timer::Streams, now);
    }

    /// Something that was sent to outside of our networks by UDP is not answered.
    pub(super) fn suspect_udp(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of(&id) else { return };
        let by_udp = match peer.path.current() {
            Some(hop) => self.is_by_udp(hop),
            None => self.may_be_outside(peer),
        };
        // Where there is no network at all, nothing can be told of its UDP.
        if by_udp
            && !self.local.is_empty()
            && !self.streams.ports.is_empty()
            && !self.stopping
            && self.streams.udp.suspect(now)
        {
            self.timers.arm(Timer::Streams, now);
        }
    }

    /// True when a peer may be outside of our networks; where a command alone looks for it tells nothing.
    fn may_be_outside(&self, peer: &Peer) -> bool {
        let said = |endpoint: &&SocketAddr| peer.named != Some(**endpoint);
        peer.path.candidates().iter().filter(said).any(|endpoint| self.is_outside(*endpoint))
    }

    /// Something authentic came: by UDP and from outside, it tells that UDP gets through.
    pub(super) fn note_udp(&mut self, now: Instant, source: Hop) {
        let Hop::Direct(endpoint) = source else { return };
        if self.is_outside(endpoint) && self.streams.udp.handle_heard(now) {
            self.timers.arm(Timer::Streams, now);
            self.event(Event::UdpBlocked(false));
        }
    }

    /// True for ways that are streams.
    pub(super) fn is_by_stream(&self, hop: Hop) -> bool {
        hop.direct().is_some_and(|endpoint| self.streams.contains(&endpoint))
    }

    /// True for endpoints that are neither here nor on a network that we are on.
    pub(super) fn is_outside(&self, endpoint: SocketAddr) -> bool {
        let ip = endpoint.ip();
        !ip.is_loopback()
            && !path::is_link_local(ip)
            && !self.local.iter().any(|network: &LocalNetwork| network.contains(ip))
    }

    /// True for peers on networks that we are on, which are reached straight by UDP and owe no answer.
    pub(super) fn is_near(&self, peer: &Peer) -> bool {
        let is_here = |endpoint| !self.is_outside(endpoint) && !self.streams.contains(&endpoint);
        peer.current.is_some() && !peer.awaits_answer() && peer.path.endpoint().is_some_and(is_here)
    }

    fn is_by_udp(&self, hop: Hop) -> bool {
        self.endpoint_of(hop).is_some_and(|endpoint| self.is_outside(endpoint))
    }

    /// UDP is blocked, but there are streams: others reach us only by way of relays.
    pub(super) fn is_streamed(&self) -> bool {
        self.streams.is_blocked() && self.streams.dialled().next().is_some()
    }

    /// True when nothing but a stream may lead to a contact, and none is known to. Whether it takes streams is looked up.
    pub(super) fn is_out_of_reach(&mut self, now: Instant, contact: &Contact) -> bool {
        let id = contact.node_id;
        let peer = self.peers.of(&id);
        let has_session = peer.is_some_and(|peer| peer.current.is_some());
        if !self.is_streamed() || has_session || !self.servers_of(&id).is_empty() {
            return false;
        }
        let nameless = peer.is_none_or(|peer| peer.record.is_none());
        if nameless && self.streams.named.len() < NAMED_MAX && self.streams.named.insert(id) {
            self.timers.arm(Timer::Streams, now);
        }
        true
    }

    /// The links are others: UDP may get through.
    pub(super) fn hurry_udp(&mut self, now: Instant) {
        self.streams.udp.hurry(now);
        if self.streams.is_blocked() {
            self.timers.arm(Timer::Streams, now);
        }
    }

    /// Does what is due, and dials whom it takes.
    pub(super) fn tend_streams(&mut self, now: Instant, wall: WallTime) {
        let by_udp = |peer: &&Peer| peer.path.heard().is_some_and(|hop| self.is_by_udp(hop));
        let sessions = self.peers.iter().filter(by_udp).filter_map(|peer| peer.current.as_ref());
        let heard = sessions.filter_map(Session::last_received).max();
        match self.streams.udp.handle_timeout(now, heard) {
            Some(Step::Ask) => self.ask_by_udp(now, wall),
            Some(Step::Try) => self.try_udp(now, true),
            Some(Step::Blocked) => self.event(Event::UdpBlocked(true)),
            Some(Step::Open) | None => {}
        }
        if self.is_streamed() != self.streams.streamed {
            self.streams.streamed = !self.streams.streamed;
            self.judge_place(now, wall);
            self.look_for_better(now);
        }
        if self.streams.is_blocked() {
            self.dial_servers(now, wall);
        } else {
            self.hang_up_unused(now);
        }
        let look = self.streams.dialled().next().is_some() || self.streams.is_blocked();
        let next = look.then_some(now + LOOK).into_iter().chain(self.streams.udp.poll_timeout()).min();
        if let Some(at) = next {
            self.timers.arm(Timer::Streams, at);
        }
    }

    /// Asks those by whom it would be noticed first that UDP gets through.
    fn ask_by_udp(&mut self, now: Instant, wall: WallTime) {
        let asked = |peer: &&Peer| {
            peer.may_be_probed() && peer.path.endpoint().is_some_and(|endpoint| self.is_outside(endpoint))
        };
        let mut asked: Vec<_> = self
            .peers
            .iter()
            .filter(asked)
            .filter_map(|peer| Some((last_heard(peer.current.as_ref()?), peer.id)))
            .collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked.truncate(ASKED_MAX);
        for (_, id) in &asked {
            self.probe(now, *id);
        }
        let known: Vec<Contact> = self.dht.known().take(ASKED_MAX.saturating_sub(asked.len())).collect();
        for contact in known {
            if path::is_admissible(&contact.endpoint, &self.local) && self.learn_contact(now, &contact) {
                self.connect_directly(now, wall, contact.node_id);
            }
        }
    }

    /// Tries the UDP endpoints of those that streams lead to, also the ones that were silent while UDP was `blocked`; others
    /// are being tried anyway.
    fn try_udp(&mut self, now: Instant, blocked: bool) {
        let by_stream = |peer: &&Peer| {
            peer.current.is_some() && peer.path.endpoint().is_some_and(|e| self.streams.is_dialled(&e))
        };
        let peers: Vec<_> = self.peers.iter().filter(by_stream).map(|peer| peer.id).collect();
        for id in peers {
            let Some(peer) = self.peers.of(&id) else { continue };
            let candidates = peer.path.candidates().iter().copied();
            let outside: Vec<_> = candidates.filter(|e| self.is_outside(*e)).take(TRIED_MAX).collect();
            if let Some(peer) = self.peers.of_mut(&id) {
                for endpoint in outside {
                    if blocked {
                        peer.path.checks.pardon(endpoint.ip());
                    }
                    peer.path.checks.add(now, Hop::Direct(endpoint));
                }
                self.check(now, id);
            }
        }
        if blocked && !self.bootstrap.is_empty() {
            self.timers.arm(Timer::Bootstrap, now);
        }
    }

    /// What went through relays because UDP was blocked may find a way of its own.
    fn look_for_better(&mut self, now: Instant) {
        let relayed = self.peers.iter().filter(|peer| peer.path.is_relayed() && peer.current.is_some());
        for id in relayed.take(UPGRADED_MAX).map(|peer| peer.id).collect::<Vec<_>>() {
            self.look_for_direct(now, id);
        }
    }

    /// Where a node says that it takes streams.
    fn servers_of(&self, id: &NodeId) -> Vec<SocketAddr> {
        let record = self.peers.of(id).and_then(|peer| peer.record.as_ref());
        let said = record.into_iter().flat_map(|record| &record.content().streams);
        said.filter(|endpoint| is_dialable(endpoint, &self.local)).copied().collect()
    }

    /// Nodes that may take streams, those first that say so, and of these the ones that we know best.
    fn servers(&self) -> Vec<(NodeId, Vec<SocketAddr>)> {
        let mut said: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| peer.record.as_ref().is_some_and(|r| !r.content().streams.is_empty()))
            .map(|peer| (peer.current.as_ref().map(last_heard), peer.last_used, peer.id))
            .collect();
        said.sort_unstable_by(|a, b| b.cmp(a));
        let said = said.into_iter().map(|(_, _, id)| (id, self.servers_of(&id)));
        let silent = |id: &NodeId| {
            self.peers.of(id).and_then(|p| p.record.as_ref()).is_none_or(|r| r.content().streams.is_empty())
        };
        let guessed = self.bootstrap.iter().filter(|(id, _)| silent(id)).map(|(id, endpoints)| {
            let ips = endpoints.iter().map(SocketAddr::ip).collect::<BTreeSet<IpAddr>>();
            let at = |ip| self.streams.ports.iter().map(move |port| SocketAddr::new(ip, *port));
            (*id, ips.into_iter().flat_map(at).collect())
        });
        said.chain(guessed).filter(|(_, at): &(_, Vec<_>)| !at.is_empty()).collect()
    }

    fn dial_servers(&mut self, now: Instant, wall: WallTime) {
        for (id, at) in self.servers() {
            if self.streams.dialled().count() + self.streams.running(now) >= STREAMS_WANTED {
                return;
            }
            self.dial(now, id, at);
        }
        // More may be known to those that we reach.
        let looked = self.streams.looked_up.is_some_and(|at| now.saturating_since(at) < LOOKUP_GAP);
        let wanted = self.streams.dialled().count() < STREAMS_WANTED && self.is_streamed();
        if wanted && !looked && !self.streams.named.is_empty() {
            self.streams.looked_up = Some(now);
            let named = std::mem::take(&mut self.streams.named);
            for id in named.into_iter().take(LOOKUPS_MAX) {
                self.look_up_record(now, id.address());
            }
            self.drain(now, wall);
        }
    }

    /// Asks the shell for a stream, unless it is at it, or has failed lately.
    fn dial(&mut self, now: Instant, id: NodeId, mut at: Vec<SocketAddr>) {
        let total = self.streams.dialled().count() + self.streams.running(now);
        if self.streams.to(&id).is_some() || total >= STREAMS_DIALLED_MAX || id == self.node_id() {
            return;
        }
        if self.streams.dials.len() >= DIALS_MAX {
            let oldest = self.streams.dials.iter().min_by_key(|(_, dial)| dial.not_before).map(|(id, _)| *id);
            oldest.and_then(|id| self.streams.dials.remove(&id));
        }
        let fresh = Attempt { until: None, failures: 0, not_before: now };
        let dial = self.streams.dials.entry(id).or_insert(fresh);
        if dial.until.is_some_and(|until| now < until) || now < dial.not_before {
            return;
        }
        (dial.until, dial.not_before) = (Some(now + DIAL_LIFE), now + DIAL_LIFE);
        at.truncate(DIAL_ENDPOINTS_MAX);
        self.event(Event::WantStream(StreamWanted { node_id: id, at }));
    }

    /// A handshake is to be sent while UDP is blocked: a stream to the node is wanted, and its record when that is needed to
    /// know where.
    pub(super) fn want_stream(&mut self, now: Instant, id: NodeId) {
        if !self.streams.is_blocked() || self.streams.to(&id).is_some() {
            return;
        }
        let at = self.servers_of(&id);
        if !at.is_empty() {
            return self.dial(now, id, at);
        }
        let Some(peer) = self.peers.of(&id).filter(|peer| peer.record.is_none()) else { return };
        let (address, first) = (peer.address, peer.effort.as_ref().is_some_and(|effort| effort.attempt <= 1));
        if first && self.is_streamed() {
            let lookup = self.dht.lookup(now, address.position_prefix(), Want::Record);
            self.lookups.insert(lookup, super::Purpose::Resolve(address));
        }
    }

    /// Where a handshake goes first: by the stream, when there is one.
    pub(super) fn with_stream(&self, id: &NodeId, mut targets: Vec<Hop>) -> Vec<Hop> {
        if let Some(endpoint) = self.streams.to(id).filter(|_| self.streams.is_blocked()) {
            targets.retain(|target| *target != Hop::Direct(endpoint));
            targets.insert(0, Hop::Direct(endpoint));
            targets.truncate(path::TARGETS_MAX);
        }
        targets
    }

    /// Streams that nobody is reached by any more.
    fn hang_up_unused(&mut self, now: Instant) {
        self.try_udp_again(now);
        for (endpoint, id) in self.streams.dialled().collect::<Vec<_>>() {
            let used = self.peers.of(&id).is_some_and(|peer| {
                peer.current.is_some() && peer.path.current() == Some(Hop::Direct(endpoint))
            });
            let Some(open) = self.streams.open.get_mut(&endpoint) else { continue };
            if used {
                open.unused = None;
            } else if now.saturating_since(*open.unused.get_or_insert(now)) >= UNUSED_FOR {
                self.event(Event::HangUp(endpoint));
            }
        }
    }

    /// UDP is back: who is still reached by a stream is tried until that works.
    fn try_udp_again(&mut self, now: Instant) {
        if self.streams.dialled().next().is_some() {
            self.try_udp(now, false);
        }
    }

    /// A peer's endpoint as others may be told of it: a stream leads to the peer from here alone, a port that hops only for
    /// minutes.
    pub(super) fn contact_endpoint(&self, peer: &Peer) -> Option<SocketAddr> {
        let endpoint = peer.path.endpoint()?;
        if !self.streams.contains(&endpoint) {
            return Some(hopping::lasting(peer, endpoint, self.hops));
        }
        let said = peer.record.as_ref().map(|record| record.content().endpoints.iter());
        said?.find(|endpoint| path::is_admissible(endpoint, &self.local)).copied()
    }
}

/// True when a stranger's word is enough to open a TCP connection to `endpoint`: as for UDP, but for the ports of the web.
fn is_dialable(endpoint: &SocketAddr, local: &[LocalNetwork]) -> bool {
    const HTTP: u16 = 80;
    const HTTPS: u16 = 443;
    let at_https =
        SocketAddr::new(endpoint.ip(), if endpoint.port() == HTTP { HTTPS } else { endpoint.port() });
    path::is_admissible(&at_https, local)
}
