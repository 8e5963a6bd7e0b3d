//! How much work the kernel takes off our hands: what it was asked for at start, and what it refused since.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tun::Offloads;
use crate::udp::UdpSocket;

use super::{Sockets, Worker};

/// What is in force. Each refusal is logged once for a socket; the daemon does the work itself from then on.
#[derive(Debug)]
pub struct Rungs {
    interface: Offloads,
    /// Those of every worker.
    sockets: Vec<Sockets>,
    refused: AtomicU64,
}

impl Rungs {
    /// Of the workers, one at least: all queues of an interface are alike.
    pub(super) fn new(workers: &[Worker]) -> Self {
        let interface = workers[0].device.offloads();
        let sockets = workers.iter().map(|worker| worker.sockets.clone()).collect();
        Self { interface, sockets, refused: AtomicU64::new(0) }
    }

    /// What kernel and daemon leave to each other on the interface.
    pub const fn interface(&self) -> Offloads {
        self.interface
    }

    /// True while the kernel cuts trains on every socket.
    pub fn has_trains(&self) -> bool {
        self.sockets.iter().flat_map(|sockets| sockets.iter()).all(UdpSocket::cuts_trains)
    }

    /// Packets for the interface that the kernel refused as they were, so that they had to be cut here.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Notes that the kernel refused a packet. The next one is tried again: whether a kernel takes large packets depends
    /// on their kind, and a peer must not be able to switch them off for others.
    pub(super) fn note_refused_packet(&self) {
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the kernel refuses large packets on the interface that it should take (kernel fault?): they are cut \
                 here, which costs processor time; [data] tun_offload = \"none\" avoids the detour"
            );
        }
    }

    /// Notes that a device refused a train.
    pub(super) fn note_refused_train(&self, socket: &UdpSocket) {
        tracing::warn!(
            listen = %socket.local_addr(),
            "a network device cannot cut trains of datagrams: they are sent one by one from now on, which costs \
             processor time"
        );
    }
}
