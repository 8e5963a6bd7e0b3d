//! How long a datagram to a peer may be: feeds path MTU discovery (`path::pmtu`) and sends its probes.
//!
//! A probe is long, so it goes only where the peer has shown that it receives: never to an endpoint that is still
//! challenged. An acknowledgement is as short as the shortest probe and goes out once per packet.

use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::identity::{MeshAddress, NodeId};
use crate::proto::path::pmtu::{Probe, State, Traffic};
use crate::proto::timer::Instant;
use crate::proto::wire::control::Control;
use crate::proto::wire::session::{HEADER_LEN, Kind, OVERHEAD, TAG_LEN};

use super::history::Reason;
use super::{Node, Timer};

/// A new session is looked at this early for data: the search is worth most at the beginning of a transfer.
const FIRST_LOOK: Duration = Duration::from_millis(100);

impl Node {
    /// The system refused to send a datagram of this length to `to` (EMSGSIZE): the local link carries less. Of a train,
    /// the length of one datagram.
    pub fn handle_too_big(&mut self, now: Instant, to: SocketAddr, datagram_len: usize) {
        let there = self.peers.iter().filter(|peer| peer.path.endpoint() == Some(to));
        let ids: Vec<_> = there.map(|peer| peer.id).collect();
        for id in ids {
            if let Some(peer) = self.peers.of_mut(&id) {
                peer.pmtu.handle_too_big(now, datagram_len);
            }
            self.probe_mtu(now, id);
        }
    }

    /// Searches the path's MTU as if there were data, if there is a session. Repeat it every second or so while the
    /// result is awaited.
    pub fn discover_mtu(&mut self, now: Instant, address: MeshAddress) {
        if let Some(id) = self.peers.at_address(&address) {
            self.report_traffic(now, id);
        }
    }

    /// The largest datagram known to reach the peer with this address, and how far the search for it is; `None` without
    /// a session.
    pub fn path_mtu(&self, address: &MeshAddress) -> Option<(usize, State)> {
        let peer = self.peers.of(&self.peers.at_address(address)?)?;
        peer.current.as_ref().map(|_| (peer.pmtu.datagram_len(), peer.pmtu.state()))
    }

    /// A session stands. `awaited`: packets waited for it.
    pub(super) fn expect_traffic(&mut self, now: Instant, id: NodeId, awaited: bool) {
        if awaited {
            return self.report_traffic(now, id);
        }
        if self.peers.of(&id).is_some_and(|peer| peer.pmtu.state() == State::Unknown) {
            self.timers.arm(Timer::Mtu(id), now + FIRST_LOOK);
        }
    }

    /// The current session has carried data since the last report.
    pub(super) fn report_traffic(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let Some(session) = &peer.current else { return };
        let received = session.packets_received().saturating_sub(peer.control_received);
        let (bytes, packets) = (session.bytes_sent(), session.packets_sent());
        let before = std::mem::replace(&mut peer.reported, (bytes, packets, received));
        let traffic = Traffic {
            sent_bytes: bytes.saturating_sub(before.0),
            sent_packets: packets.saturating_sub(before.1),
            answered: received != before.2,
            rtt: peer.rtt,
        };
        peer.pmtu.handle_traffic(now, traffic);
        self.probe_mtu(now, id);
    }

    pub(super) fn probe_timer(&mut self, now: Instant, id: NodeId) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        if peer.pmtu.state() == State::Unknown && peer.data_packets() > 0 {
            return self.report_traffic(now, id);
        }
        peer.pmtu.handle_timeout(now);
        self.probe_mtu(now, id);
    }

    pub(super) fn handle_mtu_ack(&mut self, now: Instant, id: NodeId, token: u64, datagram_len: u16) {
        if let Some(peer) = self.peers.of_mut(&id) {
            peer.pmtu.handle_ack(now, token, usize::from(datagram_len));
        }
        self.probe_mtu(now, id);
    }

    /// Sends the probes that are due and notes when the next one is.
    pub(super) fn probe_mtu(&mut self, now: Instant, id: NodeId) {
        while let Some(peer) = self.peers.of_mut(&id).filter(|peer| peer.may_be_probed()) {
            let Some(probe) = peer.pmtu.poll_transmit(now, &mut self.rng) else { break };
            self.send_mtu_probe(now, id, probe);
        }
        let Some(peer) = self.peers.of(&id) else { return };
        let told = self.snapshot.routes.get(&peer.address).map(|route| route.datagram_len);
        self.dirty |= told.is_some_and(|told| told != peer.pmtu.datagram_len());
        match peer.pmtu.poll_timeout().filter(|_| peer.may_be_probed()) {
            Some(at) => self.timers.arm(Timer::Mtu(id), at),
            None => self.timers.disarm(&Timer::Mtu(id)),
        }
    }

    fn send_mtu_probe(&mut self, now: Instant, id: NodeId, probe: Probe) {
        let Some(peer) = self.peers.of_mut(&id) else { return };
        let (Some(session), Some(hop)) = (&peer.current, peer.path.current()) else { return };
        let Ok(datagram_len) = u16::try_from(probe.datagram_len) else { return };
        let mut packet = vec![0; HEADER_LEN];
        Control::MtuProbe { token: probe.token, datagram_len }.emit(&mut packet);
        packet.resize(probe.datagram_len.max(packet.len() + TAG_LEN), 0);
        let plaintext_len = packet.len() - OVERHEAD;
        let waited = peer.awaits_answer();
        match session.seal(Kind::Control, &mut packet, plaintext_len, plaintext_len, now) {
            Ok(_) => {
                peer.control_packets += 1;
                if !waited {
                    // Probes are made to be lost: no reason to doubt the session.
                    peer.replied = Some(now);
                }
                if probe.datagram_len > peer.pmtu.datagram_len() {
                    peer.losses.excuse(session.local_index());
                }
                self.transmit(hop, packet);
            }
            Err(_) => self.forget_sessions(now, id, Reason::Idle),
        }
    }
}
