//! What became of the way to each peer: its last changes, and which straight ways were tried in vain.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::path::checks::TARGETS_MAX;
use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

use super::peers::Peer;
use super::timeout::PROBE_PATIENCE;
use super::{Event, Node};

/// Changes of the way remembered for each peer; the oldest makes room.
pub const CHANGES_MAX: usize = 8;

/// Why a way was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A handshake went through by it.
    Handshake,
    /// The peer was heard from there.
    Moved,
    /// A check of it was answered, and it is better than the one before.
    Checked,
    /// It has been better than the one before, three times in a row.
    Better,
    /// What was sent by the one before had no answer for so long.
    Silent(Duration),
    /// The relay of the one before does not carry us any more.
    Refused,
    /// The peer itself has left the one before.
    Left,
    /// The stream that led there has ended.
    Hangup,
    /// It is not reached any more.
    Lost(Lost),
    /// It was heard from again.
    Returned,
    /// The session ended because nobody used it.
    Idle,
    /// One of the two ended the session to have room for others.
    Crowded,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake => f.write_str("handshake answered"),
            Self::Moved => f.write_str("the peer was heard from there"),
            Self::Checked => f.write_str("check answered"),
            Self::Better => f.write_str("better than the one before"),
            Self::Silent(wait) => write!(f, "silent for {:.1} s", wait.as_secs_f64()),
            Self::Refused => f.write_str("relay refused"),
            Self::Left => f.write_str("the peer uses another one"),
            Self::Hangup => f.write_str("stream ended"),
            Self::Lost(why) => why.fmt(f),
            Self::Returned => f.write_str("heard again"),
            Self::Idle => f.write_str("idle: nobody used it"),
            Self::Crowded => f.write_str("gave room to others"),
        }
    }
}

/// A way, as it is told: channels come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where datagrams go; unknown when the relay is out of reach.
    pub endpoint: Option<SocketAddr>,
    /// The relay there, and those beyond it.
    pub via: Vec<NodeId>,
    /// They go there by a stream: the endpoint is one of TCP.
    pub by_stream: bool,
}

/// One change of the way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Instant,
    /// The way before.
    pub from: Option<Way>,
    /// The way since.
    pub to: Option<Way>,
    /// Why.
    pub reason: Reason,
}

/// Why a peer is not reached any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// Nothing that was sent to it is answered.
    NoAnswer,
    /// It said that it stops.
    Stopped,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no answer",
            Self::Stopped => "it has stopped",
        })
    }
}

/// That a peer is not reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    /// When that was found.
    pub(super) at: Instant,
    /// Since when it has not answered.
    pub(super) since: Instant,
    pub(super) why: Lost,
}

/// What the silence of a peer means, as far as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Silence {
    /// What we sent has not been answered for so long.
    NoAnswer(Duration),
    /// The same, but it was heard from meanwhile: what we send does not reach it.
    Deaf(Duration),
    /// It said that it stops.
    Stopped,
    /// The session ended because nobody used it.
    Idle,
}

impl Silence {
    /// For how long there has been no answer.
    pub const fn unanswered(self) -> Option<Duration> {
        match self {
            Self::NoAnswer(since) | Self::Deaf(since) => Some(since),
            Self::Stopped | Self::Idle => None,
        }
    }
}

/// Why a peer is reached through a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Relayed {
    /// It has not said yet where else it may be reached.
    Asking,
    /// The relay is the better way: smoothed round trips by it and of the best straight way, which is kept ready.
    Better(Duration, Duration),
    /// Straight ways are being tried.
    Trying,
    /// Both NATs give every destination another port.
    BothDependent,
    /// Our NAT does, and so many checks were not answered.
    DependentHere(u32),
    /// Its NAT does, and so many checks were not answered.
    DependentThere(u32),
    /// Nothing that it names can be tried from here.
    Nowhere,
    /// So many checks of these endpoints were not answered.
    NoAnswer(u32, Vec<SocketAddr>),
}

/// The last changes of the way to one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<Change>);

impl History {
    fn push(&mut self, change: Change) {
        if self.0.len() == CHANGES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(change);
    }

    /// Newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = Change> + '_ {
        self.0.iter().rev().cloned()
    }

    /// The way that the last change led to.
    fn last(&self) -> Option<Way> {
        self.0.back().and_then(|change| change.to.clone())
    }
}

/// Checks of straight ways that were not answered, since there was one last.
#[derive(Clone, Debug, Default)]
pub(super) struct Trials {
    sent: u32,
    endpoints: Vec<SocketAddr>,
}

impl Trials {
    /// A check goes out.
    pub(super) fn handle_check(&mut self, hop: Hop) {
        let Hop::Direct(endpoint) = hop else { return };
        self.sent = self.sent.saturating_add(1);
        if self.endpoints.len() < TARGETS_MAX && !self.endpoints.contains(&endpoint) {
            self.endpoints.push(endpoint);
        }
    }
}

