//! The keys of a network, by position, and keys made to stand where their owner wants.

use std::net::{Ipv6Addr, SocketAddr};
use std::thread;

use auramesh::proto::identity::{Distance, Identity, NodeId, Position};
use auramesh::proto::wire::control::Contact;
use curve25519_dalek::Scalar;
use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;

/// Keys for which one field inversion is shared.
const BATCH: usize = 512;

/// Pieces in which keys are ground, as many on every machine so that they are the same.
const GROUND_PARTS: usize = 64;

/// A key and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Person {
    pub(crate) position: Position,
    pub(crate) id: NodeId,
}

impl Person {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self { position: identity.node_id().position(), id: identity.node_id() }
    }

    /// How it is named. Each has a network of its own, so that the limits on networks do not help the attacked.
    pub(crate) fn contact(&self) -> Contact {
        let mut octets = [0x2a; 16];
        octets[1..6].copy_from_slice(&self.position.0[27..]);
        let endpoint = SocketAddr::from((Ipv6Addr::from(octets), 5747));
        Contact { node_id: self.id, x25519: self.position.0, endpoint }
    }

    /// See [`lot`].
    pub(crate) fn lot(&self) -> u64 {
        lot(&self.position)
    }
}

/// A number of its own for each position, evenly spread and without relation to where it is.
pub(crate) fn lot(position: &Position) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| position.0[16 + i]))
}

/// Keys that follow each other on the curve: a hundred times faster than from seeds, and as good to be looked for.
fn keys(seed: u64, count: usize, mut take: impl FnMut(Person)) {
    let start: [u8; 32] = *blake3::hash(&seed.to_be_bytes()).as_bytes();
    let mut point = ED25519_BASEPOINT_POINT * Scalar::from_bytes_mod_order(start);
    let mut points = Vec::with_capacity(BATCH);
    for _ in 0..count.div_ceil(BATCH) {
        points.clear();
        for _ in 0..BATCH {
            points.push(point);
            point += ED25519_BASEPOINT_POINT;
        }
        for key in curve25519_dalek::EdwardsPoint::compress_batch_alloc(&points) {
            let id = NodeId(key.to_bytes());
            take(Person { position: id.position(), id });
        }
    }
}

/// A set of keys in the order of their positions.
#[derive(Debug, Default)]
pub(crate) struct People(Vec<Person>);

impl People {
    /// `count` keys, the same for the same seed.
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        let mut all = Vec::with_capacity(count + BATCH);
        keys(seed, count, |person| all.push(person));
        all.truncate(count);
        all.sort_unstable();
        Self(all)
    }

    /// Those whose position starts with the first `bits` of `like`.
    pub(crate) fn with_prefix(&self, like: &Position, bits: u32) -> &[Person] {
        let (mut low, mut high) = (*like, *like);
        for bit in bits..256 {
            set(&mut low, bit, false);
            set(&mut high, bit, true);
        }
        let from = self.0.partition_point(|person| person.position < low);
        let length = self.0[from..].partition_point(|person| person.position <= high);
        &self.0[from..from + length]
    }

    pub(crate) fn find(&self, id: &NodeId) -> Option<&Person> {
        let position = id.position();
        self.0.binary_search_by(|person| person.position.cmp(&position)).ok().map(|i| &self.0[i])
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }
}

/// For each of `near` the `each` nearest keys that an attacker finds who makes `tries` of them.
pub(crate) fn ground(seed: u64, near: &[Position], each: usize, tries: usize) -> Vec<People> {
    // Twice as many as wanted are expected in here.
    let bits = ((tries / (2 * each)).ilog2()).min(30);
    let prefix = |position: &Position| -> u32 {
        u32::from_be_bytes([position.0[0], position.0[1], position.0[2], position.0[3]]) >> (32 - bits)
    };
    let mut wanted = vec![false; 1 << bits];
    near.iter().for_each(|position| wanted[prefix(position) as usize] = true);
    let parts = parallel(GROUND_PARTS, |part| {
        let mut found = Vec::new();
        keys(seed ^ (part as u64 + 1) << 48, tries / GROUND_PARTS, |person| {
            if wanted[prefix(&person.position) as usize] {
                found.push(person);
            }
        });
        found
    });
    let mut found = parts.concat();
    found.sort_unstable();
    let found = People(found);
    let nearest = |position: &Position| {
        let mut all = found.with_prefix(position, bits).to_vec();
        all.sort_by_cached_key(|person| person.position.distance(position));
        all.truncate(each);
        all.sort_unstable();
        People(all)
    };
    near.iter().map(nearest).collect()
}

/// The results of so many pieces of work in their order, on all processors.
pub(crate) fn parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let one = |worker: usize| -> Vec<T> { (worker..count).step_by(workers).map(&work).collect() };
    let mut parts: Vec<_> = thread::scope(|scope| {
        let parts: Vec<_> = (0..workers).map(|worker| scope.spawn(move || one(worker))).collect();
        parts.into_iter().map(|part| part.join().expect("the worker ends").into_iter()).collect()
    });
    (0..count).map(|i| parts[i % workers].next().expect("each piece has its result")).collect()
}

/// Leading bits that two positions share.
pub(crate) fn shared(a: &Position, b: &Position) -> u32 {
    a.distance(b).leading_zeros()
}

/// The position with one bit turned.
pub(crate) fn flipped(position: &Position, bit: u32) -> Position {
    let mut other = *position;
    other.0[bit as usize / 8] ^= 0x80 >> (bit % 8);
    other
}

fn set(position: &mut Position, bit: u32, value: bool) {
    let mask = 0x80 >> (bit % 8);
    let byte = &mut position.0[bit as usize / 8];
    *byte = if value { *byte | mask } else { *byte & !mask };
}

/// Sorted by distance to a point, at most `n`.
pub(crate) fn nearest(mut people: Vec<Person>, point: &Position, n: usize) -> Vec<Person> {
    let distance = |person: &Person| -> Distance { person.position.distance(point) };
    if people.len() > n {
        people.select_nth_unstable_by_key(n, distance);
        people.truncate(n);
    }
    people.sort_unstable_by_key(distance);
    people
}
