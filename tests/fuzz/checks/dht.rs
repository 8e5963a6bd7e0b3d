//! One node's part of the DHT, and peers that answer, ask, lie and fall silent in any order.
//!
//! The input is a sequence of `what u8 ‖ who u8 ‖ length u8 ‖ bytes`.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use auramesh::proto::dht::{Dht, Event, K, KNOWN_MAX, LOOKUPS_MAX, Mode, Query, RECORDS_BYTES_MAX, RPCS_MAX};
use auramesh::proto::identity::{Identity, NodeId, Position};
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::control::{CONTROL_LEN_MAX, Contact, Control, StoreOutcome, Want};
use auramesh::proto::wire::cursor::Reader;
use auramesh::proto::wire::record::{CAPABILITY_DHT_SERVER, Content, NodeRecord};
use auramesh::proto::wire::routing::Routing;

/// Others that there are. Number 0 is the node itself.
const PEERS: u8 = 24;
/// Queries kept to be answered.
const ASKED_MAX: usize = 256;
const WALL_MS: u64 = 1_800_000_000_000;

struct Other {
    contact: Contact,
    /// An older and a newer record.
    records: [NodeRecord; 2],
}

static OTHERS: LazyLock<Vec<Other>> = LazyLock::new(|| (0..PEERS).map(Other::new).collect());

impl Other {
    fn new(n: u8) -> Self {
        let identity = Identity::from_seed([n + 1; 32]);
        // A few of them in one network.
        let endpoint = SocketAddr::from(([11, n / 4, n, 1], 5747));
        let record = |sequence| {
            let (issued, ttl) = (WallTime::from_unix_ms(WALL_MS), Duration::from_secs(3600));
            let (capabilities, endpoints) = (CAPABILITY_DHT_SERVER, vec![endpoint]);
            NodeRecord::sign(
                &identity,
                Content {
                    sequence,
                    issued,
                    ttl,
                    capabilities,
                    endpoints,
                    relays: Vec::new(),
                    streams: Vec::new(),
                },
            )
        };
        let contact = Contact { node_id: identity.node_id(), x25519: identity.x25519_public(), endpoint };
        Self { contact, records: [record(1), record(2)] }
    }
}

fn other(n: u8) -> &'static Other {
    &OTHERS[usize::from(n % PEERS)]
}

fn id(n: u8) -> NodeId {
    other(n).contact.node_id
}

struct Net {
    dht: Dht,
    now: Instant,
    asked: Vec<Query>,
    lookups: usize,
    done: usize,
}

/// Nothing panics, every lookup ends, limits hold, and nobody is told of itself or asked who is ourselves.
pub(crate) fn dht(data: &[u8]) {
    let now = Instant::from_nanos(1_000_000_000);
    let dht = Dht::new(id(0), Mode::Server, [5; 32], now);
    let mut net = Net { dht, now, asked: Vec::new(), lookups: 0, done: 0 };
    let mut reader = Reader::new(data);
    while let (Ok(what), Ok(who), Ok(len)) = (reader.u8(), reader.u8(), reader.u8()) {
        let Ok(bytes) = reader.take(usize::from(len).min(reader.len())) else { break };
        net.happen(what, who, bytes);
        net.drain();
        net.check_limits();
    }
    net.advance(Duration::from_secs(30));
    assert_eq!(net.done, net.lookups, "a lookup that does not end");
}

impl Net {
    fn wall(&self) -> WallTime {
        WallTime::from_unix_ms(WALL_MS + self.now.as_nanos() / 1_000_000)
    }

    fn happen(&mut self, what: u8, who: u8, bytes: &[u8]) {
        let (now, wall, first) = (self.now, self.wall(), bytes.first().copied().unwrap_or(0));
        match what % 16 {
            0 => self.dht.handle_peer_up(now, other(who).contact, first % 4 != 3),
            1 => self.dht.handle_peer_failed(now, id(who)),
            2 => {
                let want = if first.is_multiple_of(2) { Want::Record } else { Want::Contacts };
                let request = Control::Find { request: 4, want, target: id(first).position() };
                self.request(who, &request);
            }
            3 => {
                let record = other(first).records[usize::from(first / 64 % 2)].bytes().to_vec();
                self.request(who, &Control::Store { request: 4, record });
            }
            4 => Control::parse_all(bytes).into_iter().flatten().for_each(|m| self.request(who, &m)),
            5 => Control::parse_all(bytes).into_iter().flatten().for_each(|m| {
                self.dht.handle_reply(now, wall, id(who), m);
            }),
            6..=8 => self.answer(who, bytes),
            9 if self.lookups - self.done < LOOKUPS_MAX => {
                let mut target = id(who).position();
                target.0.iter_mut().zip(bytes).for_each(|(t, b)| *t ^= b);
                let want = if what < 128 { Want::Record } else { Want::Contacts };
                self.dht.lookup(now, target, want);
                self.lookups += 1;
            }
            10 => self.dht.publish(now, other(0).records[usize::from(who % 2)].clone()),
            11 => self.dht.remember(bytes.iter().map(|n| other(*n).contact).collect()),
            12 => self.dht.handle_record(now, wall, other(who).records[usize::from(first % 2)].clone()),
            13 => self.dht.handle_network_change(now),
            14 => self.dht.set_mode(if who.is_multiple_of(2) { Mode::Server } else { Mode::Client }),
            _ => self.advance(Duration::from_millis(u64::from(who) * u64::from(first))),
        }
    }