impl Node {
    /// Sends to a peer by `hop` from now on. Every change of a way that packets do not bring about by themselves goes
    /// through here.
    pub(super) fn switch_way(&mut self, now: Instant, id: NodeId, hop: Hop, reason: Reason) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        peer.path.switch(hop);
        peer.pmtu.handle_hop(hop);
        self.dirty = true;
        self.note_way(now, id, reason);
    }

    /// Why a node is reached through a relay, if it is.
    pub fn relayed_because(&self, now: Instant, id: &NodeId) -> Option<Relayed> {
        self.peers.of(id).and_then(|peer| self.why_relayed(now, peer))
    }

    /// Why a peer is reached through a relay, if it is.
    pub(super) fn why_relayed(&self, now: Instant, peer: &Peer) -> Option<Relayed> {
        peer.current.as_ref().filter(|_| peer.path.is_relayed())?;
        let Trials { sent, endpoints } = &peer.trials;
        let choice = &peer.path.choice;
        let by_relay = peer.path.current().and_then(|hop| choice.rtt(hop));
        if let Some((by_relay, straight)) = by_relay.zip(choice.straight(now)) {
            return Some(Relayed::Better(by_relay, straight));
        }
        let (ours, theirs) = (self.maps_dependently(now), peer.maps_dependently);
        Some(match peer.candidates_at {
            None => Relayed::Asking,
            Some(_) if ours && theirs => Relayed::BothDependent,
            Some(_) if peer.path.checks.is_trying_directly() || peer.spray.is_some() => Relayed::Trying,
            // None of its endpoints gets another check until a minute is over.
            Some(_) if *sent == 0 && peer.path.checks.exhausted_until(now).is_some() => Relayed::Trying,
            Some(_) if *sent == 0 => Relayed::Nowhere,
            Some(_) if ours => Relayed::DependentHere(*sent),
            Some(_) if theirs => Relayed::DependentThere(*sent),
            Some(_) => Relayed::NoAnswer(*sent, endpoints.clone()),
        })
    }

    /// Tells that a peer is reached, unless that was told. Of contacts that are only asked for others nothing is told:
    /// in a large network they come and go all the time. Who was told to be lost is told to be back.
    pub(super) fn tell_reached(&mut self, id: NodeId) {
        let configured = self.bootstrap.contains_key(&id);
        let Some(peer) = self.peers.of(&id).filter(|peer| peer.told != Some(true) && peer.current.is_some())
        else {
            return;
        };
        let wanted = configured || peer.is_awaited() || peer.data_packets() > 0;
        let is_told = match peer.told {
            Some(_) => peer.is_gone().is_none(),
            None => wanted && !peer.awaits_answer(),
        };
        let Some(hop) = peer.path.current().filter(|_| is_told) else { return };
        let way = self.way(hop);
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.told = Some(true);
        }
        self.event(Event::PeerReached(id, way));
    }

    /// A peer is not reached any more: tells so, if it was told that it is.
    pub(super) fn note_lost(&mut self, now: Instant, id: NodeId, why: Lost) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        // What it said itself tells more than that it does not answer since.
        if peer.is_gone() != Some(Lost::Stopped) {
            let before = peer.gone.filter(|_| peer.is_gone().is_some()).map(|gone| gone.since);
            let since = before.or(peer.unanswered()).unwrap_or(now);
            peer.gone = Some(Gone { at: now, since, why });
        }
        let told = peer.told == Some(true);
        self.note_way(now, id, Reason::Lost(why));
        let Some(peer) = self.peers.of_mut(&id).filter(|_| told) else { return };
        peer.told = Some(false);
        // Its way may have ended before, when nobody used it: the log and the history tell the same.
        if peer.history.0.back().is_none_or(|change| change.reason != Reason::Lost(why)) {
            peer.history.push(Change { at: now, from: None, to: None, reason: Reason::Lost(why) });
        }
        self.event(Event::PeerLost(id, why));
    }

    /// Something came from a peer. If it was not reached any more, it is asked whether it is; if it has shown so, that is
    /// told.
    pub(super) fn note_heard(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of(&id).filter(|peer| peer.gone.is_some() && peer.current.is_some())
        else {
            return;
        };
        if peer.is_gone().is_none() {
            self.note_way(now, id, Reason::Returned);
            self.tell_reached(id);
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.gone = None;
            }
        } else if peer.probe.is_none_or(|probe| now.saturating_since(probe.sent) >= PROBE_PATIENCE) {
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.probe = None;
            }
            self.probe(now, id);
            self.watch(now, id);
        }
    }

    /// A way as it is told now.
    pub(super) fn way(&self, hop: Hop) -> Way {
        let shown = self.endpoint_of(hop).map(|endpoint| self.streams.shown(endpoint));
        let by_stream = shown.is_some_and(|(_, by_stream)| by_stream);
        Way { endpoint: shown.map(|(endpoint, _)| endpoint), via: self.via(hop), by_stream }
    }

    /// Notes that the way to a peer is another one now, if it is.
    pub(super) fn note_way(&mut self, now: Instant, id: NodeId, reason: Reason) {
        let Some(peer) = self.peers.of(&id) else { return };
        let hop = peer.current.as_ref().filter(|_| peer.is_gone().is_none()).and(peer.path.current());
        let to = hop.map(|hop| self.way(hop));
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let from = peer.history.last();
        if to.as_ref().is_some_and(|way| way.via.is_empty()) {
            peer.trials = Trials::default();
        }
        if from != to {
            peer.history.push(Change { at: now, from, to, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_changes_are_kept() {
        let mut history = History::default();
        let way = |port| {
            Some(Way {
                endpoint: Some(SocketAddr::from(([192, 0, 2, 1], port))),
                via: Vec::new(),
                by_stream: false,
            })
        };
        for n in 0..2 * CHANGES_MAX as u16 {
            let at = Instant::from_nanos(u64::from(n));
            history.push(Change { at, from: way(n), to: way(n + 1), reason: Reason::Moved });
        }
        let ports: Vec<_> =
            history.newest().filter_map(|change| change.to?.endpoint).map(|e| e.port()).collect();
        let newest = 2 * CHANGES_MAX as u16;
        assert_eq!(ports, (newest - CHANGES_MAX as u16 + 1..=newest).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_reason_is_told_in_words() {
        assert_eq!(Reason::Silent(Duration::from_millis(440)).to_string(), "silent for 0.4 s");
        assert_eq!(Reason::Refused.to_string(), "relay refused");
    }
}
