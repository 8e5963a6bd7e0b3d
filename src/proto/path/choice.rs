//! How good a peer's ways are, and when another one is worth changing to.
//!
//! ```text
//! score  = smoothed round trip + 4 × its variation (RFC 6298 §2) + lost questions − 3 ms over IPv6 + 20 ms by a relay + 100 ms by a stream
//! silent   asked again and again, and no answer for [`SILENT_MIN`] or three round trips ─► whatever way answered since
//! better   by 5 ms and a tenth, [`SAMPLES_WANTED`] answers in a row     ─► that way
//! ```
//!
//! Each side chooses for itself; nothing is agreed on. While the first answers come in nothing has been chosen yet, so the
//! best score wins by however little: of equal ways the one over IPv6.
//!
//! Deliberately left out: when to ask, and what a relay is willing to carry; that is `node`'s.

use std::time::Duration;

use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

/// Ways of one peer that are remembered; the one that answered longest ago gives way.
pub const WAYS_MAX: usize = 12;
/// Answers in a row that have to show another way to be better.
pub const SAMPLES_WANTED: u32 = 3;
/// And by how much at least.
pub const BETTER_BY: Duration = Duration::from_millis(5);
/// And by which part of the score of the way in use.
const BETTER_PART: u32 = 10;
/// What a relay in between costs beyond what can be measured.
pub const RELAY_COST: Duration = Duration::from_millis(20);
/// What a stream costs, which is an endpoint of the loopback, where UDP gets through.
pub const STREAM_COST: Duration = Duration::from_millis(100);
/// What IPv6 is worth: fewer translators on the way.
pub const V6_WORTH: Duration = Duration::from_millis(3);
/// What each lost question costs but the first of the last [`QUESTIONS`].
const LOSS_COST: Duration = Duration::from_millis(25);
/// Questions over which losses are counted.
const QUESTIONS: u32 = 16;
/// Without an answer for so long a way is silent, at least.
pub const SILENT_MIN: Duration = Duration::from_millis(150);
/// And for so many round trips.
const SILENT_RTTS: u32 = 3;
/// A question without an answer for this long is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Answers of the way in use until the choice stands.
const SETTLED_AFTER: u32 = 5;
/// A way that answered within this time is known to work.
pub const KNOWN_FOR: Duration = Duration::from_secs(70);

/// One way, as far as it was measured.
#[derive(Clone, Copy, Debug)]
struct Way {
    hop: Hop,
    srtt: Duration,
    variation: Duration,
    answers: u32,
    answered: Option<Instant>,
    /// The first of the questions since the last answer, and the latest one.
    asked: Option<(Instant, Instant)>,
    /// The latest questions, a bit each: lost or not.
    lost: u16,
}

impl Way {
    const fn new(hop: Hop) -> Self {
        let (srtt, variation) = (Duration::ZERO, Duration::ZERO);
        Self { hop, srtt, variation, answers: 0, answered: None, asked: None, lost: 0 }
    }

    fn note_asked(&mut self, now: Instant) {
        let (first, latest) = self.asked.unwrap_or((now, now));
        // Questions of the same moments are one, asked again.
        let is_lost = now.saturating_since(latest) >= LOST_AFTER.max(4 * self.srtt);
        if is_lost {
            self.lost = self.lost << 1 | 1;
        }
        self.asked = Some((if is_lost { now } else { first }, now));
    }

    fn handle_answer(&mut self, now: Instant, rtt: Duration) {
        if self.answers == 0 {
            self.srtt = rtt;
        } else {
            let off = self.srtt.max(rtt) - self.srtt.min(rtt);
            self.variation = (3 * self.variation + off) / 4;
            self.srtt = (7 * self.srtt + rtt) / 8;
        }
        self.answers = self.answers.saturating_add(1);
        (self.answered, self.asked) = (Some(now), None);
        // All that was lost in a row was one outage, which is over; what counts is how often there are some.
        let outage = self.lost.trailing_ones();
        if outage > 1 {
            self.lost = self.lost.checked_shr(outage).unwrap_or(0) << 1 | 1;
        }
        self.lost <<= 1;
    }

    /// In microseconds, the lower the better.
    fn score(&self) -> i64 {
        let losses = self.lost.count_ones().min(QUESTIONS).saturating_sub(1) * LOSS_COST;
        let kind = match self.hop {
            // A stream: TCP under the TCP of programs.
            Hop::Direct(endpoint) if endpoint.ip().is_loopback() => STREAM_COST.as_micros() as i64,
            Hop::Direct(endpoint) if endpoint.is_ipv6() => -(V6_WORTH.as_micros() as i64),
            Hop::Direct(_) => 0,
            Hop::Relayed(_) => RELAY_COST.as_micros() as i64,
        };
        (self.srtt + 4 * self.variation + losses).as_micros() as i64 + kind
    }

    /// One question alone may have been lost.
    fn is_silent(&self, now: Instant) -> bool {
        let patience = SILENT_MIN.max(SILENT_RTTS * self.srtt);
        self.asked.is_some_and(|(first, latest)| latest > first && now.saturating_since(first) >= patience)
    }

    fn is_known(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now.saturating_since(at) < KNOWN_FOR) && !self.is_silent(now)
    }
}

/// What is known of the ways to one peer.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    ways: Vec<Way>,
    /// A way that is better than the one in use, and how many answers in a row have said so.
    lead: Option<(Hop, u32)>,
}

impl Choice {
    /// A question leaves by a way.
    pub fn note_asked(&mut self, now: Instant, hop: Hop) {
        self.entry(hop).note_asked(now);
    }

