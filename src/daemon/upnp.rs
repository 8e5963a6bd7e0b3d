//! Asks a router by UPnP (Internet Gateway Device), for those that speak nothing else.
//!
//! Only the router of the default route is asked, not the whole network: whoever answers a search by multicast has us fetch
//! from wherever it likes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::proto::path::{is_global, is_possible};
use crate::proto::portmap::AGAIN_AFTER;

/// UDP port of the search (UPnP Device Architecture 2.0 §1.3.2).
const SEARCH_PORT: u16 = 1900;
/// How long the router may take to answer a search, and to map a port.
const SEARCH_PATIENCE: Duration = Duration::from_secs(2);
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long the mapping stands: until the router has been asked again, and once more.
const LEASE: Duration = Duration::from_secs(2 * AGAIN_AFTER.as_secs());
/// What the router's owner sees of it.
const DESCRIPTION: &str = "azora";

/// A port that the router maps.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    gateway: Gateway<Tokio>,
    pub(super) outside: SocketAddrV4,
}

/// Asks for a port, or renews the one that there is; `None` when the router gives none that is of use. A port that nobody
/// waits for any more is given back, and `asking` kept until then.
pub(super) async fn map(
    router: Ipv4Addr,
    client: Ipv4Addr,
    inside: u16,
    asking: watch::Receiver<()>,
) -> Option<Mapped> {
    timeout(PATIENCE, ask(router, client, inside, asking)).await.unwrap_or_default()
}

async fn ask(router: Ipv4Addr, client: Ipv4Addr, inside: u16, asking: watch::Receiver<()>) -> Option<Mapped> {
    let mut options = SearchOptions::default();
    options.bind_addr = (client, 0).into();
    options.broadcast_address = (router, SEARCH_PORT).into();
    options.timeout = Some(SEARCH_PATIENCE);
    let gateway = search_gateway(options).await.ok().filter(|gateway| gateway.addr.ip() == router)?;
    let IpAddr::V4(ip) = gateway.get_external_ip().await.ok()? else { return None };
    let is_useful = |outside: SocketAddrV4| is_possible(&outside.into()) && is_global((*outside.ip()).into());
    if !is_useful(SocketAddrV4::new(ip, inside)) {
        return None;
    }
    let (mapped, result) = oneshot::channel();
    // A task of its own: what the router was asked for it may do after we have stopped listening.
    tokio::spawn(async move {
        let outside = timeout(SEARCH_PATIENCE, add(&gateway, client, inside)).await.ok().flatten();
        let found = outside.map(|port| Mapped { gateway, outside: SocketAddrV4::new(ip, port) });
        if let Err(Some(unwanted)) = mapped.send(found) {
            unwanted.release().await;
        }
        drop(asking);
    });
    let mapped = result.await.ok().flatten()?;
    is_useful(mapped.outside).then_some(mapped)
}

/// Has the router map a port.
async fn add(gateway: &Gateway<Tokio>, client: Ipv4Addr, inside: u16) -> Option<u16> {
    let (local, lease_s) = (SocketAddr::from((client, inside)), u32::try_from(LEASE.as_secs()).ok()?);
    let udp = PortMappingProtocol::UDP;
    match gateway.add_port(udp, inside, local, lease_s, DESCRIPTION).await {
        Ok(()) => Some(inside),
        Err(AddPortError::PortInUse) => gateway.add_any_port(udp, local, lease_s, DESCRIPTION).await.ok(),
        Err(_) => None,
    }
}

impl Mapped {
    /// Gives the port back.
    pub(super) async fn release(&self) {
        let removed = self.gateway.remove_port(PortMappingProtocol::UDP, self.outside.port());
        if !matches!(timeout(SEARCH_PATIENCE, removed).await, Ok(Ok(()))) {
            tracing::debug!("the router has not confirmed that the mapping is gone");
        }
    }
}
