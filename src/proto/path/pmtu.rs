//! Path MTU discovery by the packets of a session (RFC 8899, DPLPMTUD): how long a datagram may be to reach the peer.
//!
//! ICMP is not needed and not believed. A *probe* is a control packet padded to the length in question; the peer answers
//! it with a short packet. All lengths are bytes of UDP payload.
//!
//! ```text
//! Unknown ─traffic─► Searching ─no candidate left─► Found ─raise timer, traffic─► Searching (upwards)
//!  BASE                ▲                              │
//!                      └── BASE, what failed is the ◄─┴─ black hole: the present length is lost three times while
//!                          new bound                     short packets pass, or the system refuses it (EMSGSIZE)
//! another hop: Unknown
//! ```
//!
//! - **Order**: Ethernet first, then the largest, then upwards through the table of links that exist, then by halves. What
//!   fits costs one round trip; what does not costs [`MAX_PROBES`] timers.
//! - **A loss says something only when short packets pass**: every repeated probe has a short companion. Without any
//!   answer the path is down or congested; then nothing is concluded and the same length is tried again.
//! - **Idle stays idle**: probes go out only while the path carries data ([`PathMtu::handle_traffic`]). The raise and
//!   confirmation timers are looked at when there is traffic and wake nobody.
//!
//! Left out: ICMP "packet too big" as a hint (RFC 8899 §4.6), and links above [`LINK_MTU_MAX`].

use std::time::Duration;

use rand_core::Rng;

use crate::proto::timer::Instant;
use crate::proto::wire::relay::{Hop, RELAY_OVERHEAD};

/// BASE_PLPMTU (RFC 8899 §5.1.2): what every path carries, in bytes. The IPv6 minimum link MTU less IPv6 and UDP headers.
pub const BASE_DATAGRAM_LEN: usize = 1280 - IPV6_UDP_LEN;
/// MAX_PROBES (RFC 8899 §5.1.2): a length that is lost this often in a row does not fit.
pub const MAX_PROBES: u8 = 3;
/// PROBE_TIMER (RFC 8899 §5.1.1) in round trips: derived from the measured one, as acknowledgements come at once.
pub const PROBE_TIMER_RTTS: u32 = 4;
/// Shortest PROBE_TIMER: a busy peer takes its time.
pub const PROBE_TIMER_MIN: Duration = Duration::from_millis(200);
/// PROBE_TIMER while no round trip was measured (RFC 8899 §5.1.1: at least 1 s).
pub const PROBE_TIMER_UNMEASURED: Duration = Duration::from_secs(1);
/// Longest PROBE_TIMER.
pub const PROBE_TIMER_MAX: Duration = Duration::from_secs(3);
/// PMTU_RAISE_TIMER (RFC 8899 §5.1.1): how long a search that has ended is good for.
pub const PMTU_RAISE_TIMER: Duration = Duration::from_secs(600);
/// CONFIRMATION_TIMER (RFC 8899 §5.1.1): with data on the way, the length in use is confirmed this often.
pub const CONFIRMATION_TIMER: Duration = Duration::from_secs(2);
/// The same while no data comes back: the sign of a black hole (RFC 8899 §4.3).
pub const CONFIRMATION_TIMER_STALLED: Duration = Duration::from_millis(900);
/// Datagrams this long on average, in bytes, have long ones among them; a thin flow of short ones is not worth probes that
/// are longer than all of it.
pub const LONG_ON_AVERAGE: u64 = BASE_DATAGRAM_LEN as u64 / 4;
/// With short ones a confirmation waits for so many times its own bytes.
pub const CONFIRMED_PART: u64 = 16;
/// A path without data for this long is not probed until data comes again.
pub const TRAFFIC_RECENT: Duration = Duration::from_secs(5);
/// Longest wait between two rounds of probes on a path that answers nothing at all.
pub const OUTAGE_WAIT_MAX: Duration = Duration::from_secs(10);
/// MTU of the largest link looked for, in bytes: jumbo frames. Larger ones have to be asked for.
pub const LINK_MTU_MAX: usize = 9000;
/// MTUs of links that exist, in bytes: IPv6's minimum, tunnels (1400 to 1480), PPPoE, Ethernet, jumbo frames.
pub const LINK_MTUS: [usize; 11] =
    [1280, 1400, 1420, 1450, 1460, 1480, 1492, ETHERNET_MTU, 4096, 8192, LINK_MTU_MAX];
