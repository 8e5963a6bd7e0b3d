//! A crowd of strangers at a relay: they take what they get and mean no good, its own peers do not notice.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use auramesh::proto::identity::NodeId;
use auramesh::proto::relay::{CHANNELS_MAX, STRANGERS_MAX};
use auramesh::proto::wire::control::Control;
use auramesh::proto::wire::envelope::{NetworkSecret, RecipientKey};
use auramesh::proto::wire::relay::{HOPS_MAX, Header, RELAY_OVERHEAD, Slot, seal};

use crate::hostile::Hostile;
use crate::lab::nat::Nat;
use crate::lab::node::Node;
use crate::lab::pinger::Pinger;
use crate::lab::{Lab, Machine, Underlay, eventually, ip};
use crate::relays::{joined, kind};

const CLIENTS: usize = 500;
/// Clients that open their sessions at once.
const BATCH: usize = 50;
/// Channels that one hoards at a time, and times.
const HOARD: (usize, usize) = (30, 3);
/// Packets that one who never reads sends into its channel at a time.
const FLOOD: usize = 60;
/// Longest silence between own peers that ping each other ten times a second.
const GAP_MAX: Duration = Duration::from_millis(1500);
/// Memory that the crowd may cost its relay.
const MEMORY_MAX_KIB: u64 = 48 * 1024;

/// What a client does once it has what it gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Idles,
    Hoards,
    NeverReads,
}

impl Habit {
    const fn of(number: usize) -> Self {
        match number % 3 {
            0 => Self::Idles,
            1 => Self::Hoards,
            _ => Self::NeverReads,
        }
    }
}

/// Clients with an address each, in as many networks.
fn crowd(lab: &Lab, machine: &Machine, relay: &Node) -> Vec<Hostile> {
    ip(&format!("-n {} route add 21.0.0.0/8 via {}", lab.internet(), machine.ip));
    let mut clients: Vec<Hostile> = Vec::new();
    while clients.len() < CLIENTS {
        let first = clients.len();
        for number in first..CLIENTS.min(first + BATCH) {
            let address = Ipv4Addr::new(21, (number / 250) as u8, (number % 250) as u8, 9);
            ip(&format!("-n {} addr add {address}/32 dev lo", machine.netns));
            let mut seed = [21; 32];
            seed[..2].copy_from_slice(&(number as u16).to_be_bytes());
            clients.push(Hostile::begin(machine, SocketAddr::from((address, 5747)), seed, relay));
        }
        eventually(Duration::from_secs(10), "the sessions of a batch", || {
            clients.iter_mut().for_each(Hostile::turn);
            clients[first..].iter_mut().all(|client| client.has_session(relay)).then_some(())
        });
    }
    clients
}

#[test]
fn five_hundred_clients_that_idle_hoard_or_never_read_leave_a_relay_to_its_own_peers() {
    let lab = Lab::alone();
    let routers = [(); 2].map(|()| lab.router(Nat::Symmetric));
    let own = [&routers[0], &routers[1]].map(|router| router.node().with(&["--inbound", "allow"]));
    let relay = lab.public(Underlay::V4);
    let file = relay.dir.join("azora.toml");
    fs::write(&file, format!("[relay]\npeers = [\"{}\", \"{}\"]\n", own[0].id, own[1].id)).unwrap();
    let relay = relay.with(&["--config", file.to_str().unwrap()]).started();
    let [a, b] = own.map(|node| joined(node.knows(&relay).started(), 1));
    a.reaches(&b, Duration::from_secs(5));
    assert_eq!(kind(&a, &b), "relay");
    let memory = relay.proc_status("VmRSS");
    let machine = lab.public_machine(Underlay::V4);

    let start = Instant::now();
    let pinger = Pinger::start(&a, b.address, "0.1");
    let mut clients = crowd(&lab, &machine, &relay);
    println!("{CLIENTS} sessions after {:?}", start.elapsed());
    let relayed_for = || relay.status()["nat"]["relayed_for"].as_u64().unwrap();
    let (granted, _) = eventually(Duration::from_secs(20), "the relay is full", || {
        for client in &mut clients {
            client.say(&relay, &Control::Allocate);
            client.turn();
        }
        let granted = relayed_for();
        (granted >= STRANGERS_MAX as u64).then_some(granted)
    });
    assert!(granted <= STRANGERS_MAX as u64 + 2, "{granted} are relayed for");
    let ids: Vec<NodeId> = clients.iter().map(Hostile::node_id).collect();
    let key = RecipientKey::new(&relay.id.parse().unwrap(), &NetworkSecret::default());
    let slot = |client: usize, n: usize| Slot((client * 1000 + n) as u64 + 1);
    for round in 0..HOARD.1 {
        for (number, client) in clients.iter_mut().enumerate() {
            match Habit::of(number) {
                Habit::Idles => client.turn(),
                Habit::Hoards => {
                    for n in round * HOARD.0..(round + 1) * HOARD.0 {
                        let peer = ids[(number + 3 * n + 1) % CLIENTS];
                        client.say(
                            &relay,
                            &Control::Bind { slot: slot(number, n), peer, datagram: Vec::new() },
                        );
                    }
                    client.turn();
                }
                Habit::NeverReads => {
                    let peer = ids[(number + 3) % CLIENTS];
                    client.say(&relay, &Control::Bind { slot: slot(number, 0), peer, datagram: Vec::new() });
                    for _ in 0..FLOOD {
                        let mut packet = vec![0; RELAY_OVERHEAD];
                        packet.extend([0x41; 1200]);
                        let header = Header { hop_limit: HOPS_MAX, slot: slot(number, 0) };
                        seal(&key, header, &mut packet).unwrap();
                        client.throw(&relay, &packet);
                    }
                }
            }
        }
        // While the relay works on that.
        let flooded = Instant::now();
        eventually(Duration::from_secs(5), "own peers ping on", || {
            (pinger.since(flooded).len() >= 5).then_some(())
        });
        let status = relay.status();
        let channels = status["nat"]["channels"].as_u64().unwrap();
        println!(
            "round {round}: {} are relayed for, {channels} channels, drops {}",
            relayed_for(),
            status["drops"]
        );
        assert!(channels <= CHANNELS_MAX as u64 / 4 * 3, "{channels} channels");
        assert!(relayed_for() <= STRANGERS_MAX as u64 + 2);
        assert_eq!([kind(&a, &b), kind(&b, &a)], ["relay", "relay"], "own peers keep their relay");
    }
    eventually(Duration::from_secs(2), "pings go on", || {
        let newest = pinger.since(start).last().copied()?;
        (newest.elapsed() < Duration::from_millis(300)).then_some(())
    });
    let (gap, grown) = (pinger.longest_gap(start), relay.proc_status("VmRSS").saturating_sub(memory));
    println!(
        "own peers: {} pings answered in {:?}, longest gap {gap:?}; the relay grew by {grown} KiB, CPU {:?}",
        pinger.since(start).len(),
        start.elapsed(),
        relay.cpu_time()
    );
    assert!(gap < GAP_MAX, "{gap:?}");
    assert!(grown < MEMORY_MAX_KIB, "{grown} KiB");
}
