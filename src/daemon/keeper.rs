//! Keeps the interface, its address and route, and the guard as they should be, and the node informed of where it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::engine::Handle;
use crate::host::addresses::{self, LocalAddress};
use crate::host::changes::{Change, Changes};
use crate::proto::identity::in_mesh;
use crate::proto::path::LocalNetwork;
use crate::proto::wire::record::{RECORD_ENDPOINTS_MAX, RECORD_STREAMS_MAX};
use crate::tun::guard::Guard;
use crate::tun::{self, Condition, Interface};

use super::Error;

/// The guard is looked at this often even if nothing seems to have changed.
const GUARD_LOOK: Duration = Duration::from_secs(600);
/// The same where changes of the rule set cannot be seen.
const GUARD_LOOK_BLIND: Duration = Duration::from_secs(60);

/// Owns the interface and the guard.
pub(super) struct Keeper {
    interface: Interface,
    guard: Option<Guard>,
    handle: Handle,
    listen: Vec<SocketAddr>,
    /// Where streams are taken.
    taking: Vec<SocketAddr>,
    /// The owner wants the interface up.
    wanted: AtomicBool,
    guarded: AtomicBool,
    /// What the interface was like after the last change of links, addresses or routes.
    seen: Mutex<Option<Condition>>,
    /// Held while the interface is being changed: what is put right must not be what the owner has just taken down.
    changing: Mutex<()>,
    failed: Mutex<Option<Error>>,
    failure: Notify,
}

impl Keeper {
    pub(super) fn new(
        interface: Interface,
        guard: Option<Guard>,
        handle: Handle,
        listen: Vec<SocketAddr>,
        taking: Vec<SocketAddr>,
    ) -> Self {
        let guarded = AtomicBool::new(guard.is_some());
        let (wanted, failure) = (AtomicBool::new(true), Notify::new());
        let (seen, changing, failed) = (Mutex::new(None), Mutex::new(()), Mutex::new(None));
        Self { interface, guard, handle, listen, taking, wanted, guarded, seen, changing, failed, failure }
    }

    /// Waits until the interface is beyond repair.
    pub(super) async fn failure(&self) -> Error {
        loop {
            let notified = self.failure.notified();
            if let Some(error) = self.failed.lock().await.take() {
                return error;
            }
            notified.await;
        }
    }

    /// Brings the interface up on the owner's word.
    pub(super) async fn up(&self) -> Result<(), tun::Error> {
        let _changing = self.changing.lock().await;
        self.wanted.store(true, Ordering::Relaxed);
        self.interface.up().await
    }

    /// Takes the interface down on the owner's word; it stays so. What cannot be taken down is still wanted.
    pub(super) async fn down(&self) -> Result<(), tun::Error> {
        let _changing = self.changing.lock().await;
        self.interface.down().await?;
        self.wanted.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// True unless the owner took the interface down.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// True while the guard stands, or was not asked for.
    pub(super) fn is_guarded(&self) -> bool {
        self.guard.is_none() || self.guarded.load(Ordering::Relaxed)
    }

    /// Name of the interface.
    pub(super) fn name(&self) -> &str {
        self.interface.name()
    }

    /// What the interface was like when something last changed: unlike [`Keeper::inspect`] it does not ask the kernel.
    pub(super) async fn seen(&self) -> Option<Condition> {
        self.seen.lock().await.clone()
    }

    /// What the interface is like; where the kernel cannot be asked, for want of descriptors perhaps, what it was like last.
    pub(super) async fn inspect(&self) -> Option<Condition> {
        match self.interface.inspect().await {
            Ok(condition) => Some(condition),
            Err(_) => self.seen().await,
        }
    }

    /// Follows changes until the task is ended. `links` tells others that addresses changed.
    pub(super) async fn run(self: std::sync::Arc<Self>, links: watch::Sender<()>) {
        let mut changes = match Changes::listen() {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(%error, "changes of links are not seen; looking once a minute");
                None
            }
        };
        let look =
            if changes.as_ref().is_some_and(Changes::sees_ruleset) { GUARD_LOOK } else { GUARD_LOOK_BLIND };
        let mut next_look = Instant::now() + look;
        self.see().await;
        loop {
            let change = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            let change = tokio::select! {
                change = change => change,
                () = sleep_until(next_look) => {
                    next_look = Instant::now() + look;
                    Change::Everything
                }
            };
            self.handle(&change).await;
            if !matches!(change, Change::Ruleset) {
                let _ = links.send(());
            }
        }
    }

