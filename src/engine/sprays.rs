//! The sockets whose ports a peer guesses (`proto::path::spray`), until it has hit one.
//!
//! They are many, live for seconds and carry a few pings, so the control task reads them itself: the threads of the data
//! path poll none of them, and get the one that is kept.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;

use crate::host::descriptors;
use crate::proto::datapath::{Inward, Notice, Reception, Shared, Snapshot, Train, Turn};
use crate::proto::path::spray::SocketId;
use crate::proto::timer::Instant;
use crate::proto::wire::gso::Virtio;
use crate::proto::wire::relay::Hop;
use crate::udp::{ReadySet, Received, TrainReceiver, UdpSocket};

use super::inbox::Item;

/// Descriptors that a spray leaves to the rest of the daemon.
pub(super) const DESCRIPTORS_LEFT: usize = 64;

/// What was heard on a socket of a spray, in a session with this index, and the packet itself.
pub(super) struct Heard {
    pub(super) socket: SocketId,
    pub(super) local_index: u32,
    pub(super) source: Hop,
    pub(super) item: Item,
}

/// All sprays.
#[derive(Default)]
pub(super) struct Sprays {
    sockets: BTreeMap<SocketId, UdpSocket>,
    reading: Option<Reading>,
}

struct Reading {
    ready: ReadySet,
    receiver: TrainReceiver,
}

impl Sprays {
    /// Opens sockets like `model`, at most `count` and never so many that others find none; how many there are.
    pub(super) fn open(&mut self, spray: u32, count: usize, model: Option<&UdpSocket>) -> usize {
        let room = descriptors::free().saturating_sub(DESCRIPTORS_LEFT);
        let numbers = 0..count.min(room) as u16;
        let opened =
            model.map(|model| numbers.map_while(|number| self.open_one(spray, number, model)).count());
        if opened.is_none_or(|opened| opened == 0) {
            self.close(spray);
        }
        opened.unwrap_or(0)
    }

    fn open_one(&mut self, spray: u32, number: u16, model: &UdpSocket) -> Option<()> {
        let id = SocketId { spray, number };
        let socket = model.other_port().ok()?;
        self.reading().ok()?.ready.add(&socket, token(id)).ok()?;
        self.sockets.insert(id, socket);
        Some(())
    }

    fn reading(&mut self) -> io::Result<&mut Reading> {
        let reading = match self.reading.take() {
            Some(reading) => reading,
            None => Reading { ready: ReadySet::new()?, receiver: TrainReceiver::new() },
        };
        Ok(self.reading.insert(reading))
    }

    /// Sends from one of the sockets; false when that is not possible.
    pub(super) fn send(&self, socket: SocketId, to: SocketAddr, datagram: &[u8]) -> bool {
        self.sockets.get(&socket).is_some_and(|socket| socket.send_to(datagram, to).is_ok())
    }

    /// Takes one socket out and closes the others of its spray.
    pub(super) fn take(&mut self, id: SocketId) -> Option<UdpSocket> {
        let socket = self.sockets.remove(&id)?;
        if let Some(reading) = &self.reading {
            // It was in.
            let _ = reading.ready.remove(&socket);
        }
        self.close(id.spray);
        Some(socket)
    }

    /// Closes the sockets of a spray.
    pub(super) fn close(&mut self, spray: u32) {
        self.sockets.retain(|id, _| id.spray != spray);
        if self.sockets.is_empty() {
            self.reading = None;
        }
    }

    /// Waits until there is something to read; forever while there are no sockets.
    pub(super) async fn readable(&mut self) {
        let Some(reading) = &mut self.reading else { return pending().await };
        if reading.ready.readable().await.is_err() {
            pending().await
        }
    }

    /// Reads what there is, as much as is worth one turn.
    pub(super) fn receive(&mut self, snapshot: &Snapshot, shared: &Shared, now: Instant) -> Vec<Heard> {
        let mut heard = Vec::new();
        let Some(Reading { ready, receiver }) = &mut self.reading else { return heard };
        for id in ready.ready().map(id) {
            let Some(socket) = self.sockets.get(&id) else { continue };
            let mut sink = Pings { socket: id, heard: &mut heard };
            let mut turn = Turn { snapshot, shared, now, out: &mut sink };
            // Errors of an unconnected socket concern single datagrams.
            let _ = receiver.receive(socket, |Received { source, ecn, datagram_len, bytes }| {
                Reception::new(false).handle_train(&mut turn, source, ecn, bytes, datagram_len);
            });
        }
        heard
    }
}

fn token(id: SocketId) -> u64 {
    u64::from(id.spray) << u16::BITS | u64::from(id.number)
}

const fn id(token: u64) -> SocketId {
    SocketId { spray: (token >> u16::BITS) as u32, number: token as u16 }
}

/// Of what comes to a socket of a spray, the messages of sessions count.
struct Pings<'a> {
    socket: SocketId,
    heard: &'a mut Vec<Heard>,
}

impl Inward for Pings<'_> {
    fn deliver(&mut self, _: Virtio, _: &[&[u8]]) {}

    fn control(&mut self, local_index: u32, source: Hop, messages: &[u8]) {
        let item = Item::Messages { local_index, source, plaintext: messages.to_vec() };
        self.heard.push(Heard { socket: self.socket, local_index, source, item });
    }

    fn setup(&mut self, _: Hop, _: &[u8]) {}

    fn reply(&mut self, _: Hop, _: &[u8]) {}

    fn forward(&mut self, _: Train<'_>) {}

    fn notify(&mut self, notice: Notice) {
        if let Notice::Heard { local_index, source, .. } = notice {
            let item = Item::Notice(notice);
            self.heard.push(Heard { socket: self.socket, local_index, source, item });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_socket() {
        for socket in [(0, 0), (1, 255), (u32::MAX, u16::MAX)] {
            let socket = SocketId { spray: socket.0, number: socket.1 };
            assert_eq!(id(token(socket)), socket);
        }
    }
}
