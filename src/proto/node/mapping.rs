//! A port of our router's that leads to us: told to others as soon as they see us at its address.

use std::net::SocketAddr;

use crate::proto::path;
use crate::proto::timer::{Instant, WallTime};

use super::Node;

impl Node {
    /// A router leads what comes to an endpoint of its own to us, as it says; or nothing does any more.
    pub fn handle_mapping(&mut self, now: Instant, wall: WallTime, mapping: Option<SocketAddr>) {
        if std::mem::replace(&mut self.port_mapping, mapping) != mapping {
            self.refresh_record(now, wall);
            self.drain(now, wall);
        }
    }

    /// The endpoint of the mapping, unless it is an address where nobody sees us: what a router says may be another
    /// router's view, or mean somebody else.
    pub(super) fn usable_mapping(&self, now: Instant) -> Option<SocketAddr> {
        let mapping = self.port_mapping.filter(|mapping| path::is_global(mapping.ip()))?;
        let seen = self.observed.address(now, mapping.is_ipv4())?;
        (seen == mapping.ip() && !self.is_own(seen)).then_some(mapping)
    }
}
