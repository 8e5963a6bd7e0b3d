//! What the interface is like now, read from the kernel.

use std::net::Ipv6Addr;

/// State of the interface, compared with what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It is there.
    pub exists: bool,
    /// It is up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It has the node's address.
    pub has_address: bool,
    /// The mesh's range is routed to it.
    pub has_route: bool,
    /// Mesh addresses on it that are not the node's: the kernel would use them as sources, and every peer would drop
    /// what it sends.
    pub strangers: Vec<Ipv6Addr>,
}

impl Condition {
    /// True when packets can flow as they should.
    pub fn is_sound(&self, mtu: u16) -> bool {
        self.exists
            && self.up
            && self.mtu == u32::from(mtu)
            && self.has_address
            && self.has_route
            && self.strangers.is_empty()
    }
}
