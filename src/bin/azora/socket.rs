//! Where the daemon is.

use std::path::{Path, PathBuf};

use auramesh::config::DEFAULT_SOCKET;
use auramesh::control::client::Client;

use crate::config::load;
use crate::output::Fault;

/// The daemon's socket; or, where a configuration was named that cannot be used, why not.
pub(crate) struct Socket(Result<PathBuf, Fault>);

impl Socket {
    /// The given one, else that of the configuration. A damaged configuration that nobody named does not keep anybody
    /// from asking a daemon that runs: the default is tried then.
    pub(crate) fn new(given: Option<PathBuf>, config: Option<&Path>) -> Self {
        let of_config = || match (load(config.map(Path::to_path_buf)), config) {
            (Ok(config), _) => Ok(config.node.socket),
            (Err(_), None) => Ok(DEFAULT_SOCKET.into()),
            (Err(fault), Some(_)) => Err(fault),
        };
        Self(given.map_or_else(of_config, Ok))
    }

    pub(crate) async fn connect(&self) -> Result<Client, Fault> {
        Ok(Client::connect(self.path()?).await?)
    }

    pub(crate) fn path(&self) -> Result<&Path, Fault> {
        self.0.as_deref().map_err(Clone::clone)
    }
}
