//! Where the daemon is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use auramesh::config::{Config, DEFAULT_SOCKET};
use auramesh::control::client::Client;
use auramesh::control::hint::with_socket;

use crate::config::load_if_usable;
use crate::output::{Fault, complain};

/// The daemon's socket; or, where a configuration was named that cannot be used, why not.
pub(crate) struct Socket(Result<PathBuf, Fault>);

impl Socket {
    /// The given one, else that of the configuration.
    pub(crate) fn new(given: Option<PathBuf>, config: Option<&Path>) -> Self {
        let of = |config: Option<Config>| {
            config.map_or_else(|| DEFAULT_SOCKET.into(), |config| config.node.socket)
        };
        Self(given.map_or_else(|| load_if_usable(config).map(of), Ok))
    }

    pub(crate) async fn connect(&self) -> Result<Client, Fault> {
        Ok(Client::connect(self.path()?).await?.on_silence(waiting))
    }

    /// The text as it can be typed here: commands that ask the daemon name its socket where it is not the default.
    pub(crate) fn hint(&self, text: &str) -> String {
        match &self.0 {
            Ok(path) if path != Path::new(DEFAULT_SOCKET) => with_socket(text, path),
            _ => text.into(),
        }
    }

    pub(crate) fn path(&self) -> Result<&Path, Fault> {
        self.0.as_deref().map_err(Clone::clone)
    }
}

/// On stderr, also beside JSON: what is waited for, so that nobody takes the command for broken.
fn waiting(path: &Path, limit: Duration) {
    let (path, limit) = (path.display(), limit.as_secs());
    complain(&format!("azora: the daemon at {path} does not answer yet; waiting for up to {limit} s\n"));
}
