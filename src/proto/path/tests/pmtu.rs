use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use crate::proto::path::pmtu::{
    BASE_DATAGRAM_LEN, COMPANION_LEN, CONFIRMATION_TIMER, CONFIRMATION_TIMER_STALLED, MAX_PROBES,
    OUTAGE_WAIT_MAX, PMTU_RAISE_TIMER, PROBE_TIMER_MIN, PROBE_TIMER_UNMEASURED, PathMtu, Probe, State,
    TRAFFIC_RECENT, Traffic,
};
use crate::proto::timer::Instant;
use crate::proto::wire::relay::Hop;

const V6: &str = "[2001:db8::1]:5747";
const V4: &str = "192.0.2.1:5747";
const RTT: Duration = Duration::from_millis(20);

fn hop(endpoint: &str) -> Hop {
    Hop::Direct(endpoint.parse().unwrap())
}

/// One path whose network is a closure: does a datagram of this length arrive?
struct Path {
    pmtu: PathMtu,
    rng: ChaCha8Rng,
    now: Instant,
    /// Every probe sent, and when.
    log: Vec<(Instant, Probe)>,
}

impl Path {
    fn to(endpoint: &str) -> Self {
        let mut pmtu = PathMtu::default();
        pmtu.handle_hop(hop(endpoint));
        let rng = ChaCha8Rng::seed_from_u64(1);
        Self { pmtu, rng, now: Instant::from_nanos(1_000_000_000), log: Vec::new() }
    }

    /// A path that was searched.
    fn found(endpoint: &str, limit: usize) -> Self {
        let mut path = Self::to(endpoint);
        path.flow(Duration::from_secs(20), |len| len <= limit);
        assert!(matches!(path.pmtu.state(), State::Found { .. }));
        path
    }

    fn traffic(&mut self, sent_bytes: u64, answered: bool) {
        self.pmtu.handle_traffic(
            self.now,
            Traffic { sent_bytes, sent_packets: sent_bytes / 1000, answered, rtt: Some(RTT) },
        );
    }

    fn polled(&mut self) -> Vec<Probe> {
        let mut probes = Vec::new();
        while let Some(probe) = self.pmtu.poll_transmit(self.now, &mut self.rng) {
            self.log.push((self.now, probe));
            probes.push(probe);
        }
        probes
    }

    fn ack(&mut self, probe: Probe) {
        self.pmtu.handle_ack(self.now, probe.token, probe.datagram_len);
    }

    /// Lets `time` pass with bulk data both ways; what `arrives` is acknowledged a round trip later.
    fn flow(&mut self, time: Duration, arrives: impl Fn(usize) -> bool) {
        self.pass(time, true, arrives);
    }

    fn pass(&mut self, time: Duration, data: bool, arrives: impl Fn(usize) -> bool) {
        let end = self.now + time;
        let mut next_report = self.now;
        let mut acks = Vec::new();
        while self.now < end {
            if data && next_report <= self.now {
                self.traffic(1_000_000, true);
                next_report = self.now + Duration::from_secs(1);
            }
            if self.pmtu.poll_timeout().is_some_and(|at| at <= self.now) {
                self.pmtu.handle_timeout(self.now);
            }
            let sent = self.polled();
            acks.extend(sent.into_iter().filter(|p| arrives(p.datagram_len)).map(|p| (self.now + RTT, p)));
            self.now += Duration::from_millis(10);
            while let Some(at) = acks.iter().position(|(at, _)| *at <= self.now) {
                let (_, probe) = acks.remove(at);
                self.ack(probe);
            }
        }
    }

    fn probes_since(&self, since: Instant) -> usize {
        self.log.iter().filter(|(at, _)| *at >= since).count()
    }
}

#[test]
fn base_fits_the_smallest_ipv6_link() {
    assert_eq!(PathMtu::default().datagram_len(), 1232);
    let mut path = Path::to(V6);
    path.flow(Duration::from_secs(20), |len| len <= BASE_DATAGRAM_LEN);
    assert_eq!(path.pmtu.datagram_len(), BASE_DATAGRAM_LEN);
}

