//! Stands in for `auramesh::daemon` until that is there.

use auramesh::config::Config;

/// Nothing runs yet.
#[derive(Debug, thiserror::Error)]
#[error("the daemon is not built into this binary yet")]
pub(crate) struct Error;

pub(crate) fn run(config: Config) -> Result<(), Error> {
    tracing::info!(interface = config.tun.name, "starting");
    Err(Error)
}
