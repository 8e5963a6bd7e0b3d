//! The interface's life: open, look, repair, close.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use tun_rs::{DeviceBuilder, Layer};

use super::condition::Condition;
use super::device::{Device, Offloads};
use super::netlink::{Address, Kind, Link, Netlink, Route};
use super::{Error, MTU_MIN, is_name};
use crate::proto::identity::{MESH_PREFIX, MESH_PREFIX_LEN, MeshAddress, in_mesh};
use crate::proto::wire::handshake::THREADS_MAX;

/// Packets that the kernel keeps for a daemon that is busy: 2.5 ms of the most that it carries, as on Ethernet. The
/// default of a TUN, 500, loses 1 to 2 % of 380,000 short packets a second, 1000 lose less than 0.5 %.
const QUEUE_PACKETS: u32 = 1000;
/// Largest packet that the kernel leaves uncut, in bytes: with all headers it makes one train over any path.
const PACKET_LEN_MAX: u32 = 62_000;
/// Most queues of one interface: one for each sending thread of a session. The kernel takes 256.
pub const QUEUES_MAX: usize = THREADS_MAX as usize;
const DEVICE_NODE: &str = "/dev/net/tun";
/// Looks at the interface before a change that the kernel refuses is told: somebody else may have changed it since.
const LOOKS_MAX: usize = 3;

/// What the interface should be.
#[derive(Clone, Debug)]
pub struct InterfaceConfig {
    /// Name, such as `azora0`; 1 to 15 bytes.
    pub name: String,
    /// MTU in bytes, 1280 or more.
    pub mtu: u16,
    /// The most that the kernel and we should do for each other.
    pub offloads: Offloads,
    /// The node's address.
    pub address: MeshAddress,
    /// Queues wanted, 1 to [`QUEUES_MAX`].
    pub queues: usize,
}

/// The interface while the daemon runs.
pub struct Interface {
    config: InterfaceConfig,
    index: u32,
    /// Its queues, one at least.
    devices: Vec<Arc<Device>>,
    /// How a prepared TUN was found, to leave it so; `None` for one that we made.
    found: Option<Condition>,
}