#[test]
fn every_link_of_the_table_is_found_exactly() {
    for (endpoint, headers) in [(V6, 48), (V4, 28)] {
        for mtu in [1280, 1400, 1420, 1450, 1460, 1480, 1492, 1500, 4096, 8192, 9000] {
            let path = Path::found(endpoint, mtu - headers);
            assert_eq!(path.pmtu.datagram_len(), mtu - headers, "{endpoint} {mtu}");
        }
    }
}

#[test]
fn what_is_not_in_the_table_is_found_by_halves_in_few_probes() {
    for limit in (BASE_DATAGRAM_LEN..1452).step_by(7).chain((1452..9000).step_by(111)) {
        let path = Path::found(V6, limit);
        let (found, gain) = (path.pmtu.datagram_len(), if limit < 1452 { 16 } else { limit / 16 });
        assert!(found <= limit && limit - found < gain, "{found} of {limit}");
        assert!(path.log.len() <= 60, "{} probes for {limit}", path.log.len());
    }
}

#[test]
fn ethernet_takes_one_probe_of_its_size_first() {
    let mut path = Path::to(V6);
    path.traffic(100, false);
    assert_eq!(path.polled()[0].datagram_len, 1452);
}

#[test]
fn a_length_is_lost_three_times_before_it_is_given_up() {
    let mut path = Path::to(V6);
    path.traffic(100, false);
    let mut of_first = 0;
    for _ in 0..MAX_PROBES {
        for probe in path.polled() {
            assert!(probe.datagram_len == 1452 || probe.datagram_len == COMPANION_LEN);
            of_first += u8::from(probe.datagram_len == 1452);
            if probe.datagram_len == COMPANION_LEN {
                path.ack(probe);
            }
        }
        path.now = path.pmtu.poll_timeout().unwrap();
        path.pmtu.handle_timeout(path.now);
    }
    assert_eq!(of_first, MAX_PROBES);
    assert!(path.polled()[0].datagram_len < 1452);
}

#[test]
fn the_probe_timer_follows_the_round_trip() {
    let check = |rtt: Option<Duration>, expected: Duration| {
        let mut path = Path::to(V6);
        path.pmtu.handle_traffic(path.now, Traffic { rtt, ..Traffic::default() });
        path.polled();
        assert_eq!(path.pmtu.poll_timeout(), Some(path.now + expected), "{rtt:?}");
    };
    check(None, PROBE_TIMER_UNMEASURED);
    check(Some(Duration::from_micros(50)), PROBE_TIMER_MIN);
    check(Some(Duration::from_millis(300)), Duration::from_millis(1200));
    check(Some(Duration::from_secs(9)), Duration::from_secs(3));
}

#[test]
fn a_silent_path_proves_nothing_and_is_asked_ever_less() {
    let mut path = Path::to(V6);
    path.flow(Duration::from_secs(120), |_| false);
    assert_eq!((path.pmtu.datagram_len(), path.pmtu.state()), (BASE_DATAGRAM_LEN, State::Searching));
    assert!(
        path.log.iter().all(|(_, probe)| probe.datagram_len == 1452 || probe.datagram_len == COMPANION_LEN)
    );
    let late = path.probes_since(path.now - Duration::from_secs(60));
    assert!(late <= 5 * (60 / OUTAGE_WAIT_MAX.as_secs() as usize + 1), "{late} probes in a minute");
    // It comes back.
    path.flow(OUTAGE_WAIT_MAX + Duration::from_secs(5), |len| len <= 1452);
    assert_eq!(path.pmtu.datagram_len(), 1452);
}

#[test]
fn nothing_is_sent_without_data() {
    let mut path = Path::to(V6);
    path.pass(Duration::from_secs(60), false, |_| true);
    assert_eq!((path.log.len(), path.pmtu.poll_timeout()), (0, None));
    // Data begins a search, and stops.
    path.traffic(100, false);
    path.pass(Duration::from_secs(60), false, |_| false);
    assert!(path.log.iter().all(|(at, _)| *at <= Instant::from_nanos(61_000_000_000) + TRAFFIC_RECENT));
    assert_eq!(path.pmtu.poll_timeout(), None, "nobody is woken");
}

