//! Whether others reach us unasked at an address of our own. A firewall shows nothing of itself: we are seen at our own
//! address, and what nobody asked for does not come in (RFC 6092). So peers are asked to dial us from a port that we never
//! sent to (as AutoNAT v2 of libp2p does).
//!
//! ```text
//! Unknown ─ask─► came ────────────────────────────► Open    asked again after [`AGAIN_OPEN`]
//!            └─► "dialled", but it did not come ──► Closed  when peers of [`VOTES_CLOSED`] networks say so; asked again
//!                                                           after [`AGAIN_CLOSED`]
//! ```
//!
//! As long as nothing is known a node takes itself for reachable: with nobody to ask there is nobody to relay either.
//! A peer may lie, but only to our own disadvantage: that we need relays. What came is proof, whoever sent it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::identity::NodeId;
use crate::proto::timer::Instant;

use super::observed::{Network, network};

/// Networks of peers that have to agree that nothing comes in.
pub const VOTES_CLOSED: usize = 2;
/// How long what was dialled may take.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Questions to one peer: what is dialled may get lost.
const QUESTIONS_PER_NETWORK: u8 = 2;
/// Wait before somebody else is asked while nothing is known.
const AGAIN_UNKNOWN: Duration = Duration::from_secs(60);
/// And when we are known to be reached.
pub const AGAIN_OPEN: Duration = Duration::from_secs(1800);
/// And when not: the owner may have opened the firewall.
pub const AGAIN_CLOSED: Duration = Duration::from_secs(600);
/// Networks whose peers are asked for one verdict.
const VOTERS_MAX: usize = 8;

/// What is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody has tried, or too few.
    #[default]
    Unknown,
    /// What nobody asked for comes in.
    Open,
    /// It does not.
    Closed,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    nonce: u64,
    peer: NodeId,
    network: Network,
    asked: Instant,
    /// The peer says that it has dialled.
    dialled: bool,
}

/// A network whose peers were asked.
#[derive(Clone, Copy, Debug)]
struct Voter {
    network: Network,
    asked: u8,
    /// Questions after which nothing came although the peer has dialled.
    vain: u8,
}

/// What is known of one family.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    verdict: Verdict,
    questions: Vec<Question>,
    voters: Vec<Voter>,
    /// Nobody is asked before.
    next: Option<Instant>,
}

impl Reach {
    /// What is known.
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// True when somebody should be asked.
    pub fn is_due(&self, now: Instant) -> bool {
        self.questions.len() < VOTES_CLOSED && self.next.is_none_or(|next| next <= now)
    }

    /// True when a peer at this endpoint can add to what is known.
    pub fn is_useful(&self, endpoint: SocketAddr) -> bool {
        let network = network(endpoint.ip());
        let spent = self.voters.iter().any(|v| v.network == network && v.asked >= QUESTIONS_PER_NETWORK);
        let room = self.voters.len() < VOTERS_MAX || self.voters.iter().any(|v| v.network == network);
        !spent && room && self.questions.iter().all(|question| question.network != network)
    }

    /// A peer is asked.
    pub fn ask(&mut self, now: Instant, peer: NodeId, endpoint: SocketAddr, nonce: u64) {
        let network = network(endpoint.ip());
        self.questions.push(Question { nonce, peer, network, asked: now, dialled: false });
        match self.voters.iter_mut().find(|voter| voter.network == network) {
            Some(voter) => voter.asked += 1,
            None => self.voters.push(Voter { network, asked: 1, vain: 0 }),
        }
    }

    /// There is nobody to ask.
    pub fn note_nobody(&mut self, now: Instant) {
        if self.questions.is_empty() {
            self.voters.clear();
            self.next = Some(now + AGAIN_UNKNOWN);
        }
    }

    /// A peer says that it has dialled.
    pub fn handle_dialled(&mut self, peer: NodeId, nonce: u64) {
        let asked = self.questions.iter_mut().filter(|q| (q.peer, q.nonce) == (peer, nonce));
        asked.for_each(|question| question.dialled = true);
    }

    /// What a peer dialled has come. True when it was asked for.
    pub fn handle_dial(&mut self, now: Instant, peer: NodeId, nonce: u64) -> bool {
        let asked = self.questions.iter().any(|q| (q.peer, q.nonce) == (peer, nonce));
        if asked {
            *self = Self { verdict: Verdict::Open, next: Some(now + AGAIN_OPEN), ..Self::default() };
        }
        asked
    }

    /// What was dialled has had its time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_late = |question: &Question| now.saturating_since(question.asked) >= DIAL_PATIENCE;
        for question in self.questions.extract_if(.., |question| is_late(question)) {
            let voter = self.voters.iter_mut().find(|voter| voter.network == question.network);
            if let Some(voter) = voter.filter(|_| question.dialled) {
                voter.vain += 1;
            }
        }
        let agree = self.voters.iter().filter(|voter| voter.vain >= QUESTIONS_PER_NETWORK).count();
        if agree >= VOTES_CLOSED {
            *self = Self { verdict: Verdict::Closed, next: Some(now + AGAIN_CLOSED), ..Self::default() };
        }
    }

    /// When [`Reach::handle_timeout`] has something to do, or somebody should be asked.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let late = self.questions.iter().map(|question| question.asked + DIAL_PATIENCE).min();
        late.or(self.next)
    }
}
