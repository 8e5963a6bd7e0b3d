//! Sockets to interface.

use std::io;
use std::os::fd::AsFd;

use arc_swap::Cache;

use crate::host::clock;
use crate::proto::datapath::{
    DropReason, Inward, Notice, PlainPackets, Reception, Sink as _, Snapshot, Train, Turn,
};
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::relay::Hop;
use crate::proto::wire::superframe::PACKET_LEN_MAX;
use crate::tun::Offloads;
use crate::udp::{Received, TrainReceiver, TrainSender};

use super::duty::{self, InwardEnd, Load};
use super::inbox::Item;
use super::outward::{Outward, Wire};
use super::plane::{Plane, SNAPSHOT_HELD_MAX, wait};

impl Plane {
    /// Hands the kernel what peers send, and reads the interface while that is this thread's duty, until told to stop or
    /// the interface is gone.
    pub(super) fn run_inward(&self, mut end: InwardEnd<Outward>) -> io::Result<()> {
        let mut cache = Cache::new(self.snapshot.clone());
        let mut kept = Cache::new(self.kept.clone());
        let workers = self.devices.len();
        let mut reception = Reception::new(self.rungs.interface() == Offloads::TcpUdp);
        let (mut receiver, mut sender) = (TrainReceiver::new(), TrainSender::new());
        let mut pieces = Pieces { flat: vec![0; PACKET_LEN_MAX], cut: vec![0; PACKET_LEN_MAX] };
        let mut load = Load::new(clock::now());
        while !self.wake.is_set() {
            let mut quiet = true;
            let mut units = 0;
            self.changed.clear();
            let kept = kept.load();
            for socket in self.sockets.iter().chain(kept.of_worker(self.worker.into(), workers)) {
                let snapshot = cache.load();
                let now = clock::now();
                let mut inner = Inner { plane: self, snapshot, pieces: &mut pieces, sender: &mut sender };
                let mut turn = Turn { snapshot, shared: &self.shared, now, out: &mut inner };
                let received = receiver.receive(socket, |train| {
                    let Received { source, ecn, datagram_len, bytes } = train;
                    units += duty::units(1, bytes.len());
                    reception.handle_train(&mut turn, source, ecn, bytes, datagram_len);
                });
                // Errors of an unconnected socket concern single datagrams: the next call goes on.
                quiet &= !received.unwrap_or(false);
            }
            let now = clock::now();
            if reception.poll_timeout().is_some_and(|due| due <= now) {
                let snapshot = cache.load();
                let mut inner = Inner { plane: self, snapshot, pieces: &mut pieces, sender: &mut sender };
                let mut turn = Turn { snapshot, shared: &self.shared, now, out: &mut inner };
                reception.handle_timeout(&mut turn);
            }
            if let Some(outward) = end.held() {
                let turn = outward.turn(self)?;
                units += turn.units();
                quiet &= turn.empty;
            }
            end.balance(now, load.is_busy(now, units));
            if quiet {
                let due = reception.poll_timeout().map(|due| due.saturating_since(now));
                let interface = match end.held() {
                    Some(_) => self.device.as_fd(),
                    None => end.returned().as_fd(),
                };
                let sockets = self.sockets.iter().chain(kept.of_worker(self.worker.into(), workers));
                let others = [self.wake.as_fd(), self.changed.as_fd(), interface];
                let fds = sockets.map(|socket| socket.as_fd()).chain(others);
                wait(fds, due.map_or(SNAPSHOT_HELD_MAX, |due| due.min(SNAPSHOT_HELD_MAX)))?;
            }
        }
        Ok(())
    }
}

/// Buffers for packets that the kernel does not take as they are.
struct Pieces {
    flat: Vec<u8>,
    cut: Vec<u8>,
}

/// The interface and the inbox, as the data path sees them.
struct Inner<'a> {
    plane: &'a Plane,
    snapshot: &'a Snapshot,
    pieces: &'a mut Pieces,
    sender: &'a mut TrainSender,
}

impl Inner<'_> {
    /// Cuts a packet and completes its checksums for a kernel that does not.
    fn deliver_plain(&mut self, virtio: Virtio, pieces: &[&[u8]]) -> io::Result<()> {
        let Pieces { flat, cut } = &mut *self.pieces;
        let mut len = 0;
        for piece in pieces {
            flat[len..len + piece.len()].copy_from_slice(piece);
            len += piece.len();
        }
        let packet = &flat[..len];
        let mut packets = PlainPackets::of(packet, virtio.offload());
        while let Some(len) = packets.next(packet, cut) {
            self.plane.device_for(&cut[..len]).send(Virtio::PLAIN, &[&cut[..len]])?;
        }
        Ok(())
    }
}

impl Inward for Inner<'_> {
    fn deliver(&mut self, virtio: Virtio, pieces: &[&[u8]]) {
        let device = self.plane.device_for(pieces.first().copied().unwrap_or_default());
        let sent = match device.send(virtio, pieces) {
            // Some kernels refuse large packets of kinds that they should take.
            Err(error) if refuses_offload(&error) && virtio != Virtio::PLAIN => {
                if error.kind() == io::ErrorKind::InvalidInput {
                    self.plane.rungs.note_refused_packet();
                }
                self.deliver_plain(virtio, pieces)
            }
            sent => sent,
        };
        if sent.is_err() {
            self.plane.shared.drops.count(DropReason::Io);
        }
    }

    fn control(&mut self, local_index: u32, source: Hop, messages: &[u8]) {
        self.plane.inbox.put(Item::Messages { local_index, source, plaintext: messages.to_vec() });
    }

    fn setup(&mut self, source: Hop, packet: &[u8]) {
        self.plane.inbox.put(Item::Setup { source, packet: packet.to_vec() });
    }

    fn reply(&mut self, source: Hop, packet: &[u8]) {
        self.plane.inbox.put(Item::Reply { source, packet: packet.to_vec() });
    }

    fn forward(&mut self, train: Train<'_>) {
        // This thread has our own packets to receive: a slow link of somebody else's must not hold it up.
        Wire { plane: self.plane, waits: false, sender: self.sender }.send(&[train]);
    }

    fn notify(&mut self, notice: Notice) {
        self.plane.inbox.notify(self.snapshot, Some(notice));
    }
}

fn refuses_offload(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput)
}
