//! One end dies, moves or freezes; traffic goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::node::Node;
use crate::lab::pinger::Pinger;
use crate::lab::{Lab, Underlay, eventually, long};

const RESTARTED: Duration = Duration::from_secs(3);
const ROAMED: Duration = Duration::from_secs(1);
const THAWED: Duration = Duration::from_secs(5);
/// Processor time in the second after a thaw, of which 22 to 26 ms were measured. Due timers alone cost too little to show.
const BURST: Duration = Duration::from_millis(200);
/// How long the tests wait for what should take less, to print the real figure.
const PATIENCE: Duration = Duration::from_secs(30);

fn pair(lab: &Lab, underlay: Underlay) -> (Node, Node) {
    let server = lab.node(underlay).with(&["--inbound", "allow"]).started();
    let client = lab.node(underlay).with(&["--inbound", "allow"]).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    (server, client)
}

#[test]
fn killed_and_restarted_either_end_carries_traffic_again_within_3_s() {
    let lab = Lab::alone();
    let (mut server, mut client) = pair(&lab, Underlay::V4);
    let pinger = Pinger::start(&client, server.address, "0.1");
    pinger.first_after(Instant::now(), PATIENCE, "the ping runs");
    for round in 1..=3 {
        server.kill();
        let restart = Instant::now();
        server.start();
        let took = pinger.first_after(restart, PATIENCE, "replies from the restarted node");
        println!("round {round}: the answering end restarted, reply after {took:?}");
        assert!(took <= RESTARTED, "{took:?}");
    }
    drop(pinger);
    for round in 1..=3 {
        client.kill();
        let restart = Instant::now();
        client.start();
        client.reaches(&server, PATIENCE);
        let took = restart.elapsed();
        println!("round {round}: the asking end restarted, reply after {took:?}");
        assert!(took <= RESTARTED, "{took:?}");
        assert!(server.ping(client.address, 1).is_some(), "and back");
    }
}

#[test]
fn roaming_keeps_traffic_within_1_s_and_the_tcp_flow_over_ipv4() {
    roaming(Underlay::V4, |number| IpAddr::V4(Ipv4Addr::new(10, 77, 0, number)));
}

#[test]
fn roaming_keeps_traffic_within_1_s_and_the_tcp_flow_over_ipv6() {
    roaming(Underlay::V6, |number| IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())));
}

/// Each end moves twice, while a TCP flow and a ping run from the client to the server.
fn roaming(underlay: Underlay, address: impl Fn(u8) -> IpAddr) {
    let lab = Lab::alone();
    let (mut server, mut client) = pair(&lab, underlay);
    let flow = Flow::start(&client, &server);
    let pinger = Pinger::start(&client, server.address, "0.05");
    pinger.first_after(Instant::now(), PATIENCE, "the ping runs");
    let mut gaps = Vec::new();
    for number in [101, 102, 103, 104] {
        let (who, node) = if number % 2 == 1 { ("asking", &mut client) } else { ("answering", &mut server) };
        let start = Instant::now();
        node.roam(address(number));
        let moved = start.elapsed();
        pinger.first_after(Instant::now() + Duration::from_millis(200), PATIENCE, "replies after roaming");
        let gap = pinger.longest_gap(start);
        println!("{underlay:?}: the {who} end moved (in {moved:?}), longest silence {gap:?}");
        gaps.push(gap);
        flow.goes_on();
    }
    assert!(gaps.iter().all(|&gap| gap <= ROAMED), "{gaps:?}");
}

#[test]
fn frozen_and_thawed_carries_traffic_again_within_5_s() {
    let lab = Lab::alone();
    let (server, client) = pair(&lab, Underlay::V4);
    let pinger = Pinger::start(&client, server.address, "0.1");
    pinger.first_after(Instant::now(), PATIENCE, "the ping runs");
    server.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_secs(if long() { 60 } else { 20 }));
    let before = server.cpu_time();
    server.signal(Signal::SIGCONT);
    let thaw = Instant::now();
    let took = pinger.first_after(thaw, PATIENCE, "replies from the thawed node");
    println!("thawed, reply after {took:?}");
    assert!(took <= THAWED, "{took:?}");
    pinger.first_after(thaw + Duration::from_secs(1), PATIENCE, "and goes on");
    let (burst, over) = (server.cpu_time() - before, thaw.elapsed());
    println!("{burst:?} of processor time in the first {over:?}");
    assert!(burst <= BURST, "no burst of timers after the thaw: {burst:?} in {over:?}");
}

/// The two ends lose sight of each other without either dying.
#[test]
fn a_cut_link_carries_traffic_again_when_it_is_back() {
    let lab = Lab::alone();
    let (server, client) = pair(&lab, Underlay::V4);
    let pinger = Pinger::start(&client, server.address, "0.1");
    pinger.first_after(Instant::now(), PATIENCE, "the ping runs");
    crate::lab::ip(&format!("-n {} link set p1 down", lab.lan()));
    thread::sleep(Duration::from_secs(if long() { 60 } else { 10 }));
    crate::lab::ip(&format!("-n {} link set p1 up", lab.lan()));
    let took = pinger.first_after(Instant::now(), PATIENCE, "replies after the cut");
    println!("link back, reply after {took:?}");
    assert!(took <= THAWED, "{took:?}");
}

/// A TCP connection that carries a few bytes every 10 ms.
struct Flow {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    broken: Arc<Mutex<Option<String>>>,
}

impl Flow {
    fn start(client: &Node, server: &Node) -> Self {
        let address = server.address;
        let listener = server.inside(|| TcpListener::bind((address, 7000))).unwrap();
        let mut sender = client.inside(|| TcpStream::connect((address, 7000))).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let flow = Self { received: Arc::default(), stop: Arc::default(), broken: Arc::default() };
        let (stop, broken) = (Arc::clone(&flow.stop), Arc::clone(&flow.broken));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = sender.write_all(&[42; 100]) {
                    *broken.lock().unwrap() = Some(format!("sender: {error}"));
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        let (stop, broken, received) =
            (Arc::clone(&flow.stop), Arc::clone(&flow.broken), Arc::clone(&flow.received));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                match receiver.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => {
                        received.fetch_add(count as u64, Ordering::Relaxed);
                    }
                    Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                    Err(error) => {
                        *broken.lock().unwrap() = Some(format!("receiver: {error}"));
                        return;
                    }
                }
            }
        });
        flow
    }

    fn goes_on(&self) {
        let before = self.received.load(Ordering::Relaxed);
        eventually(Duration::from_secs(5), "the TCP flow goes on", || {
            (self.received.load(Ordering::Relaxed) > before + 1000).then_some(())
        });
        assert_eq!(*self.broken.lock().unwrap(), None, "the TCP flow broke");
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
