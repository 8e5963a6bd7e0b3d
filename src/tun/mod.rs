//! The network interface: a TUN device with the node's address and the route to the mesh.
//!
//! ```text
//! open ── fresh TUN ─────────────┐                      close ── fresh: deleted
//!      └─ TUN prepared for us ───┴─> up, MTU, address          └─ prepared: as it was found
//!                                    /128, route 0600::/8
//!                  inspect / repair whenever the kernel reports a change
//! ```
//!
//! A fresh TUN needs `CAP_NET_ADMIN` and vanishes with the daemon, killed or not. A TUN prepared in advance
//! (`ip tuntap add … user azora`, address and route beside it) needs no capability at all: then nothing is changed
//! that is right already. Address, route, MTU and state go through rtnetlink(7); the device through `tun-rs`.
//!
//! [`Interface::open`] refuses whatever would make the mesh half-work: a name that something else has, an address or
//! route in the mesh's range on another interface, a missing device node, missing permission. Each refusal is one
//! line with its next step. [`guard`] keeps neighbours on the LAN from using the mesh address past the mesh;
//! [`redirect`] opens UDP ports beside the daemon's own.
//!
//! With several queues (`IFF_MULTI_QUEUE`), each has a [`Device`] of its own. The kernel keeps the packets of a flow on
//! one of them: the one that the flow's other direction was last written to.
//!
//! Left out for now: other systems than Linux.

mod condition;
mod device;
pub mod guard;
mod interface;
mod netlink;
mod nft;
mod probe;
pub mod redirect;

pub use condition::Condition;
pub use device::{Device, Offloads, is_deleted, is_down};
pub use interface::{Interface, InterfaceConfig, QUEUES_MAX};
pub use probe::{Probe, QueueProbe};

use std::io;
use std::net::Ipv6Addr;

use nix::unistd::AccessFlags;

/// Least MTU: what IPv6 asks of every link (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// Longest name of an interface (`IFNAMSIZ` without the final zero).
pub const NAME_BYTES_MAX: usize = 15;

