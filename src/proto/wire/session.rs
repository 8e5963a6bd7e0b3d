//! Session packets.
//!
//! ```text
//! 0        0b01 ‖ kind (6 bits)       0: one inner packet, 1: control messages, 2: frames, 3: slice of a superframe;
//!                              4 is another header (`relay.rs`)
//! 1        flags and epoch            bit 0: ratchet epoch; bit 1, kind 0 only: the packet's checksum is partial
//! 2        slice                      number of this datagram in its superframe; 0 for other kinds
//! 3        slices                     datagrams of the superframe, 2..64; 1 for other kinds
//! 4..8     receiver index
//! 8..16    counter                    8 bits sending thread, 56 bits count
//! 16..n-16 ciphertext                 plaintext is padded with zeros to a multiple of 16 bytes, up to the MTU
//! n-16..   tag
//! ```
//!
//! What kinds 2 and 3 carry is laid out in `superframe.rs`. The header is the AEAD's associated data, the nonce is four
//! zero bytes and the counter. Each sending thread has a key, a count and a replay window of its own. On the wire all but
//! the two family bits of the header is masked, keyed by the recipient over the first 16 bytes behind the header.

use super::envelope::RecipientKey;
use super::{FAMILY_MASK, FAMILY_SESSION, Malformed};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 16;
/// Length of the AEAD tag in bytes.
pub const TAG_LEN: usize = 16;
/// Bytes that a session packet adds to its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Shortest session packet in bytes: nothing but header and tag.
pub const PACKET_LEN_MIN: usize = OVERHEAD;
/// Plaintexts are padded to a multiple of this many bytes.
pub const PADDING_MULTIPLE: usize = 16;

/// Bits of the counter that count; those above are the sending thread.
const COUNT_BITS: u32 = 56;

/// Most datagrams of one superframe: what every kernel with `UDP_SEGMENT` takes in one call.
pub const SLICES_MAX: u8 = 64;

/// What a session packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One inner IPv6 packet.
    Data,
    /// Control messages (`control.rs`).
    Control,
    /// Whole frames, one behind the other (`superframe.rs`).
    Frames,
    /// Part of one frame that needs several datagrams (`superframe.rs`).
    Slice,
}

impl Kind {
    /// The six bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Control => 1,
            Self::Frames => 2,
            Self::Slice => 3,
        }
    }

    /// The kind of six bits.
    pub const fn from_bits(bits: u8) -> Result<Self, Malformed> {
        match bits {
            0 => Ok(Self::Data),
            1 => Ok(Self::Control),
            2 => Ok(Self::Frames),
            3 => Ok(Self::Slice),
            other => Err(Malformed::Kind(other)),
        }
    }
}

/// The header, unmasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the packet carries.
    pub kind: Kind,
    /// Ratchet epoch, its lowest bit.
    pub epoch: bool,
    /// The transport checksum of the inner packet is partial (`superframe.rs`); of kind [`Kind::Data`] only.
    pub partial: bool,
    /// Number of this datagram in its superframe, and how many it has; `(0, 1)` unless the kind is a slice.
    pub slice: (u8, u8),
    /// Index by which the recipient knows the session.
    pub receiver_index: u32,
    /// Counter of the packet, the nonce of its AEAD; see [`counter`].
    pub counter: u64,
}

/// The counter of a thread's packet; `count` is below 2^56.
pub const fn counter(thread: u8, count: u64) -> u64 {
    (thread as u64) << COUNT_BITS | count
}

/// The sending thread of a counter.
pub const fn thread_of(counter: u64) -> u8 {
    (counter >> COUNT_BITS) as u8
}

/// The count of a counter: which packet of its thread.
pub const fn count_of(counter: u64) -> u64 {
    counter & ((1 << COUNT_BITS) - 1)
}

impl Header {
    /// The 16 bytes that the AEAD authenticates.
    pub const fn emit(&self) -> [u8; HEADER_LEN] {
        let [i0, i1, i2, i3] = self.receiver_index.to_be_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.counter.to_be_bytes();
        let first = FAMILY_SESSION | self.kind.bits();
        let (slice, slices) = self.slice;
        [
            first,
            self.epoch as u8 | (self.partial as u8) << 1,
            slice,
            slices,
            i0,
            i1,
            i2,
            i3,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
        ]
    }

    /// Reads an unmasked header.
    ///
    /// # Errors
    /// [`Malformed`] for kinds, flags and slices that we do not know.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let [first, flags, slice, slices, i0, i1, i2, i3, c0, c1, c2, c3, c4, c5, c6, c7] = *bytes;
        let kind = Kind::from_bits(first & !FAMILY_MASK)?;
        if flags > if matches!(kind, Kind::Data) { 3 } else { 1 } {
            return Err(Malformed::Field("flags"));
        }
        let plausible = match kind {
            Kind::Slice => (2..=SLICES_MAX).contains(&slices) && slice < slices,
            Kind::Data | Kind::Control | Kind::Frames => (slice, slices) == (0, 1),
        };
        if !plausible {
            return Err(Malformed::Field("slice"));
        }
        Ok(Self {
            kind,
            epoch: flags & 1 == 1,
            partial: flags & 2 == 2,
            slice: (slice, slices),
            receiver_index: u32::from_be_bytes([i0, i1, i2, i3]),
            counter: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        })
    }
}

/// Masks or unmasks the header of a session packet in place.
///
/// # Errors
/// [`Malformed::Truncated`] when the packet is shorter than [`PACKET_LEN_MIN`].
pub fn mask(recipient: &RecipientKey, packet: &mut [u8]) -> Result<(), Malformed> {
    if packet.len() < PACKET_LEN_MIN {
        return Err(Malformed::Truncated);
    }
    let sample = std::array::from_fn(|i| packet[HEADER_LEN + i]);
    let mut mask = recipient.header_mask(sample);
    mask[0] &= !FAMILY_MASK;
    packet[..HEADER_LEN].iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    Ok(())
}
