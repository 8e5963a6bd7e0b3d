//! Guessing ports: a straight way between a NAT that gives every destination another port (the hard side) and one that
//! lets in only what it has sent to (the easy side).
//!
//! ```text
//! hard   asking ─► a check from each of [`SOCKETS_MAX`] sockets to the one endpoint of the easy side ─► found
//!          ▲ Ready   │ Open                                                                              ▲
//! easy   asking ───► checks to one port after the other of the hard side's address ──────────────────────┘
//! ```
//!
//! Each socket of the hard side has a port of its NAT that lets in the easy side's checks. Of the 64,512 ports the easy
//! side hits one of 256 after 175 checks in the median, and after 2,000 but in one case of 2,800 (a birthday problem:
//! D. Anderson, "How NAT traversal works", 2020). The checks are pings of the session, so whoever answers is the peer, and
//! the way is used only when one was answered.
//!
//! Both sides ask their own relays first whether the peer is where it says: nobody else can be made a target.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand_core::Rng;

use crate::proto::identity::NodeId;
use crate::proto::timer::Instant;
use crate::proto::wire::control::SprayStep;
use crate::proto::wire::relay::Hop;

/// Sockets of the hard side in one spray.
pub const SOCKETS_MAX: usize = 256;
/// With fewer there is too little hope.
pub const SOCKETS_MIN: usize = 32;
/// Checks of the easy side in one spray: 250 a second over [`LIFE`]. All of them go to the one address at which relays of
/// our own see the peer.
pub const PROBES_MAX: usize = 2000;
/// The first of them go out at 1,000 a second, the others at 250: at an even pace the 95th percentile would be 3 s.
const PROBES_FIRST: usize = 750;
/// Checks that are sent together.
const PROBES_TOGETHER: usize = 4;
/// How long a spray lasts at most.
pub const LIFE: Duration = Duration::from_secs(8);
/// When the hard side checks from every socket: some checks get lost. That makes [`CHECKS_MAX`] to the one endpoint at
/// which relays of our own see the peer.
const ROUNDS_MS: [u64; 3] = [0, 2000, 5000];
/// Checks of the hard side in one spray.
pub const CHECKS_MAX: usize = ROUNDS_MS.len() * SOCKETS_MAX;
/// Checks of a round that are sent together, and the time between two such groups.
const CHECKS_TOGETHER: usize = 64;
const CHECKS_PAUSE: Duration = Duration::from_millis(10);
/// How long relays and the peer are asked.
pub const ASK_LIFE: Duration = Duration::from_secs(3);
/// Waits before relays and peer are asked: whoever is named to us as a peer must not make us use up what our relays grant.
const ASKS_MS: [u64; 6] = [150, 150, 150, 300, 600, 1200];
/// And before the peer's relays are told of us.
const INTRODUCTIONS_MS: [u64; 4] = [0, 300, 600, 1200];
/// How long a socket that was hit may take to be proven.
const PROOF_LIFE: Duration = Duration::from_secs(2);
/// Lowest port that a NAT hands out (RFC 4787 REQ-3), and how many there are.
const PORT_MIN: u16 = 1024;
const PORTS: u32 = u16::MAX as u32 - PORT_MIN as u32 + 1;

/// Names a socket of a spray.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketId {
    /// The spray that it was opened for.
    pub spray: u32,
    /// Its number there, from 0.
    pub number: u16,
}

/// Which NAT is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that gives every destination another port.
    Hard,
    /// The one that lets in only what it has sent to.
    Easy,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make ourselves known to the relays of the peer: they can vouch for us then.
    Introduce,
    /// Ask our relays for their word, see [`Spray::handle_vouched`].
    Ask,
    /// Tell the peer how far we are.
    Say(SprayStep),
    /// Open [`SOCKETS_MAX`] sockets, and tell [`Spray::handle_sockets`].
    Open,
    /// Ping the peer there, from that socket.
    Check {
        /// Where to.
        to: SocketAddr,
        /// Which of the sockets; none is the ordinary one.
        socket: Option<u16>,
        /// Comes back in the answer.
        nonce: u64,
    },
    /// It came to nothing, or is over.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    /// The sockets are being opened.
    Opening,
    /// The hard side checks, `next` of `round`; `told` that it does.
    Open {
        since: Instant,
        round: usize,
        next: usize,
        told: bool,
    },
    /// The easy side checks.
    Probing {
        since: Instant,
    },
    /// A check of the peer came to this socket of ours.
    Found(u16),
    Over,
}

