//! The packet path allocates nothing.

#![expect(unsafe_code, reason = "an allocator that counts")]
#![expect(dead_code, reason = "the benchmarks use more of the pair")]

#[path = "bench/pair.rs"]
mod pair;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use auramesh::proto::datapath::{Outbox, Reception};
use auramesh::proto::wire::handshake::Suite;

use pair::{Pair, Wire};

/// Counts the calls of each thread for itself.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator; the counter neither allocates nor needs to be dropped.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    work();
    COUNT.with(Cell::get) - before
}

#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn the_packet_path_allocates_nothing_per_packet() {
    let pair = Pair::connected(Suite::Aes256Gcm);
    let cases = [
        vec![pair.udp(64)],
        vec![pair.udp(112); 100],
        vec![pair.udp(1400); 100],
        vec![pair.large_tcp(60_000)],
        vec![pair.udp(64), pair.large_tcp(60_000), pair.udp(1400), pair.large_tcp(3000)],
    ];
    let (mut outbox, mut reception) = (Outbox::new(), Reception::new(true));
    for packets in cases {
        let mut sent = 0;
        let outward = allocations(|| {
            for _ in 0..100 {
                let mut wire = Wire::default();
                pair.outbound(&mut outbox, &packets, &mut wire);
                sent += wire.bytes;
            }
        });
        assert!(sent >= 6400);
        assert_eq!(outward, 0, "outward, {} packets", packets.len());
        // Trains whole, and each datagram alone.
        for alone in [false, true] {
            let mut wire = Wire { keep: true, ..Wire::default() };
            pair.outbound(&mut outbox, &packets, &mut wire);
            let mut delivered = 0;
            let inward = allocations(|| {
                for (datagram_len, train) in &mut wire.trains {
                    let datagram_len = *datagram_len;
                    let each = if alone { datagram_len } else { train.len() };
                    let trains = train.chunks_mut(each);
                    delivered +=
                        trains.map(|train| pair.inbound(&mut reception, train, datagram_len)).sum::<usize>();
                }
            });
            assert_eq!(delivered, packets.len());
            assert_eq!(inward, 0, "inward, {} packets", packets.len());
        }
    }
}
