//! Opens the UDP ports that hop (`proto::path::hopping`), and others as soon as they change.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use crate::host::clock;
use crate::proto::path::hopping::{self, Hopping};
use crate::tun::redirect::{Error, Own, Redirect};

/// The calendar is looked at this often at least: it may be set, or the machine sleep; and others may flush the rule set.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The ports, open.
pub(super) struct Ports {
    hopping: Hopping,
    redirect: Redirect,
}

impl Ports {
    /// Opens those of now, which lead to the first socket of each version of IP.
    pub(super) async fn open(
        interface: &str,
        hopping: Hopping,
        listen: &[SocketAddr],
    ) -> Result<Self, Error> {
        let port = |is_ipv4| listen.iter().find(|own| own.is_ipv4() == is_ipv4).map(SocketAddr::port);
        let redirect = Redirect::new(interface, Own { v4: port(true), v6: port(false) })?;
        if let Err(error) = redirect.open(hopping.open(clock::wall())).await {
            // It may be loaded all the same; an error leaves nothing behind.
            let _ = redirect.remove().await;
            return Err(error);
        }
        Ok(Self { hopping, redirect })
    }

    /// Takes away what a daemon left behind that was killed, and ran with other settings.
    pub(super) async fn forget(interface: &str) {
        if let Ok(redirect) = Redirect::new(interface, Own { v4: None, v6: None })
            && redirect.check().await.unwrap_or(false)
        {
            let _ = redirect.remove().await;
        }
    }

    /// Changes them in time, until the task is ended.
    pub(super) async fn run(&self) {
        let mut open = self.hopping.open(clock::wall());
        loop {
            sleep(hopping::until_next(clock::wall()).min(LOOK_EVERY)).await;
            let due = self.hopping.open(clock::wall());
            if due == open && self.redirect.check().await.unwrap_or(true) {
                continue;
            }
            match self.redirect.open(due).await {
                Ok(()) => open = due,
                Err(error) => tracing::warn!(%error, "the ports that hop cannot be opened"),
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
