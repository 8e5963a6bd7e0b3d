use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop_assert, proptest};
use proptest::{collection, prop_oneof};

use super::{
    AGAIN_AFTER, Config, LIFETIME, LIFETIME_MAX, Mapping, PortMap, Protocol, REQUEST_GAP, State, WAITS,
};
use crate::proto::timer::Instant;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(20, 1, 0, 2);
const INSIDE: u16 = 5747;

fn at(ms: u64) -> Instant {
    Instant::from_nanos((1_000_000 + ms) * 1_000_000)
}

fn machine() -> PortMap {
    PortMap::new(Config { client: CLIENT, inside: INSIDE }, [7; 32], at(0))
}

fn sent(machine: &mut PortMap) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| machine.poll_transmit()).collect()
}

/// Lets time pass until nothing is due any more before `end`; what was sent.
fn run(machine: &mut PortMap, end: Instant) -> Vec<(Instant, Vec<u8>)> {
    let mut all = Vec::new();
    let mut now = at(0);
    all.extend(sent(machine).into_iter().map(|datagram| (now, datagram)));
    while let Some(due) = machine.poll_timeout().filter(|due| *due <= end) {
        now = now.max(due);
        machine.handle_timeout(now);
        all.extend(sent(machine).into_iter().map(|datagram| (now, datagram)));
    }
    all
}

/// The answer of a PCP server to a request of ours.
fn pcp(request: &[u8], code: u8, lifetime_s: u32, epoch_s: u32, outside: SocketAddrV4) -> Vec<u8> {
    let mut answer = request.to_vec();
    answer[1] |= 0x80;
    answer[3] = code;
    answer[4..8].copy_from_slice(&lifetime_s.to_be_bytes());
    answer[8..24].fill(0);
    answer[8..12].copy_from_slice(&epoch_s.to_be_bytes());
    answer[42..44].copy_from_slice(&outside.port().to_be_bytes());
    answer[44..60].copy_from_slice(&outside.ip().to_ipv6_mapped().octets());
    answer
}

fn pmp_address(epoch_s: u32, address: Ipv4Addr) -> Vec<u8> {
    [&[0, 128, 0, 0][..], &epoch_s.to_be_bytes(), &address.octets()].concat()
}

fn pmp_mapped(code: u16, epoch_s: u32, outside: u16, lifetime_s: u32) -> Vec<u8> {
    [
        &[0, 129][..],
        &code.to_be_bytes(),
        &epoch_s.to_be_bytes(),
        &INSIDE.to_be_bytes(),
        &outside.to_be_bytes(),
        &lifetime_s.to_be_bytes(),
    ]
    .concat()
}

fn outside() -> SocketAddrV4 {
    SocketAddrV4::new(OUTSIDE, 40_000)
}

/// A machine that holds a mapping since time 0.
fn held(lifetime_s: u32) -> PortMap {
    let mut machine = machine();
    let request = sent(&mut machine).remove(0);
    machine.handle_datagram(at(0), &pcp(&request, 0, lifetime_s, 100, outside()));
    machine
}

#[test]
fn a_mapping_is_got_kept_and_given_back() {
    let mut machine = held(1200);
    let mapping = Mapping { outside: outside(), protocol: Protocol::Pcp, expires: at(1_200_000) };
    assert_eq!(machine.state(), State::Held(mapping));
    let due = machine.poll_timeout().unwrap();
    assert!((at(600_000)..=at(750_000)).contains(&due), "{due:?}");
    machine.handle_timeout(due);
    let renewal = sent(&mut machine).remove(0);
    assert_eq!((&renewal[42..44], &renewal[56..60]), (&40_000u16.to_be_bytes()[..], &OUTSIDE.octets()[..]));
    machine.handle_datagram(due, &pcp(&renewal, 0, 1200, 700, outside()));
    assert_eq!(machine.mapping().map(|mapping| mapping.expires), Some(due + Duration::from_secs(1200)));
    let back = machine.release().unwrap();
    assert_eq!((&back[..2], &back[4..8], &back[24..36]), (&[2, 1][..], &[0; 4][..], &renewal[24..36]));
}

/// The answer may be on its way, or lost.
#[test]
fn what_was_asked_for_is_given_back_whatever_comes_of_it() {
    let mut machine = machine();
    let request = sent(&mut machine).remove(0);
    let back = machine.release().unwrap();
    assert_eq!((&back[4..8], &back[24..36]), (&[0; 4][..], &request[24..36]));
    run(&mut machine, at(10_000));
    assert_eq!((machine.state(), machine.release()), (State::Silent, None));
}