    fn request(&mut self, who: u8, request: &Control) {
        let answer = self.dht.handle_request(self.now, self.wall(), id(who), request);
        assert!(answer.is_none() || self.dht.mode() == Mode::Server, "a client answers");
        let Some(answer) = answer else { return };
        if let Control::Found { contacts, .. } = &answer {
            assert!(contacts.len() <= K);
            let named = |node_id| contacts.iter().any(|contact| contact.node_id == node_id);
            assert!(!named(id(who)) && !named(id(0)), "the asker, or we ourselves");
        }
        let mut plaintext = Vec::new();
        answer.emit(&mut plaintext);
        assert!(plaintext.len() <= CONTROL_LEN_MAX, "{} bytes", plaintext.len());
    }

    /// Answers one of the last questions, truly or not.
    fn answer(&mut self, who: u8, bytes: &[u8]) {
        let [lie, record, contacts @ ..] = bytes else { return };
        if self.asked.is_empty() {
            return;
        }
        let query = self.asked.swap_remove(usize::from(who) % self.asked.len());
        let from = if lie % 16 == 15 { id(who) } else { query.to.node_id };
        let reply = if let Control::Store { request, .. } = query.control {
            let outcomes =
                [StoreOutcome::Stored, StoreOutcome::Old, StoreOutcome::Full, StoreOutcome::Refused];
            Control::Stored { request, outcome: outcomes[usize::from(lie % 4)] }
        } else {
            let (request, target) = if let Control::Find { request, target, .. } = query.control {
                (request, target)
            } else if let Control::Routing(Routing::Forward { request, target, to, .. }) = query.control {
                // The same by way of a node that reaches the one asked.
                assert!(to != id(0) && to != query.to.node_id, "a detour to where it begins or ends");
                (request, target)
            } else {
                panic!("asked what is no question")
            };
            let holder = OTHERS.iter().find(|other| other.contact.node_id.position() == target);
            let record = match record % 4 {
                0 => holder.map(|holder| holder.records[usize::from(record / 4 % 2)].bytes().to_vec()),
                1 => Some(other(*record).records[0].bytes().to_vec()),
                2 => Some(contacts.to_vec()),
                _ => None,
            };
            let contacts = contacts.iter().take(K).map(|n| named(*n)).collect();
            Control::Found { request: request ^ u64::from(lie % 8 == 7), record, contacts }
        };
        self.dht.handle_reply(self.now, self.wall(), from, reply);
    }

    fn drain(&mut self) {
        while let Some(query) = self.dht.poll_transmit() {
            assert!(query.to.node_id != id(0), "we ask ourselves");
            if self.asked.len() == ASKED_MAX {
                self.asked.remove(0);
            }
            self.asked.push(query);
        }
        while let Some(event) = self.dht.poll_event() {
            match event {
                Event::LookupDone { outcome, .. } => {
                    self.done += 1;
                    let is_right =
                        |record: &NodeRecord| record.node_id().position().0[..15] == outcome.target.0[..15];
                    assert!(outcome.record.as_ref().is_none_or(is_right), "another node's record");
                    assert!(outcome.closest.len() <= K);
                }
                Event::RecordDue => {}
            }
        }
    }

    fn check_limits(&self) {
        let status = self.dht.status();
        assert!(status.buckets.iter().all(|bucket| bucket.contacts <= K));
        assert!(status.known <= KNOWN_MAX && status.rpcs_running <= RPCS_MAX);
        assert!(status.records_bytes <= RECORDS_BYTES_MAX);
        assert!(self.dht.closest(&Position([0; 32]), 100).iter().all(|contact| contact.node_id != id(0)));
    }

    /// Time passes; what is due on the way is done, at most a thousand times.
    fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..1000 {
            let Some(due) = self.dht.poll_timeout().filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            let wall = self.wall();
            self.dht.handle_timeout(self.now, wall);
            self.drain();
        }
        self.now = end;
        assert!(self.dht.poll_timeout().is_none_or(|due| due > end), "a deadline that comes again and again");
    }
}

/// A contact as a liar names it: known or not, at the right place or another.
fn named(n: u8) -> Contact {
    let contact = other(n).contact;
    match n / PEERS {
        0..=5 => contact,
        6 => Contact { endpoint: SocketAddr::from(([12, n, 1, 1], 5747)), ..contact },
        7 => Contact { node_id: NodeId([n; 32]), ..contact },
        _ => Contact { node_id: NodeId([0; 32]), ..contact },
    }
}