impl Interface {
    /// Makes the interface, or attaches to a TUN prepared under that name, and sees to MTU, state, address and route.
    ///
    /// # Errors
    /// Refuses with one line for each reason (see [`Error`]); nothing is left behind then.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub async fn open(config: &InterfaceConfig) -> Result<Self, Error> {
        check_config(config)?;
        let kernel = connect(config)?;
        let links = kernel.links().await.map_err(io_error("list the interfaces", config))?;
        let before = links.iter().find(|link| link.name == config.name);
        let found = match before {
            Some(link) => Some(check_prepared(&kernel, config, link).await?),
            None => None,
        };
        check_overlap(&kernel, config, &links, before.map(|link| link.index)).await?;
        let shared = before.map(|link| matches!(link.kind, Kind::Tun { shared: true, .. }));
        let (devices, index) = open_devices(config, shared)?;
        let devices: Vec<_> = devices.into_iter().map(Arc::new).collect();
        let interface = Self { config: config.clone(), index, devices, found };
        interface.check_alone(&kernel).await?;
        if interface.found.is_none() {
            silence_autoconfiguration(&config.name);
            // Best effort: the kernel's default does as well.
            let _ = kernel.set_queue(index, QUEUE_PACKETS, PACKET_LEN_MAX).await;
        }
        interface.settle(&kernel).await?;
        Ok(interface)
    }

    /// The packet side: its queues, as many as were wanted, or one where the kernel or a prepared TUN has no more. The
    /// kernel keeps the packets of a flow on one queue.
    pub fn devices(&self) -> &[Arc<Device>] {
        &self.devices
    }

    /// Closes all queues but the first few: the kernel gives packets to every one that is open.
    pub fn keep_queues(&mut self, queues: usize) {
        self.devices.truncate(queues.max(1));
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// True when it was prepared in advance, false when we made it.
    pub const fn is_prepared(&self) -> bool {
        self.found.is_some()
    }

    /// Sets it up, with everything that the kernel removed when it went down.
    ///
    /// # Errors
    /// As [`Interface::repair`].
    pub async fn up(&self) -> Result<(), Error> {
        self.repair().await.map(|_| ())
    }

    /// Sets it down; the kernel removes address and route then.
    ///
    /// # Errors
    /// When it is gone, or we may not.
    pub async fn down(&self) -> Result<(), Error> {
        let kernel = connect(&self.config)?;
        self.look(&kernel).await?;
        kernel.set_up(self.index, false).await.map_err(io_error("set it down", &self.config))
    }

    /// Reads its condition. An interface that is gone is a condition, not an error.
    ///
    /// # Errors
    /// [`Error::Renamed`], and when the kernel cannot be asked.
    pub async fn inspect(&self) -> Result<Condition, Error> {
        let kernel = connect(&self.config)?;
        match self.look(&kernel).await {
            Err(Error::Deleted { .. }) => Ok(Condition::default()),
            condition => condition,
        }
    }

    /// Puts right what is not as it should be; returns what that was: "foreign address", "mtu", "link", "address",
    /// "route".
    ///
    /// # Errors
    /// [`Error::Deleted`] when it is gone: open a new one, or stop. [`Error::NotPrepared`] when we may not.
    pub async fn repair(&self) -> Result<Vec<&'static str>, Error> {
        let kernel = connect(&self.config)?;
        self.settle(&kernel).await
    }

    /// Removes what we added: a TUN of ours altogether, even while threads hold its device; from a prepared one the
    /// address, route, MTU and state that it did not have.
    ///
    /// # Errors
    /// When it is there and we may not.
    pub async fn close(self) -> Result<(), Error> {
        let kernel = connect(&self.config)?;
        let now = match self.look(&kernel).await {
            Err(Error::Deleted { .. }) => return Ok(()),
            now => now?,
        };
        let undone = match &self.found {
            None => kernel.delete_link(self.index).await,
            Some(found) => self.restore(&kernel, found, &now).await,
        };
        undone.map_err(io_error("remove what was added to it", &self.config))
    }

    async fn restore(&self, kernel: &Netlink, found: &Condition, now: &Condition) -> io::Result<()> {
        if now.has_route && !found.has_route {
            kernel.delete_route(self.index).await?;
        }
        if now.has_address && !found.has_address {
            kernel.delete_address(self.own_address()).await?;
        }
        if now.mtu != found.mtu {
            kernel.set_mtu(self.index, found.mtu).await?;
        }
        if now.up && !found.up {
            kernel.set_up(self.index, false).await?;
        }
        Ok(())
    }

    /// A TUN with several queues lets a second program in: two that made it at the same moment both see it here.
    async fn check_alone(&self, kernel: &Netlink) -> Result<(), Error> {
        let links = kernel.links().await.map_err(io_error("list the interfaces", &self.config))?;
        let link = links.iter().find(|link| link.index == self.index);
        match link.map(|link| &link.kind) {
            Some(Kind::Tun { queues: Some(queues), .. }) if *queues as usize > self.devices.len() => {
                Err(Error::Busy { name: self.config.name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Puts right what is not as it should be, also while somebody else changes it; what was wrong, each once.
    async fn settle(&self, kernel: &Netlink) -> Result<Vec<&'static str>, Error> {
        let mut done = Vec::new();
        for _ in 1..LOOKS_MAX {
            match self.settle_once(kernel, &mut done).await {
                // ENODEV is also what a link without IPv6 answers (below 1280 bytes of MTU): only a look tells them apart.
                Err(Error::Unsettled { .. }) => {}
                settled => return settled.map(|()| once_each(done)),
            }
        }
        self.settle_once(kernel, &mut done).await.map(|()| once_each(done))
    }

    /// Compares and puts right, in the order in which each step needs the one before it; `done` gets what was wrong.
    async fn settle_once(&self, kernel: &Netlink, done: &mut Vec<&'static str>) -> Result<(), Error> {
        let now = self.look(kernel).await?;
        for ip in &now.strangers {
            let stranger = Address { ip: *ip, ..self.own_address() };
            kernel
                .delete_address(stranger)
                .await
                .map_err(|error| self.refused("only its own address", error))?;
            done.push("foreign address");
        }
        let mut up = now.up;
        if now.mtu != u32::from(self.config.mtu) {
            // Below 1280 the kernel has taken IPv6 away; up, it would come back with a link-local address.
            if now.mtu < u32::from(MTU_MIN) && up {
                kernel
                    .set_up(self.index, false)
                    .await
                    .map_err(|error| self.refused("the right MTU", error))?;
                up = false;
            }
            let set = kernel.set_mtu(self.index, self.config.mtu.into()).await;
            set.map_err(|error| self.refused("the right MTU", error))?;
            if self.found.is_none() {
                silence_autoconfiguration(&self.config.name);
            }
            done.push("mtu");
        }
        if !up {
            kernel.set_up(self.index, true).await.map_err(|error| self.refused("the state up", error))?;
        }
        if !now.up {
            done.push("link");
        }
        // What a link loses when it goes down, or its MTU falls below 1280, is missing already in `now`.
        if !now.has_address {
            self.add_address(kernel).await?;
            done.push("address");
        }
        if !now.has_route {
            self.add_route(kernel).await?;
            done.push("route");
        }
        Ok(())
    }

    async fn add_address(&self, kernel: &Netlink) -> Result<(), Error> {
        let ip = self.config.address.ipv6();
        let Err(error) = kernel.add_address(self.index, ip).await else { return Ok(()) };
        match error.raw_os_error() {
            Some(libc::EEXIST) => Ok(()),
            // What the kernel says when IPv6 is disabled on the interface (addrconf.c).
            Some(libc::EACCES) => Err(Error::NoIpv6),
            _ => Err(self.refused("the node's address", error)),
        }
    }

    async fn add_route(&self, kernel: &Netlink) -> Result<(), Error> {
        let Err(error) = kernel.add_route(self.index).await else { return Ok(()) };
        if error.kind() == ErrorKind::AlreadyExists {
            let links = kernel.links().await.map_err(io_error("list the interfaces", &self.config))?;
            check_overlap(kernel, &self.config, &links, Some(self.index)).await?;
            return Ok(());
        }
        Err(self.refused("the route 0600::/8", error))
    }

    /// The present condition; [`Error::Deleted`] when there is none.
    async fn look(&self, kernel: &Netlink) -> Result<Condition, Error> {
        let name = || self.config.name.clone();
        let links = kernel.links().await.map_err(io_error("read its state", &self.config))?;
        let Some(link) = links.iter().find(|link| link.index == self.index) else {
            return Err(Error::Deleted { name: name() });
        };
        if link.name != self.config.name {
            return Err(Error::Renamed { name: name(), now: link.name.clone() });
        }
        condition(kernel, &self.config, link).await
    }

    fn own_address(&self) -> Address {
        Address { index: self.index, ip: self.config.address.ipv6(), prefix_len: 128 }
    }

    /// The error of a change that the kernel refused.
    fn refused(&self, missing: &'static str, source: io::Error) -> Error {
        let InterfaceConfig { name, mtu, address, .. } = self.config.clone();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                Error::NotPrepared { name, missing, mtu, address: address.ipv6() }
            }
            _ => Error::Unsettled { name, missing, source },
        }
    }
}

fn once_each(done: Vec<&'static str>) -> Vec<&'static str> {
    let mut each = Vec::new();
    for what in done {
        if !each.contains(&what) {
            each.push(what);
        }
    }
    each
}

fn check_config(config: &InterfaceConfig) -> Result<(), Error> {
    if !is_name(&config.name) {
        return Err(Error::Name { name: config.name.clone() });
    }
    if config.mtu < MTU_MIN {
        return Err(Error::Mtu { mtu: config.mtu });
    }
    // Opening it would make tun-rs create the node; whoever left it out of a container meant it.
    if !Path::new(DEVICE_NODE).exists() {
        return Err(Error::NoDeviceNode);
    }
    if !Path::new("/proc/sys/net/ipv6").exists() && Path::new("/proc/sys/net").exists() {
        return Err(Error::NoIpv6);
    }
    Ok(())
}

/// What a prepared TUN is like, if it is one and meant for this node.
async fn check_prepared(kernel: &Netlink, config: &InterfaceConfig, link: &Link) -> Result<Condition, Error> {
    let name = config.name.clone();
    match &link.kind {
        Kind::Other(kind) => return Err(Error::NotTun { name, kind: kind.clone() }),
        // The kernel would let us in beside a program that has some of several queues.
        Kind::Tun { .. } if link.carrier => return Err(Error::Busy { name }),
        Kind::Tun { .. } => {}
    }
    let condition = condition(kernel, config, link).await?;
    match condition.strangers.first() {
        Some(found) => Err(Error::OtherAddress { name, found: *found, address: config.address.ipv6() }),
        None => Ok(condition),
    }
}

async fn condition(kernel: &Netlink, config: &InterfaceConfig, link: &Link) -> Result<Condition, Error> {
    let own = config.address.ipv6();
    let addresses = kernel.addresses().await.map_err(io_error("list the addresses", config))?;
    let routes = kernel.routes().await.map_err(io_error("list the routes", config))?;
    let mine = addresses.iter().filter(|address| address.index == link.index);
    let strangers = mine.clone().map(|address| address.ip).filter(|ip| in_mesh(ip) && *ip != own).collect();
    let is_mesh_route =
        |route: &Route| route.main && route.destination == MESH_PREFIX && route.prefix_len == MESH_PREFIX_LEN;
    Ok(Condition {
        exists: true,
        up: link.up,
        mtu: link.mtu,
        has_address: mine.clone().any(|address| address.ip == own),
        has_route: routes.iter().any(|route| route.index == link.index && is_mesh_route(route)),
        strangers,
    })
}

/// Refuses when another interface has a part of the mesh's range.
async fn check_overlap(
    kernel: &Netlink,
    config: &InterfaceConfig,
    links: &[Link],
    own: Option<u32>,
) -> Result<(), Error> {
    let addresses = kernel.addresses().await.map_err(io_error("list the addresses", config))?;
    let routes = kernel.routes().await.map_err(io_error("list the routes", config))?;
    let Some((index, what, prefix)) = overlap(&addresses, &routes, own) else { return Ok(()) };
    let link = links.iter().find(|link| link.index == index);
    let interface = link.map_or_else(|| "lo".to_string(), |link| link.name.clone());
    Err(Error::Overlap { interface, what, prefix })
}

/// The first address or route of another interface inside the mesh's range. Routes that merely contain the range
/// (`::/0`, or the `::/1` of a VPN) do no harm: the longer prefix wins, and that is ours.
pub(super) fn overlap(
    addresses: &[Address],
    routes: &[Route],
    own: Option<u32>,
) -> Option<(u32, &'static str, String)> {
    let address = addresses.iter().find(|address| Some(address.index) != own && in_mesh(&address.ip));
    if let Some(address) = address {
        return Some((address.index, "address", format!("{}/{}", address.ip, address.prefix_len)));
    }
    let inside = |route: &&Route| route.prefix_len >= MESH_PREFIX_LEN && in_mesh(&route.destination);
    let route = routes.iter().filter(inside).find(|route| Some(route.index) != own)?;
    Some((route.index, "route", format!("{}/{}", route.destination, route.prefix_len)))
}

/// Opens the queues. `shared` says of a prepared TUN whether it was made for several; then we follow it.
fn open_devices(config: &InterfaceConfig, shared: Option<bool>) -> Result<(Vec<Device>, u32), Error> {
    let several = shared.unwrap_or(config.queues > 1);
    let exists = shared.is_some();
    let attempts = [
        (config.offloads, several),
        // A kernel without these offloads, or that does not tell what a prepared TUN is like.
        (config.offloads, !several),
        (Offloads::None, several),
        (Offloads::None, !several),
    ];
    let mut opened = Err(io::Error::from_raw_os_error(libc::EINVAL));
    for (offloads, several) in attempts {
        opened = open_queues(config, offloads, several);
        if !matches!(&opened, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    opened.map_err(|source| {
        let InterfaceConfig { name, mtu, address, .. } = config.clone();
        match source.raw_os_error() {
            Some(libc::EBUSY) => Error::Busy { name },
            // The node itself says EACCES, TUNSETIFF behind it EPERM.
            Some(libc::EACCES) if exists => Error::NoAccess { name },
            Some(libc::EPERM) if exists => Error::OtherUser { name },
            Some(libc::EPERM | libc::EACCES) => Error::NotPermitted { name, mtu, address: address.ipv6() },
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoDeviceNode,
            Some(libc::EINVAL) if exists => Error::NotTun { name, kind: "another kind of interface".into() },
            _ => Error::Io { action: "open it", name, source },
        }
    })
}

/// Opens one queue, and more if the TUN is made for several. That no more can be had is no error.
fn open_queues(
    config: &InterfaceConfig,
    offloads: Offloads,
    several: bool,
) -> io::Result<(Vec<Device>, u32)> {
    let builder = DeviceBuilder::new().name(config.name.as_str()).layer(Layer::L3);
    let builder = builder.inherit_enable_state().with(|builder| {
        builder.offload(offloads != Offloads::None);
        builder.multi_queue(several);
    });
    let first = builder.build_sync()?;
    let index = first.if_index()?;
    let more = if several { config.queues.clamp(1, QUEUES_MAX) - 1 } else { 0 };
    let more: Vec<_> = (0..more).map_while(|_| first.try_clone().ok()).collect();
    let queues = std::iter::once(first).chain(more).map(|queue| Device::new(queue, offloads));
    Ok((queues.collect::<io::Result<_>>()?, index))
}

/// Keeps the kernel from sending on its own: no link-local address, hence no router solicitations or group reports,
/// and IPv6 on even where it is off by default. Best effort: without it there are a few packets that nobody takes.
fn silence_autoconfiguration(name: &str) {
    for (key, value) in
        [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0")]
    {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value);
    }
}

fn connect(config: &InterfaceConfig) -> Result<Netlink, Error> {
    Netlink::open().map_err(io_error("open a netlink socket", config))
}

fn io_error(action: &'static str, config: &InterfaceConfig) -> impl FnOnce(io::Error) -> Error {
    let name = config.name.clone();
    move |source| Error::Io { action, name, source }
}