#[test]
fn a_found_path_wakes_nobody() {
    let mut path = Path::found(V6, 1452);
    path.flow(Duration::from_secs(2), |_| true);
    let since = path.now;
    path.pass(2 * PMTU_RAISE_TIMER, false, |_| true);
    assert_eq!((path.probes_since(since), path.pmtu.poll_timeout()), (0, None));
}

#[test]
fn a_longer_path_is_found_after_the_raise_timer_and_not_before() {
    let mut path = Path::found(V6, 1352);
    let State::Found { raise_at } = path.pmtu.state() else { panic!("{:?}", path.pmtu.state()) };
    path.flow(raise_at.saturating_since(path.now) - Duration::from_secs(2), |_| true);
    assert_eq!(path.pmtu.datagram_len(), 1352);
    path.flow(Duration::from_secs(4), |_| true);
    assert_eq!(path.pmtu.datagram_len(), 8952);
}

#[test]
fn a_black_hole_is_noticed_and_left() {
    let mut path = Path::found(V6, 1452);
    path.flow(Duration::from_secs(10), |len| len <= 1452);
    assert_eq!(path.pmtu.datagram_len(), 1452, "confirmed while it carries");
    path.flow(CONFIRMATION_TIMER + Duration::from_secs(2), |len| len <= 1352);
    assert!(path.pmtu.datagram_len() < 1452);
    let of_before = path.log.iter().rev().find(|(_, probe)| probe.datagram_len == 1452).unwrap().1;
    path.ack(of_before);
    assert!(path.pmtu.datagram_len() < 1452, "sent before the path changed");
    path.flow(Duration::from_secs(5), |len| len <= 1352);
    assert_eq!(path.pmtu.datagram_len(), 1352);
}

#[test]
fn confirmation_waits_for_data_worth_it_and_is_sooner_when_nothing_comes_back() {
    let check = |after: Duration, bytes: u64, answered: bool, expected: bool| {
        let mut path = Path::found(V6, 1452);
        path.now += Duration::from_secs(3600);
        // The first long datagram after a pause confirms; from here on the time counts.
        path.pmtu = confirmed(path.pmtu.clone(), path.now);
        path.now += after;
        path.traffic(bytes, answered);
        assert_eq!(!path.polled().is_empty(), expected, "{after:?}, {bytes} bytes, answered: {answered}");
    };
    check(CONFIRMATION_TIMER, 10_000, true, true);
    check(CONFIRMATION_TIMER - Duration::from_millis(1), 10_000, true, false);
    check(CONFIRMATION_TIMER_STALLED, 10_000, false, true);
    check(CONFIRMATION_TIMER_STALLED - Duration::from_millis(1), 10_000, false, false);
    check(CONFIRMATION_TIMER, 1000, true, false);
}

/// The same, as if the length in use had been acknowledged now, and after the raise timer.
fn confirmed(mut pmtu: PathMtu, now: Instant) -> PathMtu {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..100 {
        let traffic = Traffic { sent_bytes: 100_000, sent_packets: 100, answered: true, rtt: None };
        pmtu.handle_traffic(now, traffic);
        while let Some(probe) = pmtu.poll_transmit(now, &mut rng) {
            if probe.datagram_len > pmtu.datagram_len() {
                pmtu.handle_too_big(now, probe.datagram_len);
                continue;
            }
            pmtu.handle_ack(now, probe.token, probe.datagram_len);
            // What is left of our own probes.
            pmtu.handle_traffic(now, Traffic::default());
            return pmtu;
        }
    }
    panic!("the length in use is never confirmed");
}

