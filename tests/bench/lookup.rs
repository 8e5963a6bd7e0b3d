//! Finding: contacts in a full DHT table, a route and a session in a large snapshot.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::Criterion;

use auramesh::proto::dht::{Dht, K, Mode};
use auramesh::proto::identity::Position;
use auramesh::proto::wire::control::Contact;
use auramesh::proto::wire::handshake::Suite;

use crate::pair::{NOW, Pair, identity};

/// Nodes that are offered to the table: its seven farthest buckets are full then.
const NODES: u32 = 4096;
/// Peers in the snapshot.
const PEERS: u32 = 1024;
/// Questions that are asked in turn; a power of two.
const QUESTIONS: usize = 256;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    let dht = full_table();
    let targets: Vec<Position> =
        (0..QUESTIONS).map(|n| identity(1_000_000 + n as u32).node_id().position()).collect();
    let mut n = 0;
    group.bench_function("dht closest 20", |bencher| {
        bencher.iter(|| {
            n = (n + 1) % QUESTIONS;
            dht.closest(black_box(&targets[n]), K)
        });
    });

    let pair = Pair::connected(Suite::Aes256Gcm);
    let addresses: Vec<_> = (1..=PEERS).map(|n| identity(n).address()).collect();
    let snapshot = pair.snapshot_with(&addresses);
    group.bench_function("snapshot route", |bencher| {
        bencher.iter(|| {
            n = (n + 1) % QUESTIONS;
            snapshot.routes.get(black_box(&addresses[n])).expect("it is there").endpoint
        });
    });
    group.finish();
}

fn full_table() -> Dht {
    let mut dht = Dht::new(identity(0).node_id(), Mode::Server, [1; 32], NOW);
    for n in 1..=NODES {
        let identity = identity(n);
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + n);
        let endpoint = SocketAddr::from((ip, 5747));
        let contact = Contact { node_id: identity.node_id(), x25519: identity.x25519_public(), endpoint };
        dht.handle_peer_up(NOW, contact, true);
    }
    let contacts: usize = dht.status().buckets.iter().map(|bucket| bucket.contacts).sum();
    assert!(contacts >= 7 * K, "the table has only {contacts} contacts");
    dht
}
