//! What goes to the underlay: packets that wait for a session, control messages, and errors back to the interface.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::datapath::{self, Batch, DropReason, Outbound, Outbox, Sink, Train};
use crate::proto::dht::Outcome;
use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::control::{CONTROL_LEN_MAX, Control, Want};
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::inner::{IcmpError, icmp_error};
use crate::proto::wire::relay::Hop;
use crate::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, PADDING_MULTIPLE};

use super::command::PingFailure;
use super::history::Reason;
use super::peers::{OUTBOX_MAX, Staged};
use super::{Event, Node, Purpose, Ticket, Timer};

/// Most addresses being resolved at once.
pub(super) const RESOLVING_MAX: usize = 256;
/// How long packets wait for their address to be resolved.
const RESOLVE_MAX: Duration = Duration::from_secs(3);
/// Wait between two lookups of the same address while nobody is known yet, or not everybody.
const RESOLVE_AGAIN: Duration = Duration::from_millis(250);
/// The same when somebody was asked.
const RESOLVE_AGAIN_ASKED: Duration = Duration::from_millis(800);
/// An address that nobody has is not looked up again for this long; the second time for longer.
const UNREACHABLE_MIN: Duration = Duration::from_secs(2);
const UNREACHABLE_MAX: Duration = Duration::from_secs(10);
/// How long it counts as the second time.
const UNREACHABLE_MEMORY: Duration = Duration::from_secs(60);
/// Most addresses remembered as nobody's.
const UNREACHABLE_ENTRIES_MAX: usize = 1024;

/// An address whose node is being looked up.
#[derive(Debug)]
pub(super) struct Resolving {
    started: Instant,
    running: bool,
    staged: Staged,
    pings: Vec<Ticket>,
}

impl Node {
    /// A packet from the interface for which the data path had no session.
    pub fn handle_unrouted(&mut self, now: Instant, wall: WallTime, packet: Vec<u8>) {
        let Some(destination) = datapath::wanted(&packet) else { return self.drop(DropReason::NotMesh) };
        if packet.len() > self.mtu {
            self.refuse(IcmpError::TooBig(self.mtu as u32), &packet);
        } else if let Some(id) = self.peers.at_address(&destination) {
            self.stage(now, wall, id, packet);
        } else {
            self.resolve(now, wall, destination, Some(packet), None);
        }
        self.drain(now, wall);
    }

    /// Answers a packet from the interface with an ICMPv6 error.
    pub(super) fn refuse(&mut self, error: IcmpError, packet: &[u8]) {
        let reason = match error {
            IcmpError::TooBig(_) => DropReason::TooBig,
            IcmpError::NoRoute | IcmpError::AddressUnreachable => DropReason::NoRoute,
        };
        self.drop(reason);
        if let Some(answer) = icmp_error(error, &self.address().ipv6(), packet) {
            self.event(Event::ToInterface(answer));
        }
    }

