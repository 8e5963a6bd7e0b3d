//! Link-local discovery: "I am here", multicast on a port of its own.
//!
//! ```text
//! 0..5     "azora"
//! 5        version
//! 6..8     UDP port of the mesh
//! 8..      node record
//! ```
//!
//! In a network with a secret the whole of it is sealed, and shows nothing to others:
//!
//! ```text
//! 0..16    tag     BLAKE3(MAC key of the network; announcement), first 16 bytes
//! 16..     the announcement, masked with the BLAKE3 output stream keyed by the network's mask key over the tag
//! ```
//!
//! The tag is the nonce of the mask (the SIV idea, RFC 5297).

use blake3::Hasher;

use super::cursor::Reader;
use super::envelope::{MAC_LEN, NetworkSecret, same};
use super::record::RECORD_LEN_MAX;
use super::{Malformed, VERSION};

/// UDP port of the announcements.
pub const ANNOUNCE_PORT: u16 = 5748;
/// Longest announcement in bytes.
pub const ANNOUNCE_LEN_MAX: usize = 8 + RECORD_LEN_MAX;

const MAGIC: &[u8; 5] = b"azora";
const TAG_CONTEXT: &str = "auramesh v1 announcement tag";
const MASK_CONTEXT: &str = "auramesh v1 announcement mask";

/// Seals an announcement for those who know the network's secret.
pub fn seal(announcement: &[u8], network: &NetworkSecret) -> Vec<u8> {
    let tag = tag(announcement, network);
    let mut packet = tag.to_vec();
    packet.extend(announcement);
    mask(&mut packet[MAC_LEN..], tag, network);
    packet
}

/// Opens what [`seal`] made; `None` for anything else, and for another secret.
pub fn open(packet: &[u8], network: &NetworkSecret) -> Option<Vec<u8>> {
    let (sealed_tag, body) = packet.split_first_chunk().filter(|(_, body)| body.len() <= ANNOUNCE_LEN_MAX)?;
    let mut announcement = body.to_vec();
    mask(&mut announcement, *sealed_tag, network);
    same(&tag(&announcement, network), sealed_tag).then_some(announcement)
}

fn tag(announcement: &[u8], network: &NetworkSecret) -> [u8; MAC_LEN] {
    let key = blake3::derive_key(TAG_CONTEXT, &network.0);
    let mut tag = [0; MAC_LEN];
    Hasher::new_keyed(&key).update(announcement).finalize_xof().fill(&mut tag);
    tag
}

fn mask(bytes: &mut [u8], tag: [u8; MAC_LEN], network: &NetworkSecret) {
    let key = blake3::derive_key(MASK_CONTEXT, &network.0);
    let mut stream = vec![0; bytes.len()];
    Hasher::new_keyed(&key).update(&tag).finalize_xof().fill(&mut stream);
    bytes.iter_mut().zip(stream).for_each(|(byte, mask)| *byte ^= mask);
}

/// An announcement; whoever hears it takes the address from the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce<'a> {
    /// UDP port at which the sender speaks the mesh protocol.
    pub port: u16,
    /// Bytes of its node record, not yet checked.
    pub record: &'a [u8],
}

impl<'a> Announce<'a> {
    /// Writes the packet.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend(self.port.to_be_bytes());
        out.extend(self.record);
        out
    }

    /// Reads a packet.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        if packet.len() > ANNOUNCE_LEN_MAX {
            return Err(Malformed::TooLong);
        }
        let mut reader = Reader::new(packet);
        if reader.array()? != *MAGIC {
            return Err(Malformed::Field("magic"));
        }
        match reader.u8()? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        let port = reader.u16()?;
        if port == 0 {
            return Err(Malformed::Field("port"));
        }
        Ok(Self { port, record: reader.rest() })
    }
}
