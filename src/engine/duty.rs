//! Which of a worker's two threads reads the interface: the inward thread while there is little to do, else a thread of
//! its own, so that both directions have a processor each.
//!
//! ```text
//! inward thread ──── BUSY_UNITS of work within BUSY_WINDOW ───► outward thread
//!               ◄─── less than CALM_UNITS in CALM_WINDOW ──────
//! ```
//!
//! To wake a thread on a processor that sleeps takes 35 µs in a virtual machine. What the kernel answers at once (an echo
//! reply, a reset, the second segment of a connection) leaves by the thread that delivered the question.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::wake::Event;
use crate::proto::timer::Instant;

/// Bytes that are as much work as a packet.
const UNIT_BYTES: usize = 1500;
/// More work than this in [`BUSY_WINDOW`] keeps a processor from other packets for too long.
const BUSY_UNITS: usize = 64;
const BUSY_WINDOW: Duration = Duration::from_millis(1);
/// Less work than this in [`CALM_WINDOW`] can be done beside the other direction's.
const CALM_UNITS: usize = 160;
pub(super) const CALM_WINDOW: Duration = Duration::from_millis(20);

/// Packets and bytes, as one number.
pub(super) const fn units(packets: usize, bytes: usize) -> usize {
    packets + bytes / UNIT_BYTES
}

/// Work that a thread has done since.
#[derive(Debug)]
pub(super) struct Load {
    since: Instant,
    units: usize,
}

impl Load {
    /// Nothing yet.
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, units: 0 }
    }

    /// Adds work; true when it is too much to do anything else beside.
    pub(super) fn is_busy(&mut self, now: Instant, units: usize) -> bool {
        if now >= self.since + BUSY_WINDOW {
            *self = Self::new(now);
        }
        self.units += units;
        self.units > BUSY_UNITS
    }

    /// Adds work; true at the end of a window in which there was little.
    pub(super) fn is_calm(&mut self, now: Instant, units: usize) -> bool {
        self.units += units;
        if now < self.since + CALM_WINDOW {
            return false;
        }
        let calm = self.units < CALM_UNITS;
        *self = Self::new(now);
        calm
    }
}

/// The inward thread's end: here the duty begins.
pub(super) struct InwardEnd<T> {
    held: Option<Box<T>>,
    to: SyncSender<Box<T>>,
    back: Receiver<Box<T>>,
    returned: Arc<Event>,
    busy_until_ns: Arc<AtomicU64>,
}

/// The outward thread's end.
pub(super) struct OutwardEnd<T> {
    from: Receiver<Box<T>>,
    back: SyncSender<Box<T>>,
    returned: Arc<Event>,
    busy_until_ns: Arc<AtomicU64>,
}

/// Both ends; `duty` is what is needed to do it, which only one thread has at a time.
///
/// # Errors
/// When the system has no more descriptors.
pub(super) fn ends<T>(duty: T) -> io::Result<(InwardEnd<T>, OutwardEnd<T>)> {
    let (to, from) = sync_channel(1);
    let (give_back, back) = sync_channel(1);
    let returned = Arc::new(Event::new()?);
    let busy_until_ns = Arc::new(AtomicU64::new(0));
    let outward = OutwardEnd {
        from,
        back: give_back,
        returned: returned.clone(),
        busy_until_ns: busy_until_ns.clone(),
    };
    Ok((InwardEnd { held: Some(Box::new(duty)), to, back, returned, busy_until_ns }, outward))
}

impl<T> InwardEnd<T> {
    /// The duty, while it is here.
    pub(super) fn held(&mut self) -> Option<&mut T> {
        self.held.as_deref_mut()
    }

    /// Readable when the duty comes back.
    pub(super) fn returned(&self) -> &Event {
        &self.returned
    }

