//! Ports that lead to another one: UDP that comes for them is handed to the daemon's own port, and what it answers leaves by
//! the port that was asked.
//!
//! ```text
//! table inet azora_azora0_ports {
//!     chain prerouting {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         meta nfproto ipv4 iifname != { "azora0", "lo" } fib daddr type local udp dport { 20011, 31754, 60027 } dnat to :5747
//!         meta nfproto ipv6 …
//!     }
//! }
//! ```
//!
//! Only the first packet of a flow is looked at: one that has begun goes on when its port is closed (conntrack). A peer that
//! has two flows to us, to our own port and to one of these, is shown with another source port in the second: the kernel
//! could not tell their answers apart.

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

/// The daemon's own ports, by which its sockets are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Of IPv4.
    pub v4: Option<u16>,
    /// Of IPv6.
    pub v6: Option<u16>,
}

/// The ports of one daemon. They outlive the value: only [`Redirect::remove`] closes them.
#[derive(Debug)]
pub struct Redirect {
    interface: String,
    own: Own,
}

impl Redirect {
    /// For the daemon that has `interface`; nothing is open yet.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(interface: &str, own: Own) -> Result<Self, Error> {
        match is_name(interface) {
            true => Ok(Self { interface: interface.to_string(), own }),
            false => Err(Error::Name(interface.to_string())),
        }
    }

    /// Opens these ports and closes those that were open.
    ///
    /// # Errors
    /// Without `nft`, permission, or nf_tables in the kernel.
    pub async fn open(&self, ports: [u16; 3]) -> Result<(), Error> {
        let ruleset = ruleset(&self.interface, ports, self.own);
        nft::load(&ruleset).await.map_err(|error| self.failed(error))
    }

    /// True while the table is there: others may flush the rule set.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn check(&self) -> Result<bool, Error> {
        let listed = nft::list(&table(&self.interface)).await.map_err(|error| self.failed(error))?;
        Ok(listed.is_some())
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
fn ruleset(interface: &str, ports: [u16; 3], own: Own) -> String {
    let (table, [a, b, c]) = (table(interface), ports);
    let rule = |(version, to): (&str, u16)| {
        format!(
            "\t\tmeta nfproto {version} iifname != {{ \"{interface}\", \"lo\" }} fib daddr type local \
             udp dport {{ {a}, {b}, {c} }} dnat to :{to}\n"
        )
    };
    let to = [own.v4.map(|to| ("ipv4", to)), own.v6.map(|to| ("ipv6", to))];
    let rules: String = to.into_iter().flatten().map(rule).collect();
    format!(
        "table {table}\n\
         delete table {table}\n\
         table {table} {{\n\
         \tchain prerouting {{\n\
         \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
         {rules}\
         \t}}\n\
         }}\n"
    )
}
