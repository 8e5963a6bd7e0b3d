//! TCP and UDP packets larger than their path (generic segmentation offload): where their headers are, what the kernel
//! must be told about them, how they are cut, and their checksums.
//!
//! ```text
//! virtio_net_hdr, 10 bytes in the byte order of the machine (virtio 1.2 §5.1.6, linux/virtio_net.h)
//! 0        flags          bit 0: the checksum is partial
//! 1        gso_type       0 none, 4 TCP over IPv6, 5 UDP
//! 2..4     hdr_len        all headers in front of the payload
//! 4..6     gso_size       payload of each packet to cut it into
//! 6..8     csum_start     where the transport header begins
//! 8..10    csum_offset    where the checksum is in it
//! ```
//!
//! What a peer says of its packets ([`Offload`]) is two numbers. Everything else that the kernel is told is read from
//! the packet itself, so no peer can point the kernel outside of it.

use etherparse::{Ipv6ExtensionSlice, LaxIpv6Slice, ip_number};

use super::Malformed;
use super::inner::IPV6_HEADER_LEN;
use super::superframe::Offload;

/// Length of a virtio header in bytes.
pub const VIRTIO_LEN: usize = 10;
/// Least payload of a TCP segment in bytes (`TCP_MIN_SND_MSS`, linux/tcp.h): less is an attack on whoever cuts.
pub const TCP_SEGMENT_LEN_MIN: u16 = 48;
/// Most datagrams that one UDP packet may be cut into (`UDP_MAX_SEGMENTS`, linux/udp.h).
pub const UDP_SEGMENTS_MAX: usize = 128;
/// Bytes of the headers of a UDP datagram without extensions.
pub const UDP_HEADERS_LEN: usize = IPV6_HEADER_LEN + 8;
/// Longest headers of a packet that is cut, in bytes.
pub const HEADERS_LEN_MAX: usize = super::superframe::REPEAT_LEN - super::superframe::FRAME_HEADER_LEN;

const TCP: u8 = ip_number::TCP.0;
const UDP: u8 = ip_number::UDP.0;

const FLAG_PARTIAL: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;

const TCP_FIN_PSH: u8 = 0b0000_1001;
const TCP_SYN_RST_URG: u8 = 0b0010_0110;
const TCP_CWR: u8 = 0b1000_0000;

