//! Link-local discovery: announces this node on every link and listens for others.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::engine::Handle;
use crate::host::addresses;
use crate::udp::LanSocket;

/// Announcements come quickly at first, then seldom.
const FIRST_WAITS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Wait between announcements once we are settled.
const WAIT: Duration = Duration::from_secs(60);

/// The task of link-local discovery.
pub(super) struct Discovery {
    socket: LanSocket,
    port: u16,
    /// Groups joined.
    joined: usize,
}

impl Discovery {
    /// `None` where the system does not let us, with a line in the log.
    pub(super) fn open(listen: Vec<SocketAddr>) -> Option<Self> {
        let port = listen.first()?.port();
        match LanSocket::open() {
            Ok(socket) => Some(Self { socket, port, joined: 0 }),
            Err(error) => {
                tracing::warn!(%error, "nodes on the local network are not looked for");
                None
            }
        }
    }

    /// Announces and listens until the task is ended.
    pub(super) async fn run(mut self, handle: Handle, own_interface: String, mut links: watch::Receiver<()>) {
        self.join(&own_interface);
        self.announce(&handle).await;
        let mut waits = FIRST_WAITS.iter();
        let mut next = Instant::now() + FIRST_WAITS[0];
        loop {
            tokio::select! {
                (packet, source) = self.socket.recv() => {
                    let heard = handle.with(move |node, now, wall| node.handle_announce(now, wall, source, &packet));
                    match heard.await {
                        Ok(true) => next = Instant::now(),
                        Ok(false) => {}
                        Err(_) => return,
                    }
                }
                changed = links.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if self.join(&own_interface) {
                        waits = FIRST_WAITS.iter();
                        next = Instant::now();
                    }
                }
                () = sleep_until(next) => {
                    self.announce(&handle).await;
                    next = Instant::now() + waits.next().copied().unwrap_or(WAIT);
                }
            }
        }
    }

    /// Joins the groups on every link but our own; true when there are more links than before.
    fn join(&mut self, own_interface: &str) -> bool {
        let Ok(found) = addresses::local() else { return false };
        let links: Vec<_> = found
            .into_iter()
            .filter(|a| a.up && a.multicast && !a.loopback && a.interface != own_interface)
            .map(|a| (a.index, a.ip))
            .collect();
        let before = std::mem::replace(&mut self.joined, self.socket.refresh(&links));
        self.joined > before
    }

    async fn announce(&self, handle: &Handle) {
        let port = self.port;
        if let Ok(Some(packet)) = handle.with(move |node, _, _| node.announcement(port)).await {
            let links = self.socket.announce(&packet);
            tracing::trace!(links, "announced");
        }
    }
}
