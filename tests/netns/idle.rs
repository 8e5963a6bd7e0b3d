//! What a node costs that nobody uses.

use std::thread;
use std::time::Duration;

use crate::lab::node::Node;
use crate::lab::{Lab, Underlay, eventually, long};

const PEERS: usize = 8;
/// In a minute, for the long form, which wants a quiet machine: 0.00 s to two decimals would be 5 ms.
const BUSY_MAX: Duration = Duration::from_millis(20);
/// Part of a processor, in percent, otherwise: where the host of a virtual machine takes idle memory away, each wake-up is
/// charged with milliseconds for getting it back.
const BUSY_PERCENT_MAX: u32 = 2;
/// Wake-ups of all threads in a second: what a node has to do says more than how long this machine takes for it.
const WAKE_UPS_PER_S_MAX: u64 = 4;
/// What a node joins with is looked up and asked by then.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
const MEMORY_KB: u64 = 30 * 1024;

#[test]
fn an_idle_node_with_eight_peers_uses_no_processor_time_and_little_memory() {
    let lab = Lab::alone();
    // As they come: neighbours that announce themselves.
    let node = || lab.node(Underlay::V4).without("--no-lan-discovery");
    let hub = node().started();
    let peers: Vec<Node> = (0..PEERS).map(|_| node().knows(&hub).started()).collect();
    for peer in &peers {
        peer.reaches(&hub, Duration::from_secs(5));
    }
    let known = hub.status()["peers"].as_array().unwrap().len();
    assert!(known >= PEERS, "{known} peers");
    // After two minutes the lookups of a node that has just joined are over.
    let (settling, seconds) = if long() { (120, 60) } else { (0, 20) };
    thread::sleep(Duration::from_secs(settling));
    let busy_max = if long() { BUSY_MAX } else { Duration::from_secs(seconds) * BUSY_PERCENT_MAX / 100 };
    eventually(SETTLED_WITHIN, "the node settles: a window with little to do", || {
        let (busy, wakes) = (hub.cpu_time(), hub.wake_ups());
        thread::sleep(Duration::from_secs(seconds));
        let busy = hub.cpu_time() - busy;
        let wakes: Vec<_> = hub
            .wake_ups()
            .into_iter()
            .map(|(thread, count)| (thread.1.clone(), count - wakes.get(&thread).copied().unwrap_or(0)))
            .collect();
        println!("idle with {known} peers: {busy:?} of processor time and wake-ups {wakes:?} in {seconds} s");
        let woken: u64 = wakes.iter().map(|(_, count)| count).sum();
        (busy <= busy_max && woken <= WAKE_UPS_PER_S_MAX * seconds).then_some(())
    });
    let memory = hub.proc_status("VmRSS");
    println!("RSS {memory} kB");
    assert!(memory <= MEMORY_KB, "RSS {memory} kB");
}