/// One spray towards one peer.
#[derive(Debug)]
pub struct Spray {
    number: u32,
    side: Side,
    /// The easy side's endpoint, or one of the hard side's, of which the port means nothing.
    target: SocketAddr,
    stage: Stage,
    /// Not before: ordinary checks may do.
    begins: Instant,
    /// So often asked, and when next.
    asks: usize,
    ask_at: Instant,
    /// So often introduced, and when next.
    introductions: usize,
    introduce_at: Instant,
    /// When it began to cost others something.
    began: Option<Instant>,
    /// When what is going on has taken too long.
    until: Instant,
    vouchers: BTreeSet<NodeId>,
    /// Enough relays of ours have seen the peer there.
    vouched: bool,
    /// The peer has said that it is as far as we.
    agreed: bool,
    /// Sockets of the hard side.
    sockets: usize,
    /// The first nonce; the others follow.
    nonce: u64,
    /// When each check was sent last, by its number.
    sent: Vec<Instant>,
    /// All ports in an order of our own: the first, and how far it is to the next.
    first: u32,
    step: u32,
}

impl Spray {
    /// A spray with this number, after relays were asked and not before `begins`.
    pub fn new(
        now: Instant,
        begins: Instant,
        side: Side,
        number: u32,
        target: SocketAddr,
        rng: &mut impl Rng,
    ) -> Self {
        let step = loop {
            let step = rng.next_u32() % PORTS;
            // Without a common divisor the walk comes to every port.
            if step > 1 && ![2, 3, 7].iter().any(|prime| step.is_multiple_of(*prime)) {
                break step;
            }
        };
        Self {
            number,
            side,
            target,
            stage: Stage::Asking,
            begins,
            asks: 0,
            ask_at: now + Duration::from_millis(ASKS_MS[0]),
            introductions: 0,
            introduce_at: now,
            began: None,
            until: begins.max(now) + ASK_LIFE,
            vouchers: BTreeSet::new(),
            vouched: false,
            agreed: false,
            sockets: 0,
            nonce: rng.next_u64(),
            sent: Vec::new(),
            first: rng.next_u32() % PORTS,
            step,
        }
    }

    /// Its number.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Which side we are.
    pub const fn side(&self) -> Side {
        self.side
    }

    /// Where the peer is, and what relays of ours have to confirm: of the hard side the address only.
    pub fn target(&self) -> SocketAddr {
        match self.side {
            Side::Hard => self.target,
            Side::Easy => SocketAddr::new(self.target.ip(), 0),
        }
    }

    /// When the first check was sent, or the first socket opened.
    pub const fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Checks sent so far.
    pub fn checks(&self) -> usize {
        self.sent.len()
    }

    /// True for relays that have vouched already.
    pub fn has_vouched(&self, relay: &NodeId) -> bool {
        self.vouchers.contains(relay)
    }

    /// A relay of ours sees the peer at [`Spray::target`]; `needed` of them have to.
    pub fn handle_vouched(&mut self, now: Instant, relay: NodeId, needed: usize) {
        self.vouchers.insert(relay);
        if self.vouchers.len() >= needed && !std::mem::replace(&mut self.vouched, true) {
            self.ask_at = now;
        }
    }

    /// The peer says how far it is.
    pub fn handle_step(&mut self, step: SprayStep) {
        match step {
            SprayStep::Ready => self.agreed |= self.side == Side::Hard,
            SprayStep::Open => self.agreed |= self.side == Side::Easy,
            SprayStep::Over => self.stage = Stage::Over,
        }
    }

    /// True when the next [`Spray::poll`] begins to cost others something.
    pub fn is_about_to_begin(&self, now: Instant) -> bool {
        self.stage == Stage::Asking
            && self.vouched
            && self.agreed
            && (self.side == Side::Easy || now >= self.begins)
    }

    /// So many sockets are open.
    pub fn handle_sockets(&mut self, now: Instant, opened: usize) {
        if self.stage != Stage::Opening {
            return;
        }
        self.sockets = opened.min(SOCKETS_MAX);
        self.stage = if opened < SOCKETS_MIN {
            Stage::Over
        } else {
            Stage::Open { since: now, round: 0, next: 0, told: false }
        };
        self.until = now + LIFE;
    }

    /// A packet of the peer came from its endpoint to a socket of ours. True when that is the first one: the others are
    /// not needed any more.
    pub fn handle_heard(&mut self, now: Instant, source: SocketAddr, socket: u16) -> bool {
        let is_open = matches!(self.stage, Stage::Open { .. });
        if !is_open || self.side == Side::Easy || source != self.target || usize::from(socket) >= self.sockets
        {
            return false;
        }
        self.stage = Stage::Found(socket);
        self.until = now + PROOF_LIFE;
        true
    }

    /// A ping was answered: if it is one of ours, the way that works, and how long it took.
    pub fn handle_answer(&mut self, now: Instant, nonce: u64) -> Option<(Hop, Duration)> {
        let number = usize::try_from(nonce.wrapping_sub(self.nonce)).ok()?;
        let took = now.saturating_since(*self.sent.get(number)?);
        match self.stage {
            Stage::Probing { .. } => Some((Hop::Direct(self.guess(number)), took)),
            Stage::Found(socket) if usize::from(socket) == number => Some((Hop::Direct(self.target), took)),
            Stage::Asking | Stage::Opening | Stage::Open { .. } | Stage::Found(_) | Stage::Over => None,
        }
    }