    /// It was answered. The way to change to, if another one than `current` has been better for long enough; `is_usable`
    /// says whether a way may be used at all.
    pub fn handle_answer(
        &mut self,
        now: Instant,
        current: Option<Hop>,
        hop: Hop,
        rtt: Duration,
        is_usable: impl Fn(Hop) -> bool,
    ) -> Option<Hop> {
        self.entry(hop).handle_answer(now, rtt);
        self.lead = self.lead.filter(|(lead, _)| Some(*lead) != current && self.is_known(now, *lead));
        let current = self.of(current?).copied().filter(|way| way.answers > 0)?;
        if current.hop == hop || !is_usable(hop) {
            return None;
        }
        if !self.is_better(hop, &current) {
            self.lead = self.lead.filter(|(lead, _)| *lead != hop);
            return None;
        }
        let answers = match self.lead {
            Some((lead, answers)) if lead == hop => answers + 1,
            // The best of all leads.
            Some((lead, _)) if self.score(lead) <= self.score(hop) => return None,
            _ => 1,
        };
        self.lead = Some((hop, answers));
        (answers >= SAMPLES_WANTED && current.answers >= SAMPLES_WANTED).then(|| {
            self.lead = None;
            hop
        })
    }

    /// The best way that answered since, when the one in use is silent.
    pub fn fallback(&self, now: Instant, current: Hop, is_usable: impl Fn(Hop) -> bool) -> Option<Hop> {
        let silent = self.of(current).filter(|way| way.is_silent(now))?;
        let (first, _) = silent.asked?;
        let answered = |way: &&Way| way.hop != current && way.answered >= Some(first) && is_usable(way.hop);
        self.ways.iter().filter(answered).min_by_key(|way| way.score()).map(|way| way.hop)
    }

    /// How long an answer on a way has been waited for.
    pub fn waits_for(&self, now: Instant, hop: Hop) -> Duration {
        let first = self.of(hop).and_then(|way| way.asked).map(|(first, _)| first);
        first.map_or(Duration::ZERO, |first| now.saturating_since(first))
    }

    /// The best way beside the one in use, of those that are known to work.
    pub fn standby(&self, now: Instant, current: Option<Hop>) -> Option<Hop> {
        let others = self.ways.iter().filter(|way| Some(way.hop) != current && way.is_known(now));
        others.min_by_key(|way| way.score()).map(|way| way.hop)
    }

    /// True for a way that answered lately and is not silent.
    pub fn is_known(&self, now: Instant, hop: Hop) -> bool {
        self.of(hop).is_some_and(|way| way.is_known(now))
    }

    /// Smoothed round trip of the best straight way that is known to work.
    pub fn straight(&self, now: Instant) -> Option<Duration> {
        let straight = self.ways.iter().filter(|way| way.hop.direct().is_some() && way.is_known(now));
        straight.min_by_key(|way| way.score()).map(|way| way.srtt)
    }

    /// True for a way that answered within this time.
    pub fn has_answered_within(&self, now: Instant, hop: Hop, time: Duration) -> bool {
        let answered = self.of(hop).and_then(|way| way.answered);
        answered.is_some_and(|at| now.saturating_since(at) < time)
    }

    /// True while a few more answers decide something: which way is the best at the beginning, or whether another one
    /// stays better.
    pub fn is_undecided(&self, now: Instant, current: Option<Hop>) -> bool {
        let is_new = current.and_then(|hop| self.of(hop)).is_some_and(|way| way.answers < SETTLED_AFTER);
        // A way that is used by now, or is silent, leads no more.
        let leads = |(lead, _)| Some(lead) != current && self.is_known(now, lead);
        self.standby(now, current).is_some() && (self.lead.is_some_and(leads) || is_new)
    }

    /// Smoothed round trip of a way.
    pub fn rtt(&self, hop: Hop) -> Option<Duration> {
        self.of(hop).filter(|way| way.answers > 0).map(|way| way.srtt)
    }

    /// True for a way that was measured often enough to be judged by its score.
    pub fn is_measured(&self, hop: Hop) -> bool {
        self.of(hop).is_some_and(|way| way.answers > SAMPLES_WANTED)
    }

    /// A way has failed: if it ever works again it is a new one.
    pub fn forget(&mut self, hop: Hop) {
        self.ways.retain(|way| way.hop != hop);
        self.lead = self.lead.filter(|(lead, _)| *lead != hop);
    }

    /// Forgets everything: the ways are other ones now.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn of(&self, hop: Hop) -> Option<&Way> {
        self.ways.iter().find(|way| way.hop == hop)
    }

    fn score(&self, hop: Hop) -> i64 {
        self.of(hop).map_or(i64::MAX, Way::score)
    }

    fn is_better(&self, hop: Hop, current: &Way) -> bool {
        let (score, own) = (self.score(hop), current.score());
        let margin = match current.answers < SETTLED_AFTER {
            true => 1,
            false => (BETTER_BY.as_micros() as i64).max(own / i64::from(BETTER_PART)),
        };
        score < own && own - score >= margin
    }

    fn entry(&mut self, hop: Hop) -> &mut Way {
        let at = self.ways.iter().position(|way| way.hop == hop).unwrap_or_else(|| {
            if self.ways.len() >= WAYS_MAX {
                let oldest = self.ways.iter().enumerate().min_by_key(|(_, way)| way.answered);
                oldest.map(|(at, _)| at).map(|at| self.ways.swap_remove(at));
            }
            self.ways.push(Way::new(hop));
            self.ways.len() - 1
        });
        &mut self.ways[at]
    }
}
