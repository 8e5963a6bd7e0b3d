//! Congestion marks across the tunnel (RFC 6040): outwards the inner codepoint is copied, inwards both are combined.
//!
//! ```text
//!              outer  Not-ECT   ECT(0)    ECT(1)    CE
//! inner Not-ECT       Not-ECT   Not-ECT   Not-ECT   drop
//!       ECT(0)        ECT(0)    ECT(0)    ECT(1)    CE
//!       ECT(1)        ECT(1)    ECT(1)    ECT(1)    CE
//!       CE            CE        CE        CE        CE            (RFC 6040 §4.2, figure 4)
//! ```
//!
//! No checksum covers the traffic class of IPv6.

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The codepoint of an IPv6 packet that begins with `head`.
pub(super) const fn of(head: &[u8]) -> u8 {
    head[1] >> 4 & 0b11
}

/// Marks an IPv6 packet that begins with `head`; false when its sender would not understand.
pub(super) const fn mark(head: &mut [u8]) -> bool {
    if of(head) == NOT_ECT {
        return false;
    }
    head[1] |= CE << 4;
    true
}

/// The codepoint of datagrams that make one packet: the strongest mark that any of them has.
pub(super) const fn strongest(a: u8, b: u8) -> u8 {
    const fn strength(codepoint: u8) -> u8 {
        match codepoint {
            NOT_ECT => 0,
            ECT_0 => 1,
            ECT_1 => 2,
            _ => 3,
        }
    }
    if strength(a) < strength(b) { b } else { a }
}

/// Gives an IPv6 packet that begins with `head` the codepoint with which it leaves the tunnel; `None` when it must be
/// dropped instead: marked on its way, and its sender would not understand.
pub(super) const fn leave(head: &mut [u8], outer: u8) -> Option<()> {
    let inner = of(head);
    let codepoint = match (inner, outer) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (ECT_0, ECT_1) => ECT_1,
        (_, CE) => CE,
        _ => inner,
    };
    head[1] = head[1] & !(0b11 << 4) | codepoint << 4;
    Some(())
}
