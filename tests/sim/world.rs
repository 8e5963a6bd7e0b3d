//! The world: machines, the underlay between them, and the order in which things happen. One seed, one history.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use auramesh::proto::dht::{Mode, Outcome};
use auramesh::proto::identity::{MeshAddress, NodeId};
use auramesh::proto::node::{Command, Event, PingFailure, PingReply, Ticket};
use auramesh::proto::policy::Rules;
use auramesh::proto::relay;
use auramesh::proto::timer::Instant;
use auramesh::proto::wire::envelope::{Kind, NetworkSecret, RecipientKey};
use auramesh::proto::wire::{Family, family};
use rand_chacha::{ChaCha8Rng, ChaCha12Rng};
use rand_core::{Rng as _, SeedableRng};

use crate::host::{Host, Machine};
use crate::nat::{Nat, NatId, NatKind};
use crate::network::{Conditions, Network};
use crate::sites::{Realm, Sites};

/// Port that every machine listens on.
pub(crate) const PORT: u16 = 5747;
/// And what it dials from.
const DIAL_PORT: u16 = 40_000;

/// The way of a datagram that stays in the network behind a NAT, where nothing is lost.
const LOCAL_DELAY: Duration = Duration::from_micros(300);

/// A machine, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub usize);

enum Happening {
    Arrival { realm: Realm, from: SocketAddr, to: SocketAddr, datagram: Vec<u8> },
    Wake(HostId),
}

/// A datagram seen on the underlay.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) datagram: Vec<u8>,
}

impl Seen {
    /// The kind of a setup packet to `recipient`; `None` for all else.
    pub(crate) fn setup_kind(&self, recipient: &NodeId) -> Option<Kind> {
        let key = RecipientKey::new(recipient, &NetworkSecret::default());
        key.open(&mut self.datagram.clone()).ok().map(|envelope| envelope.kind)
    }

    /// True for packets inside of a session.
    pub(crate) fn is_session(&self) -> bool {
        family(&self.datagram) == Some(Family::Session)
    }
}

/// Changes datagrams on their way and says how much later they arrive.
pub(crate) type Tamper = Box<dyn FnMut(&mut Seen) -> Duration>;

/// Looks at every datagram before the underlay does; false loses it.
pub(crate) type Filter = Box<dyn FnMut(&Seen) -> bool>;

/// What becomes of a datagram: copies, and how much later each comes.
pub(crate) type Forge = Box<dyn FnMut(&Seen) -> Vec<(Duration, Vec<u8>)>>;

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) network: Network,
    pub(crate) rng: ChaCha12Rng,
    sites: Sites,
    hosts: Vec<Option<Host>>,
    machines: Vec<Machine>,
    by_endpoint: BTreeMap<SocketAddr, HostId>,
    queue: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
    /// Machines of which one side of a split consists.
    split: BTreeSet<IpAddr>,
    /// Regions that an address is in, a bit each; all, unless it is said. Two that share none do not reach each other.
    regions: BTreeMap<IpAddr, u8>,
    /// Machines whose links are down.
    unlinked: BTreeSet<HostId>,
    filter: Option<Filter>,
    tamper: Option<Tamper>,
    forge: Option<Forge>,
    /// Datagrams that arrived where no machine is, for endpoints that somebody listens at.
    taps: BTreeMap<SocketAddr, Vec<Seen>>,
    log: blake3::Hasher,
    tickets: u64,
    numbers: u16,
    _replay: Replay,
}

/// Says how to see a failure again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            eprintln!(
                "replay: AZORA_SIM_SEED={} cargo test --no-default-features --test sim -- --exact {test}",
                self.0
            );
        }
    }
}

impl World {
    /// An empty world. The seed is that of the environment, if it names one.
    pub(crate) fn new(seed: u64, conditions: Conditions) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the way to replay a failure")]
        let wanted = std::env::var("AZORA_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
        Self::exact(wanted.unwrap_or(seed), conditions)
    }

