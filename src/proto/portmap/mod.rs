//! A port of the router's outside address, kept while we run: PCP first (RFC 6887), then NAT-PMP (RFC 6886).
//!
//! ```text
//! Asking ── granted, and of use ──► Held ── half of the lifetime ──► renewed ─┐
//!   ▲  │                             ▲ └───────── expired ──► Asking          │
//!   │  └── nobody answers, refused,  └───────────────────────────────────────┘
//!   │      of no use ──► Waiting
//!   └────── [`AGAIN_AFTER`] ──────────┘
//! ```
//!
//! The router is not trusted: its answers count only for our own requests, a mapping only when it leads from an address of
//! the internet, and it gets a bounded number of packets whatever it says. Whether a mapping is told to others is decided
//! elsewhere, by whether others see us at its address.
//!
//! Left out: IPv6 pinholes, and the multicast announcements of a router that has started anew, which the next renewal finds.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use rand_core::{Rng as _, SeedableRng as _};

use crate::proto::path::{is_global, is_possible};
use crate::proto::session::Rng;
use crate::proto::timer::Instant;
use crate::proto::wire::portmap::{ADDRESS_REQUEST, MapRequest, NONCE_LEN, Response};

/// How long a mapping is asked for: short, so that a router that lost its state is found out soon.
pub const LIFETIME: Duration = Duration::from_secs(1200);
/// A mapping that ends sooner is of no use.
pub const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// No router is believed a longer time (RFC 6887 §15: 24 hours).
pub const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Waits for an answer to each of the requests of one protocol (RFC 6886 §3.1).
pub const WAITS: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];
/// A router that gave nothing is asked again after this, unless the network changes before.
pub const AGAIN_AFTER: Duration = Duration::from_secs(900);
/// Least time between two requests that the router brings about by what it says.
pub const REQUEST_GAP: Duration = Duration::from_secs(10);
/// Renewals of a mapping before it expires, at half of what is left each time, are at least this far apart.
const RENEW_GAP: Duration = Duration::from_secs(10);
/// Most datagrams waiting to be sent.
const TRANSMITS_MAX: usize = 8;
/// How far apart the two clocks may run, in seconds, before the router is taken to have lost its state (RFC 6887 §8.5).
const EPOCH_SLACK_S: u64 = 2;

/// How a router is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Port Control Protocol.
    Pcp,
    /// NAT Port Mapping Protocol.
    NatPmp,
}

impl Protocol {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
        }
    }
}

/// A port of the router's that leads to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where others may send.
    pub outside: SocketAddrV4,
    /// How it was got.
    pub protocol: Protocol,
    /// When it ends if it is not renewed.
    pub expires: Instant,
}

/// How far we are with the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being asked.
    Asking,
    /// It gave a mapping.
    Held(Mapping),
    /// It did not answer.
    Silent,
    /// It said no, with this code of this protocol.
    Refused(Protocol, u16),
    /// It gave a mapping at an address that is not one of the internet, or for too short a time.
    Useless(Protocol, Ipv4Addr),
}

/// Where the router is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our address on the way to it.
    pub client: Ipv4Addr,
    /// Where we listen.
    pub inside: u16,
}

/// The machine that keeps one mapping at one router.
#[derive(Debug)]
pub struct PortMap {
    config: Config,
    rng: Rng,
    nonce: [u8; NONCE_LEN],
    state: State,
    protocol: Protocol,
    /// Requests of the present protocol since the last answer.
    attempt: usize,
    due: Option<Instant>,
    /// What the router's clock said, and when; of the present protocol.
    epoch: Option<(u32, Instant)>,
    /// The outside address that NAT-PMP told, and when we asked last.
    address: Option<Ipv4Addr>,
    asked: Instant,
    transmits: VecDeque<Vec<u8>>,
}

