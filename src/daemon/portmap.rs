//! Asks the router for a port that leads to us, as long as this machine has no address of the internet itself.
//!
//! ```text
//! links changed ─► which router, from which address? ─► `proto::portmap`, else `upnp` ─► node: our record, our candidates
//! clean stop    ─► the port is given back
//! ```

use std::future::pending;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::engine::Handle;
use crate::host::{addresses, clock, entropy, gateway};
use crate::proto::path::is_global;
use crate::proto::portmap::{Config, PortMap, State};
use crate::proto::wire::portmap::{PORTMAP_LEN_MAX, PORTMAP_PORT};

use super::upnp;

/// How long the router may take to confirm that it has the port back.
const RELEASE_PATIENCE: Duration = Duration::from_millis(100);
/// A router that cannot be found or reached is looked for again after this, if nothing changes before.
const LOOK_AGAIN: Duration = Duration::from_secs(900);
/// After an error of the socket nothing is read for so long.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no mapping, or which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The owner does not want one.
    Off,
    /// Nothing listens on IPv4, which is what routers translate.
    NotListening,
    /// This machine has an address of the internet.
    NotNeeded,
    /// There is no router to ask.
    NoGateway,
    /// What came of asking this router.
    Asked(Ipv4Addr, State),
    /// It maps a port by UPnP.
    Upnp(Ipv4Addr, SocketAddrV4),
}

impl Found {
    /// How a port was got, and which.
    pub(super) const fn mapping(self) -> Option<(&'static str, SocketAddrV4)> {
        match self {
            Self::Asked(_, State::Held(mapping)) => Some((mapping.protocol.name(), mapping.outside)),
            Self::Upnp(_, outside) => Some(("upnp", outside)),
            Self::Asked(..) | Self::Off | Self::NotListening | Self::NotNeeded | Self::NoGateway => None,
        }
    }
}

/// A mapping to be given back.
enum Held {
    /// By this datagram.
    Datagram(Route, Vec<u8>),
    Upnp(upnp::Mapped),
}

/// A question by UPnP under way.
type Search = Pin<Box<dyn Future<Output = Option<upnp::Mapped>> + Send>>;

/// What the task and the rest of the daemon share.
pub(super) struct PortMapping {
    found: Mutex<Found>,
    held: Mutex<Option<Held>>,
    /// Somebody listens to it as long as a router is being asked by UPnP.
    asking: watch::Sender<()>,
}

/// A router, and our address on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    gateway: Ipv4Addr,
    client: Ipv4Addr,
}

impl PortMapping {
    pub(super) fn new(wanted: bool, listens: bool) -> Arc<Self> {
        let found = match (wanted, listens) {
            (false, _) => Found::Off,
            (true, false) => Found::NotListening,
            (true, true) => Found::NoGateway,
        };
        Arc::new(Self { found: Mutex::new(found), held: Mutex::new(None), asking: watch::Sender::default() })
    }

