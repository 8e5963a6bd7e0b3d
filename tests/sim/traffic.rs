//! What the scenarios of two machines share: quiet pairs, steady traffic, and what is to be seen of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use auramesh::proto::dht::Mode;
use auramesh::proto::session::transport::Session;

use crate::packet;
use crate::world::{HostId, Seen, World};

/// Seeds of scenarios that are run more than once.
pub(crate) const SEEDS: std::ops::Range<u64> = 200..215;

pub(crate) fn route(world: &World, from: HostId, to: HostId) -> Option<Session> {
    let address = world.host(to).node.address();
    world.host(from).snapshot.routes.get(&address).map(|route| route.session.clone())
}

/// Both sides send on the same session.
pub(crate) fn agree(world: &World, a: HostId, b: HostId) -> bool {
    match (route(world, a, b), route(world, b, a)) {
        (Some(of_a), Some(of_b)) => of_a.local_index() == of_b.remote_index(),
        _ => false,
    }
}

/// Two machines that know each other's ID and endpoint and do not serve the DHT: no traffic but what the test makes.
pub(crate) fn quiet_pair(world: &mut World) -> (HostId, HostId) {
    let (mut a, mut b) = (world.machine(), world.machine());
    (a.mode, b.mode) = (Mode::Client, Mode::Client);
    a.bootstrap = vec![(b.identity().node_id(), b.endpoint)];
    b.bootstrap = vec![(a.identity().node_id(), a.endpoint)];
    (world.add(a), world.add(b))
}

pub(crate) fn log(world: &mut World) -> Rc<RefCell<Vec<Seen>>> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = seen.clone();
    world.filter(move |datagram| {
        log.borrow_mut().push(datagram.clone());
        true
    });
    seen
}

/// Sends a ping every `gap` for `time`; returns when each was sent and answered.
pub(crate) fn steady(
    world: &mut World,
    from: HostId,
    to: HostId,
    gap: Duration,
    time: Duration,
) -> Vec<(Duration, Option<Duration>)> {
    let (start, own, other) = (world.now, world.address(from), world.address(to));
    let id = world.next_number();
    let mut sent = Vec::new();
    for sequence in 0..(time.as_millis() / gap.as_millis()) as u16 {
        sent.push(world.now.saturating_since(start));
        let request = packet::echo_request(own, other, id, sequence, 56);
        world.send(from, &request);
        world.run_for(gap);
    }
    world.run_for(Duration::from_secs(1));
    let mut replies = vec![None; sent.len()];
    for (at, packet) in &world.host(from).delivered {
        if let Some((_, sequence)) = packet::is_echo_reply(packet).filter(|(of, _)| *of == id) {
            replies[usize::from(sequence)].get_or_insert(at.saturating_since(start));
        }
    }
    world.host_mut(from).delivered.clear();
    sent.into_iter().zip(replies).collect()
}

/// The longest time without a reply.
pub(crate) fn longest_gap(pings: &[(Duration, Option<Duration>)]) -> Duration {
    let mut replies: Vec<_> = pings.iter().filter_map(|(_, reply)| *reply).collect();
    replies.sort_unstable();
    let mut last = Duration::ZERO;
    let mut longest = Duration::ZERO;
    for reply in replies {
        longest = longest.max(reply - last);
        last = reply;
    }
    longest
}