#[test]
fn a_mapping_that_is_not_renewed_ends_and_is_asked_for_again() {
    let mut machine = held(1200);
    let sent = run(&mut machine, at(1_199_999));
    assert!(machine.mapping().is_some() && (4..=12).contains(&sent.len()), "{} renewals", sent.len());
    assert!(sent.windows(2).all(|pair| pair[1].0.saturating_since(pair[0].0) >= Duration::from_secs(9)));
    machine.handle_timeout(at(1_200_000));
    assert_eq!(machine.state(), State::Asking);
}

#[test]
fn a_router_that_is_silent_gets_few_packets() {
    let mut machine = machine();
    let sent = run(&mut machine, at(10_000));
    assert_eq!(machine.state(), State::Silent);
    // PCP, then address and mapping of NAT-PMP.
    assert_eq!(sent.len(), 3 * WAITS.len());
    let hour = run(&mut machine, at(3_600_000));
    assert!(hour.len() <= 4 * 3 * WAITS.len(), "{} packets in an hour", hour.len());
}

#[test]
fn a_router_where_nobody_listens_is_left_alone() {
    let mut asking = machine();
    asking.handle_unreachable(at(1));
    assert_eq!((asking.state(), asking.poll_timeout()), (State::Silent, Some(at(1) + AGAIN_AFTER)));
    let mut held = held(1200);
    let due = held.poll_timeout();
    held.handle_unreachable(at(1));
    assert!(held.mapping().is_some() && held.poll_timeout() == due, "a mapping that stands is not given up");
}

