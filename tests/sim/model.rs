//! The model of a network behind NATs that is cut into regions, with the real node: how many pairs are connected, and by
//! what, beside the figures of the model that the design was made from.
//!
//! 30 % of the nodes are public, 50 % behind a NAT that can be punched, 20 % behind one that gives every destination another
//! port. `AZORA_TEST_LONG=1` takes 2,000 nodes, as the model did, `AZORA_SIM_NODES` any number; else it is a small network.

use std::collections::BTreeMap;
use std::time::Duration;

use auramesh::proto::relay;

use crate::host::Machine;
use crate::nat::NatKind;
use crate::network::Conditions;
use crate::routes::{Flows, peer};
use crate::world::{HostId, World};

/// Nodes of the model, and of a small network.
const NODES: (usize, usize) = (2000, 40);
/// Pairs that are looked at in each.
const PAIRS: (usize, usize) = (300, 20);
/// Time between two nodes that join.
const JOIN_GAP: Duration = Duration::from_millis(20);
/// From the last one until all are at home.
const SETTLE: Duration = Duration::from_secs(12);
/// From a cut until it is measured: relays in the other region are given up, records renewed.
const CUT_SETTLE: Duration = Duration::from_secs(15);
/// From the first packet of a pair until it counts as not connected.
const PATIENCE: Duration = Duration::from_secs(8);
/// Time between two packets of a pair.
const EVERY: Duration = Duration::from_millis(250);
/// Bridges at least: the model has forty of them, and ten.
const BRIDGES_MIN: usize = 6;
/// From the death of half of the nodes until pairs that talked before have to talk again.
const RECOVERED: Duration = Duration::from_secs(30);

/// Nodes and pairs; and whether the network is as large as that of the model.
#[expect(clippy::disallowed_methods, reason = "the long figures are asked for")]
fn size() -> (usize, usize, bool) {
    let wanted = std::env::var("AZORA_SIM_NODES").ok().and_then(|n| n.parse().ok());
    let long = std::env::var_os("AZORA_TEST_LONG").is_some();
    let nodes = wanted.unwrap_or(if long { NODES.0 } else { NODES.1 });
    (nodes, if nodes > NODES.1 { PAIRS.0 } else { PAIRS.1 }, nodes >= NODES.0)
}

/// What connects pairs, in percent and each including those before: straight ways, relays that records name, and routes
/// found within one, two and three sessions.
type Row = [f64; 5];

/// The figures of the model (`static reachability, 8 sessions each, 4 relays in a record`).
const MODEL: [(&str, Row); 4] = [
    ("open internet", [75.7, 99.7, 100.0, 100.0, 100.0]),
    ("region cut, 2 % bridge it", [44.0, 61.0, 72.0, 97.3, 100.0]),
    ("region cut, 0.5 % bridge it", [35.5, 50.3, 53.5, 71.7, 99.8]),
    ("2 % bridge it, half just killed", [45.2, 57.5, 62.2, 74.7, 95.7]),
];

struct Model {
    world: World,
    nodes: Vec<HostId>,
}

impl Model {
    fn new(seed: u64, n: usize) -> Self {
        let conditions = Conditions { duplicated: 0.0, late: 0.0, ..Conditions::default() };
        let mut world = World::new(seed, conditions);
        let mut nodes: Vec<HostId> = Vec::new();
        let mut public = Vec::<HostId>::new();
        for number in 0..n {
            // The first ones are where others can find them.
            let machine = match if number < 5 { 0 } else { world.draw(10) } {
                0..3 => world.machine_v4(),
                3..8 => {
                    let nat = world.nat(NatKind::PortRestricted);
                    world.machine_behind(nat)
                }
                _ => {
                    let nat = world.nat(NatKind::Symmetric);
                    world.machine_behind(nat)
                }
            };
            let is_public = machine.endpoint.ip().to_string().starts_with("11.");
            let known = (0..3.min(public.len())).map(|_| public[world.draw(public.len())]);
            let bootstrap = known.collect::<Vec<_>>();
            let bootstrap = bootstrap.iter().map(|id| (world.id(*id), world.endpoint(*id))).collect();
            let relay = relay::Config { strangers: true, ..relay::Config::default() };
            let id = world.add(Machine { relay, bootstrap, ..machine });
            nodes.push(id);
            public.extend(is_public.then_some(id));
            world.run_for(JOIN_GAP);
        }
        world.run_for(SETTLE);
        Self { world, nodes }
    }

    /// Pairs of running nodes, drawn at random.
    fn pairs(&mut self, n: usize) -> Vec<(HostId, HostId)> {
        let running: Vec<_> = self.nodes.iter().copied().filter(|id| self.world.is_running(*id)).collect();
        let mut pairs = Vec::new();
        while pairs.len() < n {
            let [a, b] = [(); 2].map(|()| running[self.world.draw(running.len())]);
            if a != b {
                pairs.push((a, b));
            }
        }
        pairs
    }

