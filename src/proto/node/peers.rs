//! The table of peers: what we know and hold of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::limit::TokenBucket;
use crate::proto::path::Path;
use crate::proto::path::pmtu::PathMtu;
use crate::proto::path::spray::Spray;
use crate::proto::policy::Account;
use crate::proto::session::Rng;
use crate::proto::session::loss::{Losses, Reporter};
use crate::proto::session::noise::Initiator;
use crate::proto::session::transport::Session;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::Control;
use crate::proto::wire::envelope::MAC_LEN;
use crate::proto::wire::record::NodeRecord;
use crate::proto::wire::relay::Hop;

use super::Ticket;
use super::history::{Gone, History, Lost, Reason, Silence, Trials};
use super::probe::Trial;
use super::seeking::{SEEKS_BURST, SEEKS_PER_S};
use super::spray::Kept;

/// Most peers kept, with a session or without.
pub const PEERS_MAX: usize = 1024;
/// Most bytes of packets that wait for one peer's session.
pub(super) const STAGED_BYTES_MAX: usize = 256 * 1024;
/// Most control messages that wait for one peer's session.
pub(super) const OUTBOX_MAX: usize = 16;
/// Most pings that wait for one peer's session.
pub(super) const WAITING_PINGS_MAX: usize = 16;

/// DHT requests that one peer may make, per second.
pub(super) const REQUEST_RATE_PER_S: u32 = 20;
/// DHT requests that one peer may make at once.
pub(super) const REQUEST_BURST: u32 = 60;

/// What was heard from so long ago is silent.
const HEARD_FOR: Duration = Duration::from_secs(60);

/// Packets from the interface that wait, bounded in bytes; the oldest goes first.
#[derive(Debug, Default)]
pub(super) struct Staged {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    /// When the first of them came, while some wait.
    since: Option<Instant>,
}

impl Staged {
    /// Adds a packet; returns how many old ones had to go.
    pub(super) fn push(&mut self, now: Instant, packet: Vec<u8>) -> usize {
        self.since.get_or_insert(now);
        self.bytes += packet.len();
        self.packets.push_back(packet);
        let mut dropped = 0;
        while self.bytes > STAGED_BYTES_MAX {
            let Some(oldest) = self.packets.pop_front() else { break };
            self.bytes -= oldest.len();
            dropped += 1;
        }
        dropped
    }

    pub(super) fn take(&mut self) -> VecDeque<Vec<u8>> {
        (self.bytes, self.since) = (0, None);
        std::mem::take(&mut self.packets)
    }

    pub(super) fn append(&mut self, now: Instant, other: &mut Self) -> usize {
        let now = other.since.unwrap_or(now);
        other.take().into_iter().map(|packet| self.push(now, packet)).sum()
    }

    pub(super) const fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

/// A handshake that we started.
pub(super) struct Pending {
    pub(super) initiator: Initiator,
    /// As it was sent.
    pub(super) packet: Vec<u8>,
    pub(super) targets: Vec<Hop>,
    pub(super) sent: Instant,
}

/// The handshake effort as a whole, over its attempts.
pub(super) struct Effort {
    pub(super) started: Instant,
    pub(super) attempt: u32,
    /// Not by way of relays: it is to be one itself.
    pub(super) direct_only: bool,
    pub(super) pending: Option<Pending>,
}

/// An unanswered ping of our own on a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) nonce: u64,
    pub(super) sent: Instant,
}

/// When a session last received; its beginning counts.
pub(super) fn last_heard(session: &Session) -> Instant {
    session.last_received().unwrap_or(session.established())
}

