//! What a node costs that nobody uses.

use std::thread;
use std::time::Duration;

use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, eventually, long};

const PEERS: usize = 8;
const MEMORY_KB: u64 = 30 * 1024;

#[test]
fn an_idle_node_with_eight_peers_uses_no_processor_time_and_little_memory() {
    let lab = Lab::new();
    let hub = lab.node(Underlay::V4).started();
    let peers: Vec<Node> = (0..PEERS).map(|_| lab.node(Underlay::V4).knows(&hub).started()).collect();
    for peer in &peers {
        peer.reaches(&hub, Duration::from_secs(5));
    }
    let known = hub.status()["peers"].as_array().unwrap().len();
    assert!(known >= PEERS, "{known} peers");
    eventually(Duration::from_secs(30), "the node settles: a second without a tick", || {
        let before = hub.cpu_ticks();
        thread::sleep(Duration::from_secs(1));
        (hub.cpu_ticks() == before).then_some(())
    });
    let seconds = if long() { 60 } else { 20 };
    let (ticks, wakes) = (hub.cpu_ticks(), hub.wake_ups());
    thread::sleep(Duration::from_secs(seconds));
    let ticks = hub.cpu_ticks() - ticks;
    let wakes: Vec<_> = hub
        .wake_ups()
        .into_iter()
        .map(|(thread, count)| (thread.1.clone(), count - wakes.get(&thread).copied().unwrap_or(0)))
        .collect();
    let memory = hub.proc_status("VmRSS");
    println!(
        "idle with {known} peers: {ticks} ticks of 10 ms and wake-ups {wakes:?} in {seconds} s, RSS {memory} kB"
    );
    assert!(memory <= MEMORY_KB, "RSS {memory} kB");
    assert!(ticks <= 2, "{ticks} ticks in {seconds} s");
}
