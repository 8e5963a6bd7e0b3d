//! The lab itself: what the other tests rely on.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::capture::{Capture, datagram};
use crate::lab::pinger::Pinger;
use crate::lab::process::run;
use crate::lab::{Lab, Underlay};

#[test]
fn machines_see_each_other_and_leave_nothing() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let lab = Lab::alone();
        let (one, two) = (lab.machine(underlay), lab.machine(underlay));
        let start = Instant::now();
        one.must(&format!("ping -n -c 1 -W 1 {}", two.ip));
        let capture = Capture::start(&lab.lan(), "p1");
        let (sender, receiver) = (
            one.inside(|| UdpSocket::bind((one.ip, 1000)).unwrap()),
            two.inside(|| UdpSocket::bind((two.ip, 2000)).unwrap()),
        );
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        sender.send_to(b"over the bridge", receiver.local_addr().unwrap()).unwrap();
        receiver.recv_from(&mut [0; 64]).unwrap();
        let frames = capture.stop();
        let seen = frames.iter().filter_map(|frame| datagram(frame)).find(|d| d.source_port == 1000).unwrap();
        assert_eq!((seen.destination_port, seen.payload), (2000, &b"over the bridge"[..]));
        if let std::net::IpAddr::V6(ip) = two.ip {
            let pinger = Pinger::start(&one, ip, "0.05");
            pinger.first_after(start, Duration::from_secs(2), "a ping is seen");
        }
        let names = [one.netns.clone(), two.netns.clone(), lab.lan()];
        drop(lab);
        let left = run(Command::new("ip").args(["netns", "list"])).out;
        assert!(names.iter().all(|name| !left.contains(name)), "{left}");
    }
}
