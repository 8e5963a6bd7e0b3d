//! UDP datagrams of one flow that came in one train go to the kernel as one packet, which it cuts again for programs
//! that do not ask for more at once (generic receive offload): one walk through its layers instead of one for each.
//! Nothing waits: what is held when a train ends goes then.

use std::ops::Range;

use super::reception::Turn;
use crate::proto::wire::gso::{UDP_HEADERS_LEN, Virtio, join};
use crate::proto::wire::session::SLICES_MAX;

/// Most datagrams of one packet.
const DATAGRAMS_MAX: usize = SLICES_MAX as usize;
/// Most payload of one packet in bytes: its UDP header states the length in 16 bits (RFC 768).
const PAYLOAD_LEN_MAX: usize = u16::MAX as usize - 8;

/// Longer datagrams do not fit the frame header's segment length, by which they are cut where the kernel does not.
const SEGMENT_LEN_END: usize = 1 << 15;

/// What is held of one train.
#[derive(Default)]
pub(super) struct Gro {
    held: Option<Held>,
    parts: Parts,
}

/// The first packet, and the payloads of those after it, as ranges of the train.
struct Parts([Range<usize>; DATAGRAMS_MAX]);

impl Default for Parts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| 0..0))
    }
}

struct Held {
    virtio: Virtio,
    /// Payload bytes of every datagram but the last.
    segment_len: usize,
    payload_len: usize,
    count: usize,
}

impl Gro {
    /// Takes the packet at `range` of `train`, which passed all checks.
    pub(super) fn put(&mut self, turn: &mut Turn<'_>, train: &mut [u8], virtio: Virtio, range: Range<usize>) {
        let payload_len = range.len().saturating_sub(UDP_HEADERS_LEN);
        if let Some(held) = &mut self.held
            && held.goes_on_with(&train[self.parts.0[0].clone()], virtio, &train[range.clone()])
        {
            self.parts.0[held.count] = range.start + UDP_HEADERS_LEN..range.end;
            held.count += 1;
            held.payload_len += payload_len;
            if payload_len < held.segment_len || held.count == DATAGRAMS_MAX {
                self.flush(turn, train);
            }
            return;
        }
        self.flush(turn, train);
        if virtio.is_udp_datagram() && (1..SEGMENT_LEN_END).contains(&payload_len) {
            self.parts.0[0] = range;
            self.held = Some(Held { virtio, segment_len: payload_len, payload_len, count: 1 });
        } else {
            turn.out.deliver(virtio, &[&train[range]]);
        }
    }

    /// Hands over what is held.
    pub(super) fn flush(&mut self, turn: &mut Turn<'_>, train: &mut [u8]) {
        let Some(held) = self.held.take() else { return };
        let parts = &self.parts.0[..held.count];
        let mut virtio = held.virtio;
        if parts.len() > 1 {
            let head = &mut train[parts[0].clone()][..UDP_HEADERS_LEN];
            virtio = join(head, held.payload_len, held.segment_len as u16);
        }
        let mut pieces = [&[][..]; DATAGRAMS_MAX];
        for (piece, part) in pieces.iter_mut().zip(parts) {
            *piece = &train[part.clone()];
        }
        turn.out.deliver(virtio, &pieces[..parts.len()]);
    }
}

impl Held {
    /// True for the next datagram of the flow of `first`, with the same headers but for its length.
    fn goes_on_with(&self, first: &[u8], virtio: Virtio, next: &[u8]) -> bool {
        let payload_len = next.len().saturating_sub(UDP_HEADERS_LEN);
        virtio == self.virtio
            && (1..=self.segment_len).contains(&payload_len)
            && self.payload_len + payload_len <= PAYLOAD_LEN_MAX
            && first[..4] == next[..4]
            && first[6..44] == next[6..44]
    }
}
