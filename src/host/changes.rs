//! What has just changed on this machine: links, addresses, routes, the packet filter.
//!
//! One rtnetlink socket and, where permitted, one nfnetlink socket listen to the kernel's multicast groups
//! (netlink(7), rtnetlink(7)). Changes come in bursts (a cable brings a link, addresses and routes), so the first
//! one opens a window of 50 ms, and what arrives within is reported once. When the kernel had to drop messages
//! (`ENOBUFS`), or more distinct changes come than anyone would treat one by one, the answer is
//! [`Change::Everything`]: look again at all. So it is when a socket breaks, and once more when there is another in its place.
//!
//! Messages say only *that* something changed; whoever is told asks the kernel for the present state, so a stale or
//! unreadable message does no harm. Only messages from the kernel itself (port 0) count.
#![expect(unsafe_code, reason = "registering a descriptor with tokio has no safe form")]

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep};

use crate::proto::identity::in_mesh;

/// How long after the first change of a burst the others are collected.
const WINDOW: Duration = Duration::from_millis(50);
/// Distinct changes kept before they become [`Change::Everything`].
const PENDING_MAX: usize = 64;
/// Bytes of one netlink read; the kernel's own messages stay under 8 KiB (NLMSG_GOODSIZE), rule sets under 32 KiB.
const READ_BYTES: usize = 32 * 1024;
/// A socket that broke is opened again after this; as long as that fails, everything may have changed so often.
const REOPEN_WAIT: Duration = Duration::from_secs(5);
/// Reads in a row before other tasks get their turn.
const READS_MAX: usize = 64;

/// rtnetlink groups as bits (linux/rtnetlink.h): link, IPv4 and IPv6 address, IPv4 and IPv6 route.
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400;
/// The bit of `NFNLGRP_NFTABLES`, group 7 (linux/netfilter/nfnetlink.h).
const NFTABLES_GROUP: u32 = 1 << 6;

/// Something that changed; the present state is for the reader to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Changes were lost: all of the below may be true.
    Everything,
    /// An interface came, went, or changed its state, MTU or name.
    Link {
        /// Its name.
        name: String,
    },
    /// An address was added or removed.
    Address,
    /// A default route, or an IPv6 route inside the mesh's range, was added or removed.
    Route,
    /// The nftables rule set was changed.
    Ruleset,
}

/// The stream of changes since [`Changes::listen`].
pub struct Changes {
    routes: Listener,
    filter: Option<Listener>,
    buffer: Vec<u8>,
    burst: Burst,
    /// Runs while a burst is being collected.
    window: Option<Pin<Box<Sleep>>>,
}

impl Changes {
    /// Begins to listen. Without permission for the packet filter's group (`CAP_NET_ADMIN`) that part is absent.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let routes = open(SockProtocol::NetlinkRoute, ROUTE_GROUPS)?;
        let mut changes = Self::read(routes)?;
        let filter = open(SockProtocol::NetlinkNetFilter, NFTABLES_GROUP).and_then(registered).ok();
        changes.filter = filter.map(|fd| Listener::new(fd, SockProtocol::NetlinkNetFilter, NFTABLES_GROUP));
        Ok(changes)
    }

    /// The changes that a socket tells of, the packet filter's not among them.
    pub(super) fn read(routes: OwnedFd) -> io::Result<Self> {
        let routes = Listener::new(registered(routes)?, SockProtocol::NetlinkRoute, ROUTE_GROUPS);
        let (buffer, burst) = (vec![0; READ_BYTES], Burst::default());
        Ok(Self { routes, filter: None, buffer, burst, window: None })
    }

    /// Whether changes of the packet filter are seen. Without this, it has to be checked from time to time.
    pub const fn sees_ruleset(&self) -> bool {
        self.filter.is_some()
    }

    /// Waits for the next change. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Change {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Change> {
        let had_some = !self.burst.is_empty();
        self.routes.poll(cx, &mut self.buffer, |message| self.burst.routes(message));
        if let Some(filter) = &mut self.filter {
            filter.poll(cx, &mut self.buffer, |message| self.burst.filter(message));
        }
        if self.burst.is_empty() {
            return Poll::Pending;
        }
        if !had_some {
            self.window = Some(Box::pin(sleep(WINDOW)));
        }
        if let Some(window) = &mut self.window {
            if window.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.window = None;
        }
        self.burst.pop().map_or(Poll::Pending, Poll::Ready)
    }
}

/// What one read of a netlink socket brought.
#[derive(Clone, Copy)]
pub(super) enum Message<'a> {
    /// One datagram of the kernel's.
    Bytes(&'a [u8]),
    /// The kernel had more to say than the socket could hold.
    Overflow,
}

/// Distinct changes that nobody has been told yet.
#[derive(Debug, Default)]
pub(super) struct Burst(BTreeSet<Change>);

impl Burst {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<Change> {
        self.0.pop_first()
    }

    /// Takes in what the rtnetlink socket brought.
    pub(super) fn routes(&mut self, message: Message<'_>) {
        match message {
            Message::Bytes(mut bytes) => {
                while let Some((kind, body, rest)) = next_message(bytes) {
                    if let Some(change) = route_change(kind, body) {
                        self.insert(change);
                    }
                    bytes = rest;
                }
            }
            Message::Overflow => self.insert(Change::Everything),
        }
    }