/// One other node.
pub(super) struct Peer {
    pub(super) id: NodeId,
    pub(super) address: MeshAddress,
    pub(super) x25519: Option<[u8; 32]>,
    pub(super) record: Option<NodeRecord>,
    pub(super) path: Path,
    pub(super) pmtu: PathMtu,
    /// What it says of our datagrams, and when to say what of its own.
    pub(super) losses: Losses,
    pub(super) reporter: Reporter,
    pub(super) current: Option<Session>,
    pub(super) previous: Option<Session>,
    /// We answered a handshake and wait for the first packet.
    pub(super) next: Option<Session>,
    pub(super) effort: Option<Effort>,
    pub(super) cookie: Option<([u8; MAC_LEN], Instant)>,
    /// Where the answer to its newest initiation went.
    pub(super) answered: Option<Hop>,
    /// The ping that the endpoint in use has to answer first: whoever names it may not receive there.
    pub(super) challenge: Option<u64>,
    /// Exchanges of candidates since the session went through a relay, and the data packets at the last one.
    pub(super) upgrades: u32,
    pub(super) upgraded_at_data: u64,
    /// The last proof when something was first seen to wait for the next one, and since when it does.
    pub(super) waiting: Option<(Instant, Instant)>,
    /// All ways are being tried, because the one in use is silent.
    pub(super) racing: bool,
    /// Why they are.
    pub(super) race_reason: Reason,
    /// No race before.
    pub(super) race_after: Instant,
    /// When data was last seen to go to it or come from it.
    pub(super) active_at: Option<Instant>,
    /// When the ways to it were last looked at, when all of them were asked, and looks at them in quick succession since.
    pub(super) looked_at: Option<Instant>,
    pub(super) surveyed_at: Option<Instant>,
    pub(super) quick_looks: u32,
    /// When two ways were last compared because the peer was heard on the other one, and when which is to be next.
    pub(super) compared_at: Option<Instant>,
    pub(super) compare_at: Option<(Instant, Hop)>,
    /// When it last told its candidates.
    pub(super) candidates_at: Option<Instant>,
    /// Its NAT gives every destination another port, as it says.
    pub(super) maps_dependently: bool,
    /// Ports are being guessed; not again before; the socket that was kept of it.
    pub(super) spray: Option<Spray>,
    pub(super) spray_after: Instant,
    pub(super) kept: Option<Kept>,
    /// Newest initiation accepted from it, and when.
    pub(super) initiated: Option<(WallTime, Instant)>,
    pub(super) staged: Staged,
    pub(super) outbox: VecDeque<Control>,
    pub(super) waiting_pings: Vec<Ticket>,
    pub(super) probe: Option<Probe>,
    pub(super) rtt: Option<Duration>,
    pub(super) account: Arc<Account>,
    /// Bytes received and sent in sessions that are forgotten.
    pub(super) past_bytes: (u64, u64),
    /// Limit of the DHT requests that it may make.
    pub(super) requests: TokenBucket,
    /// Limit of the searches for routes that it may bring to us.
    pub(super) seeks: TokenBucket,
    /// When it last knew a route to somebody whom we, or another neighbour, asked for.
    pub(super) has_sought: Option<Instant>,
    /// Data packets of the current session at the last look.
    pub(super) seen_packets: u64,
    /// When it was given up to get an answer, and the data packets of the current session by then.
    pub(super) abandoned: Option<(Instant, u64)>,
    /// Control packets that went either way in the current session.
    pub(super) control_packets: u64,
    /// Control packets received in the current session.
    pub(super) control_received: u64,
    /// Bytes and packets sent, and data packets received in the current session, as path MTU discovery was last told.
    pub(super) reported: (u64, u64, u64),
    /// The session is looked at from time to time; otherwise the data path reports when it is used again.
    pub(super) watched: bool,
    /// When we last sent what needs no answer.
    pub(super) replied: Option<Instant>,
    /// When a ping of the current session was last answered, perhaps by way of another session.
    pub(super) proved: Option<Instant>,
    /// When it last showed that something of ours came to it: by an answer, or by taking up a session.
    pub(super) hears_us: Option<Instant>,
    /// The first of our answers to its handshakes that it has not taken up since then.
    pub(super) untaken: Option<Instant>,
    /// The peer has introduced itself in the current session.
    pub(super) introduced: bool,
    /// Introductions of ourselves repeated in the current session, and when we last made one.
    pub(super) repeats: u8,
    pub(super) greeted: Instant,
    /// The peer moved to a new epoch: until then its old keys live.
    pub(super) epoch_grace: Option<Instant>,
    pub(super) last_used: Instant,
    /// Notices of the data path: each leaves a flag set in the snapshot, so only a new part can report again.
    pub(super) notices: u64,
    /// Where something came from that is not keyed to us, and when, while it was asked there.
    pub(super) unauthentic: Option<(SocketAddr, Instant)>,
    /// What was last told of it: that it is reached, or that it is lost.
    pub(super) told: Option<bool>,
    /// When it last showed that it holds the keys of a session that has ended.
    pub(super) heard: Option<Instant>,
    /// That it is not reached, and why.
    pub(super) gone: Option<Gone>,
    /// What became of the way to it.
    pub(super) history: History,
    /// The straight ways that were tried in vain.
    pub(super) trials: Trials,
    /// An endpoint that only a command has named so far.
    pub(super) named: Option<SocketAddr>,
    /// An endpoint that the owner wants to know of.
    pub(super) trial: Option<Trial>,
}