impl PortMap {
    /// Begins to ask.
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = Rng::from_seed(seed);
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut machine = Self {
            config,
            rng,
            nonce,
            state: State::Asking,
            protocol: Protocol::Pcp,
            attempt: 0,
            due: None,
            epoch: None,
            address: None,
            asked: now,
            transmits: VecDeque::new(),
        };
        machine.ask(now);
        machine
    }

    /// How far we are.
    pub const fn state(&self) -> State {
        self.state
    }

    /// The mapping, while it stands.
    pub const fn mapping(&self) -> Option<Mapping> {
        match self.state {
            State::Held(mapping) => Some(mapping),
            State::Asking | State::Silent | State::Refused(..) | State::Useless(..) => None,
        }
    }

    /// The datagram that gives the mapping back, also one that was asked for and may be on its way.
    pub fn release(&self) -> Option<Vec<u8>> {
        matches!(self.state, State::Asking | State::Held(_)).then(|| self.request(self.protocol, 0))
    }

    /// The next datagram for the router.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// When to call [`PortMap::handle_timeout`].
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// A request was not answered, a mapping is due, or it is time to ask again.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        match self.state {
            State::Held(mapping) if now < mapping.expires => {
                self.ask(now);
                let left = mapping.expires.saturating_since(now);
                self.due = Some((now + (left / 2).max(RENEW_GAP)).min(mapping.expires));
            }
            State::Asking if self.attempt >= WAITS.len() => self.give_up(now),
            State::Asking => self.ask(now),
            State::Held(_) | State::Silent | State::Refused(..) | State::Useless(..) => self.begin(now),
        }
    }

    /// Nobody listens at the router, as the system says: it need not be waited for.
    pub fn handle_unreachable(&mut self, now: Instant) {
        if self.state == State::Asking {
            self.wait(now, State::Silent);
        }
    }

    /// The router says something.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let Ok(response) = Response::parse(datagram) else { return };
        match response {
            Response::Mapped { epoch_s, nonce, inside, outside, address, lifetime_s } => {
                if self.protocol == Protocol::Pcp && nonce == self.nonce && inside == self.config.inside {
                    self.see_epoch(now, epoch_s);
                    self.granted(now, SocketAddrV4::new(address, outside), lifetime_s);
                }
            }
            Response::Refused { nonce, code } => {
                if self.protocol == Protocol::Pcp && nonce == self.nonce {
                    self.refused(now, code.into());
                }
            }
            Response::Announce { epoch_s } => {
                if self.protocol == Protocol::Pcp && self.see_epoch(now, epoch_s) {
                    self.hurry(now);
                }
            }
            Response::PmpAddress { epoch_s, address } => {
                if self.protocol == Protocol::NatPmp {
                    let lost = self.see_epoch(now, epoch_s);
                    let moved = self.address.replace(address).is_some_and(|before| before != address);
                    if lost || moved {
                        self.hurry(now);
                    }
                }
            }
            Response::PmpMapped { epoch_s, inside, outside, lifetime_s } => {
                if self.protocol == Protocol::NatPmp && inside == self.config.inside {
                    self.see_epoch(now, epoch_s);
                    // The address comes by itself; without it the port says nothing, and is asked for again.
                    if let Some(address) = self.address {
                        self.granted(now, SocketAddrV4::new(address, outside), lifetime_s);
                    }
                }
            }
            Response::PmpRefused { code } => {
                if self.protocol == Protocol::NatPmp {
                    self.refused(now, code);
                }
            }
            Response::WrongVersion => {
                if self.protocol == Protocol::Pcp && self.state == State::Asking {
                    self.next_protocol(now);
                }
            }
        }
    }

    /// Asks from the beginning.
    fn begin(&mut self, now: Instant) {
        (self.state, self.protocol) = (State::Asking, Protocol::Pcp);
        (self.attempt, self.epoch, self.address) = (0, None, None);
        self.ask(now);
    }

    fn ask(&mut self, now: Instant) {
        self.asked = now;
        let wait = WAITS.get(self.attempt).copied().unwrap_or(RENEW_GAP);
        self.attempt = self.attempt.saturating_add(1);
        self.due = Some(now + wait);
        if self.protocol == Protocol::NatPmp {
            self.transmit(ADDRESS_REQUEST.to_vec());
        }
        let lifetime_s = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
        self.transmit(self.request(self.protocol, lifetime_s));
    }

    fn request(&self, protocol: Protocol, lifetime_s: u32) -> Vec<u8> {
        let had = self.mapping().map(|mapping| mapping.outside);
        // To give back is to ask for nothing (RFC 6886 §3.4).
        let outside = had.filter(|_| lifetime_s > 0 || protocol == Protocol::Pcp).map(|had| had.port());
        let request = MapRequest {
            nonce: self.nonce,
            client: self.config.client,
            inside: self.config.inside,
            outside: outside.unwrap_or(if lifetime_s > 0 { self.config.inside } else { 0 }),
            address: had.map_or(Ipv4Addr::UNSPECIFIED, |had| *had.ip()),
            lifetime_s,
        };
        match protocol {
            Protocol::Pcp => request.emit_pcp(),
            Protocol::NatPmp => request.emit_nat_pmp(),
        }
    }

    fn transmit(&mut self, datagram: Vec<u8>) {
        if self.transmits.len() < TRANSMITS_MAX {
            self.transmits.push_back(datagram);
        }
    }

    fn granted(&mut self, now: Instant, outside: SocketAddrV4, lifetime_s: u32) {
        if matches!(self.state, State::Silent | State::Refused(..) | State::Useless(..)) {
            // Nothing was asked.
            return;
        }
        let lifetime = Duration::from_secs(lifetime_s.into()).min(LIFETIME_MAX);
        let endpoint = SocketAddr::V4(outside);
        if !is_possible(&endpoint) || !is_global(endpoint.ip()) || lifetime < LIFETIME_MIN {
            let back = self.request(self.protocol, 0);
            self.transmit(back);
            return self.wait(now, State::Useless(self.protocol, *outside.ip()));
        }
        let expires = now + lifetime;
        self.state = State::Held(Mapping { outside, protocol: self.protocol, expires });
        self.attempt = 0;
        self.due = Some(now + self.renewal(lifetime));
    }

    /// From a half to five eighths of the lifetime (RFC 6887 §11.2.1).
    fn renewal(&mut self, lifetime: Duration) -> Duration {
        let share = f64::from(self.rng.next_u32() >> 8) / f64::from(1 << 24);
        lifetime.mul_f64(0.5 + share / 8.0)
    }

    /// An error: of the protocol another one is tried, of the mapping it is the answer.
    fn refused(&mut self, now: Instant, code: u16) {
        match self.state {
            State::Asking if self.protocol == Protocol::Pcp => self.next_protocol(now),
            State::Asking => self.wait(now, State::Refused(self.protocol, code)),
            // One that stands stays until it expires; the renewal is tried again.
            State::Held(_) | State::Silent | State::Refused(..) | State::Useless(..) => {}
        }
    }

    fn next_protocol(&mut self, now: Instant) {
        (self.protocol, self.attempt, self.epoch) = (Protocol::NatPmp, 0, None);
        self.ask(now);
    }

    fn give_up(&mut self, now: Instant) {
        match self.protocol {
            Protocol::Pcp => self.next_protocol(now),
            Protocol::NatPmp => self.wait(now, State::Silent),
        }
    }

    fn wait(&mut self, now: Instant, state: State) {
        self.state = state;
        self.due = Some(now + AGAIN_AFTER);
    }

    /// Renews soon, because the router may have lost our mapping.
    fn hurry(&mut self, now: Instant) {
        if self.mapping().is_some() {
            let at = (self.asked + REQUEST_GAP).max(now);
            self.due = self.due.map(|due| due.min(at));
        }
    }

    /// Compares the router's clock with ours; true when it has lost its state since it was heard last (RFC 6887 §8.5).
    fn see_epoch(&mut self, now: Instant, epoch_s: u32) -> bool {
        let Some((before, at)) = self.epoch.replace((epoch_s, now)) else { return false };
        let ours = now.saturating_since(at).as_secs();
        let Some(theirs) = u64::from(epoch_s).checked_sub(before.into()) else { return true };
        ours + EPOCH_SLACK_S < theirs - theirs / 16 || theirs + EPOCH_SLACK_S < ours - ours / 16
    }
}

#[cfg(test)]
mod tests;
