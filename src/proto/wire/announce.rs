//! Link-local discovery: "I am here", multicast on a port of its own.
//!
//! ```text
//! 0..5     "azora"
//! 5        version
//! 6..8     UDP port of the mesh
//! 8..      node record
//! ```

use super::cursor::Reader;
use super::record::RECORD_LEN_MAX;
use super::{Malformed, VERSION};

/// UDP port of the announcements.
pub const ANNOUNCE_PORT: u16 = 5748;
/// Longest announcement in bytes.
pub const ANNOUNCE_LEN_MAX: usize = 8 + RECORD_LEN_MAX;

const MAGIC: &[u8; 5] = b"azora";

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
