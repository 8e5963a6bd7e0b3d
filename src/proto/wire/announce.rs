//! Link-local discovery: "I am here", multicast on a port of its own.
//!
//! ```text
//! 0..5     "azora"
//! 5        version
//! 6..8     UDP port of the mesh
//! 8..      node record
//! ```
//!
//! In a network with a secret the whole of it is sealed, and shows others only from where it comes and how long it is:
//!
//! ```text
//! 0..16    tag     BLAKE3(MAC key of the network; rest before it is masked), first 16 bytes
//! 16..24   salt, random, so that no two are equal         ┐ masked with the BLAKE3 output stream keyed by the
//! 24..     the announcement                               ┘ network's mask key over the tag
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
/// Length of the salt of a sealed announcement in bytes.
pub const SALT_LEN: usize = 8;
const TAG_CONTEXT: &str = "auramesh v1 announcement tag";
const MASK_CONTEXT: &str = "auramesh v1 announcement mask";

/// Seals an announcement for those who know the network's secret; `salt` is random.
pub fn seal(announcement: &[u8], salt: [u8; SALT_LEN], network: &NetworkSecret) -> Vec<u8> {
    let plain = [&salt, announcement].concat();
    let tag = tag(&plain, network);
    let mut packet = [&tag, &*plain].concat();
    mask(&mut packet[MAC_LEN..], tag, network);
    packet
}

/// Opens what [`seal`] made; `None` for anything else, and for another secret.
pub fn open(packet: &[u8], network: &NetworkSecret) -> Option<Vec<u8>> {
    let (sealed_tag, masked) = packet.split_first_chunk()?;
    if !(SALT_LEN..=SALT_LEN + ANNOUNCE_LEN_MAX).contains(&masked.len()) {
        return None;
    }
    let mut plain = masked.to_vec();
    mask(&mut plain, *sealed_tag, network);
    same(&tag(&plain, network), sealed_tag).then(|| plain.split_off(SALT_LEN))
}

fn tag(plain: &[u8], network: &NetworkSecret) -> [u8; MAC_LEN] {
    let key = blake3::derive_key(TAG_CONTEXT, &network.0);
    let mut tag = [0; MAC_LEN];
    Hasher::new_keyed(&key).update(plain).finalize_xof().fill(&mut tag);
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
