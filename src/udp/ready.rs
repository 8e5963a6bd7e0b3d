//! Which of hundreds of sockets has something to read, for a task that waits for all of them.
#![expect(unsafe_code, reason = "registering a descriptor with tokio")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::UdpSocket;

/// Most sockets that one call names.
const NAMED_MAX: usize = 16;

/// A set of sockets, each under a number.
#[derive(Debug)]
pub struct ReadySet {
    epoll: AsyncFd<Descriptor>,
    /// The last call named some: there may be more.
    more: bool,
}

#[derive(Debug)]
struct Descriptor(Epoll);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl ReadySet {
    /// An empty one.
    ///
    /// # Errors
    /// When there are no more descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let epoll = Descriptor(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        // SAFETY: the `Epoll` is an open descriptor, owned by the `AsyncFd` for its whole life and never replaced.
        let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }?;
        Ok(Self { epoll, more: false })
    }

    /// Adds a socket. It leaves when it is closed.
    ///
    /// # Errors
    /// When it is in already, or the system has no room.
    pub fn add(&self, socket: &UdpSocket, number: u64) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        Ok(self.epoll.get_ref().0.add(socket.as_fd(), event)?)
    }

    /// Takes a socket out that stays open.
    ///
    /// # Errors
    /// When it was not in.
    pub fn remove(&self, socket: &UdpSocket) -> io::Result<()> {
        Ok(self.epoll.get_ref().0.delete(socket.as_fd())?)
    }

    /// Waits until a socket has something to read. Then call [`ReadySet::ready`].
    ///
    /// # Errors
    /// When the runtime ends.
    pub async fn readable(&mut self) -> io::Result<()> {
        if !self.more {
            self.epoll.readable().await?.clear_ready();
        }
        Ok(())
    }

    /// Numbers of sockets that have something to read, some of them.
    pub fn ready(&mut self) -> impl Iterator<Item = u64> + use<> {
        let mut events = [EpollEvent::empty(); NAMED_MAX];
        let named = self.epoll.get_ref().0.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        self.more = named > 0;
        events.into_iter().take(named).map(|event| event.data())
    }
}