    /// Cuts the underlay into two halves, with so many nodes per thousand in both.
    fn cut(&mut self, bridges_per_mille: usize) {
        self.world.reunite();
        let running: Vec<_> = self.nodes.iter().copied().filter(|id| self.world.is_running(*id)).collect();
        let bridges = (running.len() * bridges_per_mille / 1000).max(BRIDGES_MIN);
        for (n, id) in self.shuffled(running).into_iter().enumerate() {
            let region = if n < bridges { 3 } else { 1 + (n % 2) as u8 };
            self.world.place_in(&[id], region);
        }
    }

    fn shuffled(&mut self, mut ids: Vec<HostId>) -> Vec<HostId> {
        for n in (1..ids.len()).rev() {
            ids.swap(n, self.world.draw(n + 1));
        }
        ids
    }

    fn kill_half(&mut self) {
        let nodes = self.shuffled(self.nodes.clone());
        for id in &nodes[..nodes.len() / 2] {
            self.world.kill(*id);
        }
    }

    /// Lets pairs that did not talk before send to each other, and says by what they are connected.
    fn measure(&mut self, n: usize) -> Row {
        let pairs = self.pairs(n);
        let mut flows = Flows::new(&self.world, pairs.clone()).every(EVERY);
        let mut talk = vec![false; n];
        let end = self.world.now + PATIENCE;
        while self.world.now < end {
            flows.step(&mut self.world);
            for (n, answered) in flows.have_answered().into_iter().enumerate() {
                talk[n] |= answered;
            }
        }
        let mut by = BTreeMap::<usize, usize>::new();
        for ((a, b), _) in pairs.iter().zip(&talk).filter(|(_, talks)| **talks) {
            *by.entry(self.column(*a, *b)).or_default() += 1;
        }
        let mut connected = 0;
        std::array::from_fn(|column| {
            connected += by.get(&column).copied().unwrap_or(0);
            (connected as f64 * 1000.0 / n as f64).round() / 10.0
        })
    }

    /// The column of a pair that talks: by how many sessions' search its route could be found.
    fn column(&self, a: HostId, b: HostId) -> usize {
        let Some(peer) = peer(&self.world, a, b) else { return 4 };
        let Some((first, _)) = peer.via else { return 0 };
        let relays: Vec<_> = std::iter::once(first).chain(peer.beyond).collect();
        let record = self.world.host(b).node.record();
        let named = |id| record.is_some_and(|r| r.content().relays.iter().any(|relay| relay.node_id == id));
        let searched = relays.len() - usize::from(relays.last().is_some_and(|last| named(*last)));
        1 + searched.min(3)
    }
}

fn line(name: &str, row: Row) -> String {
    format!("{name:<34}{}", row.map(|share| format!("{share:>8.1}")).concat())
}

#[test]
fn pairs_are_connected_as_often_as_in_the_model() {
    let (n, pairs, long) = size();
    let mut model = Model::new(601, n);
    let mut rows = vec![model.measure(pairs)];
    for per_mille in [20, 5] {
        model.cut(per_mille);
        model.world.run_for(CUT_SETTLE);
        rows.push(model.measure(pairs));
    }
    model.world.reunite();
    model.world.run_for(CUT_SETTLE);
    model.cut(20);
    model.kill_half();
    rows.push(model.measure(pairs));
    println!("{n} nodes, {pairs} pairs{:>21}  direct  +relay  +ttl 1  +ttl 2  +ttl 3", "");
    for ((name, figures), row) in MODEL.iter().zip(&rows) {
        println!("{}\n{}", line(name, *row), line("  the model", *figures));
    }
    for ((name, figures), row) in MODEL.iter().zip(&rows) {
        // In a small network a pair or two may be unlucky, and of the bridges none may be left.
        let least = match (long, name.contains("killed")) {
            (true, _) => figures[4],
            (false, true) => 60.0,
            (false, false) => figures[4] - 12.0,
        };
        assert!(row[4] >= least, "{name}: {row:?}");
    }
}

#[test]
fn pairs_talk_again_soon_after_half_of_the_nodes_died_at_once() {
    let (n, pairs, _) = size();
    let mut model = Model::new(602, n);
    let pairs = model.pairs(4 * pairs);
    let mut flows = Flows::new(&model.world, pairs).every(EVERY);
    flows.run(&mut model.world, Duration::from_secs(5));
    flows.keep_answered();
    model.kill_half();
    flows.keep_running(&model.world);
    let death = model.world.now;
    flows.run(&mut model.world, RECOVERED);
    let again = flows.answered_since(death + RECOVERED - Duration::from_secs(5));
    let share = 100.0 * again as f64 / flows.len() as f64;
    println!(
        "{n} nodes, half of them killed: {again} of {} surviving pairs talk ({share:.1} %)",
        flows.len()
    );
    assert!(share >= 95.0, "{share:.1} %");
}
