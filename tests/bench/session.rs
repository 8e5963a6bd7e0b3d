//! Sealing and opening in place, with nothing around it.

use criterion::{BenchmarkId, Criterion, Throughput};

use auramesh::proto::wire::handshake::Suite;
use auramesh::proto::wire::session::{HEADER_LEN, Header, mask};

use crate::BATCH;
use crate::pair::{NOW, Pair, buffer, seal};

const SUITES: [(&str, Suite); 2] =
    [("aes-256-gcm", Suite::Aes256Gcm), ("chacha20-poly1305", Suite::ChaCha20Poly1305)];
/// Plaintexts in bytes: multiples of 16, so that no padding is added.
const LENGTHS: [usize; 2] = [64, 1408];

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for (name, suite) in SUITES {
        for len in LENGTHS {
            let pair = Pair::connected(suite);
            let packet = buffer(&vec![0x5a; len]);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                let session = pair.sealing();
                bencher.iter_batched_ref(|| packet.clone(), |packet| seal(session, packet, len), BATCH);
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("open");
    for (name, suite) in SUITES {
        for len in LENGTHS {
            let pair = Pair::connected(suite);
            let plain = buffer(&vec![0x5a; len]);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                let session = pair.opening();
                bencher.iter_batched_ref(
                    || unmasked(&pair, &plain, len),
                    |(header, packet)| {
                        session.open(header, packet, NOW).expect("it is genuine and new").plaintext.len()
                    },
                    BATCH,
                );
            });
        }
    }
    group.finish();
}

/// A new packet of the session, and its header.
fn unmasked(pair: &Pair, plain: &[u8], len: usize) -> (Header, Vec<u8>) {
    let mut packet = plain.to_vec();
    let total = seal(pair.sealing(), &mut packet, len);
    packet.truncate(total);
    mask(pair.mask_key(), &mut packet).expect("it is long enough");
    let header = Header::parse(packet.first_chunk::<HEADER_LEN>().expect("it has a header"));
    (header.expect("it was made here"), packet)
}
