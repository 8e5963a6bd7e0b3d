//! The wiring: where one machine's events become another's inputs.
//!
//! ```text
//! dht   query for a node          ─► its session, or a handshake first
//! dht   lookup ended              ─► the address that waited, or the command
//! links changed                   ─► our record ─► dht (publish), peers (Hello), interface (announce)
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::dht;
use crate::proto::path::LocalNetwork;
use crate::proto::path::observed::{Mapping, VOTES_BELIEVED};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::Control;
use crate::proto::wire::record::{
    CAPABILITY_DHT_SERVER, CAPABILITY_HOPS, Content, NodeRecord, RECORD_ENDPOINTS_MAX,
};

use super::peers::last_heard;
use super::{Event, Node, Purpose, RECORD_TTL, Timer};

/// Renewals of our record that others bring about, by where they see us and by being our relays.
pub(super) const RENEWALS_PER_S: u32 = 1;
pub(super) const RENEWALS_BURST: u32 = 4;
const RENEWAL_WAIT: Duration = Duration::from_secs(5);
/// How long after a start or a change of links we may not have met those near to us: they may have started with us.
const NEW_HERE_FOR: Duration = Duration::from_secs(10);
/// Peers told at once of a new record or a new address of ours, most recently used first.
const PEERS_TOLD_MAX: usize = 64;
/// Destinations kept that this machine refused to send to; one more takes the place of another one.
const REFUSED_MAX: usize = 256;

/// Why this machine did not send a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A packet filter of its own.
    Filter,
    /// It has no route there.
    NoRoute,
}

