//! Reading what comes: the header of a session packet, the packet inside, a signed record.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::Criterion;

use auramesh::proto::timer::WallTime;
use auramesh::proto::wire::handshake::Suite;
use auramesh::proto::wire::inner::Inner;
use auramesh::proto::wire::record::{CAPABILITY_DHT_SERVER, Content, NodeRecord};
use auramesh::proto::wire::session::{HEADER_LEN, Header, mask};

use crate::pair::{Pair, buffer, identity, seal};

pub(crate) fn bench(criterion: &mut Criterion) {
    let pair = Pair::connected(Suite::Aes256Gcm);
    let (inner, _) = pair.udp(64);
    let mut sealed = buffer(&inner);
    let len = seal(pair.sealing(), &mut sealed, inner.len());
    sealed.truncate(len);
    let sealed: [u8; 64] = *sealed.first_chunk().expect("a sealed packet is longer");
    let record = record();

    let mut group = criterion.benchmark_group("parse");
    group.bench_function("session header", |bencher| {
        bencher.iter(|| {
            let mut packet = black_box(sealed);
            mask(pair.mask_key(), &mut packet).expect("it is long enough");
            Header::parse(packet.first_chunk::<HEADER_LEN>().expect("it has a header"))
        });
    });
    group.bench_function("inner packet", |bencher| {
        bencher.iter(|| Inner::parse(black_box(&inner)).expect("it is one"));
    });
    group.bench_function("node record", |bencher| {
        bencher.iter(|| NodeRecord::parse(black_box(&record)).expect("its signature is right"));
    });
    group.finish();
}

/// A record with one endpoint of each family.
fn record() -> Vec<u8> {
    let endpoints = ["192.0.2.7:5747", "[2001:db8::7]:5747"];
    let content = Content {
        sequence: 1,
        issued: WallTime::from_unix_ms(1_800_000_000_000),
        ttl: Duration::from_secs(3600),
        capabilities: CAPABILITY_DHT_SERVER,
        endpoints: endpoints.iter().map(|text| text.parse::<SocketAddr>().expect("an address")).collect(),
        relays: Vec::new(),
        streams: Vec::new(),
    };
    NodeRecord::sign(&identity(9), content).bytes().to_vec()
}