/// Up to Ethernet's size the search ends when less than this many bytes are to be gained.
pub const GAIN_MIN: usize = 16;
/// Above it, when less than this part is to be gained.
pub const GAIN_MIN_PART: usize = 16;
/// Length of the datagram that accompanies a repeated probe, in bytes.
pub const COMPANION_LEN: usize = 64;

const ETHERNET_MTU: usize = 1500;
const IPV6_UDP_LEN: usize = 40 + 8;
const IPV4_UDP_LEN: usize = 20 + 8;
/// Probes whose acknowledgement is still welcome: those of the present trial and late ones of the last.
const PROBES_REMEMBERED_MAX: usize = 8;

/// A probe to send: a control packet of exactly this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Comes back in the acknowledgement.
    pub token: u64,
    /// Length of the datagram in bytes.
    pub datagram_len: usize,
}

/// What went over the path since the last report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Bytes sent, probes included.
    pub sent_bytes: u64,
    /// Datagrams sent, probes included.
    pub sent_packets: u64,
    /// Data came back.
    pub answered: bool,
    /// Last round trip measured by others.
    pub rtt: Option<Duration>,
}

/// How far the search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not searched yet: no data so far.
    Unknown,
    /// Probes are on the way, or wait for the next data.
    Searching,
    /// Ended; nothing larger is tried before the raise timer.
    Found {
        /// When the search may begin anew.
        raise_at: Instant,
    },
}

/// One length that is tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    datagram_len: usize,
    attempts: u8,
    due: Instant,
    /// A companion is to be sent.
    accompany: bool,
    /// Something was acknowledged since the trial began.
    answered: bool,
    /// Rounds without any answer.
    silent_rounds: u32,
}

impl Trial {
    const fn new(datagram_len: usize, now: Instant) -> Self {
        Self { datagram_len, attempts: 0, due: now, accompany: false, answered: false, silent_rounds: 0 }
    }
}

/// Path MTU discovery towards one peer.
#[derive(Clone, Debug)]
pub struct PathMtu {
    hop: Option<Hop>,
    /// The longest that arrived, and in use.
    datagram_len: usize,
    /// The shortest known not to arrive.
    too_long: usize,
    state: State,
    trial: Option<Trial>,
    /// Probes on the way, oldest first, and when they were sent.
    sent: Vec<(Probe, Instant)>,
    rtt: Option<Duration>,
    traffic_at: Instant,
    paused: bool,
    confirmed_at: Instant,
    /// Bytes of data sent since the length in use was confirmed.
    unconfirmed_bytes: u64,
    /// Long ones were among them.
    unconfirmed_long: bool,
    /// Our own probes, in bytes and datagrams, that the next report of traffic counts too.
    probes: (u64, u64),
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            hop: None,
            datagram_len: BASE_DATAGRAM_LEN,
            too_long: usize::MAX,
            state: State::Unknown,
            trial: None,
            sent: Vec::new(),
            rtt: None,
            traffic_at: Instant::ZERO,
            paused: false,
            confirmed_at: Instant::ZERO,
            unconfirmed_bytes: 0,
            unconfirmed_long: false,
            probes: (0, 0),
        }
    }
}

impl PathMtu {
    /// The path begins with `hop`; another one than before starts from nothing.
    pub fn handle_hop(&mut self, hop: Hop) {
        if self.hop != Some(hop) {
            *self = Self { hop: Some(hop), ..Self::default() };
            self.datagram_len = self.base();
        }
    }

