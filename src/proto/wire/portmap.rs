//! How a router is asked for a port of its outside address: PCP (RFC 6887) and NAT-PMP (RFC 6886), UDP port 5351.
//!
//! ```text
//! PCP MAP request (§7.1, §11.1)                     response (§7.2)
//! 0        version 2                                the same
//! 1        opcode 1                                 0x80 | opcode
//! 2..4     reserved                                 reserved, result code
//! 4..8     lifetime in seconds                      the same, or of the error
//! 8..24    our address, IPv4-mapped                 epoch in seconds (8..12), reserved
//! 24..36   nonce                                    the same
//! 36..40   protocol 17, reserved                    the same
//! 40..42   inside port                              the same
//! 42..44   outside port that we would like          outside port
//! 44..60   outside address that we would like       outside address
//!
//! NAT-PMP (§3.2, §3.3)      request                 response
//! outside address           0, 0                    0, 128, result (2), epoch (4), address (4)
//! map UDP                   0, 1, reserved (2),     0, 129, result (2), epoch (4), inside port (2),
//!                           inside port (2), outside port (2), lifetime (4)
//!                                                   outside port (2), lifetime (4)
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Malformed;
use super::cursor::Reader;

/// UDP port of the router (RFC 6886 §1.1, RFC 6887 §19).
pub const PORTMAP_PORT: u16 = 5351;
/// Longest PCP message in bytes (RFC 6887 §7).
pub const PORTMAP_LEN_MAX: usize = 1100;
/// Bytes of the nonce of a mapping.
pub const NONCE_LEN: usize = 12;

const PCP: u8 = 2;
const NAT_PMP: u8 = 0;
const RESPONSE: u8 = 0x80;
const OP_ANNOUNCE: u8 = 0;
const OP_MAP: u8 = 1;
const OP_ADDRESS: u8 = 0;
const OP_MAP_UDP: u8 = 1;
const UDP: u8 = 17;
/// PCP and NAT-PMP alike: the router does not speak this version.
const UNSUPPORTED_VERSION: u16 = 1;

/// What we ask a router for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Names the mapping towards a PCP server.
    pub nonce: [u8; NONCE_LEN],
    /// Our address, as the router sees it.
    pub client: Ipv4Addr,
    /// Where we listen.
    pub inside: u16,
    /// The outside port that we had or would like; 0 is any.
    pub outside: u16,
    /// The outside address that we had.
    pub address: Ipv4Addr,
    /// Seconds; 0 deletes the mapping.
    pub lifetime_s: u32,
}

impl MapRequest {
    /// As a PCP MAP request.
    pub fn emit_pcp(&self) -> Vec<u8> {
        let mut out = vec![PCP, OP_MAP, 0, 0];
        out.extend(self.lifetime_s.to_be_bytes());
        out.extend(self.client.to_ipv6_mapped().octets());
        out.extend(self.nonce);
        out.extend([UDP, 0, 0, 0]);
        out.extend(self.inside.to_be_bytes());
        out.extend(self.outside.to_be_bytes());
        out.extend(self.address.to_ipv6_mapped().octets());
        out
    }

    /// As a NAT-PMP request.
    pub fn emit_nat_pmp(&self) -> Vec<u8> {
        let mut out = vec![NAT_PMP, OP_MAP_UDP, 0, 0];
        out.extend(self.inside.to_be_bytes());
        out.extend(self.outside.to_be_bytes());
        out.extend(self.lifetime_s.to_be_bytes());
        out
    }
}

/// A NAT-PMP request for the router's outside address.
pub const ADDRESS_REQUEST: [u8; 2] = [NAT_PMP, OP_ADDRESS];

