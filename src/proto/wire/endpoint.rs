//! UDP endpoints on the wire.
//!
//! ```text
//! 0       4 or 6
//! 1..     IPv4 (4 bytes) or IPv6 (16 bytes) address
//! ..      port u16
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Malformed;
use super::cursor::Reader;

/// Longest encoding in bytes.
pub const ENDPOINT_LEN_MAX: usize = 19;

/// Appends an endpoint. Scope and flow of an IPv6 address stay at home.
pub fn emit(endpoint: &SocketAddr, out: &mut Vec<u8>) {
    match endpoint.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(endpoint.port().to_be_bytes());
}

/// Reads an endpoint; IPv4-mapped IPv6 addresses are refused, they would be a second spelling.
pub fn parse(reader: &mut Reader<'_>) -> Result<SocketAddr, Malformed> {
    let ip: IpAddr = match reader.u8()? {
        4 => Ipv4Addr::from(reader.array::<4>()?).into(),
        6 => Ipv6Addr::from(reader.array::<16>()?).into(),
        _ => return Err(Malformed::Field("address family")),
    };
    if ip != ip.to_canonical() {
        return Err(Malformed::Field("IPv4-mapped address"));
    }
    Ok(SocketAddr::new(ip, reader.u16()?))
}