/// Why there is no interface, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is none that Linux and nft both take.
    #[error(
        "{name:?} cannot be the name of an interface: use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, `_`, `-` and `.`, a letter first"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The MTU is below what IPv6 needs.
    #[error("an MTU of {mtu} is too small: IPv6 needs at least {MTU_MIN} ([tun] mtu)")]
    Mtu {
        /// What was asked for.
        mtu: u16,
    },
    /// Another kind of interface has the name.
    #[error("{name} is already there and is {kind}, not a TUN: choose another name with --tun")]
    NotTun {
        /// The name.
        name: String,
        /// What it is, with its article.
        kind: String,
    },
    /// Another program is attached to that TUN.
    #[error(
        "{name} is in use by another program: stop it (is a daemon running already?), or choose another name with --tun"
    )]
    Busy {
        /// The name.
        name: String,
    },
    /// The prepared TUN has another mesh address.
    #[error(
        "{name}, which no program uses, was prepared for {found}, and this node is {address}: type `ip -6 address replace {address}/128 dev {name} && ip -6 address del {found}/128 dev {name}`"
    )]
    OtherAddress {
        /// The interface.
        name: String,
        /// The mesh address that it has.
        found: Ipv6Addr,
        /// This node's.
        address: Ipv6Addr,
    },
    /// The mesh's range is used elsewhere.
    #[error(
        "{interface} already has the {what} {prefix}, inside the mesh's range 0600::/8: stop what made it (another daemon?), or, if that has ended, type `ip -6 {what} del {prefix} dev {interface}`"
    )]
    Overlap {
        /// The other interface.
        interface: String,
        /// "address" or "route".
        what: &'static str,
        /// The address or route, with its prefix length.
        prefix: String,
    },
    /// No device node.
    #[error(
        "/dev/net/tun is missing: load the module (`modprobe tun`); in a container, pass the device in (`--device /dev/net/tun`)"
    )]
    NoDeviceNode,
    /// The TUN is prepared, but this user may not open the device node.
    #[error(
        "{name} is prepared, but this user may not open /dev/net/tun: as root, type `chmod 666 /dev/net/tun` (its usual mode; who may use which TUN is decided behind it), or start as root"
    )]
    NoAccess {
        /// The interface.
        name: String,
    },
    /// The TUN is prepared for somebody else.
    #[error(
        "{name} is prepared for another user than {}: run as that user, choose another name with --tun, or delete it (`ip link delete {name}`) and prepare it again",
        user()
    )]
    OtherUser {
        /// The interface.
        name: String,
    },
    /// Not allowed to make the TUN.
    #[error("not permitted to open the interface {name}: start as root; or with CAP_NET_ADMIN as an ambient capability (AmbientCapabilities= in a systemd unit, setpriv --inh-caps +net_admin --ambient-caps +net_admin) and the right to open /dev/net/tun; or prepare it once, as root: `{}`, and set lan_guard = false under [policy], since the guard needs the capability, too", prepare(.name, *.mtu, .address))]
    NotPermitted {
        /// The interface.
        name: String,
        /// Its MTU.
        mtu: u16,
        /// Its address.
        address: Ipv6Addr,
    },
    /// The prepared TUN lacks something that we may not add.
    #[error("{name} lacks {missing}, and adding it is not permitted: as root, type `{}`; or start with CAP_NET_ADMIN", complete(.name, *.mtu, .address))]
    NotPrepared {
        /// The interface.
        name: String,
        /// What is missing.
        missing: &'static str,
        /// Its MTU.
        mtu: u16,
        /// Its address.
        address: Ipv6Addr,
    },
    /// The kernel has IPv6 switched off.
    #[error(
        "IPv6 is switched off on this machine: `sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0`, or remove ipv6.disable=1 from the kernel's command line"
    )]
    NoIpv6,
    /// The interface was deleted while we used it.
    #[error("the interface {name} was deleted or moved away while in use")]
    Deleted {
        /// Its name.
        name: String,
    },
    /// The interface was renamed while we used it.
    #[error("the interface {name} was renamed to {now}: rename it back, or start again with --tun {now}")]
    Renamed {
        /// Our name for it.
        name: String,
        /// Its present name.
        now: String,
    },
    /// Something could not be put right, for another reason than permission.
    #[error(
        "{name} lacks {missing}, and the kernel refuses to add it: {source} (keep other programs, like NetworkManager, off {name}, and start again)"
    )]
    Unsettled {
        /// The interface.
        name: String,
        /// What is missing.
        missing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request or system call failed.
    #[error(
        "interface {name}: cannot {action}: {source} (start again; if that stays, choose another name with --tun)"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// True when it takes rights that this process does not have.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// The commands that make a TUN which the daemon may use without any capability.
fn prepare(name: &str, mtu: u16, address: &Ipv6Addr) -> String {
    let node = nix::unistd::eaccess("/dev/net/tun", AccessFlags::R_OK | AccessFlags::W_OK);
    let access = if node.is_err() { "chmod 666 /dev/net/tun; " } else { "" };
    format!(
        "{access}ip tuntap add dev {name} mode tun multi_queue user {}; {}",
        user(),
        complete(name, mtu, address)
    )
}

/// The commands that bring a TUN into the state that we need, whatever state it is in.
fn complete(name: &str, mtu: u16, address: &Ipv6Addr) -> String {
    format!(
        "ip link set {name} mtu {mtu} up; ip -6 address replace {address}/128 dev {name}; \
         ip -6 route replace 0600::/8 dev {name}"
    )
}

/// Who this process runs as, by name if there is one.
fn user() -> String {
    let uid = nix::unistd::geteuid();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Whether Linux, nft and a shell take the name as it is.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && !matches!(name, "all" | "default")
}

#[cfg(test)]
mod tests;