    async fn handle(&self, change: &Change) {
        if matches!(change, Change::Ruleset | Change::Everything) {
            self.watch_guard().await;
        }
        if !matches!(change, Change::Ruleset) {
            self.repair().await;
            self.see().await;
            self.look_around().await;
        }
    }

    async fn see(&self) {
        let condition = self.inspect().await;
        *self.seen.lock().await = condition;
    }

    async fn repair(&self) {
        let _changing = self.changing.lock().await;
        if !self.is_wanted() {
            return;
        }
        match self.interface.repair().await {
            Ok(done) if done.is_empty() => {}
            Ok(done) => tracing::warn!(
                interface = self.name(),
                "put right what somebody changed: {}",
                done.join(", ")
            ),
            Err(tun::Error::Deleted { .. }) => {
                *self.failed.lock().await = Some(Error::InterfaceGone { name: self.name().into() });
                self.failure.notify_one();
            }
            Err(error) => tracing::error!(
                %error,
                fix = "`azora down` and `azora up` set it up anew; look for another program that changes it",
                "cannot repair the interface"
            ),
        }
    }

    async fn watch_guard(&self) {
        let Some(guard) = &self.guard else { return };
        let stands = match guard.check().await {
            Ok(true) => true,
            Ok(false) => {
                let put_back = guard.reinstall().await;
                match &put_back {
                    Ok(()) => tracing::warn!("the guard against LAN neighbours was removed; put back"),
                    Err(error) => {
                        tracing::error!(%error, "the guard against LAN neighbours cannot be put back")
                    }
                }
                put_back.is_ok()
            }
            Err(error) => {
                tracing::error!(%error, "cannot check the guard against LAN neighbours");
                false
            }
        };
        self.guarded.store(stands, Ordering::Relaxed);
    }

    /// Tells the node where it is.
    pub(super) async fn look_around(&self) {
        let found = match addresses::local() {
            Ok(found) => found,
            Err(error) => {
                return tracing::warn!(
                    %error,
                    fix = "if this stays, restart the daemon; others may not learn where this node is",
                    "cannot list the addresses of this machine"
                );
            }
        };
        let usable: Vec<_> = found.into_iter().filter(|a| self.is_underlay(a)).collect();
        let networks = usable.iter().map(|a| LocalNetwork { ip: a.ip, prefix_len: a.prefix_len }).collect();
        let endpoints = endpoints_at(&usable, &self.listen, RECORD_ENDPOINTS_MAX);
        let streams = endpoints_at(&usable, &self.taking, RECORD_STREAMS_MAX);
        let told = self.handle.with(move |node, now, wall| {
            node.set_stream_endpoints(now, wall, streams);
            node.handle_links(now, wall, networks, endpoints);
        });
        if told.await.is_err() {
            tracing::debug!("the node has stopped");
        }
    }

    /// True for addresses that other nodes may know us by.
    fn is_underlay(&self, address: &LocalAddress) -> bool {
        let outside = match address.ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local() && !in_mesh(&ip),
        };
        outside && address.up && !address.loopback && address.interface != self.interface.name()
    }

    /// Takes interface and guard away.
    pub(super) async fn close(self) {
        take_away(self.interface, self.guard).await;
    }
}

/// Takes interface and guard away, also when there was no start behind them.
pub(super) async fn take_away(interface: Interface, guard: Option<Guard>) {
    if let Some(guard) = guard
        && let Err(error) = guard.remove().await
    {
        tracing::warn!(%error, "the guard stays behind");
    }
    if let Err(error) = interface.close().await {
        tracing::warn!(%error, "the interface stays behind");
    }
}

/// Where we listen, as others would address it: global addresses first, IPv6 before IPv4.
fn endpoints_at(addresses: &[LocalAddress], listen: &[SocketAddr], max: usize) -> Vec<SocketAddr> {
    let mut found: Vec<_> = listen
        .iter()
        .flat_map(|socket| {
            let matches = move |a: &&LocalAddress| {
                a.ip.is_ipv4() == socket.is_ipv4() && (socket.ip().is_unspecified() || socket.ip() == a.ip)
            };
            addresses.iter().filter(matches).map(|a| SocketAddr::new(a.ip, socket.port()))
        })
        .collect();
    found.sort_by_key(|endpoint| (is_private(endpoint.ip()), endpoint.is_ipv4()));
    found.dedup();
    found.truncate(max);
    found
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}
