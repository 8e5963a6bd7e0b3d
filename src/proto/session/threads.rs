//! What every sending thread of a session has of its own.
//!
//! Most peers ever use thread 0 alone, so that part is in place; the others are made when they are first needed.

use std::sync::OnceLock;

/// One value for each sending thread.
pub(super) struct PerThread<T> {
    first: T,
    others: Box<[OnceLock<Box<T>>]>,
}

impl<T> PerThread<T> {
    /// Room for so many threads, at least one; `first` is that of thread 0.
    pub(super) fn new(threads: u8, first: T) -> Self {
        Self { first, others: (1..threads).map(|_| OnceLock::new()).collect() }
    }

    /// How many threads there are.
    pub(super) const fn threads(&self) -> u8 {
        self.others.len() as u8 + 1
    }

    /// The value of a thread, if there is such a thread and it has one.
    #[inline]
    pub(super) fn get(&self, thread: u8) -> Option<&T> {
        match usize::from(thread).checked_sub(1) {
            None => Some(&self.first),
            Some(at) => self.others.get(at)?.get().map(Box::as_ref),
        }
    }

    /// The value of a thread, made now if it has none; `None` when there is no such thread.
    #[inline]
    pub(super) fn get_or_init(&self, thread: u8, make: impl FnOnce() -> T) -> Option<&T> {
        match usize::from(thread).checked_sub(1) {
            None => Some(&self.first),
            Some(at) => Some(self.others.get(at)?.get_or_init(|| Box::new(make()))),
        }
    }

    /// All values that there are, by thread.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(self.others.iter().filter_map(OnceLock::get).map(Box::as_ref))
    }

    /// Bytes outside of the value itself.
    #[cfg(test)]
    pub(super) fn memory_of_others(&self) -> usize {
        size_of_val(&*self.others) + (self.iter().count() - 1) * size_of::<T>()
    }
}
