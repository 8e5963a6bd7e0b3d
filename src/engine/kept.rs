//! Sockets beside the ordinary ones, each for one endpoint: all that goes there leaves by it, and what comes by it is read
//! as from any other.
//!
//! A NAT that gives every destination another port lets a peer in only at the port of the socket that it found. The list
//! is short, published as a whole and read without a lock; with several workers each reads its share of the sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use crate::udp::UdpSocket;

use super::wake::Event;

/// A kept socket.
#[derive(Debug)]
pub(super) struct Kept {
    /// What it is for.
    pub(super) to: SocketAddr,
    pub(super) socket: UdpSocket,
    /// Counts from 0 over all that were ever kept.
    number: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct KeptSockets {
    list: Vec<Arc<Kept>>,
    next: usize,
}

impl KeptSockets {
    /// The socket for an endpoint, unless it is an ordinary one.
    pub(super) fn to(&self, to: SocketAddr) -> Option<&UdpSocket> {
        self.list.iter().find(|kept| kept.to == to).map(|kept| &kept.socket)
    }

    /// Those that one of so many workers reads.
    pub(super) fn of_worker(&self, worker: usize, workers: usize) -> impl Iterator<Item = &UdpSocket> {
        let is_its = move |kept: &&Arc<Kept>| kept.number % workers.max(1) == worker;
        self.list.iter().filter(is_its).map(|kept| &kept.socket)
    }

    fn without(&self, to: SocketAddr) -> Vec<Arc<Kept>> {
        self.list.iter().filter(|kept| kept.to != to).cloned().collect()
    }

    /// The same and one more, in place of the one for the same endpoint.
    fn with(&self, to: SocketAddr, socket: UdpSocket) -> Self {
        let mut list = self.without(to);
        list.push(Arc::new(Kept { to, socket, number: self.next }));
        Self { list, next: self.next + 1 }
    }
}

/// The list as it is now.
pub(super) type Published = Arc<ArcSwap<KeptSockets>>;

/// Tells a thread that waits that the list has changed.
#[derive(Debug)]
pub(super) struct Changed {
    flag: AtomicBool,
    event: Event,
}

impl Changed {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { flag: AtomicBool::new(false), event: Event::new()? })
    }

    fn set(&self) {
        // In this order: who sees the flag can clear the event.
        self.event.set();
        self.flag.store(true, Ordering::Release);
    }

    /// Waiting goes on from here.
    pub(super) fn clear(&self) {
        if self.flag.load(Ordering::Acquire) {
            self.flag.store(false, Ordering::Relaxed);
            self.event.clear();
        }
    }
}

impl AsFd for Changed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Keeps sockets and gives them back; the control task's end.
#[derive(Debug)]
pub(super) struct Keeper {
    published: Published,
    workers: Vec<Arc<Changed>>,
}

impl Keeper {
    pub(super) const fn new(published: Published, workers: Vec<Arc<Changed>>) -> Self {
        Self { published, workers }
    }

    /// All that goes to `to` leaves by this socket from now on.
    pub(super) fn keep(&self, to: SocketAddr, socket: UdpSocket) {
        self.publish(self.published.load().with(to, socket));
    }

    /// Gives the socket for an endpoint back.
    pub(super) fn release(&self, to: SocketAddr) {
        let before = self.published.load();
        if before.to(to).is_some() {
            self.publish(KeptSockets { list: before.without(to), next: before.next });
        }
    }

    /// The list as it is now.
    pub(super) fn published(&self) -> &ArcSwap<KeptSockets> {
        &self.published
    }

    fn publish(&self, list: KeptSockets) {
        self.published.store(Arc::new(list));
        self.workers.iter().for_each(|worker| worker.set());
    }
}
