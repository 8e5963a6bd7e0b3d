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

use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::is_name;
use crate::proto::identity::{MESH_PREFIX, MESH_PREFIX_LEN};

/// How long `nft` may take; it answers within milliseconds unless the machine is stuck.
const NFT_DEADLINE: Duration = Duration::from_secs(10);
/// Where packages put `nft`, before the search path of whoever started us.
const NFT_PLACES: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

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
    /// The interface's name cannot stand in a rule.
    #[error("{0:?} cannot be the name of an interface")]
    Name(String),
}

/// The rule, loaded. It outlives the value: only [`Guard::remove`] takes it away.
#[derive(Debug)]
pub struct Guard {
    interface: String,
    /// What `nft` printed right after loading: what it has to print again.
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
        self.nft("load", &["-f", "-"], &ruleset(&self.interface)).await?;
        let listed = self.list().await?.unwrap_or_default();
        *self.lock() = listed;
        Ok(())
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
        // Adding before deleting: a table that is gone already is no reason to fail.
        let table = table(&self.interface);
        self.nft("remove", &["-f", "-"], &format!("table {table}\ndelete table {table}\n")).await.map(|_| ())
    }

    /// The table in nft's words, counters left out; `None` when there is none.
    async fn list(&self) -> Result<Option<String>, Error> {
        let table = table(&self.interface);
        let arguments: Vec<&str> = ["-s", "list", "table"].into_iter().chain(table.split(' ')).collect();
        match self.nft("list", &arguments, "").await {
            Err(Error::Nft { cause, .. }) if cause.contains("No such file or directory") => Ok(None),
            output => Ok(Some(output?)),
        }
    }

    async fn nft(&self, action: &'static str, arguments: &[&str], input: &str) -> Result<String, Error> {
        let failed = |cause: String| Error::Nft { action, table: table(&self.interface), cause };
        let output = match timeout(NFT_DEADLINE, run(arguments, input)).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoNft),
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("no answer within {} s", NFT_DEADLINE.as_secs()))),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(failed(complaint.lines().next().unwrap_or("no reason given").to_string()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.sound.lock().expect("nobody panics with the lock held")
    }
}

async fn run(arguments: &[&str], input: &str) -> io::Result<Output> {
    let program = NFT_PLACES.into_iter().find(|place| Path::new(place).exists()).unwrap_or("nft");
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have given up already; its complaint says why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await
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
