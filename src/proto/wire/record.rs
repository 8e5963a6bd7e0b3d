//! The signed node record: how a node can be reached, said by the node itself.
//!
//! ```text
//! 0         version
//! 1         flags, 0
//! 2..10     sequence            higher replaces lower
//! 10..14    issued              seconds since the Unix epoch
//! 14..16    time to live        seconds, at most 7200
//! 16..48    node ID             Ed25519
//! 48..80    X25519 public key   for handshakes
//! 80..82    capabilities        bit 0: serves the DHT; bit 1: takes UDP at ports that change, too
//! 82..n-64  items               type u8 ‖ length u8 ‖ value: 1 = endpoint, 2 = contact of a relay,
//!                               3 = TCP endpoint of streams; others are skipped
//! n-64..n   signature           Ed25519 over "auramesh v1 node record" ‖ all before it
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use super::control::Contact;
use super::cursor::Reader;
use super::{Malformed, VERSION, endpoint};
use crate::proto::identity::{Identity, NodeId};
use crate::proto::timer::WallTime;

/// Longest record in bytes.
pub const RECORD_LEN_MAX: usize = 640;
/// Most endpoints in a record.
pub const RECORD_ENDPOINTS_MAX: usize = 6;
/// Most relays in a record.
pub const RECORD_RELAYS_MAX: usize = 3;
/// Most TCP endpoints in a record.
pub const RECORD_STREAMS_MAX: usize = 2;
/// Longest time to live that is believed.
pub const RECORD_TTL_MAX: Duration = Duration::from_secs(7200);
/// How far ahead of our clock a record may be issued: clocks differ.
pub const RECORD_FUTURE_MAX: Duration = Duration::from_secs(600);
/// Capability bit: the node serves the DHT.
pub const CAPABILITY_DHT_SERVER: u16 = 1;
/// Capability bit: its UDP ports hop ([`crate::proto::path::hopping`]).
pub const CAPABILITY_HOPS: u16 = 2;

const HEADER_LEN: usize = 82;
const SIGNATURE_LEN: usize = 64;
const SIGNATURE_DOMAIN: &[u8] = b"auramesh v1 node record";
const ITEM_ENDPOINT: u8 = 1;
const ITEM_RELAY: u8 = 2;
const ITEM_STREAM: u8 = 3;

/// Why a record does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not in the format.
    #[error("record: {0}")]
    Malformed(#[from] Malformed),
    /// The key is unusable or did not make the signature.
    #[error("record: signature does not verify")]
    Signature,
    /// Its time to live is over.
    #[error("record: expired")]
    Expired,
    /// Issued in the future, beyond what clocks may differ.
    #[error("record: issued in the future")]
    Future,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Higher replaces lower.
    pub sequence: u64,
    /// When it was signed.
    pub issued: WallTime,
    /// For how long it holds.
    pub ttl: Duration,
    /// Bits of [`CAPABILITY_DHT_SERVER`] and others to come.
    pub capabilities: u16,
    /// Where it can be reached, best first, at most [`RECORD_ENDPOINTS_MAX`].
    pub endpoints: Vec<SocketAddr>,
    /// By way of whom it can be reached, at most [`RECORD_RELAYS_MAX`].
    pub relays: Vec<Contact>,
    /// Where it takes streams (TCP) from nodes whose UDP does not get through, at most [`RECORD_STREAMS_MAX`].
    pub streams: Vec<SocketAddr>,
}

/// A record whose signature was checked, with the exact bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    node_id: NodeId,
    x25519: [u8; 32],
    content: Content,
    bytes: Box<[u8]>,
}

