//! The lab's lines do to traffic what their weather says.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::line::Weather;
use crate::lab::nat::Nat;
use crate::lab::{Lab, Machine, Underlay};

const DATAGRAMS: u16 = 3000;

/// Numbers of datagrams in the order of arrival.
fn arrivals(from: &Machine, to: &Machine) -> Vec<u16> {
    const SILENCE: Duration = Duration::from_millis(500);
    const EVERY_MS: usize = 10;
    let receiver = to.inside(|| UdpSocket::bind((to.ip, 0)).unwrap());
    let sender = from.inside(|| UdpSocket::bind((from.ip, 0)).unwrap());
    let address = receiver.local_addr().unwrap();
    receiver.set_read_timeout(Some(SILENCE)).unwrap();
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut numbers = Vec::new();
            let mut buffer = [0; 2];
            while receiver.recv(&mut buffer).is_ok() {
                numbers.push(u16::from_be_bytes(buffer));
            }
            numbers
        });
        for number in 0..DATAGRAMS {
            sender.send_to(&number.to_be_bytes(), address).unwrap();
            if usize::from(number) % EVERY_MS == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        receiving.join().unwrap()
    })
}

/// The share of what was lost, and how many in a row on average.
fn losses(arrived: &[u16]) -> (f64, f64) {
    let mut there = vec![false; DATAGRAMS.into()];
    arrived.iter().for_each(|&number| there[usize::from(number)] = true);
    let lost = there.iter().filter(|&&there| !there).count();
    let bursts = there.windows(2).filter(|pair| pair[0] && !pair[1]).count();
    (lost as f64 / f64::from(DATAGRAMS), lost as f64 / bursts.max(1) as f64)
}

/// The share that came behind a later one.
fn overtaken(arrived: &[u16]) -> f64 {
    let mut newest = 0;
    let late = arrived.iter().filter(|&&number| {
        newest = newest.max(number);
        number < newest
    });
    late.count() as f64 / arrived.len() as f64
}

fn within(value: f64, least: f64, most: f64, what: &str) {
    println!("{what}: {value:.3}");
    assert!((least..=most).contains(&value), "{what}: {value}, not {least} to {most}");
}

/// Average of a ping's times in milliseconds, the least of them, and the share of lost packets.
fn ping(from: &Machine, to: &Machine, count: u32) -> (f64, f64, f64) {
    let out = from.sh(&format!("ping -n -q -c {count} -i 0.005 -W 1 {}", to.ip)).out;
    let number = |text: &str| text.trim().parse::<f64>().unwrap_or_else(|_| panic!("{out}"));
    let (before, _) = out.split_once("% packet loss").unwrap();
    let (_, times) = out.split_once("mdev = ").unwrap();
    let times: Vec<_> = times.split('/').collect();
    (number(times[1]), number(times[0]), number(before.rsplit(' ').next().unwrap()) / 100.0)
}

#[test]
fn a_line_loses_in_bursts_the_same_frames_for_the_same_seed() {
    let lab = Lab::new();
    let receiver = lab.public_machine(Underlay::V4);
    let senders = [7, 7, 8].map(|seed| {
        let sender = lab.public_machine(Underlay::V4);
        lab.lengthen(&sender, Weather { loss: 0.1, burst: 5.0, ..Weather::CLEAR }, seed);
        sender
    });
    let arrived = senders.each_ref().map(|sender| arrivals(sender, &receiver));
    let (share, burst) = losses(&arrived[0]);
    within(share, 0.06, 0.15, "share lost of 0.1");
    within(burst, 3.5, 7.0, "mean burst of 5");
    assert!(arrived[0] == arrived[1], "one seed loses the same");
    assert!(arrived[0] != arrived[2], "another seed loses others");
}

#[test]
fn a_line_reorders_as_many_as_it_is_told_to() {
    let lab = Lab::new();
    let receiver = lab.public_machine(Underlay::V4);
    let sender = lab.public_machine(Underlay::V4);
    let jitter = Weather { jitter: Duration::from_millis(5), ..Weather::CLEAR };
    let line = lab.lengthen(&sender, jitter, 1);
    let arrived = arrivals(&sender, &receiver);
    assert!(arrived.iter().copied().eq(0..DATAGRAMS), "jitter alone keeps all, in order");
    line.change(Weather { late: 0.05, held: Duration::from_millis(20), ..jitter });
    let arrived = arrivals(&sender, &receiver);
    within(overtaken(&arrived), 0.03, 0.08, "share overtaken of 0.05");
    within(losses(&arrived).0, 0.0, 0.0, "share lost");
}

/// The bounds are wide: a busy machine is late, never early.
#[test]
fn a_ping_over_a_line_takes_its_time_and_its_losses() {
    let lab = Lab::new();
    let [one, other] = [Underlay::V4, Underlay::V4].map(|underlay| lab.public_machine(underlay));
    let (before, ..) = ping(&one, &other, 300);
    let far =
        Weather { delay: Duration::from_millis(20), jitter: Duration::from_millis(10), ..Weather::CLEAR };
    let line = lab.lengthen(&one, far, 3);
    let (average, least, lost) = ping(&one, &other, 300);
    println!("average {average} ms, before {before} ms");
    within(least, 40.0, 60.0, "least of 40 to 60 ms");
    within(average, 44.0, 90.0, "average of 50 ms and what jitter adds that keeps the order");
    within(lost, 0.0, 0.0, "lost");
    line.change(Weather { loss: 0.1, burst: 3.0, ..far });
    within(ping(&one, &other, 300).2, 0.08, 0.35, "share of pings lost of 0.19");
}

/// Also with IPv6, at a router's uplink, and with what is plugged in elsewhere afterwards.
#[test]
fn a_line_lies_wherever_a_cable_does() {
    let lab = Lab::new();
    let far = Weather { delay: Duration::from_millis(15), ..Weather::CLEAR };
    for (underlay, nat) in [(Underlay::V4, Nat::PlainConntrack), (Underlay::V6, Nat::Ipv6Firewall)] {
        let server = lab.public_machine(underlay);
        let router = lab.router(nat);
        let mut machine = router.machine();
        router.lengthen(far, 1);
        within(ping(&machine, &server, 50).1, 30.0, 50.0, "over the router's uplink");
        lab.lengthen(&machine, far, 2);
        within(ping(&machine, &server, 50).1, 60.0, 90.0, "and the machine's own");
        machine.move_to(&lab);
        within(ping(&machine, &server, 50).1, 30.0, 50.0, "and moved");
    }
    let start = Instant::now();
    drop(lab);
    println!("gone in {:?}", start.elapsed());
}
