//! Relayed packets: somebody else's datagram behind a header that tells a relay where it goes.
//!
//! ```text
//! 0        0b01 ‖ kind 4 (6 bits)
//! 1        flags, 0
//! 2        hop limit           relays left
//! 3..8     zeros
//! 8..16    slot                names a channel to whoever reads it; another one on each side of a relay
//! 16..n    the datagram        a session or setup packet as it would go to its recipient; opaque to the relay
//! ```
//!
//! On the wire the header is masked like that of a session packet ([`super::session::mask`]), with the key of whoever it
//! is sent to: the relay, or behind it the recipient. A relay reads no more than these 16 bytes, and changes only them.

use std::fmt;
use std::net::SocketAddr;

use super::envelope::RecipientKey;
use super::session::{HEADER_LEN, PACKET_LEN_MIN, mask};
use super::{FAMILY_MASK, FAMILY_SESSION, Malformed};

/// Bytes that a relayed datagram is longer.
pub const RELAY_OVERHEAD: usize = HEADER_LEN;
/// Relays that a packet may pass.
pub const HOPS_MAX: u8 = 4;
/// The six bits of the kind, beside those of [`super::session::Kind`].
pub const KIND: u8 = 4;

/// Names a channel between a node and one of its relays: a secret of the two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {:016x}", self.0)
    }
}

/// How a datagram goes to a node, or came from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Straight.
    Direct(SocketAddr),
    /// By way of the relay with which the slot was agreed.
    Relayed(Slot),
}

impl Hop {
    /// The endpoint, when no relay is in between.
    pub const fn direct(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct(endpoint) => Some(*endpoint),
            Self::Relayed(_) => None,
        }
    }

    /// The slot, when there is a relay.
    pub const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Direct(_) => None,
            Self::Relayed(slot) => Some(*slot),
        }
    }
}

impl From<SocketAddr> for Hop {
    fn from(endpoint: SocketAddr) -> Self {
        Self::Direct(endpoint)
    }
}

/// The header, unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Relays left.
    pub hop_limit: u8,
    /// The channel.
    pub slot: Slot,
}

impl Header {
    /// Writes the 16 bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = FAMILY_SESSION | KIND;
        out[2] = self.hop_limit;
        out[8..].copy_from_slice(&self.slot.0.to_be_bytes());
        out
    }

    /// Reads an unmasked header; `None` when it is that of another kind.
    ///
    /// # Errors
    /// [`Malformed`] for flags and bytes that have to be zero.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Result<Self, Malformed>> {
        let [first, flags, hop_limit, z3, z4, z5, z6, z7, slot @ ..] = *bytes;
        if first & !FAMILY_MASK != KIND {
            return None;
        }
        let zeros = [flags, z3, z4, z5, z6, z7] == [0; 6];
        Some(match zeros {
            true => Ok(Self { hop_limit, slot: Slot(u64::from_be_bytes(slot)) }),
            false => Err(Malformed::Field("relay header")),
        })
    }
}

/// Writes the header of the relayed datagram that begins at `packet[16]`, masked for `recipient`.
///
/// # Errors
/// [`Malformed::Truncated`] when the datagram is shorter than any of ours.
pub fn seal(recipient: &RecipientKey, header: Header, packet: &mut [u8]) -> Result<(), Malformed> {
    if packet.len() < RELAY_OVERHEAD + PACKET_LEN_MIN {
        return Err(Malformed::Truncated);
    }
    packet[..HEADER_LEN].copy_from_slice(&header.emit());
    mask(recipient, packet)
}
