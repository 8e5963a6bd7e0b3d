//! One file per format: what it must hold and refuse, and that it survives any bytes.

mod announce;
mod control;
mod cookie;
mod endpoint;
mod envelope;
mod handshake;
mod icmp_error;
mod inner;
mod packets;
mod portmap;
mod record;
mod relay;
mod sealed;
mod session;
mod strategies;
mod stream;
mod vectors;

use super::{Family, family};

#[test]
fn two_bits_tell_the_families_apart() {
    let check = |first: std::ops::RangeInclusive<u8>, expected| {
        for byte in first {
            assert_eq!(family(&[byte]), expected, "first byte {byte}");
        }
    };
    assert_eq!(family(&[]), None);
    check(0..=63, None);
    check(64..=127, Some(Family::Session));
    check(128..=191, None);
    check(192..=255, Some(Family::Setup));
}

/// Runs `parse` over every proper prefix of `packet`: each must be refused.
fn every_truncation_is_refused<T>(packet: &[u8], parse: impl Fn(&[u8]) -> Option<T>) {
    assert!(parse(packet).is_some(), "the whole packet must be accepted");
    for len in 0..packet.len() {
        assert!(parse(&packet[..len]).is_none(), "accepted {len} of {} bytes", packet.len());
    }
}
