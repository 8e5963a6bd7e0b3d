//! Ends a thread that waits in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A flag with a descriptor that becomes readable when it is set; it stays so.
#[derive(Debug)]
pub(super) struct Wake {
    stopping: AtomicBool,
    event: EventFd,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { stopping: AtomicBool::new(false), event })
    }

    pub(super) fn wake(&self) {
        self.stopping.store(true, Ordering::Release);
        // The counter cannot overflow: it is written once.
        let _ = self.event.write(1);
    }

    pub(super) fn is_set(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
