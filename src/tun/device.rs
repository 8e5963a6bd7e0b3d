//! The packet side: one IP packet a call, without waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tun_rs::SyncDevice;

/// The open TUN device. May be used by several threads at once.
pub struct Device(SyncDevice);

impl Device {
    pub(super) fn new(device: SyncDevice) -> io::Result<Self> {
        device.set_nonblocking(true)?;
        Ok(Self(device))
    }

    /// Takes one IP packet that the kernel wants to send into the mesh; returns its length. A packet longer than
    /// `buffer` is cut off, so `buffer` needs the MTU's bytes at least.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; see [`is_deleted`].
    #[inline]
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    /// Hands one IP packet to the kernel as received; returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when the kernel has no room; see [`is_deleted`] and [`is_down`]. `InvalidInput` when it is no
    /// IP packet.
    #[inline]
    pub fn send(&self, packet: &[u8]) -> io::Result<usize> {
        self.0.send(packet)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// True for the error of a [`Device`] whose interface exists no more (`EBADFD`): it will never work again.
pub fn is_deleted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// True for the error of a [`Device`] whose interface is down (`EIO`): it works again when the interface is up.
pub fn is_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}
