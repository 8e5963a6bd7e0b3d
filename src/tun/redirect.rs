//! Ports that lead to another one: UDP that comes for them is handed to the daemon's own port, and what it answers leaves by
//! the port that was asked.
//!
//! ```text
//! table inet azora_azora0_ports {
//!     chain prerouting {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         iifname != { "azora0", "lo" } fib daddr type local udp dport { 20011, 31754, 60027 } dnat to :5747
//!     }
//! }
//! ```
//!
//! Only the first packet of a flow is looked at: one that has begun goes on when its port is closed (conntrack).

use super::{is_name, nft};

/// Why the ports are not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program is not installed.
    #[error(
        "the program nft is missing, which opens the ports that change: install the package nftables, or set `port_hopping = false` under [net]"
    )]
    NoNft,
    /// The program failed.
    #[error(
        "nft could not load the table {table}: {cause}; CAP_NET_ADMIN and a kernel with nf_tables and NAT are needed, or `port_hopping = false` under [net]"
    )]
    Nft {
        /// The table.
        table: String,
        /// The first line of its complaint.
        cause: String,
    },
    /// The interface's name cannot stand in a rule.
    #[error("{0:?} cannot be the name of an interface")]
    Name(String),
}

/// The ports of one daemon. They outlive the value: only [`Redirect::remove`] closes them.
#[derive(Debug)]
pub struct Redirect {
    interface: String,
    to: u16,
}

impl Redirect {
    /// Opens `ports` beside port `to`, for the daemon that has `interface`.
    ///
    /// # Errors
    /// Without `nft`, permission, or nf_tables in the kernel.
    pub async fn open(interface: &str, ports: [u16; 3], to: u16) -> Result<Self, Error> {
        if !is_name(interface) {
            return Err(Error::Name(interface.to_string()));
        }
        let redirect = Self { interface: interface.to_string(), to };
        redirect.replace(ports).await?;
        Ok(redirect)
    }

    /// Closes the ports that were open, and opens these.
    ///
    /// # Errors
    /// As [`Redirect::open`].
    pub async fn replace(&self, ports: [u16; 3]) -> Result<(), Error> {
        let ruleset = ruleset(&self.interface, ports, self.to);
        nft::load(&ruleset).await.map_err(|error| self.failed(error))
    }

    /// Closes them; not an error when they are closed already.
    ///
    /// # Errors
    /// When they stay open.
    pub async fn remove(&self) -> Result<(), Error> {
        nft::remove(&table(&self.interface)).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: nft::Error) -> Error {
        match error {
            nft::Error::Missing => Error::NoNft,
            nft::Error::Failed(cause) => Error::Nft { table: table(&self.interface), cause },
        }
    }
}

/// The table's family and name.
fn table(interface: &str) -> String {
    format!("inet azora_{interface}_ports")
}

/// One transaction that leaves exactly our table.
pub(super) fn ruleset(interface: &str, ports: [u16; 3], to: u16) -> String {
    let (table, [a, b, c]) = (table(interface), ports);
    format!(
        "table {table}\n\
         delete table {table}\n\
         table {table} {{\n\
         \tchain prerouting {{\n\
         \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
         \t\tiifname != {{ \"{interface}\", \"lo\" }} fib daddr type local udp dport {{ {a}, {b}, {c} }} dnat to :{to}\n\
         \t}}\n\
         }}\n"
    )
}