impl Peer {
    pub(super) fn new(id: NodeId, now: Instant) -> Self {
        Self {
            id,
            address: id.address(),
            x25519: None,
            record: None,
            path: Path::default(),
            pmtu: PathMtu::default(),
            losses: Losses::default(),
            reporter: Reporter::default(),
            current: None,
            previous: None,
            next: None,
            effort: None,
            cookie: None,
            answered: None,
            challenge: None,
            upgrades: 0,
            upgraded_at_data: 0,
            waiting: None,
            racing: false,
            race_reason: Reason::Checked,
            race_after: now,
            active_at: None,
            looked_at: None,
            surveyed_at: None,
            quick_looks: 0,
            compared_at: None,
            compare_at: None,
            candidates_at: None,
            maps_dependently: false,
            spray: None,
            spray_after: now,
            kept: None,
            initiated: None,
            staged: Staged::default(),
            outbox: VecDeque::new(),
            waiting_pings: Vec::new(),
            probe: None,
            rtt: None,
            account: Arc::default(),
            past_bytes: (0, 0),
            requests: TokenBucket::new(REQUEST_RATE_PER_S, REQUEST_BURST, now),
            seeks: TokenBucket::new(SEEKS_PER_S, SEEKS_BURST, now),
            has_sought: None,
            seen_packets: 0,
            abandoned: None,
            control_packets: 0,
            control_received: 0,
            reported: (0, 0, 0),
            watched: false,
            replied: None,
            proved: None,
            hears_us: None,
            untaken: None,
            introduced: false,
            repeats: 0,
            greeted: now,
            epoch_grace: None,
            last_used: now,
            notices: 0,
            unauthentic: None,
            told: None,
            heard: None,
            gone: None,
            history: History::default(),
            trials: Trials::default(),
            named: None,
            trial: None,
        }
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        [&self.current, &self.previous, &self.next].into_iter().flatten()
    }

    /// Makes `session` the one to send on; the last one still receives. Returns the one before, to be forgotten.
    pub(super) fn adopt(&mut self, session: Session, now: Instant) -> Option<Session> {
        (self.seen_packets, self.control_packets, self.repeats, self.abandoned) = (0, 0, 0, None);
        (self.control_received, self.reported) = (0, (0, 0, 0));
        (self.probe, self.epoch_grace, self.replied, self.proved) = (None, None, None, None);
        (self.introduced, self.greeted, self.last_used) = (false, now, now);
        self.note_hears_us(now);
        let old = self.current.replace(session);
        self.replace_previous(old)
    }

    /// Makes `session` the one that still receives. Returns the one before, to be forgotten.
    pub(super) fn replace_previous(&mut self, session: Option<Session>) -> Option<Session> {
        let old = std::mem::replace(&mut self.previous, session);
        old.iter().for_each(|old| self.count_past(old));
        old
    }

    /// A session is forgotten: what it carried stays counted.
    pub(super) fn count_past(&mut self, session: &Session) {
        self.past_bytes.0 += session.bytes_received();
        self.past_bytes.1 += session.bytes_sent();
    }