#[test]
fn nat_pmp_is_asked_when_pcp_is_not_spoken_or_refused() {
    for answer in [vec![0, 129, 0, 1, 0, 0, 0, 5], vec![0; 0], vec![2, 0x81, 0, 1, 0, 0, 0, 9]] {
        let mut machine = machine();
        let request = sent(&mut machine).remove(0);
        let answer = if answer.is_empty() { pcp(&request, 2, 30, 1, outside()) } else { answer };
        let padded = if answer[0] == 2 { [answer, vec![0; 24]].concat() } else { answer };
        machine.handle_datagram(at(10), &padded);
        assert_eq!(sent(&mut machine).len(), 2, "{padded:?}");
        machine.handle_datagram(at(20), &pmp_mapped(0, 7, 40_000, 1200));
        assert_eq!(machine.state(), State::Asking, "a port of no address");
        machine.handle_datagram(at(21), &pmp_address(7, OUTSIDE));
        machine.handle_datagram(at(22), &pmp_mapped(0, 7, 40_000, 1200));
        assert_eq!(machine.mapping().map(|m| (m.outside, m.protocol)), Some((outside(), Protocol::NatPmp)));
        assert_eq!(machine.release().unwrap()[4..], [22, 115, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn a_refusal_is_remembered_and_asked_again_later() {
    let mut machine = machine();
    let request = sent(&mut machine).remove(0);
    machine.handle_datagram(at(1), &pcp(&request, 8, 0, 1, outside()));
    machine.handle_datagram(at(2), &pmp_mapped(2, 7, 0, 0));
    assert_eq!(machine.state(), State::Refused(Protocol::NatPmp, 2));
    assert_eq!(machine.poll_timeout(), Some(at(2) + AGAIN_AFTER));
}

#[test]
fn what_leads_nowhere_is_no_mapping() {
    let check = |address: [u8; 4], port: u16, lifetime_s: u32| {
        let mut machine = machine();
        let request = sent(&mut machine).remove(0);
        let outside = SocketAddrV4::new(Ipv4Addr::from(address), port);
        machine.handle_datagram(at(1), &pcp(&request, 0, lifetime_s, 1, outside));
        assert_eq!(machine.state(), State::Useless(Protocol::Pcp, *outside.ip()), "{outside} {lifetime_s}");
        let back = sent(&mut machine);
        assert!(back.len() == 1 && back[0][4..8] == [0; 4], "it is given back");
        assert_eq!(machine.poll_timeout(), Some(at(1) + AGAIN_AFTER));
        // Nothing that comes later brings it back.
        machine.handle_datagram(at(2), &pcp(&request, 0, 1200, 1, SocketAddrV4::new(OUTSIDE, 1)));
        assert!(machine.mapping().is_none());
    };
    for address in
        [[0, 0, 0, 0], [192, 168, 0, 1], [10, 0, 0, 1], [100, 64, 3, 3], [127, 0, 0, 1], [224, 0, 0, 1]]
    {
        check(address, 40_000, 1200);
    }
    check(OUTSIDE.octets(), 0, 1200);
    check(OUTSIDE.octets(), 40_000, 0);
    check(OUTSIDE.octets(), 40_000, 59);
}

#[test]
fn answers_to_questions_of_others_are_none() {
    let mut machine = machine();
    let request = sent(&mut machine).remove(0);
    let good = pcp(&request, 0, 1200, 1, outside());
    let check = |machine: &mut PortMap, at_byte: usize, value: u8| {
        let mut answer = good.clone();
        answer[at_byte] = value;
        machine.handle_datagram(at(1), &answer);
        assert_eq!(machine.state(), State::Asking, "byte {at_byte}");
    };
    check(&mut machine, 24, good[24] ^ 1);
    check(&mut machine, 35, good[35] ^ 1);
    check(&mut machine, 36, 6);
    check(&mut machine, 41, good[41] ^ 1);
    check(&mut machine, 1, 1);
    machine.handle_datagram(at(1), &pmp_address(1, OUTSIDE));
    machine.handle_datagram(at(1), &pmp_mapped(0, 1, 40_000, 1200));
    assert_eq!(machine.state(), State::Asking, "NAT-PMP was not asked");
    assert!(sent(&mut machine).is_empty());
    machine.handle_datagram(at(1), &good);
    assert!(machine.mapping().is_some());
}

#[test]
fn no_lifetime_is_believed_beyond_a_day() {
    let machine = held(u32::MAX);
    assert_eq!(machine.mapping().map(|mapping| mapping.expires), Some(at(0) + LIFETIME_MAX));
    assert!(machine.poll_timeout().is_some_and(|due| due <= at(0) + LIFETIME_MAX));
    assert!(LIFETIME < LIFETIME_MAX);
}

#[test]
fn a_router_that_lost_its_state_is_asked_again_soon() {
    let announce =
        |epoch_s: u32| [&[2, 0x80, 0, 0, 0, 0, 0, 0][..], &epoch_s.to_be_bytes(), &[0; 12]].concat();
    let mut machine = held(1200);
    let planned = machine.poll_timeout();
    machine.handle_datagram(at(60_000), &announce(160));
    assert_eq!(machine.poll_timeout(), planned, "its clock goes on");
    machine.handle_datagram(at(120_000), &announce(3));
    assert_eq!(machine.poll_timeout(), Some(at(120_000)));
    machine.handle_timeout(at(120_000));
    assert_eq!(sent(&mut machine).len(), 1);
    // It cannot make us ask all the time.
    let mut asked = 0;
    for ms in (120_001..180_000).step_by(100) {
        machine.handle_datagram(at(ms), &announce(ms as u32 % 3));
        machine.handle_timeout(at(ms));
        asked += sent(&mut machine).len();
    }
    assert!(asked <= 60 / REQUEST_GAP.as_secs() as usize, "{asked} requests in a minute");
}

/// What a router may say: junk, and its own words changed in places.
fn says() -> impl Strategy<Value = (u64, Vec<u8>, Vec<(usize, u8)>)> {
    let answers = prop_oneof![
        collection::vec(any::<u8>(), 0..70),
        Just(pmp_address(1, OUTSIDE)),
        Just(pmp_mapped(0, 1, 40_000, 1200)),
        Just(vec![]),
    ];
    (0u64..100_000, answers, collection::vec((0usize..60, any::<u8>()), 0..4))
}

proptest! {
    #[test]
    fn whatever_a_router_says_it_gets_few_packets_and_no_mapping_that_leads_nowhere(
        said in collection::vec(says(), 1..60)
    ) {
        let mut machine = machine();
        let request = sent(&mut machine).remove(0);
        let (mut now, mut packets) = (0, 1);
        for (wait, answer, changes) in said {
            let mut answer = if answer.is_empty() { pcp(&request, 0, 1200, 1, outside()) } else { answer };
            for (at, value) in changes {
                if let Some(byte) = answer.get_mut(at) {
                    *byte = value;
                }
            }
            machine.handle_datagram(at(now), &answer);
            now += wait;
            machine.handle_timeout(at(now));
            packets += sent(&mut machine).len() as u64;
            if let Some(mapping) = machine.mapping() {
                prop_assert!(crate::proto::path::is_global((*mapping.outside.ip()).into()));
                prop_assert!(mapping.expires <= at(now) + LIFETIME_MAX && mapping.outside.port() != 0);
            }
            prop_assert!(machine.poll_timeout().is_some());
        }
        let seconds = now / 1000;
        prop_assert!(packets <= 12 + seconds / 2, "{packets} packets in {seconds} s");
    }
}
