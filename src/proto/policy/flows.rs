//! The flows that we started: a fixed table without locks.
//!
//! Four slots to a set; a slot is a keyed 64-bit hash of the flow and when it expires. The key is random, so nobody
//! outside can aim at a set or forge a match. When a set is full, the flow that would expire first goes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{own_key, reply_key};
use crate::proto::timer::Instant;
use crate::proto::wire::inner::{Inner, Traffic};

/// Most flows remembered at once.
pub const FLOWS_MAX: usize = 65_536;
const SLOTS_PER_SET: usize = 4;

/// Idle time after which a TCP flow is forgotten (RFC 5382 §5: at least 2 h 4 min).
const TCP_IDLE: Duration = Duration::from_secs(7440);
/// Idle time after which a UDP flow is forgotten (RFC 4787 §4.3: 5 min recommended).
const UDP_IDLE: Duration = Duration::from_secs(300);
/// Idle time after which an ICMPv6 query is forgotten (RFC 5508 §3.2: at least 60 s).
const ICMP_IDLE: Duration = Duration::from_secs(60);
/// How long the fragments of one packet may follow its first (RFC 8200 §4.5).
const FRAGMENTS_IDLE: Duration = Duration::from_secs(60);
/// A flow is noted again only after this long, so that threads do not write the same line for every packet. It is added
/// to the idle time, which the RFCs give as a minimum.
const NOTED_FOR: Duration = Duration::from_secs(1);

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 58;
const FRAGMENTS: u8 = 44;

/// What tells one flow from another; our own address is always the same.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Key {
    pub(super) protocol: u8,
    pub(super) peer: Ipv6Addr,
    pub(super) local: u16,
    pub(super) remote: u16,
}

impl Key {
    pub(super) const fn fragments(peer: Ipv6Addr, id: u32) -> Self {
        Self { protocol: FRAGMENTS, peer, local: (id >> 16) as u16, remote: id as u16 }
    }

    const fn idle(&self) -> Duration {
        match self.protocol {
            TCP => TCP_IDLE,
            UDP => UDP_IDLE,
            ICMP => ICMP_IDLE,
            _ => FRAGMENTS_IDLE,
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    tag: AtomicU64,
    expires_ns: AtomicU64,
}

impl Slot {
    fn is_live(&self, tag: u64, now: Instant) -> bool {
        self.tag.load(Ordering::Relaxed) == tag && self.expires_ns.load(Ordering::Relaxed) > now.as_nanos()
    }

    /// Notes that the flow of `tag` was seen.
    fn note(&self, tag: u64, idle: Duration, now: Instant) {
        if !self.is_live(tag, now + idle) {
            self.tag.store(tag, Ordering::Relaxed);
            self.expires_ns.store((now + idle + NOTED_FOR).as_nanos(), Ordering::Relaxed);
        }
    }
}

/// Flows that we started, shared by the threads of the data path. Two threads that write the same set at once can
/// lose a flow, never let in a stranger.
#[derive(Debug)]
pub struct Flows {
    secret: [u8; 16],
    sets: Box<[[Slot; SLOTS_PER_SET]]>,
}

impl Flows {
    /// An empty table; `secret` is random.
    pub fn new(secret: [u8; 16]) -> Self {
        Self { secret, sets: (0..FLOWS_MAX / SLOTS_PER_SET).map(|_| Default::default()).collect() }
    }

    /// Remembers an outbound packet's flow.
    pub(super) fn remember(&self, packet: &Inner, now: Instant) {
        if let Some(key) = own_key(packet) {
            self.insert(&key, now);
        }
    }

    /// Keeps an outbound packet's flow alive where it is remembered, however long it was idle.
    pub(super) fn renew(&self, packet: &Inner, now: Instant) {
        let Some(key) = own_key(packet) else { return };
        let (set, tag) = self.place(&key);
        if let Some(slot) = set.iter().find(|slot| slot.tag.load(Ordering::Relaxed) == tag) {
            slot.note(tag, key.idle(), now);
        }
    }

    /// Lets the later fragments of an inbound packet follow its first.
    pub(super) fn remember_fragments(&self, packet: &Inner, now: Instant) {
        if let (Some(fragment), false) = (packet.fragment, packet.traffic == Traffic::Tail) {
            self.insert(&Key::fragments(packet.source, fragment.id), now);
        }
    }

    /// True when an inbound packet belongs to a remembered flow, which it keeps alive.
    pub(super) fn is_reply(&self, packet: &Inner, now: Instant) -> bool {
        let Some(key) = reply_key(packet) else { return false };
        let (set, tag) = self.place(&key);
        match set.iter().find(|slot| slot.is_live(tag, now)) {
            Some(slot) => {
                slot.note(tag, key.idle(), now);
                true
            }
            None => false,
        }
    }

    fn insert(&self, key: &Key, now: Instant) {
        let (set, tag) = self.place(key);
        let slot = set.iter().find(|slot| slot.tag.load(Ordering::Relaxed) == tag);
        let oldest = || set.iter().min_by_key(|slot| slot.expires_ns.load(Ordering::Relaxed));
        if let Some(slot) = slot.or_else(oldest) {
            slot.note(tag, key.idle(), now);
        }
    }

    /// The latest time at which a flow expires.
    #[cfg(test)]
    pub(super) fn noted(&self) -> u64 {
        let slots = self.sets.iter().flatten();
        slots.map(|slot| slot.expires_ns.load(Ordering::Relaxed)).max().unwrap_or_default()
    }

    /// The set of a flow and its tag, which is never the zero of an empty slot.
    fn place(&self, key: &Key) -> (&[Slot; SLOTS_PER_SET], u64) {
        let mut hasher = DefaultHasher::new();
        self.secret.hash(&mut hasher);
        key.hash(&mut hasher);
        let hash = hasher.finish();
        (&self.sets[hash as usize % self.sets.len()], hash.max(1))
    }
}
