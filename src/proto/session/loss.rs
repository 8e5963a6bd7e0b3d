//! How many datagrams of a session get lost: what its receiver says, and what its sender makes of that.
//!
//! ```text
//! receiver   newest counter, datagrams that came ─ once a second while much comes ─► Received message
//! sender     loss since the last message ─ above 1 % ─► large packets are cut ─ below 0.5 % for 10 s ─► not any more
//! ```
//!
//! A superframe with a hole waits for what may only be late. Where much gets lost, nearly every superframe has a hole:
//! then packets of one datagram each arrive sooner, and each loss costs one of them.
//!
//! Totals are sums over the sending threads of a session: each has counters of its own.

use std::time::Duration;

use crate::proto::timer::Instant;

/// Fewest datagrams to judge by.
pub const JUDGED_MIN: u64 = 100;
/// Least time between two reports.
pub const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Loss above which large packets are cut, in parts of a thousand.
pub const CUT_ABOVE_PER_MILLE: u64 = 10;
/// Loss below which a path is calm, in parts of a thousand.
pub const CALM_BELOW_PER_MILLE: u64 = 5;
/// How long a path has to be calm before large packets stay whole again.
pub const CALM_FOR: Duration = Duration::from_secs(10);
/// Reports further apart than this say nothing of the time between.
const GAP_MAX: Duration = Duration::from_secs(3);

/// Totals of one direction of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Datagrams that the receiver knows to have been sent: of each thread the newest counter and all before it.
    pub sent: u64,
    /// Datagrams that came.
    pub received: u64,
}

/// The receiver of a session: when to report.
#[derive(Debug, Default)]
pub struct Reporter {
    last: Option<Report>,
}

#[derive(Clone, Copy, Debug)]
struct Report {
    /// Index of the session.
    session: u32,
    at: Instant,
    totals: Totals,
}

impl Reporter {
    /// What to tell the sender at `now`; `None` when it is too early, or too little came to say anything: who is not
    /// sent to stays silent.
    pub fn poll(&mut self, now: Instant, session: u32, totals: Totals) -> Option<Totals> {
        if self.last.is_some_and(|last| now.saturating_since(last.at) < REPORT_EVERY) {
            return None;
        }
        let last = self.last.filter(|last| last.session == session);
        let reported = last.map_or(0, |last| last.totals.sent);
        if totals.sent.saturating_sub(reported) < JUDGED_MIN {
            return None;
        }
        self.last = Some(Report { session, at: now, totals });
        Some(totals)
    }
}

/// The sender of a session: how lossy the path is.
#[derive(Debug, Default)]
pub struct Losses {
    last: Option<Report>,
    /// Loss of the last interval, in parts of a thousand.
    per_mille: Option<u64>,
    calm_since: Option<Instant>,
    cuts: bool,
    /// Session, and datagrams of it that were sent to see whether they arrive and were not missed yet.
    excused: (u32, u64),
}

impl Losses {
    /// A datagram of the session goes out that is expected to get lost: one of the search for what the path carries
    /// (`path::pmtu`). Its sending thread may have little else to send, so it can take many reports until it is missed.
    /// If it comes, it excuses another: those are a few of a whole search.
    pub const fn excuse(&mut self, session: u32) {
        let before = if self.excused.0 == session { self.excused.1 } else { 0 };
        self.excused = (session, before.saturating_add(1));
    }

    /// The receiver's report about the session with this index.
    pub fn handle_report(&mut self, now: Instant, session: u32, totals: Totals) {
        let last = self.last.filter(|last| last.session == session);
        let before = last.map_or(Totals::default(), |last| last.totals);
        let sent = totals.sent.saturating_sub(before.sent);
        if sent < JUDGED_MIN || totals.received < before.received {
            return;
        }
        if self.last.is_some_and(|last| now.saturating_since(last.at) > GAP_MAX) {
            self.calm_since = None;
        }
        self.last = Some(Report { session, at: now, totals });
        let lost = sent.saturating_sub(totals.received - before.received);
        let excused = if self.excused.0 == session { self.excused.1.min(lost) } else { 0 };
        self.excused.1 -= excused;
        let lost = lost - excused;
        self.per_mille = Some(lost.saturating_mul(1000) / sent);
        let above = |limit: u64| lost.saturating_mul(1000) > sent.saturating_mul(limit);
        if above(CUT_ABOVE_PER_MILLE) {
            (self.cuts, self.calm_since) = (true, None);
        } else if above(CALM_BELOW_PER_MILLE) {
            self.calm_since = None;
        } else if now.saturating_since(*self.calm_since.get_or_insert(now)) >= CALM_FOR {
            self.cuts = false;
        }
    }

    /// True when large packets should be cut.
    pub const fn cuts(&self) -> bool {
        self.cuts
    }

    /// Loss of the last interval, in parts of a thousand; `None` when nothing was reported lately.
    pub fn per_mille(&self, now: Instant) -> Option<u64> {
        let lately = self.last.is_some_and(|last| now.saturating_since(last.at) <= GAP_MAX);
        self.per_mille.filter(|_| lately)
    }
}
