//! Handshake packets: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with an identity signature in each payload.
//!
//! ```text
//! initiation, body of kind 1                     response, body of kind 2
//! 0        version                               0        version
//! 1..5     sender index                          1..5     sender index
//! 5..      Noise message 1                       5..9     receiver index
//!          e 32 ‖ s 32+16 ‖ payload n+16         9..      Noise message 2
//!                                                         e 32 ‖ payload n+16
//!
//! payload of message 1                           payload of message 2
//! 0..32    node ID                               0        suite chosen
//! 32..40   timestamp, ms since the Unix epoch    1..3     capabilities
//! 40       suites offered, bit n = suite n       3..67    Ed25519 signature
//! 41       suite preferred                       67..     observed endpoint (7 or 19)
//! 42..44   capabilities                          then     items, padding
//! 44..108  Ed25519 signature
//! 108..    items, padding
//! ```
//!
//! Capabilities: bit 0, takes frames and superframes (`superframe.rs`); bit 1, takes packets of several sending threads
//! (`session.rs`), and bits 8 to 10 are how many the sender itself has, less one; others are ignored.
//!
//! Items are `type u8 ‖ length u16 ‖ value`, none is defined yet and unknown ones are skipped; type 0 ends them and
//! starts zero padding of random length. Signatures: see `session::noise`.

use std::net::SocketAddr;

use super::cursor::Reader;
use super::envelope::BODY_AT;
use super::{Malformed, VERSION, endpoint};
use crate::proto::identity::NodeId;
use crate::proto::timer::WallTime;

/// Initiations are padded to a random length of at least this many bytes (datagram payload).
pub const INITIATION_LEN_MIN: usize = 300;
/// And at most this many.
pub const INITIATION_LEN_MAX: usize = 1200;
/// Offset of Noise message 1 in the packet.
pub const INITIATION_NOISE_AT: usize = BODY_AT + 5;
/// Offset of Noise message 2 in the packet.
pub const RESPONSE_NOISE_AT: usize = BODY_AT + 9;
/// Bytes that Noise adds to the payload of message 1: two keys, two tags.
pub const INITIATION_NOISE_OVERHEAD: usize = 32 + 48 + 16;
/// Bytes that Noise adds to the payload of message 2: one key, one tag.
pub const RESPONSE_NOISE_OVERHEAD: usize = 32 + 16;
/// Bytes of payload 1 that its signature covers.
pub const INITIATION_SIGNED_LEN: usize = 44;
/// Capability: session packets with frames and slices of superframes are understood.
pub const CAPABILITY_FRAMES: u16 = 1;
/// Capability: session packets of several sending threads are understood.
pub const CAPABILITY_THREADS: u16 = 1 << 1;
/// Most sending threads of one side of a session: what three bits can say.
pub const THREADS_MAX: u8 = 8;
/// Where the number of sending threads is in the capabilities.
const THREADS_AT: u32 = 8;
/// Bytes of payload 2 that its signature covers.
pub const RESPONSE_SIGNED_LEN: usize = 3;

/// Capabilities of a side that sends with so many threads, of 1 to [`THREADS_MAX`].
pub const fn with_threads(capabilities: u16, threads: u8) -> u16 {
    let field = (THREADS_MAX as u16 - 1) << THREADS_AT;
    let threads = if threads == 0 { 0 } else { (threads - 1) as u16 };
    capabilities & !field | CAPABILITY_THREADS | threads << THREADS_AT & field
}

/// Sending threads of the side with these capabilities, 1 to [`THREADS_MAX`].
pub const fn threads(capabilities: u16) -> u8 {
    if capabilities & CAPABILITY_THREADS == 0 {
        return 1;
    }
    (capabilities >> THREADS_AT) as u8 % THREADS_MAX + 1
}

/// Body of an initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiation<'a> {
    /// Index by which the initiator will know the session.
    pub sender_index: u32,
    /// Noise message 1.
    pub noise: &'a [u8],
}

impl<'a> Initiation<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        version(reader.u8()?)?;
        Ok(Self { sender_index: reader.u32()?, noise: reader.rest() })
    }

    /// Writes a packet with room for `noise_len` bytes of Noise message at [`INITIATION_NOISE_AT`].
    pub fn emit(sender_index: u32, noise_len: usize) -> Vec<u8> {
        let mut packet = vec![0; INITIATION_NOISE_AT + noise_len];
        packet[BODY_AT] = VERSION;
        packet[BODY_AT + 1..INITIATION_NOISE_AT].copy_from_slice(&sender_index.to_be_bytes());
        packet
    }
}

/// Body of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Index by which the responder will know the session.
    pub sender_index: u32,
    /// Index that the initiator gave.
    pub receiver_index: u32,
    /// Noise message 2.
    pub noise: &'a [u8],
}

