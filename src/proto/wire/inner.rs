//! Inner packets: IPv6 (RFC 8200) with as much of TCP, UDP and ICMPv6 as the policy needs, and the ICMPv6 errors
//! (RFC 4443) that we send into our own interface.

use std::net::Ipv6Addr;

use etherparse::{Ipv6ExtensionSlice, Ipv6ExtensionsSlice, LaxIpv6Slice, ip_number};

use super::Malformed;
use super::cursor::Reader;

/// IPv6 header length in bytes.
pub const IPV6_HEADER_LEN: usize = 40;
/// Smallest MTU of an IPv6 link (RFC 8200 §5).
pub const IPV6_MTU_MIN: usize = 1280;

const ICMPV6: u8 = ip_number::IPV6_ICMP.0;
const TCP: u8 = ip_number::TCP.0;
const UDP: u8 = ip_number::UDP.0;

const ICMPV6_UNREACHABLE: u8 = 1;
const ICMPV6_TOO_BIG: u8 = 2;
const ICMPV6_ECHO_REQUEST: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// What an inner packet is, as far as the policy looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Sender.
    pub source: Ipv6Addr,
    /// Recipient.
    pub destination: Ipv6Addr,
    /// Length of the packet in bytes, without what pads it.
    pub len: usize,
    /// The fragment that it is, if it is one.
    pub fragment: Option<Fragment>,
    /// What it carries; for a later fragment [`Traffic::Tail`].
    pub traffic: Traffic,
}

/// A fragment header (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, the same for all fragments of one packet.
    pub id: u32,
}

/// The upper layer of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A TCP segment.
    Tcp {
        /// Sender's port.
        source: u16,
        /// Recipient's port.
        destination: u16,
        /// SYN without ACK: the start of a connection.
        opens: bool,
    },
    /// A UDP datagram.
    Udp {
        /// Sender's port.
        source: u16,
        /// Recipient's port.
        destination: u16,
    },
    /// ICMPv6 echo request with its identifier.
    EchoRequest(u16),
    /// ICMPv6 echo reply with its identifier.
    EchoReply(u16),
    /// ICMPv6 error about a packet of which a part is quoted.
    Error {
        /// The MTU of "packet too big".
        mtu: Option<u32>,
        /// The quoted packet.
        about: Quoted,
    },
    /// A fragment other than the first: no ports to see.
    Tail,
    /// Anything else, with its protocol number.
    Other(u8),
}

/// Start of a packet quoted in an ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its sender.
    pub source: Ipv6Addr,
    /// Its recipient.
    pub destination: Ipv6Addr,
    /// Its protocol.
    pub protocol: u8,
    /// Its ports; for ICMPv6 echo the identifier twice.
    pub ports: (u16, u16),
}

/// Recipient of an IPv6 packet, without looking further: all that routing needs.
pub fn destination(packet: &[u8]) -> Result<Ipv6Addr, Malformed> {
    let mut reader = Reader::new(packet);
    if reader.u8()? >> 4 != 6 {
        return Err(Malformed::Field("IP version"));
    }
    reader.take(23)?;
    Ok(Ipv6Addr::from(reader.array::<16>()?))
}

impl Inner {
    /// Reads a packet; bytes beyond its stated length are padding.
    ///
    /// # Errors
    /// [`Malformed`] for anything but a complete IPv6 packet.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        Self::parse_head(packet, packet.len())
    }

    /// Reads a packet of `packet_len` bytes of which `head` is the beginning, headers included.
    ///
    /// # Errors
    /// As [`Inner::parse`].
    pub fn parse_head(head: &[u8], packet_len: usize) -> Result<Self, Malformed> {
        let len = stated_len(head)?;
        if len > packet_len {
            return Err(Malformed::Truncated);
        }
        let head = &head[..len.min(head.len())];
        let (slice, error) =
            LaxIpv6Slice::from_slice(head).map_err(|_| Malformed::Field("IPv6 header chain"))?;
        if error.is_some() {
            return Err(Malformed::Field("IPv6 header chain"));
        }
        let (header, payload) = (slice.header(), slice.payload());
        let fragment = fragment(slice.extensions())?;
        let traffic = match fragment {
            Some((_, offset)) if offset != 0 => Traffic::Tail,
            _ => traffic(payload.ip_number.0, payload.payload)?,
        };
        Ok(Self {
            source: header.source_addr(),
            destination: header.destination_addr(),
            len,
            fragment: fragment.map(|(id, _)| Fragment { id }),
            traffic,
        })
    }
}

/// Length that the IPv6 header in front of `bytes` states, header included.
///
/// # Errors
/// [`Malformed`] for another version of IP, or less than six bytes.
pub fn stated_len(bytes: &[u8]) -> Result<usize, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? >> 4 != 6 {
        return Err(Malformed::Field("IP version"));
    }
    reader.take(3)?;
    Ok(IPV6_HEADER_LEN + usize::from(reader.u16()?))
}

