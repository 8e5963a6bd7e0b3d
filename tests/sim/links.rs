//! A link that goes down for a while: the machine has no address meanwhile, and the same one afterwards.

use std::time::Duration;

use crate::host::Machine;
use crate::nat::NatKind;
use crate::network::Conditions;
use crate::relays::is_direct;
use crate::routes::Flows;
use crate::world::{HostId, World};

/// How long the link is down.
const DOWN: Duration = Duration::from_secs(20);
/// Afterwards a relay may be used for so long, and the first answer may take so long.
const RELAYED_MAX: Duration = Duration::from_secs(2);
const UNANSWERED_MAX: Duration = Duration::from_secs(2);

/// What is watched then, in steps.
const WATCHED: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(100);

/// Machines on one network that know the first one; nobody else is reached.
fn neighbours(world: &mut World, n: usize) -> Vec<HostId> {
    let nat = world.nat(NatKind::PortRestricted);
    world.nat_mut(nat).blocks_udp = true;
    let mut ids = Vec::<HostId>::new();
    for _ in 0..n {
        let bootstrap = ids.first().map(|id| (world.id(*id), world.endpoint(*id))).into_iter().collect();
        let machine = world.machine_behind(nat);
        ids.push(world.add(Machine { bootstrap, ..machine }));
        world.run_for(Duration::from_millis(200));
    }
    ids
}

/// While a link was down, questions at the endpoint of its machine were in vain; that says nothing of it afterwards.
#[test]
fn a_link_that_comes_back_is_used_at_once() {
    for (seed, is_forward, gap_ms) in
        [(460, true, 1000), (461, false, 1000), (462, true, 200), (463, false, 500)]
    {
        let mut world = World::new(seed, Conditions { duplicated: 0.0, late: 0.0, ..Conditions::default() });
        let nodes = neighbours(&mut world, 3);
        let (a, b) = (nodes[1], nodes[2]);
        world.run_for(Duration::from_secs(20));
        let pair = if is_forward { (a, b) } else { (b, a) };
        let mut flows = Flows::new(&world, vec![pair]).every(Duration::from_millis(gap_ms));
        flows.run(&mut world, Duration::from_secs(70));
        let are_direct = |world: &World| is_direct(world, a, b) && is_direct(world, b, a);
        assert!(are_direct(&world), "seed {seed}");

        world.take_link_down(b);
        flows.run(&mut world, DOWN);
        world.bring_link_up(b);
        let up = world.now;
        let (mut relayed, mut unanswered) = (Duration::ZERO, Duration::ZERO);
        while world.now.saturating_since(up) < WATCHED {
            flows.run(&mut world, STEP);
            relayed += if are_direct(&world) { Duration::ZERO } else { STEP };
            unanswered += if flows.answered_since(up) > 0 { Duration::ZERO } else { STEP };
        }
        let seen = format!("seed {seed}: by a relay for {relayed:?}, no answer for {unanswered:?}");
        assert!(relayed < RELAYED_MAX && unanswered < UNANSWERED_MAX, "{seen}");
    }
}
