//! Interface to sockets.

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::host::clock;
use crate::proto::datapath::{
    Batch, DropReason, Outbound, Outbox, PlainPackets, Room, Sink, Snapshot, Train,
};
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::inner::{IcmpError, icmp_error};
use crate::tun::{self, Probe, QueueProbe};
use crate::udp::TrainSender;

use super::duty::{self, CALM_WINDOW, Load, OutwardEnd};
use super::inbox::Item;
use super::plane::{Plane, socket_for, wait};

/// Largest packet without a session that is handed over, in bytes: the interface's MTU is at most this.
const PLAIN_LEN_MAX: usize = 65_535;

/// Packets read before time and snapshot are looked at again, and bytes.
const TURN: usize = 256;
const TURN_BYTES: usize = 256 * 1024;

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    packets: usize,
    bytes: usize,
    /// There was no packet left.
    pub(super) empty: bool,
}

impl Turn {
    /// The work that it was.
    pub(super) const fn units(&self) -> usize {
        duty::units(self.packets, self.bytes)
    }
}

/// What reading the interface takes; one thread of a worker has it.
pub(super) struct Outward {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    outbox: Outbox,
    sender: TrainSender,
    plain: Vec<u8>,
    probe: QueueProbe,
}

impl Outward {
    /// For the worker of `plane`.
    pub(super) fn new(plane: &Plane) -> Self {
        let own = plane.snapshot.load().own.ipv6();
        Self {
            cache: Cache::new(plane.snapshot.clone()),
            outbox: Outbox::of_thread(plane.worker),
            sender: TrainSender::new(),
            plain: vec![0; PLAIN_LEN_MAX],
            probe: QueueProbe::new(own, plane.probe_secret, plane.worker),
        }
    }

    /// Sends what the kernel gives, as much as is worth one look at the time.
    pub(super) fn turn(&mut self, plane: &Plane) -> io::Result<Turn> {
        let Self { cache, outbox, sender, plain, probe } = self;
        let turn = plane.turn(cache.load(), outbox, sender, plain, probe)?;
        let now = clock::now();
        if turn.empty {
            outbox.backlog.note_empty(now);
        } else if let Some(due) = outbox.backlog.poll_probe(now) {
            if due.lost {
                probe.renew();
            }
            probe.send(now);
        }
        Ok(turn)
    }
}

impl Plane {
    /// Reads the interface while that is this thread's duty, until told to stop or the interface is gone.
    pub(super) fn run_outward(&self, end: OutwardEnd<Outward>) -> io::Result<()> {
        while let Some(mut outward) = end.wait() {
            let mut load = Load::new(clock::now());
            loop {
                if self.wake.is_set() {
                    return Ok(());
                }
                let turn = outward.turn(self)?;
                let now = clock::now();
                if load.is_calm(now, turn.units()) && !end.is_wanted(now) {
                    break;
                }
                if turn.empty {
                    wait([self.device.as_fd(), self.wake.as_fd()], CALM_WINDOW)?;
                }
            }
            end.give_back(outward);
        }
        Ok(())
    }

    /// Reads packets until there are no more, or enough to send; never waits for another one.
    fn turn(
        &self,
        snapshot: &Snapshot,
        outbox: &mut Outbox,
        sender: &mut TrainSender,
        plain: &mut [u8],
        probe: &QueueProbe,
    ) -> io::Result<Turn> {
        let mut sink = Wire { plane: self, waits: true, sender };
        let mut batch = Batch::new(snapshot, &self.shared, outbox, &mut sink, clock::now());
        let mut turn = Turn::default();
        for _ in 0..TURN {
            if batch.is_full() || turn.bytes > TURN_BYTES {
                break;
            }
            let read = match batch.outbox().room() {
                Room::Flat(room) => self.device.recv([room]),
                Room::Wide(room) => self.device.recv(room),
            };
            match read {
                Ok((len, virtio)) => {
                    let (verdict, notice) = batch.push_read(len, virtio);
                    turn.packets += 1;
                    turn.bytes += len;
                    if verdict == Outbound::Queue
                        && let Some(read) = probe.read(batch.outbox().head(len))
                    {
                        if let Probe::Own(sent_at) = read {
                            batch.outbox().backlog.handle_probe(clock::now(), sent_at);
                        }
                    } else if verdict != Outbound::Sent {
                        let packet = batch.outbox().last_read(len);
                        self.refused(snapshot, verdict, packet, virtio, plain);
                    }
                    self.inbox.notify(snapshot, notice);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    turn.empty = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.shared.drops.count(DropReason::NotIpv6);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted || tun::is_down(&error) => break,
                Err(error) => {
                    batch.flush();
                    return Err(error);
                }
            }
        }
        batch.flush();
        Ok(turn)
    }

    /// What becomes of a packet that is not sent.
    fn refused(
        &self,
        snapshot: &Snapshot,
        verdict: Outbound,
        packet: &mut [u8],
        virtio: Virtio,
        plain: &mut [u8],
    ) {
        match verdict {
            Outbound::Queue => {
                let mut packets = PlainPackets::of(packet, virtio.offload());
                if packets.packet_len_max() > plain.len() {
                    return self.shared.drops.count(DropReason::TooBig);
                }
                while let Some(len) = packets.next(packet, plain) {
                    self.inbox.put_unrouted(&plain[..len]);
                }
            }
            Outbound::TooBig(mtu) => {
                if let Some(answer) = icmp_error(IcmpError::TooBig(mtu), &snapshot.own.ipv6(), packet)
                    && self.device.send(Virtio::PLAIN, &[&answer]).is_err()
                {
                    self.shared.drops.count(DropReason::Io);
                }
            }
            Outbound::Sent | Outbound::Drop(_) => {}
        }
    }
}

/// The sockets, as the data path sees them.
pub(super) struct Wire<'a> {
    pub(super) plane: &'a Plane,
    /// A full buffer holds the thread up for a moment; else what finds no room is lost.
    pub(super) waits: bool,
    pub(super) sender: &'a mut TrainSender,
}

impl Sink for Wire<'_> {
    fn send(&mut self, trains: &[Train<'_>]) {
        let kept = self.plane.kept.load();
        let socket_of = |train: &Train<'_>| socket_for(&self.plane.sockets, &kept, train.to);
        let same = |a: &Train<'_>, b: &Train<'_>| match (socket_of(a), socket_of(b)) {
            (Some(a), Some(b)) => ptr::eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        // Most leave by the one socket of their family.
        for trains in trains.chunk_by(same) {
            let Some(first) = trains.first() else { continue };
            let drops = &self.plane.shared.drops;
            match socket_of(first) {
                Some(socket) => {
                    let cut = socket.cuts_trains();
                    let sent = match self.waits {
                        true => self.sender.send(socket, trains),
                        false => self.sender.send_at_once(socket, trains),
                    };
                    if cut && !socket.cuts_trains() {
                        self.plane.rungs.note_refused_train(socket);
                    }
                    let reason = if sent.filtered { DropReason::Filtered } else { DropReason::Io };
                    (0..sent.lost).for_each(|_| drops.count(reason));
                    if let Some((to, len)) = sent.too_big {
                        self.plane.inbox.put(Item::TooBig { to, len });
                    }
                }
                None => trains.iter().for_each(|_| drops.count(DropReason::Io)),
            }
        }
    }
}
