//! End to end in memory: a packet from one interface to a datagram, and that datagram to the other's interface.

use criterion::{BenchmarkId, Criterion, Throughput};

use auramesh::proto::wire::handshake::Suite;

use crate::BATCH;
use crate::pair::{Pair, buffer};

/// Inner packets in bytes, headers included: small, and of a bulk transfer.
const LENGTHS: [usize; 2] = [64, 1400];

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("datapath");
    for len in LENGTHS {
        let pair = Pair::connected(Suite::Aes256Gcm);
        let inner = pair.inner(len);
        let packet = buffer(&inner);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("outbound", len), |bencher| {
            bencher.iter_batched_ref(|| packet.clone(), |packet| pair.outbound(packet, len), BATCH);
        });
        group.bench_function(BenchmarkId::new("inbound", len), |bencher| {
            bencher.iter_batched_ref(
                || pair.sealed(&inner),
                |datagram| assert_eq!(pair.inbound(datagram), len),
                BATCH,
            );
        });
    }
    group.finish();
}