    /// What to do at `now`; ask until there is nothing.
    pub fn poll(&mut self, now: Instant) -> Option<Action> {
        if self.stage == Stage::Over || now >= self.until {
            return Some(Action::End);
        }
        if self.is_about_to_begin(now) {
            self.stage = match self.side {
                Side::Hard => Stage::Opening,
                Side::Easy => Stage::Probing { since: now },
            };
            (self.began, self.until) = (Some(now), now + LIFE);
            if self.side == Side::Hard {
                return Some(Action::Open);
            }
        }
        match self.stage {
            Stage::Asking => self.ask(now),
            Stage::Open { since, round, next, told } => self.check(now, since, (round, next, told)),
            Stage::Probing { since } => self.probe(now, since),
            Stage::Opening | Stage::Found(_) | Stage::Over => None,
        }
    }

    fn ask(&mut self, now: Instant) -> Option<Action> {
        if now >= self.introduce_at {
            self.introductions += 1;
            self.introduce_at = next(now, &INTRODUCTIONS_MS, self.introductions).unwrap_or(self.until);
            return Some(Action::Introduce);
        }
        if now < self.ask_at {
            return None;
        }
        self.asks += 1;
        self.ask_at = next(now, &ASKS_MS, self.asks).unwrap_or(self.until);
        match self.side {
            _ if !self.vouched => Some(Action::Ask),
            Side::Easy => Some(Action::Say(SprayStep::Ready)),
            Side::Hard => None,
        }
    }

    fn check(
        &mut self,
        now: Instant,
        since: Instant,
        (round, next, told): (usize, usize, bool),
    ) -> Option<Action> {
        if now < due_check(since, round, next)? {
            return None;
        }
        if !told {
            self.stage = Stage::Open { since, round, next, told: true };
            return Some(Action::Say(SprayStep::Open));
        }
        let after = next + 1;
        self.stage = if after == self.sockets {
            Stage::Open { since, round: round + 1, next: 0, told: false }
        } else {
            Stage::Open { since, round, next: after, told }
        };
        self.note_sent(next, now);
        let nonce = self.nonce.wrapping_add(next as u64);
        Some(Action::Check { to: self.target, socket: Some(next as u16), nonce })
    }

    fn probe(&mut self, now: Instant, since: Instant) -> Option<Action> {
        let number = self.sent.len();
        if now < due_probe(since, number)? {
            return None;
        }
        self.note_sent(number, now);
        let nonce = self.nonce.wrapping_add(number as u64);
        Some(Action::Check { to: self.guess(number), socket: None, nonce })
    }

    fn note_sent(&mut self, number: usize, now: Instant) {
        match self.sent.get_mut(number) {
            Some(at) => *at = now,
            None => self.sent.push(now),
        }
    }

    /// The endpoint that check number `number` goes to; none is tried twice.
    fn guess(&self, number: usize) -> SocketAddr {
        let walked = u64::from(self.first) + number as u64 * u64::from(self.step);
        let port = PORT_MIN + (walked % u64::from(PORTS)) as u16;
        SocketAddr::new(self.target.ip(), port)
    }

    /// When to call [`Spray::poll`].
    pub fn poll_timeout(&self) -> Instant {
        let next = match self.stage {
            Stage::Asking if self.vouched && self.agreed => Some(self.begins),
            Stage::Asking => Some(self.ask_at.min(self.introduce_at)),
            Stage::Open { since, round, next, .. } => due_check(since, round, next),
            Stage::Probing { since } => due_probe(since, self.sent.len()),
            Stage::Opening | Stage::Found(_) => None,
            Stage::Over => Some(Instant::ZERO),
        };
        next.unwrap_or(self.until).min(self.until)
    }
}

/// When something is done for the next time that was done so often.
fn next(now: Instant, waits_ms: &[u64], done: usize) -> Option<Instant> {
    waits_ms.get(done).map(|ms| now + Duration::from_millis(*ms))
}

fn due_check(since: Instant, round: usize, next: usize) -> Option<Instant> {
    let groups = (next / CHECKS_TOGETHER) as u32;
    ROUNDS_MS.get(round).map(|ms| since + Duration::from_millis(*ms) + CHECKS_PAUSE * groups)
}

fn due_probe(since: Instant, number: usize) -> Option<Instant> {
    if number >= PROBES_MAX {
        return None;
    }
    let number = number / PROBES_TOGETHER * PROBES_TOGETHER;
    let ms = match number.checked_sub(PROBES_FIRST) {
        None => number,
        Some(more) => PROBES_FIRST + more * 4,
    };
    Some(since + Duration::from_millis(ms as u64))
}