impl<'a> Response<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        version(reader.u8()?)?;
        Ok(Self { sender_index: reader.u32()?, receiver_index: reader.u32()?, noise: reader.rest() })
    }

    /// Writes a packet with room for `noise_len` bytes of Noise message at [`RESPONSE_NOISE_AT`].
    pub fn emit(sender_index: u32, receiver_index: u32, noise_len: usize) -> Vec<u8> {
        let mut packet = vec![0; RESPONSE_NOISE_AT + noise_len];
        packet[BODY_AT] = VERSION;
        packet[BODY_AT + 1..BODY_AT + 5].copy_from_slice(&sender_index.to_be_bytes());
        packet[BODY_AT + 5..RESPONSE_NOISE_AT].copy_from_slice(&receiver_index.to_be_bytes());
        packet
    }
}

const fn version(version: u8) -> Result<(), Malformed> {
    if version == VERSION { Ok(()) } else { Err(Malformed::Version(version)) }
}

/// AEAD of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// AES-256-GCM, where both CPUs have AES instructions.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439), everywhere else.
    ChaCha20Poly1305,
}

impl Suite {
    /// Number on the wire, also its bit in the set of offered suites.
    pub const fn number(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// The suite of a number.
    pub const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::Aes256Gcm),
            2 => Ok(Self::ChaCha20Poly1305),
            _ => Err(Malformed::Field("suite")),
        }
    }

    /// Name as `status` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// The bit in the set of offered suites.
    pub const fn bit(self) -> u8 {
        1 << self.number()
    }
}

/// What the initiator says inside message 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitiationPayload {
    /// Who initiates.
    pub node_id: NodeId,
    /// When, never going back for one responder.
    pub timestamp: WallTime,
    /// Set of suites it can do.
    pub suites: u8,
    /// The suite that is fastest on its CPU.
    pub preferred: Suite,
    /// Capabilities, no bit is defined yet.
    pub capabilities: u16,
    /// Ed25519 signature.
    pub signature: [u8; 64],
}

impl InitiationPayload {
    /// Length in bytes before items and padding.
    pub const LEN: usize = INITIATION_SIGNED_LEN + 64;

    /// The bytes that the signature covers.
    pub fn signed_part(&self) -> [u8; INITIATION_SIGNED_LEN] {
        let mut out = [0; INITIATION_SIGNED_LEN];
        out[..32].copy_from_slice(self.node_id.as_bytes());
        out[32..40].copy_from_slice(&self.timestamp.as_unix_ms().to_be_bytes());
        out[40] = self.suites;
        out[41] = self.preferred.number();
        out[42..].copy_from_slice(&self.capabilities.to_be_bytes());
        out
    }

    /// Writes the payload with `padding_len` bytes of padding.
    pub fn emit(&self, padding_len: usize) -> Vec<u8> {
        let mut out = self.signed_part().to_vec();
        out.extend(self.signature);
        out.resize(out.len() + padding_len, 0);
        out
    }

    /// Reads the payload.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let parsed = Self {
            node_id: NodeId(reader.array()?),
            timestamp: WallTime::from_unix_ms(reader.u64()?),
            suites: reader.u8()?,
            preferred: Suite::from_number(reader.u8()?)?,
            capabilities: reader.u16()?,
            signature: reader.array()?,
        };
        skip_items(reader)?;
        Ok(parsed)
    }
}

/// What the responder says inside message 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponsePayload {
    /// The suite of the session.
    pub suite: Suite,
    /// Capabilities, no bit is defined yet.
    pub capabilities: u16,
    /// Ed25519 signature.
    pub signature: [u8; 64],
    /// Where the initiation came from, as the responder saw it.
    pub observed: SocketAddr,
}

impl ResponsePayload {
    /// Longest length in bytes before items and padding.
    pub const LEN_MAX: usize = RESPONSE_SIGNED_LEN + 64 + endpoint::ENDPOINT_LEN_MAX;

    /// The bytes that the signature covers.
    pub const fn signed_part(suite: Suite, capabilities: u16) -> [u8; RESPONSE_SIGNED_LEN] {
        let [high, low] = capabilities.to_be_bytes();
        [suite.number(), high, low]
    }

    /// Writes the payload with `padding_len` bytes of padding.
    pub fn emit(&self, padding_len: usize) -> Vec<u8> {
        let mut out = Self::signed_part(self.suite, self.capabilities).to_vec();
        out.extend(self.signature);
        endpoint::emit(&self.observed, &mut out);
        out.resize(out.len() + padding_len, 0);
        out
    }

    /// Reads the payload.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let parsed = Self {
            suite: Suite::from_number(reader.u8()?)?,
            capabilities: reader.u16()?,
            signature: reader.array()?,
            observed: endpoint::parse(&mut reader)?,
        };
        skip_items(reader)?;
        Ok(parsed)
    }
}

/// Walks over items of unknown types and checks that padding is zero.
fn skip_items(mut reader: Reader<'_>) -> Result<(), Malformed> {
    while !reader.is_empty() {
        if reader.u8()? == 0 {
            let padding = reader.rest();
            return if padding.iter().all(|b| *b == 0) { Ok(()) } else { Err(Malformed::Field("padding")) };
        }
        let len = reader.u16()?;
        reader.take(usize::from(len))?;
    }
    Ok(())
}
