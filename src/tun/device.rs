//! The packet side: one packet a call, without waiting, in as many pieces as the caller likes.
//!
//! With offloads (`IFF_VNET_HDR`), a packet may be as large as 64 KiB and its checksum partial: a header in front of it
//! says what is left to do. A kernel or device that has none gives and takes whole packets of the interface's MTU.
#![expect(unsafe_code, reason = "TUNSETOFFLOAD has no safe call in tun-rs")]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use tun_rs::SyncDevice;

use crate::proto::wire::gso::{VIRTIO_LEN, Virtio};
use crate::proto::wire::session::SLICES_MAX;

/// Most pieces of one packet.
const PIECES_MAX: usize = SLICES_MAX as usize;

nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);

/// How much of their work the kernel may leave to us and we to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offloads {
    /// Whole packets with complete checksums.
    None,
    /// Large TCP packets and partial checksums.
    Tcp,
    /// Large UDP packets too (Linux 6.2).
    #[default]
    TcpUdp,
}

impl Offloads {
    /// Name in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::TcpUdp => "tcp-udp",
        }
    }
}

/// The open TUN device. May be used by several threads at once.
pub struct Device {
    tun: SyncDevice,
    offloads: Offloads,
}

impl Device {
    /// Uses as many offloads as the device was opened with, at most `wanted`.
    pub(super) fn new(tun: SyncDevice, wanted: Offloads) -> io::Result<Self> {
        tun.set_nonblocking(true)?;
        let has = match (tun.tcp_gso(), tun.udp_gso()) {
            (false, _) => Offloads::None,
            (true, false) => Offloads::Tcp,
            (true, true) => Offloads::TcpUdp,
        };
        let offloads = has.min(wanted);
        if offloads == Offloads::Tcp && has == Offloads::TcpUdp {
            let flags = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
            // SAFETY: the descriptor is an open TUN, and the argument is a set of flags, not a pointer.
            unsafe { tun_set_offload(tun.as_raw_fd(), flags as libc::c_int)? };
        }
        Ok(Self { tun, offloads })
    }

    /// What the kernel and we do for each other.
    pub const fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Takes one packet that the kernel wants to send into the mesh, into `pieces` one after the other; returns its
    /// length and what is left to do. A packet longer than all pieces is cut off.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; see [`is_deleted`]. `InvalidData` for a packet that is none of ours.
    #[inline]
    pub fn recv<'p>(&self, pieces: impl IntoIterator<Item = &'p mut [u8]>) -> io::Result<(usize, Virtio)> {
        let mut header = [0; VIRTIO_LEN];
        let mut slices: [IoSliceMut<'_>; PIECES_MAX + 1] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let has_header = self.offloads != Offloads::None;
        let mut used = 0;
        if has_header {
            slices[0] = IoSliceMut::new(&mut header);
            used = 1;
        }
        for (slice, piece) in slices[used..].iter_mut().zip(pieces) {
            *slice = IoSliceMut::new(piece);
            used += 1;
        }
        let len = self.tun.recv_vectored(&mut slices[..used])?;
        if !has_header {
            return Ok((len, Virtio::PLAIN));
        }
        let len = len.checked_sub(VIRTIO_LEN).ok_or(io::ErrorKind::InvalidData)?;
        Ok((len, Virtio::parse(&header).map_err(|_| io::ErrorKind::InvalidData)?))
    }

    /// Hands one packet to the kernel as received, in pieces.
    ///
    /// # Errors
    /// `Unsupported` when the kernel has to do more for it than the device can; `InvalidInput` when the kernel refuses
    /// it; see [`is_deleted`] and [`is_down`].
    #[inline]
    pub fn send(&self, virtio: Virtio, pieces: &[&[u8]]) -> io::Result<()> {
        if self.offloads == Offloads::None {
            if virtio != Virtio::PLAIN {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if let [packet] = pieces {
                return self.tun.send(packet).map(|_| ());
            }
        }
        if self.offloads == Offloads::Tcp && virtio.is_udp_train() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let header = virtio.emit();
        let mut slices = [IoSlice::new(&[]); PIECES_MAX + 1];
        let mut used = 0;
        if self.offloads != Offloads::None {
            slices[0] = IoSlice::new(&header);
            used = 1;
        }
        for (slice, piece) in slices[used..].iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            used += 1;
        }
        self.tun.send_vectored(&slices[..used]).map(|_| ())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
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
