//! The packet filter against neighbours on the LAN.
//!
//! Linux takes a packet for any of its addresses on any of its interfaces, and IPv6 has no reverse path filter: a
//! machine on the same LAN that sends to the node's *mesh* address reaches its services past the mesh, where no
//! check of the daemon's sees it (the door of CVE-2019-14899). One nftables table closes it:
//!
//! ```text
//! table inet azora_azora0 {
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         iifname != { "azora0", "lo" } ip6 daddr 0600::/8 drop
//!         iifname != { "azora0", "lo" } ip6 saddr 0600::/8 drop
//!     }
//! }
//! ```
//!
//! It is loaded in one transaction by the program `nft`, so there is no moment without it when a stale one (after a
//! crash) is replaced. Other programs may flush the rule set; [`Guard::check`] sees that.

use std::sync::Mutex;

use super::{is_name, nft};
use crate::proto::identity::{MESH_PREFIX, MESH_PREFIX_LEN};

/// Why the rule could not be loaded or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program is not installed.
    #[error(
        "the program nft is missing, and without it neighbours on the LAN could reach the mesh address directly: install the package nftables, or accept that with `lan_guard = false` under [policy]"
    )]
    NoNft,
    /// The program failed.
    #[error(
        "nft could not {action} the table {table}: {cause}; CAP_NET_ADMIN and a kernel with nf_tables are needed, or accept the gap with `lan_guard = false` under [policy]"
    )]
    Nft {
        /// What was tried.
        action: &'static str,
        /// The table.
        table: String,
        /// The first line of its complaint.
        cause: String,
    },
    /// Another program changes the table whenever it is loaded.
    #[error(
        "another program changes the table {table} as soon as it is loaded: keep that program from flushing it, or accept the gap with `lan_guard = false` under [policy]"
    )]
    Contested {
        /// The table.
        table: String,
    },
    /// The interface's name cannot stand in a rule.
    #[error("{0:?} cannot be the name of an interface")]
    Name(String),
}

/// Times that it is loaded when another program changes it before it can be read back.
const LOADS_MAX: usize = 3;

/// The rule, loaded. It outlives the value: only [`Guard::remove`] takes it away.
#[derive(Debug)]
pub struct Guard {
    interface: String,
    /// What `nft` printed after loading, whole: what it has to print again.
    sound: Mutex<String>,
}

impl Guard {
    /// Loads the rule for an interface, in place of a stale one.
    ///
    /// # Errors
    /// Without `nft`, permission, or nf_tables in the kernel.
    pub async fn install(interface: &str) -> Result<Self, Error> {
        if !is_name(interface) {
            return Err(Error::Name(interface.to_string()));
        }
        let guard = Self { interface: interface.to_string(), sound: Mutex::default() };
        if let Err(error) = guard.reinstall().await {
            // It may be loaded and unreadable; an error leaves nothing behind.
            let _ = guard.remove().await;
            return Err(error);
        }
        Ok(guard)
    }

    /// Loads the rule again after [`Guard::check`] said no.
    ///
    /// # Errors
    /// As [`Guard::install`].
    pub async fn reinstall(&self) -> Result<(), Error> {
        let rules = ruleset(&self.interface);
        for _ in 0..LOADS_MAX {
            nft::load(&rules).await.map_err(self.failed("load"))?;
            // Another program may have emptied it already: what it left is nothing to compare with later.
            if let Some(listed) = self.list().await?.filter(|listed| is_whole(listed, &rules)) {
                *self.lock() = listed;
                return Ok(());
            }
        }
        Err(Error::Contested { table: table(&self.interface) })
    }

    /// True when the rule is there as it was loaded.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn check(&self) -> Result<bool, Error> {
        let listed = self.list().await?;
        Ok(listed.is_some_and(|listed| listed == *self.lock()))
    }

    /// Takes the rule away; not an error when it is gone already.
    ///
    /// # Errors
    /// When it is there and stays.
    pub async fn remove(&self) -> Result<(), Error> {
        nft::remove(&table(&self.interface)).await.map_err(self.failed("remove"))
    }

    pub(super) async fn list(&self) -> Result<Option<String>, Error> {
        nft::list(&table(&self.interface)).await.map_err(self.failed("list"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(nft::Error) -> Error {
        move |error| match error {
            nft::Error::Missing => Error::NoNft,
            nft::Error::Failed(cause) => Error::Nft { action, table: table(&self.interface), cause },
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.sound.lock().expect("nobody panics with the lock held")
    }
}

/// True for a listing of all of `rules`, and of nothing else: as many lines, and both that drop.
pub(super) fn is_whole(listed: &str, rules: &str) -> bool {
    let lines = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
    let drops = |text: &str| text.lines().filter(|line| line.ends_with(" drop")).count();
    // The first two lines make room for the table.
    lines(listed) + 2 == lines(rules) && drops(listed) == drops(rules)
}

/// The table's family and name.
pub(super) fn table(interface: &str) -> String {
    format!("inet azora_{interface}")
}

/// What [`Guard::install`] feeds to `nft -f -`; for whoever wants to load it without the daemon.
///
/// One transaction that leaves exactly our table, whatever was there before: to declare it makes sure that there is
/// one to delete.
pub fn ruleset(interface: &str) -> String {
    let (table, mesh) = (table(interface), format!("{MESH_PREFIX}/{MESH_PREFIX_LEN}"));
    format!(
        "table {table}\n\
         delete table {table}\n\
         table {table} {{\n\
         \tchain prerouting {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tiifname != {{ \"{interface}\", \"lo\" }} ip6 daddr {mesh} drop\n\
         \t\tiifname != {{ \"{interface}\", \"lo\" }} ip6 saddr {mesh} drop\n\
         \t}}\n\
         }}\n"
    )
}
