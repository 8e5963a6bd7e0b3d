//! Large packets as ordinary ones.

use crate::proto::wire::gso::{Segments, Transport};
use crate::proto::wire::superframe::Offload;

/// A packet as whole packets with complete checksums: what a queue, or a peer without frames, takes.
#[derive(Debug)]
pub struct PlainPackets {
    offload: Offload,
    segments: Option<Segments>,
    done: bool,
    packet_len: usize,
}

impl PlainPackets {
    /// For a whole packet.
    pub fn of(packet: &[u8], offload: Offload) -> Self {
        let segments = Segments::of(packet, offload);
        Self { offload, segments, done: false, packet_len: packet.len() }
    }

    /// Length of the longest of them in bytes.
    pub fn packet_len_max(&self) -> usize {
        self.segments.as_ref().map_or(self.packet_len, Segments::packet_len_max)
    }

    /// Writes the next one to the front of `out`, which has room for the longest; its length.
    pub fn next(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        let len = match &mut self.segments {
            Some(segments) => segments.next(packet, out)?,
            None if std::mem::replace(&mut self.done, true) => return None,
            None => {
                out[..packet.len()].copy_from_slice(packet);
                packet.len()
            }
        };
        if (self.offload.partial || self.segments.is_some())
            && let Some(transport) = Transport::locate(&out[..len])
        {
            transport.complete(&mut out[..len]);
        }
        Some(len)
    }
}