    /// Takes in what the nfnetlink socket brought: whatever it was, the rule set is another one.
    pub(super) fn filter(&mut self, _: Message<'_>) {
        self.insert(Change::Ruleset);
    }

    fn insert(&mut self, change: Change) {
        if self.0.contains(&Change::Everything) {
            return;
        }
        self.0.insert(change);
        if self.0.len() > PENDING_MAX || self.0.contains(&Change::Everything) {
            self.0 = BTreeSet::from([Change::Everything]);
        }
    }
}

/// One socket, opened anew when it breaks.
struct Listener {
    protocol: SockProtocol,
    groups: u32,
    state: ListenerState,
}

enum ListenerState {
    Open(AsyncFd<OwnedFd>),
    /// Until it is time to open it again.
    Broken(Pin<Box<Sleep>>),
}

impl Listener {
    const fn new(fd: AsyncFd<OwnedFd>, protocol: SockProtocol, groups: u32) -> Self {
        Self { protocol, groups, state: ListenerState::Open(fd) }
    }

    /// Takes what there is. What a broken socket would have told counts as overflow.
    fn poll(&mut self, cx: &mut Context<'_>, buffer: &mut [u8], mut take: impl FnMut(Message<'_>)) {
        loop {
            let result = match &mut self.state {
                ListenerState::Open(fd) => match drain(fd, cx, buffer, &mut take) {
                    Ok(()) => return,
                    Err(error) => Err(error),
                },
                ListenerState::Broken(again) => match again.as_mut().poll(cx) {
                    Poll::Pending => return,
                    Poll::Ready(()) => open(self.protocol, self.groups).and_then(registered),
                },
            };
            take(Message::Overflow);
            self.state = result.map_or_else(
                |error| {
                    tracing::debug!(%error, "changes of this machine are not seen");
                    ListenerState::Broken(Box::pin(sleep(REOPEN_WAIT)))
                },
                ListenerState::Open,
            );
        }
    }
}

fn open(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

fn registered(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `OwnedFd` is an open descriptor, owned by the `AsyncFd` for its whole life and never replaced.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Reads until the socket is empty, or [`READS_MAX`] times; then the task is woken again.
fn drain(
    fd: &AsyncFd<OwnedFd>,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
    take: &mut impl FnMut(Message<'_>),
) -> io::Result<()> {
    for _ in 0..READS_MAX {
        let Poll::Ready(ready) = fd.poll_read_ready(cx) else { return Ok(()) };
        let mut ready = ready?;
        match recvfrom::<NetlinkAddr>(fd.as_raw_fd(), buffer) {
            Ok((len, Some(sender))) if sender.pid() == 0 => take(Message::Bytes(&buffer[..len])),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::ENOBUFS) => take(Message::Overflow),
            Err(errno) => return Err(errno.into()),
        }
    }
    cx.waker().wake_by_ref();
    Ok(())
}

// Message types (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// Bytes of `struct nlmsghdr`: length u32, type u16, flags u16, sequence u32, port u32.
const HEADER_BYTES: usize = 16;
/// Bytes of `struct ifinfomsg`, in front of a link's attributes.
const LINK_HEADER_BYTES: usize = 16;
/// Bytes of `struct rtmsg`: family u8, destination length u8, …; in front of a route's attributes.
const ROUTE_HEADER_BYTES: usize = 12;
const IFLA_IFNAME: u16 = 3;
const RTA_DST: u16 = 1;
const AF_INET6: u8 = 10;

/// The first message of a datagram: its type, its body, and what follows.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER_BYTES..len)?;
    Some((kind, body, bytes.get(aligned(len)..).unwrap_or(&[])))
}

/// The value of the first attribute of a type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(aligned(len)..)?;
    }
}

/// Netlink pads to 4 bytes (`NLMSG_ALIGNTO`).
const fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

fn route_change(kind: u16, body: &[u8]) -> Option<Change> {
    match kind {
        RTM_NEWLINK | RTM_DELLINK => {
            let name = attribute(body.get(LINK_HEADER_BYTES..)?, IFLA_IFNAME)?;
            let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned();
            Some(Change::Link { name })
        }
        RTM_NEWADDR | RTM_DELADDR => Some(Change::Address),
        RTM_NEWROUTE | RTM_DELROUTE => concerns_us(body).then_some(Change::Route),
        _ => None,
    }
}

/// Default routes, and IPv6 routes into the mesh's range.
fn concerns_us(route: &[u8]) -> bool {
    let [family, destination_len, ..] = *route else { return false };
    if destination_len == 0 {
        return true;
    }
    let destination = route.get(ROUTE_HEADER_BYTES..).and_then(|attributes| attribute(attributes, RTA_DST));
    let destination = destination.and_then(|ip| <[u8; 16]>::try_from(ip).ok());
    family == AF_INET6 && destination.is_some_and(|ip| in_mesh(&Ipv6Addr::from(ip)))
}
