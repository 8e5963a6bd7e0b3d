//! What a node costs that has nothing to do.

use std::time::Duration;

use crate::network::Conditions;
use crate::world::World;

#[test]
fn idle_node_with_eight_peers_sleeps() {
    const TIME_S: u64 = 600;
    let mut world = World::new(300, Conditions::default());
    let nodes = world.add_mesh(9, Duration::from_millis(100));
    // Past the joining, the first republication and the first refresh.
    world.run_for(Duration::from_secs(300));
    let counts = |world: &World| -> Vec<_> {
        let count = |id| (world.host(id).wakeups, world.host(id).sent, world.host(id).sent_bytes);
        nodes.iter().map(|id| count(*id)).collect()
    };
    let before = counts(&world);
    world.run_for(Duration::from_secs(TIME_S));
    for ((wakeups, sent, bytes), (before_wakeups, before_sent, before_bytes)) in
        counts(&world).into_iter().zip(before)
    {
        let per_s = |n: u64| n as f64 / TIME_S as f64;
        // IPv6 and UDP headers count too.
        let bytes = bytes - before_bytes + 48 * (sent - before_sent);
        println!(
            "{:.2} wake-ups/s, {:.2} datagrams/s, {:.2} MB/day",
            per_s(wakeups - before_wakeups),
            per_s(sent - before_sent),
            per_s(bytes) * 86_400.0 / 1e6
        );
        assert!(per_s(wakeups - before_wakeups) <= 1.0);
        // One question of the DHT every 10 s, as many answers, and a handshake now and then: nobody asks whether an
        // answer arrived.
        assert!(per_s(sent - before_sent) <= 0.325);
    }
}