    /// An empty world with exactly this seed.
    pub(crate) fn exact(seed: u64, conditions: Conditions) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let network = Network::new(conditions, ChaCha8Rng::seed_from_u64(rng.next_u64()), rng.next_u64());
        Self {
            now: Instant::from_nanos(1_000_000_000),
            network,
            rng,
            sites: Sites::default(),
            hosts: Vec::new(),
            machines: Vec::new(),
            by_endpoint: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            split: BTreeSet::new(),
            regions: BTreeMap::new(),
            unlinked: BTreeSet::new(),
            filter: None,
            tamper: None,
            forge: None,
            taps: BTreeMap::new(),
            log: blake3::Hasher::new(),
            tickets: 0,
            numbers: 0,
            _replay: Replay(seed),
        }
    }

    /// A machine at an address of its own, not started.
    pub(crate) fn machine(&mut self) -> Machine {
        let n = self.next_number();
        let ip = Ipv6Addr::new(0x2a00, n, 0x17, 0, 0, 0, 0, 1);
        self.machine_at(SocketAddr::new(ip.into(), PORT))
    }

    /// A machine at an IPv4 address of its own.
    pub(crate) fn machine_v4(&mut self) -> Machine {
        // Of two machines the /16 differs: each is an observer of its own.
        let [high, low] = self.next_number().to_be_bytes();
        self.machine_at(SocketAddr::new(Ipv4Addr::new(11, low, high, 7).into(), PORT))
    }

    /// A NAT on the public underlay.
    pub(crate) fn nat(&mut self, kind: NatKind) -> NatId {
        let public = self.public_v4();
        self.sites.add(kind, None, public)
    }

    /// A NAT in the network behind another one.
    pub(crate) fn nat_behind(&mut self, outside: NatId, kind: NatKind) -> NatId {
        let IpAddr::V4(public) = self.sites.next_address(outside) else {
            return self.sites.add(kind, Some(outside), Ipv4Addr::UNSPECIFIED);
        };
        self.sites.add(kind, Some(outside), public)
    }

    pub(crate) fn nat_mut(&mut self, id: NatId) -> &mut Nat {
        self.sites.nat_mut(id)
    }

    /// A NAT starts anew with another outer address.
    pub(crate) fn reboot_nat(&mut self, id: NatId) {
        let public = match self.sites.outside(id) {
            Some(outside) => self.sites.next_address(outside),
            None => self.public_v4().into(),
        };
        self.sites.nat_mut(id).reboot(public);
    }

    fn public_v4(&mut self) -> Ipv4Addr {
        let [high, low] = self.next_number().to_be_bytes();
        Ipv4Addr::new(12, high, low, 7)
    }

    /// A machine in the network behind a NAT; where a firewall stands, that is one with global addresses.
    pub(crate) fn machine_behind(&mut self, nat: NatId) -> Machine {
        let endpoint = self.endpoint_behind(nat);
        self.machine_at(endpoint)
    }

    /// An endpoint in the network behind a NAT, for a machine that moves there.
    pub(crate) fn endpoint_behind(&mut self, nat: NatId) -> SocketAddr {
        SocketAddr::new(self.sites.next_address(nat), PORT)
    }

    pub(crate) fn machine_at(&mut self, endpoint: SocketAddr) -> Machine {
        Machine {
            identity: self.seed(),
            endpoint,
            also_at: None,
            bootstrap: Vec::new(),
            remembered: Vec::new(),
            rules: Rules::default(),
            mode: Mode::Server,
            wall_offset_ms: 0,
            loaded: false,
            relay: relay::Config::default(),
            threads: 1,
        }
    }

    /// A number that was not handed out before.
    pub(crate) const fn next_number(&mut self) -> u16 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }

    /// A number below `n`.
    pub(crate) fn draw(&mut self, n: usize) -> usize {
        (self.rng.next_u64() % n as u64) as usize
    }

    /// Starts a new machine.
    pub(crate) fn add(&mut self, machine: Machine) -> HostId {
        let id = HostId(self.hosts.len());
        self.hosts.push(None);
        self.machines.push(machine);
        self.start(id);
        id
    }

    /// Starts `n` machines that all know the first one, `gap` apart, and returns them.
    pub(crate) fn add_mesh(&mut self, n: usize, gap: Duration) -> Vec<HostId> {
        let first = self.machine();
        let bootstrap = vec![(first.identity().node_id(), first.endpoint)];
        let mut ids = vec![self.add(first)];
        for _ in 1..n {
            self.run_for(gap);
            let machine = Machine { bootstrap: bootstrap.clone(), ..self.machine() };
            ids.push(self.add(machine));
        }
        ids
    }

    /// Starts a machine that is not running, with nothing but what its disk holds.
    pub(crate) fn start(&mut self, id: HostId) {
        let (machine, seed) = (self.machines[id.0].clone(), self.seed());
        let endpoints = [machine.endpoint].into_iter().chain(machine.also_at);
        self.by_endpoint.extend(endpoints.map(|endpoint| (endpoint, id)));
        self.hosts[id.0] = Some(Host::start(machine, seed, self.now));
        self.flush(id);
    }

    /// Ends a machine without a word.
    pub(crate) fn kill(&mut self, id: HostId) {
        if let Some(host) = self.hosts[id.0].take() {
            self.machines[id.0] = host.machine;
            let Machine { endpoint, also_at, .. } = &self.machines[id.0];
            for endpoint in also_at.iter().chain([endpoint]) {
                self.by_endpoint.remove(endpoint);
            }
        }
    }

    /// What is kept of a machine that is not running.
    pub(crate) fn disk(&mut self, id: HostId) -> &mut Machine {
        &mut self.machines[id.0]
    }

    /// Gives a running machine another address; the node is told when `told`.
    pub(crate) fn move_to(&mut self, id: HostId, endpoint: SocketAddr, told: bool) {
        let now = self.now;
        let old = std::mem::replace(&mut self.host_mut(id).machine.endpoint, endpoint);
        self.by_endpoint.remove(&old);
        self.by_endpoint.insert(endpoint, id);
        if told {
            self.host_mut(id).settle(now);
            self.flush(id);
        }
    }

    /// Takes the link of a running machine down: its addresses are gone, and nothing comes or goes.
    pub(crate) fn take_link_down(&mut self, id: HostId) {
        self.unlinked.insert(id);
        self.with(id, Host::unsettle);
    }

    /// Brings it up again, with the addresses from before.
    pub(crate) fn bring_link_up(&mut self, id: HostId) {
        self.unlinked.remove(&id);
        self.with(id, Host::settle);
    }

    pub(crate) fn host(&self, id: HostId) -> &Host {
        self.hosts[id.0].as_ref().expect("the machine runs")
    }

    pub(crate) fn host_mut(&mut self, id: HostId) -> &mut Host {
        self.hosts[id.0].as_mut().expect("the machine runs")
    }

    pub(crate) fn is_running(&self, id: HostId) -> bool {
        self.hosts[id.0].is_some()
    }

    /// All running machines.
    pub(crate) fn running(&self) -> Vec<HostId> {
        (0..self.hosts.len()).map(HostId).filter(|id| self.is_running(*id)).collect()
    }

    pub(crate) fn id(&self, id: HostId) -> NodeId {
        self.host(id).id()
    }

    pub(crate) fn endpoint(&self, id: HostId) -> SocketAddr {
        self.hosts[id.0].as_ref().map_or(self.machines[id.0].endpoint, |host| host.machine.endpoint)
    }

    pub(crate) fn address(&self, id: HostId) -> Ipv6Addr {
        self.host(id).address()
    }

    pub(crate) fn mesh_address(&self, id: HostId) -> MeshAddress {
        self.host(id).node.address()
    }

    /// Cuts these machines off from all others on the public underlay, each with all that share its address there.
    pub(crate) fn cut_off(&mut self, hosts: &[HostId]) {
        self.split = hosts.iter().map(|id| self.sites.public_address(self.endpoint(*id).ip())).collect();
    }

    /// Puts machines into regions of the public underlay, a bit each, with all that share their addresses there.
    pub(crate) fn place_in(&mut self, hosts: &[HostId], regions: u8) {
        for id in hosts {
            self.regions.insert(self.sites.public_address(self.endpoint(*id).ip()), regions);
        }
    }

    fn is_cut(&self, a: IpAddr, b: IpAddr) -> bool {
        let regions = |ip| self.regions.get(&ip).copied().unwrap_or(u8::MAX);
        self.split.contains(&a) != self.split.contains(&b) || regions(a) & regions(b) == 0
    }

    /// All machines sleep at once: what was on its way is lost, and all that was due is late.
    pub(crate) fn suspend(&mut self, duration: Duration) {
        self.now += duration;
        for (_, happening) in std::mem::take(&mut self.queue) {
            if let Happening::Wake(id) = happening {
                if let Some(host) = &mut self.hosts[id.0] {
                    host.wake_at = Some(self.now);
                }
                self.happens(self.now, Happening::Wake(id));
            }
        }
    }

    /// Ends the split, and all regions.
    pub(crate) fn reunite(&mut self) {
        self.split.clear();
        self.regions.clear();
    }

    /// Shows every datagram that is sent to `filter`, as it is where it meets its destination's network: behind the
    /// NATs of the sender and before those of the receiver.
    pub(crate) fn filter(&mut self, filter: impl FnMut(&Seen) -> bool + 'static) {
        self.filter = Some(Box::new(filter));
    }

    /// Has `forge` say what becomes of every datagram that the filter lets through: copies, and how much later they come.
    pub(crate) fn forge(&mut self, forge: impl FnMut(&Seen) -> Vec<(Duration, Vec<u8>)> + 'static) {
        self.forge = Some(Box::new(forge));
    }

    /// Has `tamper` change every datagram, where [`Self::filter`] sees it.
    pub(crate) fn tamper(&mut self, tamper: impl FnMut(&mut Seen) -> Duration + 'static) {
        self.tamper = Some(Box::new(tamper));
    }

    pub(crate) fn unfilter(&mut self) {
        (self.filter, self.tamper, self.forge) = (None, None, None);
    }

    /// Listens at an endpoint where no machine is.
    pub(crate) fn tap(&mut self, endpoint: SocketAddr) {
        self.taps.entry(endpoint).or_default();
    }

    /// What arrived at a tapped endpoint since the last call.
    pub(crate) fn tapped(&mut self, endpoint: SocketAddr) -> Vec<Seen> {
        self.taps.get_mut(&endpoint).map(std::mem::take).unwrap_or_default()
    }

    /// Puts a datagram onto the public underlay, from wherever.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.carry(None, from, to, datagram);
    }

    /// A machine sends a datagram.
    fn transmit(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        if let Some((realm, from)) = self.sites.leave(self.now, &mut self.rng, from, to) {
            self.carry(realm, from, to, datagram);
        }
    }

    fn carry(&mut self, realm: Realm, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        let mut seen = Seen { at: self.now, from, to, datagram };
        if self.filter.as_mut().is_some_and(|filter| !filter(&seen)) {
            return;
        }
        let later = self.tamper.as_mut().map_or(Duration::ZERO, |tamper| tamper(&mut seen));
        let copies = match &mut self.forge {
            Some(forge) => forge(&seen),
            None => vec![(Duration::ZERO, seen.datagram)],
        };
        for (late, datagram) in copies {
            let delays = match realm {
                Some(_) => vec![LOCAL_DELAY],
                None => self.network.carry(from, to, datagram.len()),
            };
            for delay in delays {
                let arrival = Happening::Arrival { realm, from, to, datagram: datagram.clone() };
                self.happens(self.now + later + late + delay, arrival);
            }
        }
    }

    /// Does something with a machine at this moment and carries out what follows.
    pub(crate) fn with<T>(&mut self, id: HostId, work: impl FnOnce(&mut Host, Instant) -> T) -> T {
        let now = self.now;
        let out = work(self.host_mut(id), now);
        self.flush(id);
        out
    }

    /// A datagram reaches a machine at this moment.
    pub(crate) fn deliver(&mut self, id: HostId, from: SocketAddr, mut datagram: Vec<u8>) {
        self.with(id, |host, now| {
            host.handle_datagram(now, from, host.machine.endpoint.port(), &mut datagram);
        });
    }

    /// A program on the machine sends a packet.
    pub(crate) fn send(&mut self, id: HostId, packet: &[u8]) {
        self.with(id, |host, now| host.send(now, packet));
    }

    pub(crate) fn command(&mut self, id: HostId, command: impl FnOnce(Ticket) -> Command) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let command = command(ticket);
        self.with(id, |host, now| {
            let now = host.control_time(now);
            let wall = host.wall(now);
            host.node.handle_command(now, wall, command);
        });
        ticket
    }

    /// Starts to look a machine's record up.
    pub(crate) fn look_up(&mut self, from: HostId, address: MeshAddress) -> Ticket {
        self.command(from, |ticket| Command::Lookup(ticket, address))
    }

    pub(crate) fn lookup_outcome(&self, id: HostId, ticket: Ticket) -> Option<&Outcome> {
        let mut outcomes = self.host(id).events.iter().filter_map(|(_, event)| {
            if let Event::Lookup(of, outcome) = event { Some((*of, &**outcome)) } else { None }
        });
        outcomes.find(|(of, _)| *of == ticket).map(|(_, outcome)| outcome)
    }

    pub(crate) fn ping_outcome(&self, id: HostId, ticket: Ticket) -> Option<Result<PingReply, PingFailure>> {
        let mut outcomes = self.host(id).events.iter().filter_map(|(_, event)| {
            if let Event::Ping(of, outcome) = event { Some((*of, outcome.clone())) } else { None }
        });
        outcomes.find(|(of, _)| *of == ticket).map(|(_, outcome)| outcome)
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until `is_done`, at most `patience`; returns how long it took, or `None`.
    pub(crate) fn run_until(
        &mut self,
        patience: Duration,
        mut is_done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let (start, end) = (self.now, self.now + patience);
        while !is_done(self) {
            if !self.step(end) {
                self.now = end;
                return is_done(self).then_some(patience);
            }
        }
        Some(self.now.saturating_since(start))
    }

    /// The next thing happens, if it is not later than `end`.
    fn step(&mut self, end: Instant) -> bool {
        let Some(((at, _), _)) = self.queue.first_key_value() else { return false };
        if *at > end {
            return false;
        }
        let Some(((at, _), happening)) = self.queue.pop_first() else { return false };
        self.now = at;
        match happening {
            Happening::Arrival { realm, from, to, datagram } => self.arrive(realm, from, to, datagram),
            Happening::Wake(id) => self.wake(id),
        }
        true
    }

    fn arrive(&mut self, realm: Realm, from: SocketAddr, to: SocketAddr, mut datagram: Vec<u8>) {
        let Some(inner) = self.sites.enter(self.now, realm, from, to) else { return };
        let Some(id) = self.listening(inner) else {
            let seen = Seen { at: self.now, from, to, datagram };
            self.taps.entry(to).and_modify(|seens| seens.push(seen));
            return;
        };
        if self.unlinked.contains(&id) || realm.is_none() && self.is_cut(from.ip(), to.ip()) {
            return;
        }
        self.log.update(&self.now.as_nanos().to_be_bytes());
        self.log.update(&(id.0 as u64).to_be_bytes());
        self.log.update(&datagram);
        self.with(id, |host, now| host.handle_datagram(now, from, inner.port(), &mut datagram));
    }

    /// The machine that has a socket there.
    fn listening(&self, at: SocketAddr) -> Option<HostId> {
        let all = SocketAddr::new(at.ip(), 0)..=SocketAddr::new(at.ip(), u16::MAX);
        let mut there = self.by_endpoint.range(all).map(|(_, id)| *id);
        there.find(|id| self.is_running(*id) && self.host(*id).has_port(at.port()))
    }

    fn wake(&mut self, id: HostId) {
        let now = self.now;
        let Some(host) = self.hosts[id.0].as_mut() else { return };
        if host.wake_at == Some(now) {
            host.wake_at = None;
        }
        if host.reception_timeout().is_some_and(|at| at <= now) {
            host.handle_reception_timeout(now);
        }
        if host.node.poll_timeout().is_some_and(|at| at <= now) {
            let now = host.control_time(now);
            let wall = host.wall(now);
            host.wakeups += 1;
            host.node.handle_timeout(now, wall);
        }
        self.flush(id);
    }

    /// Publishes and sends what a machine wants to, and notes when it wants to be woken.
    fn flush(&mut self, id: HostId) {
        let (now, interface_mtu) = (self.now, self.network.conditions.interface_mtu);
        let host = self.host_mut(id);
        let out = host.flush(now, interface_mtu);
        let due = [host.node.poll_timeout(), host.reception_timeout()].into_iter().flatten().min();
        let due = due.map(|at| at.max(now));
        let wake = due.filter(|at| host.wake_at.is_none_or(|armed| *at < armed));
        if wake.is_some() {
            host.wake_at = wake;
        }
        let unlinked = self.unlinked.contains(&id);
        for (port, transmit) in out.into_iter().filter(|_| !unlinked) {
            let from = SocketAddr::new(self.host(id).machine.source(transmit.to), port);
            self.transmit(from, transmit.to, transmit.datagram);
        }
        for transmit in std::mem::take(&mut self.host_mut(id).dialled).into_iter().filter(|_| !unlinked) {
            let from = SocketAddr::new(self.host(id).machine.source(transmit.to), DIAL_PORT);
            self.transmit(from, transmit.to, transmit.datagram);
        }
        if let Some(at) = wake {
            self.happens(at, Happening::Wake(id));
        }
    }

    fn happens(&mut self, at: Instant, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happening);
    }

    /// A hash of everything that arrived anywhere, and when.
    pub(crate) fn log_hash(&self) -> blake3::Hash {
        self.log.finalize()
    }
}