/// What a router says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// PCP: a mapping.
    Mapped {
        /// Seconds since the router lost its state.
        epoch_s: u32,
        /// That of the request.
        nonce: [u8; NONCE_LEN],
        /// That of the request.
        inside: u16,
        /// What leads to it.
        outside: u16,
        /// The outside address; unspecified when it is no IPv4 address.
        address: Ipv4Addr,
        /// How long it stands.
        lifetime_s: u32,
    },
    /// PCP: an error for a mapping.
    Refused {
        /// That of the request.
        nonce: [u8; NONCE_LEN],
        /// RFC 6887 §7.4.
        code: u8,
    },
    /// PCP: the router has started anew, perhaps.
    Announce {
        /// Seconds since the router lost its state.
        epoch_s: u32,
    },
    /// NAT-PMP: the outside address.
    PmpAddress {
        /// Seconds since the router lost its state.
        epoch_s: u32,
        /// The address.
        address: Ipv4Addr,
    },
    /// NAT-PMP: a mapping.
    PmpMapped {
        /// Seconds since the router lost its state.
        epoch_s: u32,
        /// That of the request.
        inside: u16,
        /// What leads to it.
        outside: u16,
        /// How long it stands.
        lifetime_s: u32,
    },
    /// NAT-PMP: an error.
    PmpRefused {
        /// RFC 6886 §3.5.
        code: u16,
    },
    /// The router does not speak the version of the request.
    WrongVersion,
}

impl Response {
    /// Reads a datagram from port [`PORTMAP_PORT`] of the router.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        if datagram.len() > PORTMAP_LEN_MAX {
            return Err(Malformed::TooLong);
        }
        let mut reader = Reader::new(datagram);
        let version = reader.u8()?;
        let kind = reader.u8()?;
        let opcode = kind & !RESPONSE;
        if kind & RESPONSE == 0 {
            return Err(Malformed::Kind(kind));
        }
        match version {
            NAT_PMP => Self::parse_nat_pmp(opcode, &mut reader),
            // Another version says so in a header that begins as ours (RFC 6887 §9).
            _ => Self::parse_pcp(version, opcode, &mut reader),
        }
    }

    fn parse_nat_pmp(opcode: u8, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let code = reader.u16()?;
        let epoch_s = reader.u32()?;
        match (code, opcode) {
            (UNSUPPORTED_VERSION, _) => Ok(Self::WrongVersion),
            (1.., OP_ADDRESS | OP_MAP_UDP) => Ok(Self::PmpRefused { code }),
            (0, OP_ADDRESS) => Ok(Self::PmpAddress { epoch_s, address: Ipv4Addr::from(reader.array()?) }),
            (0, OP_MAP_UDP) => Ok(Self::PmpMapped {
                epoch_s,
                inside: reader.u16()?,
                outside: reader.u16()?,
                lifetime_s: reader.u32()?,
            }),
            (_, other) => Err(Malformed::Kind(other)),
        }
    }

    fn parse_pcp(version: u8, opcode: u8, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.u8()?;
        let code = reader.u8()?;
        let lifetime_s = reader.u32()?;
        let epoch_s = reader.u32()?;
        reader.take(12)?;
        if u16::from(code) == UNSUPPORTED_VERSION {
            return Ok(Self::WrongVersion);
        }
        match (version, opcode) {
            (PCP, OP_ANNOUNCE) => return Ok(Self::Announce { epoch_s }),
            (PCP, OP_MAP) => {}
            (PCP, other) => return Err(Malformed::Kind(other)),
            (other, _) => return Err(Malformed::Version(other)),
        }
        let nonce = reader.array()?;
        let protocol = reader.u8()?;
        reader.take(3)?;
        let (inside, outside) = (reader.u16()?, reader.u16()?);
        let address = Ipv6Addr::from(reader.array::<16>()?);
        if code != 0 {
            return Ok(Self::Refused { nonce, code });
        }
        if protocol != UDP {
            return Err(Malformed::Field("protocol"));
        }
        let address = address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
        Ok(Self::Mapped { epoch_s, nonce, inside, outside, address, lifetime_s })
    }
}