    /// Bytes received and sent in all sessions.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let add = |(received, sent), session: &Session| {
            (received + session.bytes_received(), sent + session.bytes_sent())
        };
        self.sessions().fold(self.past_bytes, add)
    }

    /// Data packets that went either way in the current session.
    pub(super) fn data_packets(&self) -> u64 {
        let packets = |session: &Session| session.packets_sent() + session.packets_received();
        self.current.as_ref().map_or(0, packets).saturating_sub(self.control_packets)
    }

    /// When the peer last showed that it holds the keys of the current session; its beginning counts.
    pub(super) fn last_proof(&self) -> Option<Instant> {
        self.current.as_ref().map(|session| last_heard(session).max(self.proved.unwrap_or_default()))
    }

    /// When it last showed that it holds the keys of a session, of this one or one before.
    pub(super) fn last_heard(&self) -> Option<Instant> {
        self.last_proof().max(self.heard)
    }

    /// The peer shows that something of ours came to it.
    pub(super) const fn note_hears_us(&mut self, now: Instant) {
        (self.hears_us, self.untaken) = (Some(now), None);
    }

    /// It did not take up our answer of `at` to a handshake of its own.
    pub(super) fn note_untaken(&mut self, at: Instant) {
        self.untaken.get_or_insert(at);
    }

    /// Why it is not reached, unless it has shown since that it is. That something comes from it says nothing of what goes
    /// to it.
    pub(super) fn is_gone(&self) -> Option<Lost> {
        self.gone.filter(|gone| self.hears_us.is_none_or(|hears| hears <= gone.at)).map(|gone| gone.why)
    }

    /// True while something that we sent in the current session waits for a sign of life.
    pub(super) fn awaits_answer(&self) -> bool {
        let sent = self.current.as_ref().and_then(Session::last_sent);
        sent > self.current.as_ref().and_then(Session::last_received).max(self.proved) && sent != self.replied
    }

    /// True when it did not answer for the length of an effort, and nobody has sent to it since: nothing is done for it
    /// until data goes to it or something comes from it.
    pub(super) fn is_abandoned(&self) -> bool {
        let silent = |&(at, packets): &(Instant, u64)| {
            packets == self.data_packets() && self.last_proof().is_some_and(|proof| proof < at)
        };
        self.awaits_answer() && self.abandoned.as_ref().is_some_and(silent)
    }

    /// Since when something that we sent has not been answered; now, when nothing waits. What was sent after a pause waits
    /// from then on, not since the last answer before the pause.
    pub(super) fn unanswered_since(&mut self, now: Instant, pause: Duration) -> Instant {
        let sent = self.current.as_ref().and_then(Session::last_sent).filter(|_| self.awaits_answer());
        let (Some(proof), Some(sent)) = (self.last_proof(), sent) else { return now };
        let new = (proof, if sent.saturating_since(proof) < pause { proof } else { sent });
        if self.waiting.is_none_or(|(before, _)| before != proof) {
            self.waiting = Some(new);
        }
        self.waiting.map_or(now, |(_, since)| since)
    }

    /// Since when something that we sent has not been answered; `None` when nothing waits. What was found to wait does so
    /// until there is a sign of life, whatever is sent meanwhile.
    pub(super) fn unanswered(&self) -> Option<Instant> {
        let found =
            self.waiting.filter(|(proof, _)| Some(*proof) == self.last_proof()).map(|(_, since)| since);
        let sent = || self.current.as_ref().and_then(Session::last_sent).filter(|_| self.awaits_answer());
        let asked = || self.effort.as_ref().filter(|_| self.current.is_none()).map(|effort| effort.started);
        found.or_else(sent).or_else(asked)
    }

    /// What its silence means, as far as it was seen.
    pub(super) fn silence(&self, now: Instant) -> Option<Silence> {
        let age = |at: Instant| now.saturating_since(at);
        let gone = self.gone.filter(|_| self.is_gone().is_some());
        if gone.is_some_and(|gone| gone.why == Lost::Stopped) {
            return Some(Silence::Stopped);
        }
        let heard = self.last_heard().max(self.initiated.map(|(_, at)| at));
        // The longest of all.
        let since =
            gone.map(|gone| gone.since).into_iter().chain(self.untaken).chain(self.unanswered()).min();
        match since {
            Some(since) if heard.is_some_and(|heard| heard > since && age(heard) < HEARD_FOR) => {
                Some(Silence::Deaf(age(since)))
            }
            Some(since) => Some(Silence::NoAnswer(age(since))),
            None if self.current.is_none() && heard.is_some() => Some(Silence::Idle),
            None => None,
        }
    }

    /// True when there is a session, and the peer has shown that it receives where we send.
    pub(super) const fn may_be_probed(&self) -> bool {
        self.current.is_some() && self.challenge.is_none()
    }

    /// The peer answers by `hop`, which takes the place of the way in use. While it was silent on all ways, that said nothing
    /// of the endpoint in use, which was shown to be its own: it may be there again.
    pub(super) fn pardon_current(&mut self, hop: Hop) {
        let endpoint =
            self.path.endpoint().filter(|_| self.may_be_probed() && self.path.current() != Some(hop));
        if let Some(endpoint) = endpoint {
            self.path.checks.pardon(endpoint.ip());
        }
    }

    /// How much came of what it sent, when it is time to say so.
    pub(super) fn poll_report(&mut self, now: Instant) -> Option<Control> {
        let session = self.current.as_ref().filter(|session| session.has_frames())?;
        let totals = self.reporter.poll(now, session.local_index(), session.totals_received())?;
        Some(Control::Received { sent: totals.sent, received: totals.received })
    }

    /// Where it was asked for a session, or for its key, and has not answered yet.
    pub(super) fn asked_at(&self) -> Vec<Hop> {
        match &self.effort {
            Some(Effort { pending: Some(pending), .. }) => pending.targets.clone(),
            Some(_) if self.x25519.is_none() => {
                self.path.candidates().iter().copied().chain(self.path.hop()).map(Hop::Direct).collect()
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// True while packets or pings wait for a session.
    pub(super) fn is_awaited(&self) -> bool {
        !self.staged.is_empty() || !self.waiting_pings.is_empty()
    }

    /// True when all that there is of it is a handshake that it may never confirm.
    fn is_unconfirmed(&self) -> bool {
        let used = self.current.is_some() || self.previous.is_some() || self.effort.is_some();
        self.next.is_some() && !used && self.staged.is_empty()
    }

    /// True when nothing is lost by forgetting the peer.
    fn is_idle(&self) -> bool {
        self.sessions().next().is_none() && self.effort.is_none() && self.staged.is_empty()
    }
}

/// All peers.
#[derive(Default)]
pub(super) struct Peers {
    by_id: BTreeMap<NodeId, Peer>,
    by_address: BTreeMap<MeshAddress, NodeId>,
    /// Receiver indices of our sessions and of handshakes under way.
    by_index: BTreeMap<u32, NodeId>,
    /// Those that may have changed since the last snapshot.
    touched: BTreeSet<NodeId>,
    /// One of them held sessions and is gone.
    lost_sessions: bool,
}

impl Peers {
    pub(super) fn of(&self, id: &NodeId) -> Option<&Peer> {
        self.by_id.get(id)
    }

    pub(super) fn of_mut(&mut self, id: &NodeId) -> Option<&mut Peer> {
        let peer = self.by_id.get_mut(id)?;
        self.touched.insert(*id);
        Some(peer)
    }

    pub(super) fn at_address(&self, address: &MeshAddress) -> Option<NodeId> {
        self.by_address.get(address).copied()
    }

    pub(super) fn at_index(&self, index: u32) -> Option<NodeId> {
        self.by_index.get(&index).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    /// How many may have changed, those that are gone included.
    pub(super) fn touched(&self) -> usize {
        self.touched.len()
    }

    /// True when somebody went with a session since the last snapshot.
    pub(super) const fn have_lost_sessions(&self) -> bool {
        self.lost_sessions
    }

    /// Those that may have changed since the last call.
    pub(super) fn take_touched(&mut self) -> BTreeSet<NodeId> {
        self.lost_sessions = false;
        std::mem::take(&mut self.touched)
    }

    /// The peer, made if need be. `None` when the table is full of peers in use.
    pub(super) fn entry(&mut self, id: NodeId, now: Instant) -> Option<&mut Peer> {
        if !self.by_id.contains_key(&id) {
            if self.by_id.len() >= PEERS_MAX && !self.forget_oldest() {
                return None;
            }
            let peer = Peer::new(id, now);
            self.by_address.insert(peer.address, id);
            self.by_id.insert(id, peer);
        }
        self.of_mut(&id)
    }

    fn forget_oldest(&mut self) -> bool {
        let oldest = self.by_id.values().filter(|p| p.is_idle()).min_by_key(|p| p.last_used).map(|p| p.id);
        oldest.is_some_and(|id| self.remove(&id).is_some())
    }

    /// Makes room by forgetting the oldest handshake that was not confirmed: whoever sends initiations from other
    /// people's addresses must not push out sessions.
    pub(super) fn forget_unconfirmed(&mut self) -> bool {
        let unconfirmed = self.by_id.values().filter(|p| p.is_unconfirmed());
        let oldest = unconfirmed.min_by_key(|p| p.last_used).map(|p| p.id);
        oldest.is_some_and(|id| self.remove(&id).is_some())
    }

    /// The peer to give up when others need the place: of those that came to us the one silent for longest, then of
    /// those that we went to; never one to be kept.
    pub(super) fn quietest(&self, is_kept: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let rank = |p: &Peer| p.current.as_ref().map(|s| (s.is_initiator(), last_heard(s), p.id));
        self.by_id.values().filter(|p| !is_kept(&p.id)).filter_map(rank).min().map(|(_, _, id)| id)
    }

    pub(super) fn remove(&mut self, id: &NodeId) -> Option<Peer> {
        let peer = self.by_id.remove(id)?;
        self.touched.insert(*id);
        self.lost_sessions |= peer.sessions().next().is_some();
        self.by_address.remove(&peer.address);
        self.by_index.retain(|_, owner| owner != id);
        Some(peer)
    }

    /// A receiver index that is not in use, bound to the peer.
    pub(super) fn allocate_index(&mut self, id: NodeId, rng: &mut Rng) -> u32 {
        loop {
            let index = rng.next_u32();
            if let std::collections::btree_map::Entry::Vacant(free) = self.by_index.entry(index) {
                free.insert(id);
                return index;
            }
        }
    }

    pub(super) fn release_index(&mut self, index: u32) {
        self.by_index.remove(&index);
    }
}
