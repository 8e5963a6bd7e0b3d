//! Link-local discovery: announces this node on every link and listens for others, and for a second machine with this
//! node's key.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::engine::Handle;
use crate::host::{addresses, clock};
use crate::proto::identity::NodeId;
use crate::proto::limit::TokenBucket;
use crate::proto::timer;
use crate::proto::wire::announce::Announce;
use crate::proto::wire::record::NodeRecord;
use crate::udp::LanSocket;

/// Announcements come quickly at first, then seldom.
const FIRST_WAITS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Wait between announcements once we are settled.
const WAIT: Duration = Duration::from_secs(60);
/// A twin that missed two announcements is gone.
const TWIN_LIFE: Duration = Duration::from_secs(150);
/// Announcements a second that are looked at for a twin: each costs a signature check.
const TWIN_LOOKS_PER_S: u32 = 10;

/// Another machine that was heard with this node's key: where, and when last.
#[derive(Clone, Debug, Default)]
pub(super) struct Twin(Arc<Mutex<Option<(IpAddr, timer::Instant)>>>);

impl Twin {
    /// Where it is, if it was heard lately.
    pub(super) fn seen(&self) -> Option<IpAddr> {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.filter(|(_, at)| clock::now().saturating_since(*at) < TWIN_LIFE).map(|(ip, _)| ip)
    }

    fn heard(&self, ip: IpAddr) {
        if self.seen().is_none() {
            tracing::warn!(at = %ip, "another machine announces this node's key");
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((ip, clock::now()));
    }
}

/// The task of link-local discovery.
pub(super) struct Discovery {
    socket: LanSocket,
    port: u16,
    /// Groups joined.
    joined: usize,
    /// Addresses of this machine.
    own: BTreeSet<IpAddr>,
    /// The last announcement, which comes back to us.
    announced: Vec<u8>,
    twin: Twin,
    twin_looks: TokenBucket,
}

impl Discovery {
    /// `None` where the system does not let us, with a line in the log.
    pub(super) fn open(listen: Vec<SocketAddr>, twin: Twin) -> Option<Self> {
        let port = listen.first()?.port();
        let twin_looks = TokenBucket::new(TWIN_LOOKS_PER_S, TWIN_LOOKS_PER_S, clock::now());
        match LanSocket::open() {
            Ok(socket) => Some(Self {
                socket,
                port,
                joined: 0,
                own: BTreeSet::new(),
                announced: Vec::new(),
                twin,
                twin_looks,
            }),
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
                    if self.twin_looks.take(clock::now())
                        && is_twin(&packet, source.ip(), handle.node_id(), &self.own, &self.announced)
                    {
                        self.twin.heard(source.ip());
                    }
                    let heard = handle.with(move |node, now, wall| node.handle_announce(now, wall, source, &packet));
                    if heard.await.is_err() {
                        return;
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
        self.own = found.iter().map(|address| address.ip).collect();
        let links: Vec<_> = found
            .into_iter()
            .filter(|a| a.up && a.multicast && !a.loopback && a.interface != own_interface)
            .map(|a| (a.index, a.ip))
            .collect();
        let before = std::mem::replace(&mut self.joined, self.socket.refresh(&links));
        self.joined > before
    }

    async fn announce(&mut self, handle: &Handle) {
        let port = self.port;
        if let Ok(Some(packet)) = handle.with(move |node, _, _| node.announcement(port)).await {
            let links = self.socket.announce(&packet);
            tracing::trace!(links, "announced");
            self.announced = packet;
        }
    }
}

/// True when an announcement has our key, and is not our own that came back: neither the bytes that we sent last, nor
/// from an address of this machine.
pub(super) fn is_twin(
    packet: &[u8],
    source: IpAddr,
    node_id: NodeId,
    own: &BTreeSet<IpAddr>,
    announced: &[u8],
) -> bool {
    packet != announced
        && !own.contains(&source)
        && Announce::parse(packet)
            .ok()
            .and_then(|announce| NodeRecord::parse(announce.record).ok())
            .is_some_and(|record| record.node_id() == node_id)
}
