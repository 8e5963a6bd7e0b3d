//! What the protocol core costs, without a kernel under it: `cargo bench --bench proto [-- FILTER]`.
//!
//! `cargo test --benches` runs each once, as a test. The whole daemon beside other programs: `scripts/bench`.

mod datapath;
mod lookup;
mod pair;
mod parse;
mod session;

use criterion::{BatchSize, Criterion};

/// Inputs that are made at once, outside of the time that is measured; few, so that they stay in the cache.
const BATCH: BatchSize = BatchSize::NumIterations(64);

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    session::bench(&mut criterion);
    parse::bench(&mut criterion);
    lookup::bench(&mut criterion);
    datapath::bench(&mut criterion);
    criterion.final_summary();
}
