//! What the fuzz targets check, also over the committed corpus on the stable toolchain (`replay.rs`).
//!
//! A check takes any bytes and panics when a property does not hold. To add the target `x`: a function here, its line
//! in [`TARGETS`], `fuzz_targets/x.rs` and its `[[bin]]` like those of the others, and a seed in `corpus/x/`; the
//! replay names what is missing. Then `scripts/fuzz 60 x`.

mod dht;
mod identity;
mod inner;
mod node;
mod outer;
mod payload;
mod portmap;
mod session;
mod superframe;

/// Panics when a property does not hold for these bytes.
pub type Check = fn(&[u8]);

/// Name and check of each target.
pub const TARGETS: &[(&str, Check)] = &[
    ("announce", payload::announce),
    ("control", payload::control),
    ("cookie", outer::cookie),
    ("dht", dht::dht),
    ("endpoint", payload::endpoint),
    ("envelope", outer::envelope),
    ("frame", superframe::frame),
    ("handshake", outer::handshake),
    ("inner", inner::inner),
    ("node", node::node),
    ("node_id", identity::node_id),
    ("portmap", portmap::portmap),
    ("record", payload::record),
    ("sealed", outer::sealed),
    ("session", session::session),
    ("session_header", outer::session_header),
    ("stream", payload::stream),
    ("superframe", superframe::superframe),
];

/// Runs one target's check.
///
/// # Panics
/// When a property does not hold, or there is no such target.
pub fn check(target: &str, data: &[u8]) {
    let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).expect("the target is in TARGETS");
    check(data);
}