#[test]
fn own_probes_and_thin_flows_are_not_worth_a_confirmation() {
    let mut path = Path::found(V6, 1452);
    path.flow(Duration::from_secs(10), |len| len <= 1452);
    let since = path.now;
    // Ten small packets a second, for less than the raise timer; the counters show our own probes too.
    let (mut bytes, mut packets) = (0, 0);
    for _ in 0..250 {
        let traffic =
            Traffic { sent_bytes: 1920 + bytes, sent_packets: 20 + packets, answered: false, rtt: None };
        path.pmtu.handle_traffic(path.now, traffic);
        (bytes, packets) = (0, 0);
        for probe in path.polled() {
            (bytes, packets) = (bytes + probe.datagram_len as u64, packets + 1);
            path.ack(probe);
        }
        path.now += Duration::from_secs(2);
    }
    let probe_bytes: usize =
        path.log.iter().filter(|(at, _)| *at >= since).map(|(_, p)| p.datagram_len).sum();
    assert!(probe_bytes <= 250 * 1920 / 16 + 1452, "{probe_bytes}");
    // One long packet and a few short ones are worth one.
    let traffic = Traffic { sent_bytes: 1452 + 3 * 64, sent_packets: 4, answered: false, rtt: None };
    path.pmtu.handle_traffic(path.now, traffic);
    let probes = path.polled();
    assert_eq!(probes.len(), 1);
    path.ack(probes[0]);
    // Which does not make the next one worth it.
    path.now += Duration::from_secs(3);
    let traffic = Traffic { sent_bytes: 1452 + 96, sent_packets: 2, answered: false, rtt: None };
    path.pmtu.handle_traffic(path.now, traffic);
    assert_eq!(path.polled(), []);
}

#[test]
fn acknowledgements_of_nothing_say_nothing() {
    let mut path = Path::to(V6);
    path.traffic(100, false);
    let probe = path.polled()[0];
    path.pmtu.handle_ack(path.now, probe.token ^ 1, probe.datagram_len);
    path.pmtu.handle_ack(path.now, probe.token, probe.datagram_len + 1);
    path.pmtu.handle_ack(path.now, probe.token, 65_507);
    assert_eq!(path.pmtu.datagram_len(), BASE_DATAGRAM_LEN);
    path.ack(probe);
    assert_eq!(path.pmtu.datagram_len(), 1452);
    path.pmtu.handle_hop(hop("[2001:db8::2]:5747"));
    path.ack(probe);
    assert_eq!(path.pmtu.datagram_len(), BASE_DATAGRAM_LEN, "not of this path");
}

#[test]
fn another_endpoint_is_another_path_and_the_same_one_is_not() {
    let mut path = Path::found(V6, 1452);
    path.pmtu.handle_hop(hop(V6));
    assert_eq!(path.pmtu.datagram_len(), 1452);
    path.pmtu.handle_hop(hop(V4));
    assert_eq!((path.pmtu.datagram_len(), path.pmtu.state()), (BASE_DATAGRAM_LEN, State::Unknown));
}

#[test]
fn what_the_own_link_refuses_is_given_up_at_once() {
    let mut path = Path::to(V6);
    path.traffic(100, false);
    // Ethernet on the own machine: jumbo frames cost no time at all.
    for _ in 0..20 {
        for probe in path.polled() {
            if probe.datagram_len > 1452 {
                path.pmtu.handle_too_big(path.now, probe.datagram_len);
            } else {
                path.ack(probe);
            }
        }
    }
    assert_eq!(path.pmtu.datagram_len(), 1452);
    assert!(matches!(path.pmtu.state(), State::Found { .. }));
    // The link is made narrower under way.
    path.pmtu.handle_too_big(path.now, 1400);
    assert_eq!((path.pmtu.datagram_len(), path.pmtu.state()), (BASE_DATAGRAM_LEN, State::Searching));
    assert!(path.polled()[0].datagram_len < 1400);
    // Nothing can be done below BASE.
    let mut path = Path::found(V6, 1452);
    path.pmtu.handle_too_big(path.now, BASE_DATAGRAM_LEN);
    assert_eq!(path.pmtu.datagram_len(), 1452);
}

#[test]
fn late_acknowledgements_count_while_the_path_is_the_same() {
    let mut path = Path::to(V6);
    path.traffic(100, false);
    let first = path.polled()[0];
    path.pass(Duration::from_secs(1), true, |len| len < 1300);
    assert!(path.pmtu.datagram_len() < 1300);
    path.ack(first);
    assert_eq!(path.pmtu.datagram_len(), 1452);
}