impl NodeRecord {
    /// Signs a record of one's own. What the format cannot hold is left out: endpoints, relays and streams beyond their limits,
    /// milliseconds, a time to live beyond [`RECORD_TTL_MAX`].
    pub fn sign(identity: &Identity, content: Content) -> Self {
        let mut bytes = vec![VERSION, 0];
        bytes.extend(content.sequence.to_be_bytes());
        bytes.extend(u32::try_from(content.issued.as_unix_s()).unwrap_or(u32::MAX).to_be_bytes());
        let ttl = content.ttl.min(RECORD_TTL_MAX);
        bytes.extend(u16::try_from(ttl.as_secs()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(identity.node_id().as_bytes());
        bytes.extend(identity.x25519_public());
        bytes.extend(content.capabilities.to_be_bytes());
        let mut emit_endpoint = |kind, socket_addr| {
            let mut value = Vec::with_capacity(endpoint::ENDPOINT_LEN_MAX);
            endpoint::emit(socket_addr, &mut value);
            bytes.extend([kind, value.len() as u8]);
            bytes.extend(value);
        };
        let endpoints = content.endpoints.iter().take(RECORD_ENDPOINTS_MAX);
        endpoints.for_each(|endpoint| emit_endpoint(ITEM_ENDPOINT, endpoint));
        let streams = content.streams.iter().take(RECORD_STREAMS_MAX);
        streams.for_each(|endpoint| emit_endpoint(ITEM_STREAM, endpoint));
        for relay in content.relays.iter().take(RECORD_RELAYS_MAX) {
            let mut value = Vec::new();
            relay.emit(&mut value);
            bytes.extend([ITEM_RELAY, value.len() as u8]);
            bytes.extend(value);
        }
        let signature = identity.sign(&[SIGNATURE_DOMAIN, &bytes].concat());
        bytes.extend(signature);
        Self::parse_unverified(&bytes).expect("the longest record of our own is within the limits")
    }

    /// Reads a record and checks its signature; dates are checked apart ([`Self::remaining`]).
    ///
    /// # Errors
    /// [`RecordError::Malformed`] or [`RecordError::Signature`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        Self::parse_again(bytes, |_| None)
    }

    /// The same for what comes again and again: the signature of the record that is `held` of a node was checked before.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_again<'r>(
        bytes: &[u8],
        held: impl FnOnce(&NodeId) -> Option<&'r Self>,
    ) -> Result<Self, RecordError> {
        let record = Self::parse_unverified(bytes)?;
        if held(&record.node_id).is_some_and(|held| *held.bytes == *bytes) {
            return Ok(record);
        }
        let (signed, signature) = bytes.split_last_chunk().ok_or(Malformed::Truncated)?;
        if !record.node_id.verify(&[SIGNATURE_DOMAIN, signed].concat(), signature) {
            return Err(RecordError::Signature);
        }
        Ok(record)
    }

    fn parse_unverified(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > RECORD_LEN_MAX {
            return Err(Malformed::TooLong);
        }
        if bytes.len() < HEADER_LEN + SIGNATURE_LEN {
            return Err(Malformed::Truncated);
        }
        let mut reader = Reader::new(&bytes[..bytes.len() - SIGNATURE_LEN]);
        match reader.u8()? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        if reader.u8()? != 0 {
            return Err(Malformed::Field("flags"));
        }
        let sequence = reader.u64()?;
        let issued = WallTime::from_unix_ms(u64::from(reader.u32()?) * 1000);
        let ttl = Duration::from_secs(u64::from(reader.u16()?));
        if ttl > RECORD_TTL_MAX {
            return Err(Malformed::Field("time to live"));
        }
        let (node_id, x25519) = (NodeId(reader.array()?), reader.array()?);
        let capabilities = reader.u16()?;
        let Items { endpoints, relays, streams } = Items::parse(&mut reader)?;
        let content = Content { sequence, issued, ttl, capabilities, endpoints, relays, streams };
        Ok(Self { node_id, x25519, content, bytes: bytes.into() })
    }

    /// Whose record it is.
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The node's X25519 public key.
    pub const fn x25519(&self) -> [u8; 32] {
        self.x25519
    }

    /// What the node says.
    pub const fn content(&self) -> &Content {
        &self.content
    }

    /// The signed bytes.
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True when the node says that it serves the DHT.
    pub const fn serves_dht(&self) -> bool {
        self.content.capabilities & CAPABILITY_DHT_SERVER != 0
    }

    /// True for nodes whose UDP ports hop.
    pub const fn hops(&self) -> bool {
        self.content.capabilities & CAPABILITY_HOPS != 0
    }

    /// How much longer the record holds by our calendar.
    ///
    /// # Errors
    /// [`RecordError::Expired`] or [`RecordError::Future`].
    pub fn remaining(&self, wall: WallTime) -> Result<Duration, RecordError> {
        let (now, issued) = (wall.as_unix_ms(), self.content.issued.as_unix_ms());
        if issued > now.saturating_add(RECORD_FUTURE_MAX.as_millis() as u64) {
            return Err(RecordError::Future);
        }
        let age = Duration::from_millis(now.saturating_sub(issued));
        match self.content.ttl.checked_sub(age) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(RecordError::Expired),
        }
    }
}

/// What the items of a record say.
#[derive(Default)]
struct Items {
    endpoints: Vec<SocketAddr>,
    relays: Vec<Contact>,
    streams: Vec<SocketAddr>,
}

impl Items {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut items = Self::default();
        while !reader.is_empty() {
            let kind = reader.u8()?;
            let len = reader.u8()?;
            let mut value = Reader::new(reader.take(usize::from(len))?);
            match kind {
                ITEM_ENDPOINT => items.endpoints.push(endpoint::parse(&mut value)?),
                ITEM_RELAY => items.relays.push(Contact::parse(&mut value)?),
                ITEM_STREAM => items.streams.push(endpoint::parse(&mut value)?),
                _ => continue,
            }
            value.end()?;
            let Self { endpoints, relays, streams } = &items;
            if endpoints.len() > RECORD_ENDPOINTS_MAX
                || relays.len() > RECORD_RELAYS_MAX
                || streams.len() > RECORD_STREAMS_MAX
            {
                return Err(Malformed::TooLong);
            }
        }
        Ok(items)
    }
}