impl Node {
    /// Carries what the DHT wants and found to where it belongs, until it is quiet.
    pub(super) fn drain(&mut self, now: Instant, wall: WallTime) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        loop {
            if let Some(query) = self.dht.poll_transmit() {
                self.dispatch_query(now, wall, query);
            } else if let Some(event) = self.dht.poll_event() {
                self.dispatch_event(now, wall, event);
            } else {
                break;
            }
        }
        self.draining = false;
    }

    fn dispatch_query(&mut self, now: Instant, wall: WallTime, query: dht::Query) {
        if self.is_out_of_reach(now, &query.to) {
            return self.dht.handle_peer_failed(now, query.to.node_id);
        }
        if self.learn_contact(now, &query.to) {
            self.send_or_stage(now, wall, query.to.node_id, query.control);
        }
    }

    fn dispatch_event(&mut self, now: Instant, wall: WallTime, event: dht::Event) {
        let (id, outcome) = match event {
            dht::Event::LookupDone { id, outcome } => (id, outcome),
            dht::Event::RecordDue => return self.renew_record(now, wall),
        };
        match self.lookups.remove(&id) {
            Some(Purpose::Resolve(address)) => match outcome.record.clone() {
                Some(record) => {
                    // Somebody waits for it: strangers who fill the table do not keep us from going out.
                    self.make_room(now, record.node_id());
                    self.learn_record(now, wall, record);
                    self.resolved(now, wall, address);
                }
                None if self.peers.at_address(&address).is_some() => self.resolved(now, wall, address),
                None => self.unresolved(now, address, &outcome),
            },
            Some(Purpose::Command(ticket)) => {
                if let Some(record) = outcome.record.clone() {
                    self.learn_record(now, wall, record);
                }
                self.event(Event::Lookup(ticket, Box::new(outcome)));
            }
            None => {}
        }
    }

    /// Tells the node where it is: the networks it is on, and the endpoints at which it listens there.
    pub fn handle_links(
        &mut self,
        now: Instant,
        wall: WallTime,
        local: Vec<LocalNetwork>,
        endpoints: Vec<SocketAddr>,
    ) {
        if self.local == local && self.endpoints == endpoints && self.record.is_some() {
            return;
        }
        (self.local, self.endpoints) = (local, endpoints);
        self.new_here_until = now + NEW_HERE_FOR;
        self.observed.clear();
        self.refused.clear();
        self.end_sprays(now);
        self.reach = Default::default();
        // Whom we could not reach we may reach now.
        self.bootstrap_wait = super::timeout::BOOTSTRAP_WAIT_MIN;
        self.bootstrap_reached.clear();
        if !self.bootstrap.is_empty() {
            self.timers.arm(Timer::Bootstrap, now);
        }
        self.dht.handle_network_change(now);
        self.hurry_udp(now);
        self.renew_record(now, wall);
        // Peers learn our new address from the first packet that comes from it.
        self.ask_everywhere(now, wall);
        self.drain(now, wall);
    }

    /// What became of a datagram of ours to `to`, not of one with data: this machine refused to send it, or let it out.
    pub fn handle_sent(&mut self, to: SocketAddr, refused: Option<Refusal>) {
        let Some(refusal) = refused else {
            self.refused.remove(&to);
            return;
        };
        if self.refused.len() >= REFUSED_MAX {
            self.refused.pop_first();
        }
        self.refused.insert(to, refusal);
    }

    /// Renews our record when it does not say any more how we are reached.
    pub(super) fn refresh_record(&mut self, now: Instant, wall: WallTime) {
        let Some(record) = self.record.as_ref().map(|record| record.content()) else { return };
        let mut endpoints = self.reachable_endpoints(now);
        endpoints.truncate(RECORD_ENDPOINTS_MAX);
        if (&record.endpoints, &record.relays) == (&endpoints, &self.relay_contacts()) {
            return;
        }
        if self.renewals.take(now) {
            self.renew_record(now, wall);
        } else {
            self.timers.arm(Timer::Record, now + RENEWAL_WAIT);
        }
    }

    /// Signs our record anew and spreads it.
    pub(super) fn renew_record(&mut self, now: Instant, wall: WallTime) {
        self.renew_record_after(now, wall, 0);
    }

    /// The same, with a higher sequence than another record of our key has.
    pub(super) fn renew_record_after(&mut self, now: Instant, wall: WallTime, other: u64) {
        let own = self.record.as_ref().map_or(0, |record| record.content().sequence);
        let sequence = own.max(other).saturating_add(1);
        let serves_dht = self.dht.mode() == dht::Mode::Server;
        let capabilities = [(serves_dht, CAPABILITY_DHT_SERVER), (self.hops, CAPABILITY_HOPS)];
        let capabilities = capabilities.iter().map(|(can, bit)| if *can { *bit } else { 0 }).sum();
        let content = Content {
            sequence: sequence.max(wall.as_unix_ms()),
            issued: wall,
            ttl: RECORD_TTL,
            capabilities,
            endpoints: self.reachable_endpoints(now),
            relays: self.relay_contacts(),
            streams: self.streams.own().to_vec(),
        };
        let record = NodeRecord::sign(&self.identity, content);
        let hello = Control::Hello { record: record.bytes().to_vec() };
        self.record = Some(record.clone());
        self.dht.publish(now, record);
        for id in self.recent_peers() {
            self.send_control(now, id, std::slice::from_ref(&hello));
        }
        self.event(Event::RecordChanged);
        self.drain(now, wall);
    }

    /// Where others may reach us: a port that the router maps, what enough of them see of us when a NAT gives all of them the same, and our own.
    fn reachable_endpoints(&self, now: Instant) -> Vec<SocketAddr> {
        if self.is_streamed() {
            return Vec::new();
        }
        let seen = [true, false].into_iter().filter_map(|v4| {
            let (endpoint, votes) = self.observed.endpoint(now, v4)?;
            let mapping = self.observed.mapping(now, v4, |ip| self.is_own(ip));
            (votes >= VOTES_BELIEVED && mapping == Mapping::Independent).then_some(endpoint)
        });
        let mapped = self.usable_mapping(now);
        let mut endpoints: Vec<_> = mapped.into_iter().chain(seen).collect();
        endpoints.dedup();
        endpoints.extend(&self.endpoints);
        endpoints
    }

    pub(super) fn recent_peers(&self) -> Vec<crate::proto::identity::NodeId> {
        let mut recent: Vec<_> =
            self.peers.iter().filter_map(|p| p.current.as_ref().map(|s| (last_heard(s), p.id))).collect();
        recent.sort_by(|a, b| b.cmp(a));
        recent.into_iter().take(PEERS_TOLD_MAX).map(|(_, id)| id).collect()
    }
}
