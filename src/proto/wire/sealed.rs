//! The sealed packet: the specification's packet with everything explicit, for what happens outside a session.
//!
//! ```text
//! body of kind 4
//! 0         version
//! 1         flags, 0
//! 2         hop limit           not covered by the signature: a forwarder lowers it
//! 3         message             1 record request, 2 record reply, 3 dial
//! 4..12     timestamp           ms since the Unix epoch
//! 12..44    sender              Ed25519
//! 44..76    recipient           Ed25519
//! 76..108   ephemeral           X25519
//! 108..n-64 payload ‖ tag 16    ChaCha20-Poly1305 to the recipient, header as associated data
//! n-64..n   signature           Ed25519 by the sender over all before it
//! ```
//!
//! Payloads:
//!
//! ```text
//! record request                record reply
//! 0..8   request                0..8   request
//! 8..    zeros, so that the     8..    observed endpoint of the requester
//!        reply is not longer    ..     node record
//! ```

use std::net::SocketAddr;

use super::cursor::Reader;
use super::record::RECORD_LEN_MAX;
use super::{Malformed, VERSION, endpoint};
use crate::proto::identity::NodeId;
use crate::proto::timer::WallTime;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 108;
/// Length of the tag in bytes.
pub const TAG_LEN: usize = 16;
/// Length of the signature in bytes.
pub const SIGNATURE_LEN: usize = 64;
/// Offset of the hop limit in the body.
pub const HOP_LIMIT_AT: usize = 2;
/// Hop limit of a packet that nobody forwards.
pub const HOP_LIMIT_DIRECT: u8 = 1;
/// Payload of a record request in bytes: as long as the longest reply.
pub const REQUEST_PAYLOAD_LEN: usize = 8 + endpoint::ENDPOINT_LEN_MAX + RECORD_LEN_MAX;

/// What a sealed packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// "Send me your node record."
    RecordRequest,
    /// The record.
    RecordReply,
    /// "You are reached": answers [`super::control::Control::Dial`], from another port. Payload: nonce u64, padding.
    Dial,
}

impl Message {
    /// Number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::RecordRequest => 1,
            Self::RecordReply => 2,
            Self::Dial => 3,
        }
    }

    /// The message of a number.
    pub const fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::RecordRequest),
            2 => Ok(Self::RecordReply),
            3 => Ok(Self::Dial),
            other => Err(Malformed::Kind(other)),
        }
    }
}

/// The explicit header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Forwarders left.
    pub hop_limit: u8,
    /// What the payload is.
    pub message: Message,
    /// When it was sealed.
    pub timestamp: WallTime,
    /// Who signed it.
    pub sender: NodeId,
    /// Who can open it.
    pub recipient: NodeId,
    /// X25519 public key made for this packet alone.
    pub ephemeral: [u8; 32],
}

impl Header {
    /// Writes the 108 bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&[VERSION, 0, self.hop_limit, self.message.number()]);
        out[4..12].copy_from_slice(&self.timestamp.as_unix_ms().to_be_bytes());
        out[12..44].copy_from_slice(self.sender.as_bytes());
        out[44..76].copy_from_slice(self.recipient.as_bytes());
        out[76..].copy_from_slice(&self.ephemeral);
        out
    }
}

/// A sealed packet's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// The explicit header.
    pub header: Header,
    /// Payload and tag.
    pub ciphertext: &'a [u8],
    /// Ed25519 signature.
    pub signature: [u8; SIGNATURE_LEN],
}

impl<'a> Sealed<'a> {
    /// Reads a body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        match reader.u8()? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        if reader.u8()? != 0 {
            return Err(Malformed::Field("flags"));
        }
        let header = Header {
            hop_limit: reader.u8()?,
            message: Message::from_number(reader.u8()?)?,
            timestamp: WallTime::from_unix_ms(reader.u64()?),
            sender: NodeId(reader.array()?),
            recipient: NodeId(reader.array()?),
            ephemeral: reader.array()?,
        };
        let ciphertext_len = reader.len().checked_sub(SIGNATURE_LEN).ok_or(Malformed::Truncated)?;
        if ciphertext_len < TAG_LEN {
            return Err(Malformed::Truncated);
        }
        Ok(Self { header, ciphertext: reader.take(ciphertext_len)?, signature: reader.array()? })
    }
}

/// Payload of a record request.
pub fn emit_record_request(request: u64) -> Vec<u8> {
    let mut out = vec![0; REQUEST_PAYLOAD_LEN];
    out[..8].copy_from_slice(&request.to_be_bytes());
    out
}

/// Reads a record request: its number.
pub fn parse_record_request(payload: &[u8]) -> Result<u64, Malformed> {
    if payload.len() < REQUEST_PAYLOAD_LEN {
        return Err(Malformed::Truncated);
    }
    Reader::new(payload).u64()
}

/// Reads what was dialled: the nonce of the question.
pub fn parse_dial(payload: &[u8]) -> Result<u64, Malformed> {
    Reader::new(payload).u64()
}

/// Payload of a record reply.
pub fn emit_record_reply(request: u64, observed: &SocketAddr, record: &[u8]) -> Vec<u8> {
    let mut out = request.to_be_bytes().to_vec();
    endpoint::emit(observed, &mut out);
    out.extend(record);
    out
}

/// Reads a record reply: number of the request, our endpoint as the other sees it, bytes of the record.
pub fn parse_record_reply(payload: &[u8]) -> Result<(u64, SocketAddr, &[u8]), Malformed> {
    let mut reader = Reader::new(payload);
    Ok((reader.u64()?, endpoint::parse(&mut reader)?, reader.rest()))
}
