//! How many threads carry packets.

use std::io;
use std::sync::Arc;

use crate::engine::{Sockets, WORKERS_MAX, Worker};
use crate::tun::Device;
use crate::udp::UdpSocket;

/// Workers to try for: what the owner says, or one for every two cores, since each has two threads.
pub(super) fn wanted(configured: usize, cores: usize) -> usize {
    let workers = if configured == 0 { cores / 2 } else { configured };
    workers.clamp(1, WORKERS_MAX)
}

/// Gives every queue of the interface a worker with sockets; one worker when the system shares no port.
pub(super) fn share(devices: &[Arc<Device>], sockets: Vec<UdpSocket>, wanted: usize) -> Vec<Worker> {
    let queues = devices.len().min(WORKERS_MAX);
    if queues < wanted {
        let hint =
            "the interface has no more queues; a prepared one has them when it is made with `multi_queue`";
        tracing::info!(wanted, workers = queues, hint, "fewer workers");
    }
    let more = siblings(&sockets, queues.saturating_sub(1)).unwrap_or_else(|error| {
        tracing::info!(wanted, workers = 1, %error, "fewer workers: sockets cannot share a port");
        Vec::new()
    });
    let sockets = std::iter::once(Sockets::from(sockets)).chain(more);
    let worker = |(device, sockets): (&Arc<Device>, _)| Worker { device: device.clone(), sockets };
    devices.iter().zip(sockets).map(worker).collect()
}

fn siblings(sockets: &[UdpSocket], more: usize) -> io::Result<Vec<Sockets>> {
    (0..more).map(|_| sockets.iter().map(UdpSocket::sibling).collect()).collect()
}
