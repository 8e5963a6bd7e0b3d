//! Every packet format, byte by byte. Parsing any bytes never panics; nothing here decides anything.
//!
//! One UDP port carries everything. The two highest bits of the first byte tell our families apart, in ranges that
//! RFC 7983 leaves free beside STUN (0-3) and DTLS (20-63). All integers are in network byte order.
//!
//! ```text
//! 0b01kkkkkk   session packet       session.rs: 16-byte header, ciphertext, tag
//!    kind 4    relayed              relay.rs: 16-byte header, any other datagram of ours
//! 0b11kkkkkk   setup packet         envelope.rs: kind, mac1, mac2, body
//!    kind 1    handshake initiation handshake.rs
//!    kind 2    handshake response   handshake.rs
//!    kind 3    cookie reply         cookie.rs
//!    kind 4    sealed               sealed.rs: explicit header of sender, recipient, time and signature
//! ```
//!
//! Session packets carry inner packets in frames (`superframe.rs`); `gso.rs` is what the kernel has to know of them.
//! Inside of these travel signed node records (`record.rs`), control messages between peers (`control.rs`, and
//! `routing.rs` for those about routes) and inner IPv6 packets (`inner.rs`). `announce.rs` is the packet of link-local
//! discovery, on a port of its own, and `portmap.rs` what a router is asked for. Where UDP does not get through, datagrams
//! travel in the messages of a stream (`stream.rs`).
//!
//! Masks ([`envelope::RecipientKey`]) leave no constant byte on the wire beyond the two family bits. They hide the
//! protocol from who does not know the recipient; secrecy comes from the encryption inside.

pub mod announce;
pub mod control;
pub mod cookie;
pub mod cursor;
pub mod endpoint;
pub mod envelope;
pub mod gso;
pub mod handshake;
pub mod inner;
pub mod portmap;
pub mod record;
pub mod relay;
pub mod routing;
pub mod sealed;
pub mod session;
pub mod stream;
pub mod superframe;

/// Version of every format here; a packet of another version is a counted drop.
pub const VERSION: u8 = 1;

/// Largest datagram we ever send or accept, in bytes: the most that UDP over IPv4 carries, 65,535 less both headers.
pub const DATAGRAM_LEN_MAX: usize = 65_507;

/// Largest setup packet, in bytes: fits the IPv6 minimum link MTU of 1280 with IPv6 and UDP headers.
pub const SETUP_LEN_MAX: usize = 1232;

/// The families of packets that the first byte tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Data or control inside an established session.
    Session,
    /// Everything outside a session.
    Setup,
}

/// The family bits in the first byte.
pub const FAMILY_MASK: u8 = 0b1100_0000;
/// First byte of a session packet, without its kind.
pub const FAMILY_SESSION: u8 = 0b0100_0000;
/// First byte of a setup packet, without its kind.
pub const FAMILY_SETUP: u8 = 0b1100_0000;

/// The family of a datagram; `None` for what is not ours (STUN, DTLS, anything else).
pub fn family(datagram: &[u8]) -> Option<Family> {
    match datagram.first()? & FAMILY_MASK {
        FAMILY_SESSION => Some(Family::Session),
        FAMILY_SETUP => Some(Family::Setup),
        _ => None,
    }
}

/// Why bytes are not a packet of some format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Ends before it should.
    #[error("truncated")]
    Truncated,
    /// Goes on after it should have ended.
    #[error("trailing bytes")]
    Trailing,
    /// Longer than the format allows.
    #[error("too long")]
    TooLong,
    /// A version that we do not speak.
    #[error("unknown version {0}")]
    Version(u8),
    /// A kind that we do not know.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A field with a value that it must not have.
    #[error("invalid {0}")]
    Field(&'static str),
}

#[cfg(test)]
mod tests;
