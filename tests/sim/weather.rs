//! Handshakes over bad underlays: losses, bytes that change on the way, satellites.

use std::time::Duration;

use crate::host::ms;
use crate::network::Conditions;
use crate::pair::{pair, ping};
use crate::traffic::route;
use crate::world::{HostId, World};

/// Handshakes of each kind.
const HANDSHAKES: u64 = 50;
/// From the start of the second node until both have a session, at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long until both ends of a pair have a session, while a program sends a packet a second.
fn connects(world: &mut World) -> Option<(HostId, HostId, Duration)> {
    let (a, b) = pair(world);
    let start = world.now;
    for sequence in 0..PATIENCE.as_secs() as u16 {
        ping(world, b, a, sequence, Duration::from_secs(1));
        if route(world, a, b).is_some() && route(world, b, a).is_some() {
            return Some((a, b, world.now.saturating_since(start)));
        }
    }
    None
}

#[expect(clippy::print_stdout, reason = "what was measured")]
fn report(what: &str, mut times: Vec<Duration>) {
    assert_eq!(times.len() as u64, HANDSHAKES, "{what}: some never succeed");
    times.sort_unstable();
    let at = |percent: usize| ms(times[(times.len() - 1) * percent / 100]);
    println!("{what}: {} handshakes, p50 {}, p95 {}, max {}", times.len(), at(50), at(95), at(100));
}

#[test]
fn fifty_handshakes_at_30_percent_loss_all_succeed() {
    let connect = |seed: u64| {
        let mut world = World::exact(600 + seed, Conditions::default().with_loss(0.3));
        connects(&mut world).map(|(.., took)| took)
    };
    report("30 % loss", (0..HANDSHAKES).filter_map(connect).collect());
}

#[test]
fn fifty_handshakes_at_30_percent_corruption_all_succeed() {
    let connect = |seed: u64| {
        let mut world = World::exact(700 + seed, Conditions::default());
        let mut number = seed;
        world.forge(move |seen| {
            number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let mut datagram = seen.datagram.clone();
            if (number >> 32) % 100 < 30 {
                let at = (number >> 40) as usize % datagram.len();
                datagram[at] ^= 1 << (number % 8);
            }
            vec![(Duration::ZERO, datagram)]
        });
        connects(&mut world).map(|(.., took)| took)
    };
    report("30 % corruption", (0..HANDSHAKES).filter_map(connect).collect());
}

#[test]
fn three_quarters_of_a_second_each_way_are_no_obstacle() {
    let far = Duration::from_millis(750);
    let conditions = Conditions {
        delay_min: far,
        delay_spread: Duration::ZERO,
        jitter: Duration::from_millis(20),
        ..Conditions::default()
    };
    for seed in 0..10 {
        let mut world = World::exact(800 + seed, conditions);
        let (a, b, took) = connects(&mut world).expect("they connect");
        println!("750 ms each way: connected after {}", ms(took));
        assert!(took < Duration::from_secs(12), "{took:?}");
        // And it stays: nothing takes such a way for a dead one.
        world.run_for(Duration::from_secs(5));
        let index = route(&world, b, a).map(|session| session.local_index());
        let lost = (1000..1060).filter(|n| {
            let answered = ping(&mut world, b, a, *n, Duration::from_secs(2)).is_some();
            world.run_for(Duration::from_millis(500));
            !answered
        });
        assert!(lost.count() <= 1);
        assert_eq!(route(&world, b, a).map(|s| s.local_index()).is_some(), index.is_some());
    }
}
