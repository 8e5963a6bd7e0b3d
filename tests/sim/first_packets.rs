//! What somebody who only looks at first packets can tell from them: nothing but the two bits of the family.
//!
//! The filter that China's network had from 2021 to 2023 took what has 3.4 to 4.6 set bits per byte for an unknown
//! protocol, on TCP. What looks random is in that range, and so are these packets, as the test says; they go over UDP,
//! and over TCP the mesh begins with the text of a WebSocket upgrade. Against somebody who knows a node's key, and
//! with that its masks, the secret of a network helps, which is mixed into them.

use auramesh::proto::identity::Identity;
use auramesh::proto::session::noise::Initiator;
use auramesh::proto::session::sealed;
use auramesh::proto::session::{self, Rng};
use auramesh::proto::timer::WallTime;
use auramesh::proto::wire::envelope::NetworkSecret;
use auramesh::proto::wire::sealed::{Message, emit_record_request};
use rand_core::{Rng as _, SeedableRng};

use crate::host::WALL_START_MS;

/// Packets of each kind.
const PACKETS: usize = 10_000;
/// How far the share of set bits at one place may be from a half: six standard deviations.
const OFF_MAX: f64 = 6.0 * 0.5 / 100.0;
/// What that filter flags, in set bits per byte.
const FLAGGED: std::ops::RangeInclusive<f64> = 3.4..=4.6;

fn wall(n: usize) -> WallTime {
    WallTime::from_unix_ms(WALL_START_MS + n as u64)
}

#[expect(clippy::print_stdout, reason = "what was counted")]
/// What is the same in all packets, and how many bits are set.
fn judge(what: &str, packets: &[Vec<u8>]) {
    let shortest = packets.iter().map(Vec::len).min().expect("packets");
    let longest = packets.iter().map(Vec::len).max().expect("packets");
    let mut constant = Vec::new();
    let mut worst = (0.0, 0, 0);
    for at in 0..shortest {
        for bit in 0..8 {
            let set = packets.iter().filter(|packet| packet[at] >> bit & 1 == 1).count();
            if set == 0 || set == packets.len() {
                constant.push((at, bit));
                continue;
            }
            let off = (set as f64 / packets.len() as f64 - 0.5).abs();
            if off > worst.0 {
                worst = (off, at, bit);
            }
        }
    }
    let per_byte: Vec<_> = packets
        .iter()
        .map(|packet| f64::from(packet.iter().map(|b| b.count_ones()).sum::<u32>()) / packet.len() as f64)
        .collect();
    let mean = per_byte.iter().sum::<f64>() / per_byte.len() as f64;
    let flagged = per_byte.iter().filter(|bits| FLAGGED.contains(bits)).count();
    println!(
        "{} {what} of {shortest} to {longest} bytes: constant bits {constant:?}; {mean:.3} set bits per byte; the bit \
         farthest from a half is {} of byte {} by {:.4}; {flagged} in the range 3.4 to 4.6 that a filter of random-looking \
         first packets on TCP flags",
        packets.len(),
        worst.2,
        worst.1,
        worst.0
    );
    assert_eq!(constant, [(0, 6), (0, 7)], "{what}: the family bits alone");
    assert!(worst.0 < OFF_MAX, "{what}: bit {} of byte {} tells something: {}", worst.2, worst.1, worst.0);
    assert!((3.98..4.02).contains(&mean), "{what}: {mean} set bits per byte");
    // All lengths that occur, none of them often.
    let mut lengths = std::collections::BTreeMap::<usize, usize>::new();
    packets.iter().for_each(|packet| *lengths.entry(packet.len()).or_default() += 1);
    assert!(lengths.values().all(|n| *n < packets.len() / 50), "{what}: a length that is too common");
}

#[test]
fn ten_thousand_first_packets_have_nothing_in_common_but_the_family() {
    let mut rng = Rng::from_seed([77; 32]);
    let mut identity = || {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        Identity::from_seed(seed)
    };
    // One node that many come to, which is where somebody would look.
    let (to, from) = (identity(), identity());
    let network = NetworkSecret::default();
    let config = session::Config::new(true, NetworkSecret::default());
    let mut rng = Rng::from_seed([78; 32]);
    let initiations: Vec<_> = (0..PACKETS)
        .map(|n| {
            let (id, key) = (to.node_id(), to.x25519_public());
            let index = rng.next_u32();
            Initiator::start(&from, &config, id, &key, index, wall(n), None, &mut rng).expect("valid keys").1
        })
        .collect();
    judge("initiations", &initiations);
    let requests: Vec<_> = (0..PACKETS)
        .map(|n| {
            let mut payload = emit_record_request(rng.next_u64());
            // As `node` pads them.
            payload.resize(payload.len() + rng.next_u32() as usize % 320, 0);
            let message = Message::RecordRequest;
            sealed::seal(&from, to.node_id(), message, &payload, wall(n), &network, &mut rng)
                .expect("it fits")
        })
        .collect();
    judge("record requests", &requests);
}
