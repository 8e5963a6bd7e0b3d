//! Frames: inner packets inside of session packets, with what the sending kernel left to its network card.
//!
//! ```text
//! frame                     0..2   bit 15: checksum partial; bits 0-14: segment length, 0 = one packet
//!                           2..    the inner IPv6 packet; its own header states its length
//!
//! kind 2, frames            frame ‖ frame ‖ … ‖ zeros          each whole; several small packets share a tag
//!
//! kind 3, superframe of n   slice 0     frame[0..s]            s: plaintext of every slice but the last, in bytes
//!                           slice 1     frame[0..r] ‖ frame[s..2s-r]           r = 112: a copy of the inner headers
//!                           slice k     frame[ks-r..(k+1)s-r]
//!                           slice n-1   what is left, zeros to a multiple of 16
//! ```
//!
//! Segment length: a TCP or UDP packet larger than the path, which the receiving kernel (or whoever has none that can)
//! cuts into packets with so many bytes of payload each. Partial: the checksum field holds the sum of the pseudo header
//! only (virtio 1.2 §5.1.6.2); the AEAD protects the payload on its way, and the last kernel completes the sum if it
//! forwards. The slices of a superframe have consecutive counters, so counter minus slice names the superframe.

use std::ops::Range;

use super::inner::stated_len;
use super::session::SLICES_MAX;

/// Bytes in front of a frame's packet.
pub const FRAME_HEADER_LEN: usize = 2;
/// Bytes of the frame that slice 1 repeats: the frame header, IPv6 and the longest TCP header, rounded up to 16.
pub const REPEAT_LEN: usize = 112;
/// Longest inner packet in bytes: an IPv6 header and the longest payload that it can state.
pub const PACKET_LEN_MAX: usize = 40 + 65_535;
/// Longest frame in bytes.
pub const FRAME_LEN_MAX: usize = FRAME_HEADER_LEN + PACKET_LEN_MAX;
/// Shortest slice in bytes: a frame of [`FRAME_LEN_MAX`] fits into [`SLICES_MAX`] of them.
pub const SLICE_LEN_MIN: usize = (FRAME_LEN_MAX + REPEAT_LEN).div_ceil(SLICES_MAX as usize);

const PARTIAL: u16 = 0x8000;

/// What the sending kernel left to do for a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Payload bytes of each packet to cut it into; 0 when it is one packet.
    pub segment_len: u16,
    /// The transport checksum covers the pseudo header only.
    pub partial: bool,
}

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Self = Self { segment_len: 0, partial: false };

    /// The frame header.
    ///
    /// # Panics
    /// In debug builds, when the segment length has more than 15 bits.
    pub const fn emit(self) -> [u8; FRAME_HEADER_LEN] {
        debug_assert!(self.segment_len < PARTIAL);
        (self.segment_len | if self.partial { PARTIAL } else { 0 }).to_be_bytes()
    }

    /// Reads a frame header.
    pub const fn parse(bytes: [u8; FRAME_HEADER_LEN]) -> Self {
        let bits = u16::from_be_bytes(bytes);
        Self { segment_len: bits & !PARTIAL, partial: bits & PARTIAL != 0 }
    }
}

/// How a frame lies in slices of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    slice_len: usize,
}

impl Layout {
    /// Slices with `slice_len` bytes of plaintext; `None` below [`SLICE_LEN_MIN`].
    pub const fn new(slice_len: usize) -> Option<Self> {
        if slice_len < SLICE_LEN_MIN { None } else { Some(Self { slice_len }) }
    }

    /// Plaintext bytes of every slice but the last.
    pub const fn slice_len(self) -> usize {
        self.slice_len
    }

    /// Slices of a frame of `frame_len` bytes.
    pub const fn slices(self, frame_len: usize) -> usize {
        if frame_len <= self.slice_len { 1 } else { (frame_len + REPEAT_LEN).div_ceil(self.slice_len) }
    }

    /// Bytes of a slice before its part of the frame begins.
    pub const fn lead(slice: usize) -> usize {
        if slice == 1 { REPEAT_LEN } else { 0 }
    }

    /// The part of the frame, however long it is, that slice `slice` has room for.
    pub const fn part(self, slice: usize) -> Range<usize> {
        let skip = if slice == 0 { 0 } else { REPEAT_LEN };
        let lead = Self::lead(slice);
        let start = slice * self.slice_len - skip + lead;
        start..start + self.slice_len - lead
    }
}

/// Splits the plaintext of kind 2 into frames: offload, and where the packet is. Ends at padding, or at anything that
/// is no whole packet.
#[derive(Clone, Debug)]
pub struct Frames {
    at: usize,
}

impl Frames {
    /// Starts in front.
    pub const fn new() -> Self {
        Self { at: 0 }
    }

    /// The next frame of `plaintext`.
    pub fn next(&mut self, plaintext: &[u8]) -> Option<(Offload, Range<usize>)> {
        let rest = plaintext.get(self.at..)?;
        let (header, packet) = rest.split_first_chunk()?;
        let len = stated_len(packet).ok().filter(|len| *len <= packet.len())?;
        let start = self.at + FRAME_HEADER_LEN;
        self.at = start + len;
        Some((Offload::parse(*header), start..start + len))
    }

    /// True when nothing but padding is left.
    pub fn is_at_end(&self, plaintext: &[u8]) -> bool {
        plaintext.get(self.at..).is_none_or(|rest| rest.iter().all(|byte| *byte == 0))
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}