    /// The path carries data. Report it every second or so while that is so.
    pub fn handle_traffic(&mut self, now: Instant, traffic: Traffic) {
        if self.hop.is_none() {
            return;
        }
        self.traffic_at = now;
        self.rtt = self.rtt.or(traffic.rtt);
        let (probe_bytes, probes) = std::mem::take(&mut self.probes);
        let data_bytes = traffic.sent_bytes.saturating_sub(probe_bytes);
        let packets = traffic.sent_packets.saturating_sub(probes);
        self.unconfirmed_bytes = self.unconfirmed_bytes.saturating_add(data_bytes);
        self.unconfirmed_long |=
            data_bytes >= packets.max(1) * LONG_ON_AVERAGE && data_bytes >= self.datagram_len as u64;
        if std::mem::replace(&mut self.paused, false) {
            self.trial = self.trial.map(|trial| Trial::new(trial.datagram_len, now));
        }
        match self.state {
            State::Unknown => self.search(now),
            State::Found { raise_at } if raise_at <= now && self.datagram_len < self.limit() => {
                self.search(now)
            }
            State::Found { .. } if self.trial.is_none() && self.wants_confirmation(now, traffic.answered) => {
                self.trial = Some(Trial::new(self.datagram_len, now));
            }
            State::Found { .. } | State::Searching => {}
        }
    }

