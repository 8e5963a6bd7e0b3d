//! Cookie reply: "prove that you receive at your address, then ask again" (WireGuard paper §5.4.7).
//!
//! ```text
//! body of kind 3
//! 0..16    cookie
//! 16..     random padding, so that no two replies share a mask
//! ```
//!
//! The envelope is keyed by the mac1 of the packet it answers ([`super::envelope::RecipientKey::for_cookie_reply`]):
//! only who saw that packet can make or read it.

use super::Malformed;
use super::cursor::Reader;
use super::envelope::{BODY_AT, MAC_LEN};

/// Shortest reply in bytes, envelope included.
pub const COOKIE_REPLY_LEN_MIN: usize = BODY_AT + MAC_LEN + COOKIE_PADDING_LEN_MIN;
/// Least padding in bytes.
pub const COOKIE_PADDING_LEN_MIN: usize = 16;

/// Writes the body; `padding` is at least [`COOKIE_PADDING_LEN_MIN`] random bytes.
pub fn emit(cookie: &[u8; MAC_LEN], padding: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; BODY_AT];
    packet.extend(cookie);
    packet.extend(padding);
    packet
}

/// Reads the cookie from a body.
pub fn parse(body: &[u8]) -> Result<[u8; MAC_LEN], Malformed> {
    let mut reader = Reader::new(body);
    let cookie = reader.array()?;
    reader.take(COOKIE_PADDING_LEN_MIN)?;
    Ok(cookie)
}