    /// Hands the duty over while this thread is busy, and takes it back when it has been returned.
    pub(super) fn balance(&mut self, now: Instant, busy: bool) {
        if busy {
            self.busy_until_ns.store((now + CALM_WINDOW).as_nanos(), Ordering::Relaxed);
        }
        match self.held.take() {
            Some(duty) if busy => {
                // The channel has room for the one duty that there is; a thread that has ended was reported.
                let _ = self.to.try_send(duty);
            }
            Some(duty) => self.held = Some(duty),
            None => {
                if let Ok(duty) = self.back.try_recv() {
                    self.returned.clear();
                    self.held = Some(duty);
                }
            }
        }
    }
}

impl<T> OutwardEnd<T> {
    /// Waits for the duty; `None` when the other thread has ended.
    pub(super) fn wait(&self) -> Option<Box<T>> {
        self.from.recv().ok()
    }

    /// True while the other thread has no time for it.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        now.as_nanos() < self.busy_until_ns.load(Ordering::Relaxed)
    }

    /// Gives the duty back.
    pub(super) fn give_back(&self, duty: Box<T>) {
        // In this order: who takes the duty clears the event, and nothing may set it after that.
        self.returned.set();
        let _ = self.back.try_send(duty);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn at(us: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + us * 1000)
    }

    #[test]
    fn much_work_in_a_moment_is_busy_and_the_same_in_a_second_is_not() {
        let mut load = Load::new(at(0));
        assert!((0..BUSY_UNITS as u64).all(|n| !load.is_busy(at(n), 1)));
        assert!(load.is_busy(at(999), 1));
        assert!(!load.is_busy(at(1000), 1), "a new window");
        let mut load = Load::new(at(0));
        assert!((0..1000).all(|n| !load.is_busy(at(n * 1000), 10)));
        assert!(load.is_busy(at(2_000_000), units(1, 62_000) * 2), "few packets, but large");
    }

    #[test]
    fn calm_is_little_work_for_long() {
        let mut load = Load::new(at(0));
        assert!(!load.is_calm(at(19_999), 0), "not for long yet");
        assert!(load.is_calm(at(20_000), 0));
        assert!(!load.is_calm(at(30_000), CALM_UNITS));
        assert!(!load.is_calm(at(40_000), 0), "too much in this window");
        assert!(load.is_calm(at(60_000), CALM_UNITS - 1), "the next one counts anew");
    }

    /// An event that stayed set would keep the inward thread awake for as long as the other one has the duty.
    #[test]
    fn nothing_is_left_to_wake_up_for_when_the_duty_is_back() {
        let (mut inward, outward) = ends(()).unwrap();
        let (given, is_given) = sync_channel(1);
        let returning = std::thread::spawn(move || {
            while let Some(duty) = outward.wait() {
                outward.give_back(duty);
                given.send(()).unwrap();
            }
        });
        for round in 0..20_000 {
            inward.balance(at(0), true);
            while inward.held().is_none() {
                inward.balance(at(0), false);
            }
            is_given.recv().unwrap();
            let mut polled = [PollFd::new(inward.returned().as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut polled, PollTimeout::ZERO), Ok(0), "round {round}");
        }
        drop(inward);
        returning.join().unwrap();
    }

    #[test]
    fn the_duty_is_in_one_place_only() {
        let (mut inward, outward) = ends(7).unwrap();
        inward.balance(at(0), false);
        assert_eq!(inward.held(), Some(&mut 7), "it begins here");
        inward.balance(at(0), true);
        assert_eq!(inward.held(), None);
        assert!(outward.is_wanted(at(0)) && !outward.is_wanted(at(20_000)));
        let duty = outward.wait().unwrap();
        inward.balance(at(30_000), false);
        assert_eq!(inward.held(), None, "not before it is given back");
        outward.give_back(duty);
        inward.balance(at(30_000), false);
        assert_eq!(inward.held(), Some(&mut 7));
        drop(inward);
        assert_eq!(outward.wait(), None, "the other thread has ended");
    }
}