/// Identification and offset of the fragment header. More than one is refused: the second could say of a later
/// fragment that it is a first one.
fn fragment(extensions: &Ipv6ExtensionsSlice<'_>) -> Result<Option<(u32, u16)>, Malformed> {
    let mut headers = extensions.clone().into_iter().filter_map(|extension| {
        let Ipv6ExtensionSlice::Fragment(header) = extension else { return None };
        Some((header.identification(), header.fragment_offset().value()))
    });
    let first = headers.next();
    if headers.next().is_some() { Err(Malformed::Field("fragment header")) } else { Ok(first) }
}

fn traffic(protocol: u8, payload: &[u8]) -> Result<Traffic, Malformed> {
    let mut reader = Reader::new(payload);
    match protocol {
        TCP => {
            let (source, destination) = (reader.u16()?, reader.u16()?);
            reader.take(9)?;
            let flags = reader.u8()?;
            Ok(Traffic::Tcp { source, destination, opens: flags & 0b1_0010 == 0b10 })
        }
        UDP => {
            let (source, destination) = (reader.u16()?, reader.u16()?);
            reader.u32()?;
            Ok(Traffic::Udp { source, destination })
        }
        ICMPV6 => icmp(reader),
        other => Ok(Traffic::Other(other)),
    }
}

fn icmp(mut reader: Reader<'_>) -> Result<Traffic, Malformed> {
    let kind = reader.u8()?;
    reader.take(3)?;
    let rest = reader.u32()?;
    match kind {
        ICMPV6_ECHO_REQUEST => Ok(Traffic::EchoRequest((rest >> 16) as u16)),
        ICMPV6_ECHO_REPLY => Ok(Traffic::EchoReply((rest >> 16) as u16)),
        1..=4 => {
            let mtu = (kind == ICMPV6_TOO_BIG).then_some(rest);
            Ok(Traffic::Error { mtu, about: Quoted::parse(reader.rest())? })
        }
        _ => Ok(Traffic::Other(ICMPV6)),
    }
}

impl Quoted {
    fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(packet);
        if reader.u8()? >> 4 != 6 {
            return Err(Malformed::Field("IP version"));
        }
        reader.take(5)?;
        let protocol = reader.u8()?;
        reader.u8()?;
        let (source, destination) = (reader.array::<16>()?.into(), reader.array::<16>()?.into());
        let ports = match protocol {
            TCP | UDP => (reader.u16()?, reader.u16()?),
            ICMPV6 => {
                reader.u32()?;
                let id = reader.u16()?;
                (id, id)
            }
            _ => return Err(Malformed::Field("quoted protocol")),
        };
        Ok(Self { source, destination, protocol, ports })
    }
}

/// An ICMPv6 error for the sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Type 1 code 0: nobody is known to have this address.
    NoRoute,
    /// Type 1 code 3: the node is known but does not answer.
    AddressUnreachable,
    /// Type 2: larger than the MTU, in bytes.
    TooBig(u32),
}

/// Builds an ICMPv6 error from `source` about `packet`. `None` where RFC 4443 §2.4(e) forbids one: about an ICMPv6
/// error or redirect, to or about a multicast or unspecified address. Nor is there one about ICMPv6 other than echo,
/// since error types of the future cannot be told from the rest, or about a later fragment.
pub fn icmp_error(error: IcmpError, source: &Ipv6Addr, packet: &[u8]) -> Option<Vec<u8>> {
    let about = Inner::parse(packet).ok()?;
    let forbidden = matches!(about.traffic, Traffic::Error { .. } | Traffic::Tail | Traffic::Other(ICMPV6))
        || about.source.is_multicast()
        || about.source.is_unspecified()
        || about.destination.is_multicast();
    if forbidden {
        return None;
    }
    let (kind, code, parameter) = match error {
        IcmpError::NoRoute => (ICMPV6_UNREACHABLE, 0, 0),
        IcmpError::AddressUnreachable => (ICMPV6_UNREACHABLE, 3, 0),
        IcmpError::TooBig(mtu) => (ICMPV6_TOO_BIG, 0, mtu),
    };
    let quoted = &packet[..about.len.min(IPV6_MTU_MIN - IPV6_HEADER_LEN - 8)];
    let mut message = vec![kind, code, 0, 0];
    message.extend(parameter.to_be_bytes());
    message.extend(quoted);
    let checksum = icmp_checksum(source, &about.source, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((message.len() as u16).to_be_bytes());
    out.extend([ICMPV6, 64]);
    out.extend(source.octets());
    out.extend(about.source.octets());
    out.extend(message);
    Some(out)
}

/// Checksum of an ICMPv6 message whose own checksum field is zero (RFC 4443 §2.3).
pub fn icmp_checksum(source: &Ipv6Addr, destination: &Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, ICMPV6]].concat();
    let sum: u32 = [&pseudo[..], message]
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) as u16 + (folded >> 16) as u16)
}