/// What the kernel is told about a packet, or tells about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Virtio {
    partial: bool,
    kind: u8,
    headers_len: u16,
    segment_len: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Virtio {
    /// An ordinary packet.
    pub const PLAIN: Self = Self {
        partial: false,
        kind: GSO_NONE,
        headers_len: 0,
        segment_len: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads the kernel's bytes.
    ///
    /// # Errors
    /// [`Malformed`] for kinds of packets that we never asked for.
    pub fn parse(bytes: &[u8; VIRTIO_LEN]) -> Result<Self, Malformed> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        if !matches!(kind, GSO_NONE | GSO_TCPV6 | GSO_UDP) {
            return Err(Malformed::Field("gso_type"));
        }
        Ok(Self {
            partial: flags & FLAG_PARTIAL != 0,
            kind,
            headers_len: u16::from_ne_bytes([h0, h1]),
            segment_len: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The kernel's bytes.
    pub const fn emit(&self) -> [u8; VIRTIO_LEN] {
        let [h0, h1] = self.headers_len.to_ne_bytes();
        let [s0, s1] = self.segment_len.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [self.partial as u8, self.kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }

    /// True for several UDP datagrams in one packet, which kernels before Linux 6.2 do not know.
    pub const fn is_udp_train(&self) -> bool {
        self.kind == GSO_UDP
    }

    /// True for one UDP datagram without extension headers, its checksum partial.
    pub const fn is_udp_datagram(&self) -> bool {
        let udp = self.checksum_start as usize == IPV6_HEADER_LEN && self.checksum_offset == 6;
        self.partial && self.kind == GSO_NONE && udp
    }

    /// What a peer has to know of it.
    pub const fn offload(&self) -> Offload {
        let segment_len = if self.kind == GSO_NONE { 0 } else { self.segment_len & 0x7fff };
        Offload { segment_len, partial: self.partial }
    }

    /// Completes a partial checksum where the kernel says that it is, for protocols other than TCP and UDP.
    pub fn complete(&self, packet: &mut [u8]) {
        let (start, field) = (usize::from(self.checksum_start), usize::from(self.checksum_offset));
        if self.partial && start + field + 2 <= packet.len() {
            finish_checksum(&mut packet[start..], field, false);
        }
    }
}

/// Where the transport header of an inner TCP or UDP packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    is_tcp: bool,
    /// Where it begins.
    at: usize,
    /// Where the payload begins.
    payload_at: usize,
}

impl Transport {
    /// Finds it in the first bytes of a packet. `None` for other protocols, for fragments, and when the headers do not
    /// end within `head`.
    pub fn locate(head: &[u8]) -> Option<Self> {
        let (protocol, at) = match *head.get(6)? {
            protocol @ (TCP | UDP) => (protocol, IPV6_HEADER_LEN),
            _ => behind_extensions(head)?,
        };
        let is_tcp = protocol == TCP;
        let header_len = match protocol {
            TCP => usize::from(head.get(at + 12)? >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        if is_tcp && header_len < 20 || at + header_len > head.len() {
            return None;
        }
        Some(Self { is_tcp, at, payload_at: at + header_len })
    }

    /// Bytes of all headers.
    pub const fn headers_len(&self) -> usize {
        self.payload_at
    }

    /// TCP, not UDP.
    pub const fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    const fn checksum_at(&self) -> usize {
        self.at + self.checksum_offset()
    }

    const fn checksum_offset(&self) -> usize {
        if self.is_tcp { 16 } else { 6 }
    }

    /// Makes `head`, a copy of the headers of a packet with `payload_len` bytes of payload, those of the part
    /// `from..to` of that payload; the checksum is partial.
    pub fn cut(&self, head: &mut [u8], payload_len: usize, from: usize, to: usize) {
        let transport_len = self.payload_at - self.at + to - from;
        let stated = self.payload_at - IPV6_HEADER_LEN + to - from;
        head[4..6].copy_from_slice(&(stated as u16).to_be_bytes());
        if self.is_tcp {
            let sequence = read_u32(&head[self.at + 4..]).wrapping_add(from as u32);
            head[self.at + 4..self.at + 8].copy_from_slice(&sequence.to_be_bytes());
            let flags = &mut head[self.at + 13];
            if to < payload_len {
                *flags &= !TCP_FIN_PSH;
            }
            if from > 0 {
                *flags &= !TCP_CWR;
            }
        } else {
            head[self.at + 4..self.at + 6].copy_from_slice(&(transport_len as u16).to_be_bytes());
        }
        self.set_partial(head, transport_len);
    }

    /// Puts the sum of the pseudo header (RFC 8200 §8.1) into the checksum field.
    fn set_partial(&self, head: &mut [u8], transport_len: usize) {
        let protocol = if self.is_tcp { TCP } else { UDP };
        let sum = sum(&head[8..40]) + transport_len as u64 + u64::from(protocol);
        let at = self.checksum_at();
        head[at..at + 2].copy_from_slice(&fold(sum).to_be_bytes());
    }

    /// Computes the checksum of a whole packet.
    pub fn complete(&self, packet: &mut [u8]) {
        self.set_partial(packet, packet.len() - self.at);
        finish_checksum(&mut packet[self.at..], self.checksum_offset(), !self.is_tcp);
    }
}

fn behind_extensions(head: &[u8]) -> Option<(u8, usize)> {
    let (slice, error) = LaxIpv6Slice::from_slice(head).ok()?;
    let is_fragment = |e: Ipv6ExtensionSlice<'_>| matches!(e, Ipv6ExtensionSlice::Fragment(_));
    if error.is_some() || slice.extensions().clone().into_iter().any(is_fragment) {
        return None;
    }
    let payload = slice.payload();
    let at = IPV6_HEADER_LEN + slice.extensions().slice().len();
    Some((payload.ip_number.0, at))
}

/// Checks what a peer says of a packet of `packet_len` bytes whose first bytes are `head`, and makes of it what the
/// kernel needs; a partial checksum is computed anew.
///
/// # Errors
/// [`Malformed`] for what the kernel must not see.
pub fn prepare(head: &mut [u8], packet_len: usize, offload: Offload) -> Result<Virtio, Malformed> {
    if offload == Offload::NONE {
        return Ok(Virtio::PLAIN);
    }
    let transport = Transport::locate(head).ok_or(Malformed::Field("offload"))?;
    let payload_len = packet_len.checked_sub(transport.payload_at).ok_or(Malformed::Truncated)?;
    let segment_len = usize::from(offload.segment_len);
    // Of a packet to cut, the kernel wants the checksum partial.
    let cut = segment_len != 0 && segment_len < payload_len;
    if cut {
        let plausible = if transport.is_tcp {
            offload.segment_len >= TCP_SEGMENT_LEN_MIN && head[transport.at + 13] & TCP_SYN_RST_URG == 0
        } else {
            payload_len.div_ceil(segment_len) <= UDP_SEGMENTS_MAX
        };
        if !plausible || transport.payload_at > HEADERS_LEN_MAX || !offload.partial {
            return Err(Malformed::Field("segment length"));
        }
    }
    if !offload.partial {
        return Ok(Virtio::PLAIN);
    }
    if !transport.is_tcp {
        let stated = usize::from(u16::from_be_bytes([head[transport.at + 4], head[transport.at + 5]]));
        if stated != packet_len - transport.at {
            return Err(Malformed::Field("UDP length"));
        }
    }
    transport.set_partial(head, packet_len - transport.at);
    let kind = match (cut, transport.is_tcp) {
        (false, _) => GSO_NONE,
        (true, true) => GSO_TCPV6,
        (true, false) => GSO_UDP,
    };
    Ok(Virtio {
        partial: true,
        kind,
        headers_len: if cut { transport.payload_at as u16 } else { 0 },
        segment_len: if cut { offload.segment_len } else { 0 },
        checksum_start: transport.at as u16,
        checksum_offset: transport.checksum_offset() as u16,
    })
}

/// Makes `head`, the headers of a UDP datagram ([`Virtio::is_udp_datagram`]), those of a packet with `payload_len` bytes
/// of payload, which the kernel cuts into datagrams of `segment_len` each.
pub fn join(head: &mut [u8], payload_len: usize, segment_len: u16) -> Virtio {
    let transport = Transport { is_tcp: false, at: IPV6_HEADER_LEN, payload_at: UDP_HEADERS_LEN };
    transport.cut(head, payload_len, 0, payload_len);
    Virtio {
        partial: true,
        kind: GSO_UDP,
        headers_len: UDP_HEADERS_LEN as u16,
        segment_len,
        checksum_start: transport.at as u16,
        checksum_offset: transport.checksum_offset() as u16,
    }
}

/// Cuts a packet as the kernel would have done.
#[derive(Clone, Debug)]
pub struct Segments {
    transport: Transport,
    payload_len: usize,
    segment_len: usize,
    from: usize,
}

impl Segments {
    /// For a whole packet; `None` when it is not to be cut.
    pub fn of(packet: &[u8], offload: Offload) -> Option<Self> {
        let transport = Transport::locate(packet)?;
        let payload_len = packet.len() - transport.payload_at;
        let segment_len = usize::from(offload.segment_len);
        (segment_len != 0 && segment_len < payload_len).then_some(Self {
            transport,
            payload_len,
            segment_len,
            from: 0,
        })
    }

    /// Length of the longest packet in bytes.
    pub const fn packet_len_max(&self) -> usize {
        self.transport.payload_at + self.segment_len
    }

    /// Writes the next packet, with a partial checksum, to the front of `out`, which has room for the longest; its
    /// length.
    pub fn next(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.from >= self.payload_len {
            return None;
        }
        let to = (self.from + self.segment_len).min(self.payload_len);
        let headers_len = self.transport.payload_at;
        let len = headers_len + to - self.from;
        let (head, payload) = out[..len].split_at_mut(headers_len);
        head.copy_from_slice(&packet[..headers_len]);
        payload.copy_from_slice(&packet[headers_len + self.from..headers_len + to]);
        self.transport.cut(head, self.payload_len, self.from, to);
        self.from = to;
        Some(len)
    }
}

/// Completes the checksum at `field` of `transport`, which holds the sum of the pseudo header; a UDP checksum of zero
/// would mean that there is none (RFC 768).
fn finish_checksum(transport: &mut [u8], field: usize, is_udp: bool) {
    let checksum = match !fold(sum(transport)) {
        0 if is_udp => 0xffff,
        checksum => checksum,
    };
    transport[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Sum of 16-bit words in network byte order (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    let words: u64 = chunks.by_ref().map(|chunk| u64::from(read_u32(chunk))).sum();
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    words + u64::from(u32::from_be_bytes(last))
}

const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn read_u32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
