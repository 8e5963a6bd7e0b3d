//! One direction of a session: packets in any order, changed on the way, over epochs and time; and the replay window
//! beside a plain set.
//!
//! The input is a sequence of `what u8 ‖ argument u8`.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use auramesh::proto::identity::Identity;
use auramesh::proto::session::noise::{Incoming, Initiator};
use auramesh::proto::session::transport::{OpenError, SealError, Session};
use auramesh::proto::session::window::{ReplayWindow, WINDOW_LEN};
use auramesh::proto::session::{Config, REJECT_AFTER, REJECT_AFTER_PACKETS, Rng};
use auramesh::proto::timer::{Instant, WallTime};
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::session::{HEADER_LEN, Header, Kind, OVERHEAD, PADDING_MULTIPLE, mask};
use rand_core::SeedableRng as _;

const START: Instant = Instant::from_nanos(1_000_000_000);
const MTU: usize = 1400;
/// Packets kept to be delivered.
const KEPT_MAX: usize = 512;
/// The window's newest slot replaces the oldest as a whole.
const SLOT: u64 = 32;

static IDENTITIES: LazyLock<[Identity; 2]> =
    LazyLock::new(|| [Identity::from_seed([1; 32]), Identity::from_seed([2; 32])]);

struct Sent {
    text: Vec<u8>,
    packet: Vec<u8>,
    epoch: u32,
    counter: u64,
}

struct Link {
    ours: Session,
    theirs: Session,
    key: RecipientKey,
    now: Instant,
    sent: Vec<Sent>,
    delivered: BTreeSet<u64>,
    window: ReplayWindow,
    marked: BTreeSet<u64>,
}

/// What was sealed opens once, in its epochs and its time; nothing else ever opens, and no counter comes twice.
pub(crate) fn session(data: &[u8]) {
    let mut link = Link::new();
    for step in data.chunks_exact(2) {
        link.happen(step[0], step[1]);
    }
}

impl Link {
    fn new() -> Self {
        let [alice, bob] = &*IDENTITIES;
        let (config, mut rng) = (Config::new(true, NetworkSecret::default()), Rng::seed_from_u64(3));
        let wall = WallTime::from_unix_ms(1_800_000_000_000);
        let (to, x25519) = (bob.node_id(), bob.x25519_public());
        let (mut initiator, mut packet) =
            Initiator::start(alice, &config, to, &x25519, 7, wall, None, &mut rng).expect("usable keys");
        let key = RecipientKey::new(&to, &config.network);
        let envelope = key.open(&mut packet).expect("an initiation");
        let incoming = Incoming::open(bob, &config, &envelope).expect("honest");
        let from = ([192, 0, 2, 1], 5747).into();
        let (theirs, mut reply) = incoming.accept(bob, 8, from, START, &mut rng).expect("honest");
        let own_key = RecipientKey::new(&alice.node_id(), &config.network);
        let envelope = own_key.open(&mut reply).expect("a response");
        let ours = initiator.finish(&envelope, START).expect("honest").session;
        let (sent, delivered, marked) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        Self { ours, theirs, key, now: START, sent, delivered, window: ReplayWindow::default(), marked }
    }

    fn happen(&mut self, what: u8, argument: u8) {
        let n = usize::from(argument);
        match what % 10 {
            0 => self.seal(n * 6),
            1 | 2 if self.sent.is_empty() => {}
            1 => self.deliver(n % self.sent.len()),
            2 => self.deliver_changed(what / 10, n),
            3 => self.ours = self.ours.next_sending_epoch(),
            // As the node does it.
            4 if self.theirs.newest_epoch() <= self.theirs.receiving_epoch() => {}
            4 => self.theirs = self.theirs.next_receiving_epoch(),
            5 => self.now += Duration::from_secs(n as u64 % 32),
            6 => self.deliver_garbage(what, argument),
            7 => self.skip(n * 32),
            8 => self.mark(n as u64 * 40),
            _ => self.mark(WINDOW_LEN * n as u64 / 7),
        }
    }

    /// The window moves on: packets that are lost.
    fn skip(&self, packets: usize) {
        for _ in 0..packets {
            if self.ours.seal(Kind::Data, &mut [0; OVERHEAD], 0, 0, self.now).is_err() {
                return assert!(self.is_over());
            }
        }
    }

    fn is_over(&self) -> bool {
        self.now.saturating_since(START) >= REJECT_AFTER
    }

