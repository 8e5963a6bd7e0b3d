//! A hash map in parts, of which a changed copy shares all that did not change.
//!
//! A snapshot is published whenever one peer changed. Of a thousand peers only those in the same part are copied.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::proto::identity::MeshAddress;
use crate::proto::wire::relay::Slot;

/// Parts of a map: a copy costs as many reference counts.
const SHARDS: usize = 64;

/// A key that says which part of a map it belongs to: as good as random among honest keys. Whoever makes keys that
/// all belong to one part makes copies cost what they would cost without parts.
pub trait Shard: Copy + Eq + Hash {
    /// A number of which the lowest bits count.
    fn shard(&self) -> u8;
}

impl Shard for MeshAddress {
    fn shard(&self) -> u8 {
        let [.., last] = self.octets();
        last
    }
}

impl Shard for u32 {
    fn shard(&self) -> u8 {
        let [.., last] = self.to_be_bytes();
        last
    }
}

impl Shard for Slot {
    fn shard(&self) -> u8 {
        let [.., last] = self.0.to_be_bytes();
        last
    }
}

/// A hash map in parts.
#[derive(Debug)]
pub struct Shards<K, V>([Arc<HashMap<K, V>>; SHARDS]);

impl<K: Shard, V: Clone> Shards<K, V> {
    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0[usize::from(key.shard()) % SHARDS].get(key)
    }

    /// True when `key` has a value.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// How many keys have a value.
    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.len()).sum()
    }

    /// True when no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives `key` a value and returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.of(&key).insert(key, value)
    }

    /// Takes the value of `key` away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        if self.contains_key(key) { self.of(key).remove(key) } else { None }
    }

    fn of(&mut self, key: &K) -> &mut HashMap<K, V> {
        Arc::make_mut(&mut self.0[usize::from(key.shard()) % SHARDS])
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Arc::default()))
    }
}

impl<K, V> Clone for Shards<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
