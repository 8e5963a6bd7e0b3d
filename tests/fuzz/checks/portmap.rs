//! A router that says anything at any time.

use std::time::Duration;

use auramesh::proto::path::is_global;
use auramesh::proto::portmap::{Config, LIFETIME_MAX, PortMap};
use auramesh::proto::timer::Instant;
use auramesh::proto::wire::portmap::Response;

/// The first request has this seed's nonce.
const SEED: [u8; 32] = [7; 32];

/// Steps of `seconds (2), length (1), datagram`: no mapping leads nowhere, and there are few packets.
pub(crate) fn portmap(data: &[u8]) {
    let _ = Response::parse(data);
    let mut now = Instant::from_nanos(1_000_000_000);
    let start = now;
    let mut machine = PortMap::new(Config { client: [192, 168, 1, 2].into(), inside: 5747 }, SEED, now);
    let (mut rest, mut packets) = (data, 0);
    while let [high, low, len, tail @ ..] = rest {
        let (datagram, after) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = after;
        machine.handle_datagram(now, datagram);
        now += Duration::from_secs(u16::from_be_bytes([*high, *low]).into());
        machine.handle_timeout(now);
        packets += std::iter::from_fn(|| machine.poll_transmit()).count() as u64;
        if let Some(mapping) = machine.mapping() {
            assert!(is_global((*mapping.outside.ip()).into()) && mapping.outside.port() != 0);
            assert!(mapping.expires <= now + LIFETIME_MAX);
        }
        assert!(machine.poll_timeout().is_some());
    }
    let seconds = now.saturating_since(start).as_secs();
    assert!(packets <= 24 + 2 * seconds, "{packets} packets in {seconds} s");
}
