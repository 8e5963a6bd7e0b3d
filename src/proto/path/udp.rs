//! Does UDP get through at all? A network may carry nothing but TCP.
//!
//! ```text
//! Open ── a peer is silent ──► Suspect: others are asked, [`ASKS`] times ── nobody answers in [`VERDICT_AFTER`] ──► Blocked
//!   ▲                              │                                                                          │
//!   └──────── anything came ◄──────┴───────── asked again every [`TRY_AGAIN`], and when links change ◄────────┘
//! ```
//!
//! What came counts only when it authenticated and is from outside of the networks that we are on: a neighbour tells
//! nothing of the way out.

use std::time::Duration;

use crate::proto::timer::Instant;

/// How often others are asked before the verdict.
pub const ASKS: u8 = 3;
/// Time between two of these.
pub const ASK_GAP: Duration = Duration::from_millis(500);
/// From the suspicion to the verdict: two round trips of 1.5 s.
pub const VERDICT_AFTER: Duration = Duration::from_secs(3);
/// How often UDP is tried while it is blocked.
pub const TRY_AGAIN: Duration = Duration::from_secs(60);
/// After an acquittal nothing is suspected for this long.
pub const CALM_FOR: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open { calm_until: Instant },
    Suspect { since: Instant, asked: u8 },
    Blocked { since: Instant, next_try: Instant },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask others by UDP.
    Ask,
    /// UDP is blocked from now on.
    Blocked,
    /// It is still blocked: try whether it is.
    Try,
    /// It is not blocked any more, or never was.
    Open,
}

/// What we know of UDP.
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    state: State,
    heard: Option<Instant>,
}

impl Udp {
    /// Nothing is suspected.
    pub const fn new(now: Instant) -> Self {
        Self { state: State::Open { calm_until: now }, heard: None }
    }

    /// True from the verdict until something comes.
    pub const fn is_blocked(&self) -> bool {
        matches!(self.state, State::Blocked { .. })
    }

    /// Since when UDP is blocked.
    pub const fn blocked_since(&self) -> Option<Instant> {
        match self.state {
            State::Blocked { since, .. } => Some(since),
            State::Open { .. } | State::Suspect { .. } => None,
        }
    }

    /// Something that was sent by UDP has no answer; true when that is news.
    pub fn suspect(&mut self, now: Instant) -> bool {
        match self.state {
            State::Open { calm_until } if now >= calm_until => {
                self.state = State::Suspect { since: now, asked: 0 };
                true
            }
            State::Open { .. } | State::Suspect { .. } | State::Blocked { .. } => false,
        }
    }

    /// Something came; true when that ends an outage.
    pub fn handle_heard(&mut self, now: Instant) -> bool {
        self.heard = Some(now);
        let blocked = self.is_blocked();
        if blocked {
            self.state = State::Open { calm_until: now + CALM_FOR };
        }
        blocked
    }

    /// Links have changed: UDP is tried at once.
    pub const fn hurry(&mut self, now: Instant) {
        if let State::Blocked { next_try, .. } = &mut self.state {
            *next_try = now;
        }
    }

    /// Does what is due; `heard` is when a session last received by UDP.
    pub fn handle_timeout(&mut self, now: Instant, heard: Option<Instant>) -> Option<Step> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return None;
        }
        match &mut self.state {
            State::Open { .. } => None,
            State::Suspect { since, .. } if self.heard.max(heard) >= Some(*since) => {
                self.state = State::Open { calm_until: now + CALM_FOR };
                Some(Step::Open)
            }
            State::Suspect { asked, .. } if *asked < ASKS => {
                *asked += 1;
                Some(Step::Ask)
            }
            State::Suspect { .. } => {
                self.state = State::Blocked { since: now, next_try: now + TRY_AGAIN };
                Some(Step::Blocked)
            }
            State::Blocked { next_try, .. } => {
                *next_try = now + TRY_AGAIN;
                Some(Step::Try)
            }
        }
    }

    /// When to call [`Udp::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Open { .. } => None,
            State::Suspect { since, asked } if asked < ASKS => Some(since + ASK_GAP * u32::from(asked)),
            State::Suspect { since, .. } => Some(since + VERDICT_AFTER),
            State::Blocked { next_try, .. } => Some(next_try),
        }
    }
}