    fn stage(&mut self, now: Instant, wall: WallTime, id: NodeId, packet: Vec<u8>) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let expired = peer.current.as_ref().is_some_and(|s| s.is_expired(now));
        let dropped = peer.staged.push(now, packet);
        (0..dropped).for_each(|_| self.drop(DropReason::QueueFull));
        if expired {
            self.forget_sessions(now, id, Reason::Idle);
        }
        match self.peers.of(&id) {
            // The session came between the data path's look and ours.
            Some(peer) if peer.current.is_some() => {
                self.release_staged(now, id);
                if self.peers.of(&id).is_some_and(|peer| !peer.staged.is_empty()) {
                    self.hurry_upgrade(now, wall, id);
                }
            }
            _ => self.connect(now, wall, id),
        }
    }

    /// Sends what waited for a session.
    pub(super) fn release_staged(&mut self, now: Instant, id: NodeId) {
        let hop = self.peers.of(&id).and_then(|peer| peer.path.current());
        if !hop.is_some_and(|hop| self.carries_data(hop)) {
            return;
        }
        let staged = self.peers.of_mut(&id).map(|peer| peer.staged.take()).unwrap_or_default();
        if staged.is_empty() {
            return;
        }
        let (snapshot, shared) = (self.snapshot(), self.shared.clone());
        let mut outbox = Outbox::new();
        let mut datagrams = Datagrams(Vec::new());
        let mut batch = Batch::new(&snapshot, &shared, &mut outbox, &mut datagrams, now);
        let mut refused = Vec::new();
        let mut woken = false;
        for packet in staged {
            let (verdict, notice) = batch.push(&packet, Virtio::PLAIN);
            woken |= notice.is_some();
            match verdict {
                Outbound::TooBig(mtu) => refused.push((mtu, packet)),
                Outbound::Queue => shared.drops.count(DropReason::NoRoute),
                Outbound::Sent | Outbound::Drop(_) => {}
            }
        }
        batch.flush();
        if woken {
            self.watch(now, id);
        }
        for (to, datagram) in datagrams.0 {
            self.transmit(to, datagram);
        }
        for (mtu, packet) in refused {
            self.refuse(IcmpError::TooBig(mtu), &packet);
        }
    }

    /// Looks up who has an address, for a packet or a ping that waits.
    pub(super) fn resolve(
        &mut self,
        now: Instant,
        wall: WallTime,
        address: MeshAddress,
        packet: Option<Vec<u8>>,
        ping: Option<Ticket>,
    ) {
        let known_nobody = self.unreachable.get(&address).is_some_and(|(until, _)| now < *until);
        let full = self.resolving.len() >= RESOLVING_MAX && !self.resolving.contains_key(&address);
        if address == self.address() || full || known_nobody && ping.is_none() {
            let failure = if full { PingFailure::TooMany } else { PingFailure::NotFound };
            return self.fail_waiting(packet, ping, failure);
        }
        let entry = self.resolving.entry(address).or_insert_with(|| Resolving {
            started: now,
            running: false,
            staged: Staged::default(),
            pings: Vec::new(),
        });
        entry.pings.extend(ping);
        let dropped = packet.map_or(0, |packet| entry.staged.push(now, packet));
        (0..dropped).for_each(|_| self.drop(DropReason::QueueFull));
        self.resolve_again(now, wall, address);
    }

    /// Starts the lookup of a waiting address, unless it runs.
    pub(super) fn resolve_again(&mut self, now: Instant, wall: WallTime, address: MeshAddress) {
        let Some(entry) = self.resolving.get_mut(&address) else { return };
        if !std::mem::replace(&mut entry.running, true) {
            let lookup = self.dht.lookup(now, address.position_prefix(), Want::Record);
            self.lookups.insert(lookup, Purpose::Resolve(address));
            self.drain(now, wall);
        }
    }

    /// A lookup found a node for the address: its record has been learnt.
    pub(super) fn resolved(&mut self, now: Instant, wall: WallTime, address: MeshAddress) {
        let Some(mut waiting) = self.resolving.remove(&address) else {
            // Looked up afresh for a peer that does not answer; or whose key was not known yet.
            if let Some(id) = self.peers.at_address(&address) {
                self.retry_with_record(now, wall, id);
            }
            return;
        };
        self.timers.disarm(&Timer::Resolve(address));
        let Some(id) = self.peers.at_address(&address) else {
            return self.fail_waiting(waiting.staged.take(), waiting.pings, PingFailure::NotFound);
        };
        if let Some(peer) = self.peers.of_mut(&id) {
            let dropped = peer.staged.append(now, &mut waiting.staged);
            peer.waiting_pings.extend(waiting.pings);
            (0..dropped).for_each(|_| self.drop(DropReason::QueueFull));
        }
        self.connect(now, wall, id);
        if self.peers.of(&id).is_some_and(|peer| peer.current.is_some()) {
            self.release_staged(now, id);
        }
    }

    /// A lookup found nobody: try again while we know nobody to ask or are new here, then say so.
    pub(super) fn unresolved(&mut self, now: Instant, address: MeshAddress, outcome: &Outcome) {
        let asked = outcome.rpcs;
        let Some(entry) = self.resolving.get_mut(&address) else { return };
        entry.running = false;
        if (asked == 0 || now < self.new_here_until) && now.saturating_since(entry.started) < RESOLVE_MAX {
            let wait = if asked == 0 { RESOLVE_AGAIN } else { RESOLVE_AGAIN_ASKED };
            return self.timers.arm(Timer::Resolve(address), now + wait);
        }
        let Some(mut entry) = self.resolving.remove(&address) else { return };
        let lately = |(until, _): &(Instant, Duration)| now < *until + UNREACHABLE_MEMORY;
        let again = self.unreachable.get(&address).is_some_and(lately);
        let wait = if again { UNREACHABLE_MAX } else { UNREACHABLE_MIN };
        if self.unreachable.len() >= UNREACHABLE_ENTRIES_MAX {
            self.unreachable.retain(|_, (until, _)| now < *until);
        }
        if self.unreachable.len() < UNREACHABLE_ENTRIES_MAX {
            self.unreachable.insert(address, (now + wait, wait));
        }
        let failure = if outcome.is_heard() { PingFailure::NotFound } else { PingFailure::Unheard };
        self.fail_waiting(entry.staged.take(), entry.pings, failure);
    }

    fn fail_waiting(
        &mut self,
        packets: impl IntoIterator<Item = Vec<u8>>,
        pings: impl IntoIterator<Item = Ticket>,
        failure: PingFailure,
    ) {
        for packet in packets {
            self.refuse(IcmpError::NoRoute, &packet);
        }
        for ticket in pings {
            self.event(Event::Ping(ticket, Err(failure)));
        }
    }

    /// Seals control messages for a peer; false when there is no session.
    pub(super) fn send_control(&mut self, now: Instant, id: NodeId, messages: &[Control]) -> bool {
        let hop = self.peers.of(&id).and_then(|peer| peer.path.current());
        hop.is_some_and(|hop| self.send_control_by(now, id, hop, messages))
    }

    /// The same, on a way that need not be the one in use.
    pub(super) fn send_control_by(
        &mut self,
        now: Instant,
        id: NodeId,
        hop: Hop,
        messages: &[Control],
    ) -> bool {
        let Some(peer) = self.peers.of_mut(&id) else { return false };
        let Some(session) = &peer.current else { return false };
        let mut plaintext = Vec::with_capacity(CONTROL_LEN_MAX);
        messages.iter().for_each(|message| message.emit(&mut plaintext));
        let len = plaintext.len();
        let mut packet = vec![0; HEADER_LEN];
        packet.append(&mut plaintext);
        packet.resize(packet.len() + PADDING_MULTIPLE + OVERHEAD, 0);
        match session.seal(
            Kind::Control,
            &mut packet,
            len,
            CONTROL_LEN_MAX.next_multiple_of(PADDING_MULTIPLE),
            now,
        ) {
            Ok(total) => {
                packet.truncate(total);
                peer.control_packets += 1;
                let asks = |m: &Control| {
                    let asks_peer =
                        matches!(m, Control::Ping { .. } | Control::Find { .. } | Control::Store { .. });
                    // A relay that was started anew knows nothing of us, and it would not be noticed otherwise.
                    asks_peer || matches!(m, Control::Allocate | Control::Bind { .. })
                };
                // The first packet of an initiator asks by itself: it confirms the session.
                if messages.iter().any(asks) || session.last_received().is_none() {
                    self.watch(now, id);
                } else {
                    peer.replied = Some(now);
                }
                self.transmit(hop, packet);
                true
            }
            Err(_) => {
                self.forget_sessions(now, id, Reason::Idle);
                false
            }
        }
    }

    /// Sends a control message, or keeps it until a session stands.
    pub(super) fn send_or_stage(&mut self, now: Instant, wall: WallTime, id: NodeId, message: Control) {
        if self.peers.of(&id).is_some_and(|peer| peer.current.is_some())
            && self.send_control(now, id, std::slice::from_ref(&message))
        {
            return;
        }
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.outbox.len() == OUTBOX_MAX {
            peer.outbox.pop_front();
        }
        peer.outbox.push_back(message);
        self.connect(now, wall, id);
    }
}

/// Trains, taken apart again: what waited for a session is sent by the control side.
struct Datagrams(Vec<(SocketAddr, Vec<u8>)>);

impl Sink for Datagrams {
    fn send(&mut self, trains: &[Train<'_>]) {
        for train in trains {
            let datagrams = train.bytes.chunks(train.datagram_len);
            self.0.extend(datagrams.map(|datagram| (train.to, datagram.to_vec())));
        }
    }
}
