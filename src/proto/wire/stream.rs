//! Datagrams over a stream (WebSocket over TCP), for networks that let no UDP through.
//!
//! ```text
//! message   0..2     length of every datagram but the last, XORed with a mask
//!           2..n     the datagrams, one behind the other
//!
//! ticket    0..6     nonce
//!           6..18    keyed BLAKE3 of nonce ‖ hours since the Unix epoch u64, first 12 bytes; as 24 letters of base64url
//! ```
//!
//! Mask: a block as for the header of a session packet (`session::mask`), with the key of whoever takes streams in both
//! directions and the message's last 16 bytes as sample. The ticket is the path of the HTTP request: who does not know the
//! node's ID is told that there is no such page.

use data_encoding::BASE64URL_NOPAD;

use super::envelope::RecipientKey;
use super::{DATAGRAM_LEN_MAX, Malformed};

/// Bytes in front of the datagrams.
pub const MESSAGE_HEADER_LEN: usize = 2;
/// Longest message in bytes.
pub const MESSAGE_LEN_MAX: usize = MESSAGE_HEADER_LEN + DATAGRAM_LEN_MAX;
/// Most datagrams in one message (`UDP_MAX_SEGMENTS` of Linux).
pub const DATAGRAMS_MAX: usize = 64;
/// Shortest datagram in bytes, but for the last of several: shorter ones are none of ours, and would be many.
pub const DATAGRAM_LEN_MIN: usize = SAMPLE_LEN;
/// Letters of a ticket.
pub const TICKET_LETTERS: usize = 24;
/// Bytes of a ticket's nonce.
pub const NONCE_LEN: usize = 6;
/// How far clocks may differ, in hours.
pub const HOURS_MAX: u64 = 1;

const SAMPLE_LEN: usize = 16;
const TICKET_LEN: usize = TICKET_LETTERS / 4 * 3;

/// Some datagrams of one length; the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams<'a> {
    /// Length of every datagram but the last, in bytes.
    pub datagram_len: usize,
    /// One behind the other.
    pub bytes: &'a [u8],
}

impl<'a> Datagrams<'a> {
    /// Appends the message; nothing when it would be none.
    pub fn emit(&self, key: &RecipientKey, out: &mut Vec<u8>) {
        let Self { datagram_len, bytes } = *self;
        let Some(sample) = bytes.last_chunk() else { return };
        let Ok(len) = u16::try_from(datagram_len) else { return };
        let [a, b, ..] = key.header_mask(*sample);
        out.extend((len ^ u16::from_be_bytes([a, b])).to_be_bytes());
        out.extend(bytes);
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`] for what nobody of us sends: lengths that do not fit, or too many datagrams.
    pub fn parse(key: &RecipientKey, message: &'a [u8]) -> Result<Self, Malformed> {
        if message.len() > MESSAGE_LEN_MAX {
            return Err(Malformed::TooLong);
        }
        let (masked, bytes) =
            message.split_first_chunk::<MESSAGE_HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let sample = bytes.last_chunk().ok_or(Malformed::Truncated)?;
        let [a, b, ..] = key.header_mask(*sample);
        let datagram_len = usize::from(u16::from_be_bytes(*masked) ^ u16::from_be_bytes([a, b]));
        let fits = (DATAGRAM_LEN_MIN..=bytes.len()).contains(&datagram_len);
        if !fits || bytes.len().div_ceil(datagram_len) > DATAGRAMS_MAX {
            return Err(Malformed::Field("datagram length"));
        }
        Ok(Self { datagram_len, bytes })
    }
}

/// What shows the recipient that somebody knows it, in the hour of `unix_ms`.
pub fn ticket(key: &RecipientKey, unix_ms: u64, nonce: [u8; NONCE_LEN]) -> String {
    BASE64URL_NOPAD.encode(&ticket_of(key, hour(unix_ms), nonce))
}

/// True for a ticket that was made within an hour or two of `unix_ms`.
pub fn is_ticket(key: &RecipientKey, unix_ms: u64, letters: &[u8]) -> bool {
    let Ok(given) = BASE64URL_NOPAD.decode(letters) else { return false };
    let Some(nonce) = given.first_chunk::<NONCE_LEN>().filter(|_| given.len() == TICKET_LEN) else {
        return false;
    };
    let now = hour(unix_ms);
    let hours = now.saturating_sub(HOURS_MAX)..=now.saturating_add(HOURS_MAX);
    hours.into_iter().any(|hour| is_same(&ticket_of(key, hour, *nonce), &given))
}

const fn hour(unix_ms: u64) -> u64 {
    unix_ms / 3_600_000
}

fn ticket_of(key: &RecipientKey, hour: u64, nonce: [u8; NONCE_LEN]) -> [u8; TICKET_LEN] {
    let mut said = [0; NONCE_LEN + 8];
    said[..NONCE_LEN].copy_from_slice(&nonce);
    said[NONCE_LEN..].copy_from_slice(&hour.to_be_bytes());
    let mac = key.stream_mac(&said);
    let mut ticket = [0; TICKET_LEN];
    ticket[..NONCE_LEN].copy_from_slice(&nonce);
    ticket[NONCE_LEN..].copy_from_slice(&mac[..TICKET_LEN - NONCE_LEN]);
    ticket
}

/// Comparison in constant time.
fn is_same(ours: &[u8; TICKET_LEN], given: &[u8]) -> bool {
    given.len() == TICKET_LEN && ours.iter().zip(given).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}