    /// What came of it so far.
    pub(super) fn found(&self) -> Found {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Keeps a mapping for `inside` until the task is ended.
    pub(super) async fn run(self: Arc<Self>, handle: Handle, inside: u16, mut links: watch::Receiver<()>) {
        loop {
            let changed = match route().await {
                Ok(Ok(route)) => self.keep(&handle, route, inside, &mut links).await,
                Ok(Err(found)) => {
                    self.set(found);
                    waited(&mut links).await
                }
                Err(error) => {
                    tracing::debug!(%error, "the router is not found");
                    self.set(Found::NoGateway);
                    waited(&mut links).await
                }
            };
            // A mapping at the router that we have left ends by itself.
            self.hold(None);
            let told = handle.with(|node, now, wall| node.handle_mapping(now, wall, None)).await;
            if told.is_err() || !changed {
                return;
            }
        }
    }

    /// Keeps a mapping until the way to the router is another one; false when the daemon ends.
    async fn keep(
        &self,
        handle: &Handle,
        route: Route,
        inside: u16,
        links: &mut watch::Receiver<()>,
    ) -> bool {
        let socket = match open(route).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "the router cannot be asked");
                self.set(Found::NoGateway);
                return waited(links).await;
            }
        };
        let config = Config { client: route.client, inside };
        let mut machine = PortMap::new(config, entropy::seed(), clock::now());
        let mut buffer = [0; PORTMAP_LEN_MAX];
        let (mut told, mut search, mut upnp) = (None, None::<Search>, None::<upnp::Mapped>);
        let mut before = machine.state();
        loop {
            // Before it is asked for: whatever comes of that is given back.
            let datagram = machine.release().map(|datagram| Held::Datagram(route, datagram));
            self.hold(datagram.or_else(|| upnp.clone().map(Held::Upnp)));
            while let Some(datagram) = machine.poll_transmit() {
                // What is not sent is sent again when it is not answered.
                let _ = socket.send(&datagram).await;
            }
            let state = machine.state();
            let ended = std::mem::replace(&mut before, state) != state;
            if ended && matches!(state, State::Silent | State::Refused(..)) {
                search =
                    Some(Box::pin(upnp::map(route.gateway, route.client, inside, self.asking.subscribe())));
            }
            let found = match (state, &upnp) {
                (State::Held(_), _) => Found::Asked(route.gateway, state),
                (_, Some(mapped)) => Found::Upnp(route.gateway, mapped.outside),
                (_, None) if search.is_some() => Found::Asked(route.gateway, State::Asking),
                (_, None) => Found::Asked(route.gateway, state),
            };
            self.set(found);
            let mapping = found.mapping().map(|(_, outside)| SocketAddr::V4(outside));
            if mapping != told {
                told = mapping;
                log(found);
                if handle.with(move |node, now, wall| node.handle_mapping(now, wall, mapping)).await.is_err()
                {
                    return false;
                }
            }
            let due = machine.poll_timeout().map(|at| at.saturating_since(clock::now()));
            tokio::select! {
                received = socket.recv(&mut buffer) => {
                    match received {
                        Ok(len) => machine.handle_datagram(clock::now(), &buffer[..len]),
                        // Of a packet before: nobody listens there.
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                            machine.handle_unreachable(clock::now());
                        }
                        Err(_) => sleep(ERROR_PAUSE).await,
                    }
                }
                () = sleep(due.unwrap_or(LOOK_AGAIN)) => machine.handle_timeout(clock::now()),
                mapped = searched(&mut search) => {
                    upnp = mapped;
                    search = None;
                }
                changed = links.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    if self::route().await.ok() != Some(Ok(route)) {
                        return true;
                    }
                }
            }
        }
    }

    /// Gives the port back, once the task has been ended.
    pub(super) async fn release(&self) {
        self.asking.closed().await;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (route, datagram) = match held {
            Some(Held::Datagram(route, datagram)) => (route, datagram),
            Some(Held::Upnp(mapped)) => return mapped.release().await,
            None => return,
        };
        let Ok(socket) = open(route).await else { return };
        let mut buffer = [0; PORTMAP_LEN_MAX];
        for _ in 0..2 {
            if socket.send(&datagram).await.is_ok()
                && matches!(timeout(RELEASE_PATIENCE, socket.recv(&mut buffer)).await, Ok(Ok(_)))
            {
                return;
            }
        }
        tracing::debug!("the router has not confirmed that the mapping is gone");
    }
}

/// The end of the question that is under way, if one is.
async fn searched(search: &mut Option<Search>) -> Option<upnp::Mapped> {
    match search {
        Some(search) => search.await,
        None => pending().await,
    }
}

fn log(found: Found) {
    match found.mapping() {
        Some((protocol, outside)) => {
            tracing::info!(protocol, port = outside.port(), "the router maps a port to this node");
        }
        None => tracing::info!("the router maps no port to this node any more"),
    }
}

/// The router to ask, or why there is none.
async fn route() -> io::Result<Result<Route, Found>> {
    let global = |ip: IpAddr| ip.is_ipv4() && is_global(ip);
    if addresses::local()?.iter().any(|address| address.up && global(address.ip)) {
        return Ok(Err(Found::NotNeeded));
    }
    let Some(gateway) = gateway::default_v4().await? else { return Ok(Err(Found::NoGateway)) };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((gateway, PORTMAP_PORT)).await?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(client) => Ok(Ok(Route { gateway, client })),
        IpAddr::V6(_) => Ok(Err(Found::NoGateway)),
    }
}

/// A socket that hears nobody but the router.
async fn open(route: Route) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((route.client, 0)).await?;
    socket.connect((route.gateway, PORTMAP_PORT)).await?;
    Ok(socket)
}

/// Waits for a change of the links, or long; false when the daemon ends.
async fn waited(links: &mut watch::Receiver<()>) -> bool {
    !matches!(timeout(LOOK_AGAIN, links.changed()).await, Ok(Err(_)))
}
