//! Wakes a thread that waits in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A descriptor that is readable from when it is set until it is cleared.
#[derive(Debug)]
pub(super) struct Event(EventFd);

impl Event {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    pub(super) fn set(&self) {
        // Refused only when it is set as often as 64 bits can tell.
        let _ = self.0.write(1);
    }

    pub(super) fn clear(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells threads to end: a flag with a descriptor that becomes readable when it is set; it stays so.
#[derive(Debug)]
pub(super) struct Wake {
    stopping: AtomicBool,
    event: Event,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { stopping: AtomicBool::new(false), event: Event::new()? })
    }

    pub(super) fn wake(&self) {
        self.stopping.store(true, Ordering::Release);
        self.event.set();
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