    /// The peer says that it received a probe of this length. Answers to what was never asked say nothing.
    pub fn handle_ack(&mut self, now: Instant, token: u64, datagram_len: usize) {
        let probe = Probe { token, datagram_len };
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == probe) else { return };
        let (_, sent_at) = self.sent.remove(at);
        let sample = now.saturating_since(sent_at);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        if let Some(trial) = &mut self.trial {
            trial.answered = true;
        }
        if datagram_len >= self.datagram_len {
            self.datagram_len = datagram_len;
            self.too_long = self.too_long.max(datagram_len + 1);
            (self.confirmed_at, self.unconfirmed_bytes, self.unconfirmed_long) = (now, 0, false);
        }
        if self.trial.take_if(|trial| trial.datagram_len <= datagram_len).is_some() {
            self.try_next(now);
        }
    }

    /// The system refused to send a datagram of this length (EMSGSIZE): the local link carries less.
    pub fn handle_too_big(&mut self, now: Instant, datagram_len: usize) {
        let in_use = datagram_len <= self.datagram_len;
        let tried = self.trial.is_some_and(|trial| trial.datagram_len >= datagram_len);
        if datagram_len > self.base() && (in_use || tried) {
            self.exclude(now, datagram_len);
        }
    }

    /// The probe timer has run out.
    pub fn handle_timeout(&mut self, now: Instant) {
        let wait = self.probe_timer();
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.due <= now) else { return };
        if now.saturating_since(self.traffic_at) >= TRAFFIC_RECENT {
            self.paused = true;
        } else if trial.attempts < MAX_PROBES {
            // The next one is due: `poll_transmit` has it.
        } else if trial.answered {
            let datagram_len = trial.datagram_len;
            self.exclude(now, datagram_len);
        } else {
            let backoff = (wait * 2u32.saturating_pow(trial.silent_rounds)).min(OUTAGE_WAIT_MAX);
            let silent_rounds = (trial.silent_rounds + 1).min(8);
            *trial = Trial { silent_rounds, ..Trial::new(trial.datagram_len, now + backoff) };
        }
    }

    /// The next probe to send; its token comes from `rng`.
    pub fn poll_transmit(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Probe> {
        let wait = self.probe_timer();
        let trial = self.trial.as_mut().filter(|_| !self.paused)?;
        let datagram_len = if std::mem::take(&mut trial.accompany) {
            COMPANION_LEN
        } else if trial.due <= now && trial.attempts < MAX_PROBES {
            trial.accompany = trial.attempts > 0;
            trial.attempts += 1;
            trial.due = now + wait;
            trial.datagram_len
        } else {
            return None;
        };
        let probe = Probe { token: rng.next_u64(), datagram_len };
        if self.sent.len() == PROBES_REMEMBERED_MAX {
            self.sent.remove(0);
        }
        self.sent.push((probe, now));
        self.probes = (self.probes.0 + datagram_len as u64, self.probes.1 + 1);
        Some(probe)
    }

    /// When to call [`PathMtu::handle_timeout`] and [`PathMtu::poll_transmit`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.trial.filter(|_| !self.paused).map(|trial| trial.due)
    }

    /// The longest datagram that the path is known to carry, in bytes; [`BASE_DATAGRAM_LEN`] before anything is known.
    pub const fn datagram_len(&self) -> usize {
        self.datagram_len
    }

    /// How far the search is.
    pub const fn state(&self) -> State {
        self.state
    }

    fn search(&mut self, now: Instant) {
        self.too_long = self.limit() + 1;
        self.state = State::Searching;
        self.trial = None;
        self.try_next(now);
    }

    /// This length does not fit. If it is one in use, that is a black hole: nothing above BASE is sure any more.
    fn exclude(&mut self, now: Instant, datagram_len: usize) {
        self.trial = None;
        self.too_long = self.too_long.min(datagram_len);
        if datagram_len <= self.datagram_len {
            self.datagram_len = self.base();
            // What was acknowledged late was sent before the path changed.
            self.sent.clear();
            self.state = State::Searching;
        }
        self.try_next(now);
    }

    fn try_next(&mut self, now: Instant) {
        if self.state == State::Searching {
            self.trial = self.candidate().map(|datagram_len| Trial::new(datagram_len, now));
            if self.trial.is_none() {
                self.state = State::Found { raise_at: now + PMTU_RAISE_TIMER };
            }
        }
    }

    /// The next length worth trying between what fits and what does not.
    fn candidate(&self) -> Option<usize> {
        let open = |len: &usize| self.datagram_len < *len && *len < self.too_long;
        let ethernet = self.payload_of(ETHERNET_MTU);
        let largest = Some(self.limit()).filter(|_| self.datagram_len >= ethernet);
        let table = LINK_MTUS.iter().map(|mtu| self.payload_of(*mtu)).find(open);
        let gain_min =
            if self.datagram_len < ethernet { GAIN_MIN } else { self.datagram_len / GAIN_MIN_PART };
        let gap = self.too_long - self.datagram_len;
        let half = Some(self.datagram_len + gap / 2).filter(|_| gap >= gain_min);
        Some(ethernet).filter(open).or(largest.filter(open)).or(table).or(half.filter(open))
    }

    fn wants_confirmation(&self, now: Instant, answered: bool) -> bool {
        let wait = if answered { CONFIRMATION_TIMER } else { CONFIRMATION_TIMER_STALLED };
        let many = self.unconfirmed_bytes >= self.datagram_len as u64 * CONFIRMED_PART;
        self.datagram_len > self.base()
            && (self.unconfirmed_long || many)
            && now.saturating_since(self.confirmed_at) >= wait
    }

    fn probe_timer(&self) -> Duration {
        let derived = |rtt: Duration| (rtt * PROBE_TIMER_RTTS).clamp(PROBE_TIMER_MIN, PROBE_TIMER_MAX);
        self.rtt.map_or(PROBE_TIMER_UNMEASURED, derived)
    }

    /// What every path carries.
    const fn base(&self) -> usize {
        match self.hop {
            Some(Hop::Relayed(_)) => BASE_DATAGRAM_LEN - RELAY_OVERHEAD,
            Some(Hop::Direct(_)) | None => BASE_DATAGRAM_LEN,
        }
    }

    fn limit(&self) -> usize {
        self.payload_of(LINK_MTU_MAX)
    }

    fn payload_of(&self, link_mtu: usize) -> usize {
        link_mtu
            - match self.hop {
                Some(Hop::Direct(endpoint)) if endpoint.is_ipv4() => IPV4_UDP_LEN,
                Some(Hop::Direct(_)) | None => IPV6_UDP_LEN,
                // Behind the relay it may be either.
                Some(Hop::Relayed(_)) => IPV6_UDP_LEN + RELAY_OVERHEAD,
            }
    }
}
