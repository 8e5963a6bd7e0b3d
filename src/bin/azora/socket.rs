//! Where the daemon is.

use std::path::{Path, PathBuf};

use auramesh::config::{Config, DEFAULT_SOCKET, Given, Overrides};
use auramesh::control::client::Client;

use crate::output::Fault;

/// The daemon's socket.
pub(crate) struct Socket(PathBuf);

impl Socket {
    /// The given one, else that of the configuration. A configuration that cannot be read or is wrong does not keep
    /// anybody from asking a daemon that runs: the default is tried then.
    pub(crate) fn new(given: Option<PathBuf>, config: Option<&Path>) -> Self {
        Self(given.unwrap_or_else(|| {
            let file = config.map(|path| Given::flag(path.to_path_buf()));
            match Config::load(&Overrides { file, ..Overrides::default() }) {
                Ok(config) => config.node.socket,
                Err(_) => DEFAULT_SOCKET.into(),
            }
        }))
    }

    pub(crate) async fn connect(&self) -> Result<Client, Fault> {
        Ok(Client::connect(&self.0).await?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}
