//! Which addresses belong to one owner, as far as an address can tell: the networks that diversity limits count.
//!
//! An attacker gets keys for nothing and addresses by the network, so tables and answers take only a few nodes of
//! one IPv4 /24 or IPv6 /48 (the limits of sigp/discv5, `kbucket/filter.rs`). Only globally routable addresses are
//! counted: a LAN, a lab or a host's loopback is one network by nature, and nobody outside can be reached there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::proto::wire::control::Contact;

/// Most contacts of one network in a bucket.
pub const PER_NETWORK_IN_BUCKET_MAX: usize = 2;
/// Most contacts of one network in the table, and in the cache of known peers.
pub const PER_NETWORK_IN_TABLE_MAX: usize = 10;
/// Most contacts of one network that are taken from one answer.
pub const PER_NETWORK_IN_ANSWER_MAX: usize = 2;

/// A globally routable /24 or /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Network {
    /// First 24 bits.
    V4([u8; 3]),
    /// First 48 bits.
    V6([u8; 6]),
}

impl Network {
    /// The network of an address; `None` when diversity does not concern it.
    pub(super) fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    /// The network that a contact's endpoint lies in.
    pub(super) fn of_contact(contact: &Contact) -> Option<Self> {
        Self::of(contact.endpoint.ip())
    }

    /// The special-purpose ranges are those of RFC 6890 and its updates.
    fn of_v4(ip: Ipv4Addr) -> Option<Self> {
        let [a, b, c, _] = ip.octets();
        let shared = a == 100 && b & 0xc0 == 64;
        let benchmark = a == 198 && b & 0xfe == 18;
        let local = ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared;
        let special = ip.is_documentation() || benchmark || a == 0 || a >= 224;
        (!local && !special).then_some(Self::V4([a, b, c]))
    }

    /// Global unicast is 2000::/3 (RFC 4291 §2.4). Addresses made of an IPv4 address count as that one.
    fn of_v6(ip: Ipv6Addr) -> Option<Self> {
        let [a, b, c, d, e, f, ..] = ip.octets();
        let segments = ip.segments();
        if segments[0] == 0x2002 {
            return Self::of_v4(Ipv4Addr::new(c, d, e, f));
        }
        if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
            let [.., w, x, y, z] = ip.octets();
            return Self::of_v4(Ipv4Addr::new(w, x, y, z));
        }
        let documentation = segments[..2] == [0x2001, 0xdb8] || (segments[0] == 0x3fff && c & 0xf0 == 0);
        (a & 0xe0 == 0x20 && !documentation).then_some(Self::V6([a, b, c, d, e, f]))
    }
}

/// Counts networks and says whether one more of a kind may come in.
#[derive(Debug, Default)]
pub(super) struct Tally {
    seen: Vec<Network>,
}

impl Tally {
    /// Counts `contact` unless `limit` of its network were counted before.
    pub(super) fn admits(&mut self, contact: &Contact, limit: usize) -> bool {
        let Some(network) = Network::of_contact(contact) else { return true };
        let room = self.seen.iter().filter(|other| **other == network).count() < limit;
        if room {
            self.seen.push(network);
        }
        room
    }
}
