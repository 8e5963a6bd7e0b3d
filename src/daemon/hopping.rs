//! Opens the UDP ports that hop (`proto::path::hopping`), and others as soon as they change.

use tokio::time::sleep;

use crate::host::clock;
use crate::proto::path::hopping::{self, Hopping};
use crate::tun::redirect::{Error, Redirect};

/// The ports, open.
pub(super) struct Ports {
    hopping: Hopping,
    redirect: Redirect,
}

impl Ports {
    /// Opens those of now, which lead to port `to`.
    pub(super) async fn open(interface: &str, hopping: Hopping, to: u16) -> Result<Self, Error> {
        let redirect = Redirect::open(interface, hopping.open(clock::wall()), to).await?;
        Ok(Self { hopping, redirect })
    }

    /// Changes them in time, until the task is ended.
    pub(super) async fn run(&self) {
        loop {
            sleep(hopping::until_next(clock::wall())).await;
            if let Err(error) = self.redirect.replace(self.hopping.open(clock::wall())).await {
                tracing::warn!(%error, "the ports that hop stay as they were");
            }
        }
    }

    /// Closes them.
    pub(super) async fn close(&self) {
        if let Err(error) = self.redirect.remove().await {
            tracing::warn!(%error, "the ports that hop stay open");
        }
    }
}
