//! Interface to sockets.

use std::io;
use std::os::fd::AsFd;

use arc_swap::Cache;

use crate::host::clock;
use crate::proto::datapath::{
    Batch, DropReason, Outbound, Outbox, PlainPackets, Room, Sink, Snapshot, Train,
};
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::inner::{IcmpError, icmp_error};
use crate::tun::{self, Probe, QueueProbe};
use crate::udp::TrainSender;

use super::inbox::Item;
use super::plane::{Plane, SNAPSHOT_HELD_MAX, socket_for, wait};

/// Largest packet without a session that is handed over, in bytes: the interface's MTU is at most this.
const PLAIN_LEN_MAX: usize = 65_535;

/// Packets read before time and snapshot are looked at again, and bytes.
const TURN: usize = 256;
const TURN_BYTES: usize = 256 * 1024;

/// What a turn came to.
#[derive(PartialEq, Eq)]
enum Turn {
    More,
    Empty,
}

impl Plane {
    /// Sends what the kernel gives, until told to stop or the interface is gone.
    pub(super) fn run_outward(self) -> io::Result<()> {
        let mut cache = Cache::new(self.snapshot.clone());
        let mut outbox = Outbox::of_thread(self.worker);
        let mut sender = TrainSender::new();
        let mut plain = vec![0; PLAIN_LEN_MAX];
        let mut probe = QueueProbe::new(self.snapshot.load().own.ipv6(), self.probe_secret, self.worker);
        while !self.wake.is_set() {
            let snapshot = cache.load();
            let turn = self.turn(snapshot, &mut outbox, &mut sender, &mut plain, &probe)?;
            let now = clock::now();
            if turn == Turn::Empty {
                outbox.backlog.note_empty(now);
            } else if let Some(due) = outbox.backlog.poll_probe(now) {
                if due.lost {
                    probe.renew();
                }
                probe.send(now);
            }
            if turn == Turn::Empty {
                wait(&[self.device.as_fd(), self.wake.as_fd()], SNAPSHOT_HELD_MAX)?;
            }
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
        let mut sink = Wire { plane: self, sender };
        let mut batch = Batch::new(snapshot, &self.shared, outbox, &mut sink, clock::now());
        let mut turn = Turn::More;
        let mut bytes = 0;
        for _ in 0..TURN {
            if batch.is_full() || bytes > TURN_BYTES {
                break;
            }
            let read = match batch.outbox().room() {
                Room::Flat(room) => self.device.recv([room]),
                Room::Wide(room) => self.device.recv(room),
            };
            match read {
                Ok((len, virtio)) => {
                    let (verdict, notice) = batch.push_read(len, virtio);
                    bytes += len;
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
                    turn = Turn::Empty;
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
struct Wire<'a> {
    plane: &'a Plane,
    sender: &'a mut TrainSender,
}

impl Sink for Wire<'_> {
    fn send(&mut self, trains: &[Train<'_>]) {
        // All trains of one family leave by one socket.
        for trains in trains.chunk_by(|a, b| a.to.is_ipv4() == b.to.is_ipv4()) {
            let Some(first) = trains.first() else { continue };
            let drops = &self.plane.shared.drops;
            match socket_for(&self.plane.sockets, first.to) {
                Some(socket) => {
                    let cut = socket.cuts_trains();
                    let sent = self.sender.send(socket, trains);
                    if cut && !socket.cuts_trains() {
                        self.plane.rungs.note_refused_train(socket);
                    }
                    (0..sent.lost).for_each(|_| drops.count(DropReason::Io));
                    if let Some((to, len)) = sent.too_big {
                        self.plane.inbox.put(Item::TooBig { to, len });
                    }
                }
                None => trains.iter().for_each(|_| drops.count(DropReason::Io)),
            }
        }
    }
}