    fn seal(&mut self, len: usize) {
        let len = len.min(MTU);
        let text: Vec<u8> = (0..len).map(|i| (i * 7 + self.sent.len()) as u8).collect();
        let mut packet = vec![0x55; HEADER_LEN + len + OVERHEAD + PADDING_MULTIPLE];
        packet[HEADER_LEN..HEADER_LEN + len].copy_from_slice(&text);
        let counter = self.ours.packets_sent();
        match self.ours.seal(Kind::Data, &mut packet, len, MTU, self.now) {
            Ok(total) => {
                packet.truncate(total);
                assert!(total >= len + OVERHEAD && (total - OVERHEAD) <= MTU, "{total} for {len}");
                let epoch = self.ours.sending_epoch();
                self.sent.push(Sent { text, packet, epoch, counter });
                if self.sent.len() > KEPT_MAX {
                    self.sent.remove(0);
                }
            }
            Err(error) => assert!(error == SealError::Expired && self.is_over(), "{error}"),
        }
    }

    fn open(&self, packet: &[u8]) -> Option<(u64, Result<Vec<u8>, OpenError>)> {
        let mut packet = packet.to_vec();
        mask(&self.key, &mut packet).ok()?;
        let header = Header::parse(packet.first_chunk()?).ok()?;
        let opened = self.theirs.open(&header, &mut packet, self.now);
        Some((header.counter, opened.map(|opened| opened.plaintext.to_vec())))
    }

    fn deliver(&mut self, i: usize) {
        let sent = &self.sent[i];
        let newest = self.delivered.last().copied().unwrap_or(0);
        let (counter, opened) = self.open(&sent.packet).expect("what was sealed has a header");
        assert_eq!(counter, sent.counter);
        let current = self.theirs.receiving_epoch();
        match opened {
            Ok(plaintext) => {
                assert!(!self.is_over() && (current..=current + 1).contains(&sent.epoch));
                let (text, padding) = plaintext.split_at(sent.text.len());
                assert!(text == sent.text && padding.iter().all(|byte| *byte == 0));
                assert!(self.delivered.insert(counter), "{counter} twice");
            }
            Err(OpenError::Expired) => assert!(self.is_over()),
            Err(OpenError::Replay) => {
                let is_old = counter + WINDOW_LEN < newest + SLOT;
                assert!(self.delivered.contains(&counter) || is_old, "{counter} refused at {newest}");
            }
            Err(OpenError::Authentication) => {
                assert!(!(current..=current + 1).contains(&sent.epoch), "epoch {} at {current}", sent.epoch);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// With one byte changed, or cut, a packet changes nothing.
    fn deliver_changed(&self, change: u8, at: usize) {
        let mut packet = self.sent[at % self.sent.len()].packet.clone();
        let end = packet.len();
        if change == 0 {
            packet.truncate(at % end);
        } else {
            packet[at * 7 % end] ^= change;
        }
        let before = (self.theirs.packets_received(), self.theirs.newest_epoch());
        if let Some((_, opened)) = self.open(&packet) {
            assert!(opened.is_err(), "a changed packet opens");
        }
        assert_eq!((self.theirs.packets_received(), self.theirs.newest_epoch()), before);
    }

    fn deliver_garbage(&self, what: u8, argument: u8) {
        let counter = match what / 10 % 4 {
            0 => u64::from(argument),
            1 => REJECT_AFTER_PACKETS - 1 - u64::from(argument),
            2 => REJECT_AFTER_PACKETS + u64::from(argument),
            _ => (1 << 56) - 1 - u64::from(argument),
        };
        let header = Header {
            kind: Kind::Data,
            epoch: argument.is_multiple_of(2),
            partial: false,
            slice: (0, 1),
            receiver_index: 8,
            counter,
        };
        let mut packet = [&header.emit()[..], &vec![what; usize::from(argument)]].concat();
        assert!(self.theirs.open(&header, &mut packet, self.now).is_err(), "garbage opens");
    }

    /// Marks the counter so far behind the newest, or the next beyond it.
    fn mark(&mut self, back: u64) {
        let newest = self.marked.last().copied().unwrap_or(0);
        let counter = (newest + 40).saturating_sub(back % (WINDOW_LEN + 200));
        let (fresh, marked) = (self.window.is_fresh(counter), self.window.mark(counter));
        assert_eq!(fresh, marked.is_some());
        match marked {
            Some(marked) => {
                assert_eq!((marked.first, marked.newest), (self.marked.is_empty(), counter >= newest));
                assert!(self.marked.insert(counter), "{counter} twice");
            }
            None => assert!(self.marked.contains(&counter) || counter + WINDOW_LEN < newest + SLOT),
        }
    }
}
