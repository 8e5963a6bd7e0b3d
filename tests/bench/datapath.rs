//! End to end in memory: packets from one interface to trains, and those trains to the other's interface.

use criterion::{BenchmarkId, Criterion, Throughput};

use auramesh::proto::datapath::{Outbox, Reception};
use auramesh::proto::wire::handshake::Suite;

use crate::BATCH;
use crate::pair::{Pair, Wire};

pub(crate) fn bench(criterion: &mut Criterion) {
    let pair = Pair::connected(Suite::Aes256Gcm);
    let cases = [
        ("one of 64 B", vec![pair.udp(64)]),
        ("32 of 112 B", vec![pair.udp(112); 32]),
        ("one of 1400 B", vec![pair.udp(1400)]),
        ("one of 60 KB", vec![pair.large_tcp(60_000)]),
    ];
    let mut group = criterion.benchmark_group("datapath");
    for (name, packets) in cases {
        let bytes: usize = packets.iter().map(|(packet, _)| packet.len()).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut outbox = Outbox::new();
        group.bench_function(BenchmarkId::new("outbound", name), |bencher| {
            let mut wire = Wire::default();
            bencher.iter(|| pair.outbound(&mut outbox, &packets, &mut wire));
            assert!(wire.bytes >= bytes);
        });
        let mut reception = Reception::new(true);
        let mut trains = || {
            let mut wire = Wire { keep: true, ..Wire::default() };
            pair.outbound(&mut outbox, &packets, &mut wire);
            wire.trains
        };
        group.bench_function(BenchmarkId::new("inbound", name), |bencher| {
            bencher.iter_batched_ref(
                &mut trains,
                |trains| {
                    let each = trains.iter_mut();
                    let delivered = each.map(|(len, train)| pair.inbound(&mut reception, train, *len));
                    assert_eq!(delivered.sum::<usize>(), packets.len());
                },
                BATCH,
            );
        });
    }
    group.finish();
}
