//! What is heard on the local network: neighbours, and another machine with our own key.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_core::Rng as _;

use crate::proto::datapath::DropReason;
use crate::proto::identity::NodeId;
use crate::proto::path;
use crate::proto::timer::{Instant, WallTime};
use crate::proto::wire::Malformed;
use crate::proto::wire::announce::{self, Announce};
use crate::proto::wire::record::NodeRecord;

use super::Node;

/// A machine with our key that missed two announcements on the LAN is gone.
const TWIN_LIFE: Duration = Duration::from_secs(150);
/// How often it is answered with a record that is newer than its own: less than the time between announcements.
const TWIN_ANSWERED: Duration = Duration::from_secs(50);

/// Another machine with our key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Twin {
    /// Where it was heard.
    ip: IpAddr,
    /// When last.
    heard: Instant,
    /// When it was answered last.
    answered: Instant,
}

impl Node {
    /// The packet by which we make ourselves known on a link, for a socket that listens on `port`: to everybody, or to those
    /// who know the network's secret.
    pub fn announcement(&mut self, port: u16) -> Option<Vec<u8>> {
        let network = &self.session_config.network;
        let announcement = Announce { port, record: self.record.as_ref()?.bytes() }.emit();
        if network.is_open() {
            return Some(announcement);
        }
        Some(announce::seal(&announcement, self.rng.next_u64().to_be_bytes(), network))
    }

    /// Somebody on the link announced itself. True when we should do so, too, at once.
    pub fn handle_announce(
        &mut self,
        now: Instant,
        wall: WallTime,
        source: SocketAddr,
        packet: &[u8],
    ) -> bool {
        let heard = if self.announces.take(now) { self.parse(packet) } else { Err(DropReason::RateLimited) };
        let (port, record) = match heard {
            Ok(heard) => heard,
            Err(reason) => {
                self.drop(reason);
                return false;
            }
        };
        let id = record.node_id();
        if id == self.node_id() {
            return self.hear_own_key(now, wall, source.ip(), &record);
        }
        let mut endpoint = source;
        endpoint.set_port(port);
        if !path::is_possible(&endpoint) || !self.learn_record(now, wall, record) {
            return false;
        }
        if let Some(peer) = self.peers.of_mut(&id).filter(|peer| peer.current.is_none()) {
            // Behind what the record says: a link-local address is of no use to others that ask us for the node.
            peer.path.learn_more([endpoint]);
            // Who was met is reached when somebody wants it: announcements go on for as long as both are there.
            let is_met = peer.last_heard().is_some() && peer.is_gone().is_none();
            if !is_met || self.dht.is_alone() {
                self.connect(now, wall, id);
            }
        }
        self.drain(now, wall);
        false
    }

    /// A record of our key that is newer than ours was made by another machine. Ours come back to us, and anybody may
    /// send older ones again. The other machine finds out in the same way: by a record of ours that is newer than its own.
    fn hear_own_key(&mut self, now: Instant, wall: WallTime, ip: IpAddr, record: &NodeRecord) -> bool {
        let own = self.record.as_ref().map(|own| own.content().sequence);
        if own.is_none_or(|own| record.content().sequence <= own) {
            return false;
        }
        let answered = self.twin.map(|twin| twin.answered);
        let due = answered.is_none_or(|answered| now.saturating_since(answered) >= TWIN_ANSWERED);
        let answered = answered.filter(|_| !due).unwrap_or(now);
        self.twin = Some(Twin { ip, heard: now, answered });
        if due {
            self.renew_record_after(now, wall, record.content().sequence);
        }
        due
    }

    /// Where another machine with our key was heard lately.
    pub(super) fn twin(&self, now: Instant) -> Option<IpAddr> {
        self.twin.filter(|twin| now.saturating_since(twin.heard) < TWIN_LIFE).map(|twin| twin.ip)
    }

    /// The port and the record of an announcement.
    ///
    /// # Errors
    /// The reason to count.
    fn parse(&self, packet: &[u8]) -> Result<(u16, NodeRecord), DropReason> {
        let network = &self.session_config.network;
        let opened = match network.is_open() {
            true => Cow::Borrowed(packet),
            false => announce::open(packet, network).ok_or(DropReason::Unauthenticated)?.into(),
        };
        let announce = Announce::parse(&opened).map_err(|malformed| {
            // Without the magic it is of a network with a secret, most likely.
            let sealed = malformed == Malformed::Field("magic");
            if sealed { DropReason::Unauthenticated } else { DropReason::Malformed }
        })?;
        let held = |id: &NodeId| match *id == self.node_id() {
            true => self.record.as_ref(),
            false => self.peers.of(id).and_then(|peer| peer.record.as_ref()),
        };
        let record = NodeRecord::parse_again(announce.record, held).map_err(|_| DropReason::Malformed)?;
        Ok((announce.port, record))
    }
}
