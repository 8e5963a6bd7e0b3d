//! Who may hold a connection while there are many.
//!
//! ```text
//! Pending   accepted, has not asked for a stream      the oldest gives way: first of its own network, then of all
//! Unproven  a stream that the node has not answered   gives way when all places are taken
//! Proven    a stream that the node has answered: somebody there has authenticated
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::proto::relay::prefix;

/// Connections that have not asked for a stream yet.
pub const PENDING_MAX: usize = 128;
/// The same of one IPv4 /24 or IPv6 /48.
pub const PENDING_PER_PREFIX_MAX: usize = 16;
/// Streams that others opened.
pub const PLACES_MAX: usize = 256;
/// The same of one prefix.
pub const PLACES_PER_PREFIX_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Pending,
    Unproven,
    Proven,
}

#[derive(Debug)]
struct Taken {
    prefix: (bool, u64),
    standing: Standing,
    evict: oneshot::Sender<()>,
}

/// The table; numbers rise, so the lowest is the oldest.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: BTreeMap<u64, Taken>,
    next: u64,
    evicted: u64,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    places: Rc<RefCell<Places>>,
}

impl Places {
    /// Takes a place for a connection from `ip`; the receiver is told when it has to give way.
    pub(super) fn admit(&mut self, ip: IpAddr) -> (u64, oneshot::Receiver<()>) {
        let prefix = prefix(ip);
        let pending = |taken: &Taken| taken.standing == Standing::Pending;
        if self.count(|taken| pending(taken) && taken.prefix == prefix) >= PENDING_PER_PREFIX_MAX {
            self.evict(|taken| pending(taken) && taken.prefix == prefix);
        } else if self.count(pending) >= PENDING_MAX {
            self.evict(pending);
        }
        let (evict, evicted) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.taken.insert(number, Taken { prefix, standing: Standing::Pending, evict });
        (number, evicted)
    }

    /// The connection becomes a stream; false when there are too many.
    pub(super) fn upgrade(&mut self, number: u64) -> bool {
        let Some(prefix) = self.taken.get(&number).map(|taken| taken.prefix) else { return false };
        let stream = |taken: &Taken| taken.standing != Standing::Pending;
        let unproven = |taken: &Taken| taken.standing == Standing::Unproven;
        let of_prefix = |taken: &Taken| taken.prefix == prefix;
        if self.count(|taken| stream(taken) && of_prefix(taken)) >= PLACES_PER_PREFIX_MAX {
            if !self.evict(|taken| unproven(taken) && of_prefix(taken)) {
                return false;
            }
        } else if self.count(stream) >= PLACES_MAX && !self.evict(unproven) {
            return false;
        }
        if let Some(taken) = self.taken.get_mut(&number) {
            taken.standing = Standing::Unproven;
        }
        true
    }

    /// The node has answered on the stream.
    pub(super) fn prove(&mut self, number: u64) {
        if let Some(taken) = self.taken.get_mut(&number) {
            taken.standing = Standing::Proven;
        }
    }

    /// Gives a place back.
    pub(super) fn leave(&mut self, number: u64) {
        self.taken.remove(&number);
    }

    /// Connections ended for others since this was last asked.
    pub(super) fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    fn count(&self, of: impl Fn(&Taken) -> bool) -> usize {
        self.taken.values().filter(|taken| of(taken)).count()
    }

    fn evict(&mut self, of: impl Fn(&Taken) -> bool) -> bool {
        let oldest = self.taken.iter().find(|(_, taken)| of(taken)).map(|(number, _)| *number);
        self.evicted += u64::from(oldest.is_some());
        let taken = oldest.and_then(|number| self.taken.remove(&number));
        // Who has ended meanwhile need not be told.
        taken.map(|taken| taken.evict.send(())).is_some()
    }
}

impl Place {
    pub(super) const fn new(number: u64, places: Rc<RefCell<Places>>) -> Self {
        Self { number, places }
    }

    pub(super) fn upgrade(&self) -> bool {
        self.places.borrow_mut().upgrade(self.number)
    }

    pub(super) fn prove(&self) {
        self.places.borrow_mut().prove(self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.borrow_mut().leave(self.number);
    }
}
