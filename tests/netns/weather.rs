//! The mesh over lines that lose much, or are long.

use std::time::{Duration, Instant};

use crate::lab::line::Weather;
use crate::lab::{Lab, Underlay, eventually, long, noise};
use crate::programs::listening;

/// Lost each way.
const LOSS: f64 = 0.2;
/// One way to a satellite and down again.
const FAR: Duration = Duration::from_millis(750);

#[test]
fn a_file_arrives_whole_over_a_line_that_loses_a_fifth() {
    let megabytes = if long() { 10 } else { 1 };
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).with(&["--inbound", "allow"]).started();
    let machine = lab.machine(Underlay::V4);
    lab.lengthen(&machine, Weather { loss: LOSS, burst: 1.25, ..Weather::CLEAR }, 41);
    let client = crate::lab::node::Node::new(machine).knows(&server).started();
    std::fs::create_dir(server.dir.join("www")).unwrap();
    std::fs::write(server.dir.join("www/file"), noise(9, megabytes * 1_000_000)).unwrap();
    let line =
        format!("python3 -m http.server 8080 --bind :: --directory {}", server.dir.join("www").display());
    let _server = listening(&server, &line, 8080);
    eventually(Duration::from_secs(30), "a session", || client.ping(server.address, 1));
    let start = Instant::now();
    let fetched = client.must(&format!(
        "curl -s --fail --retry 3 -m 400 'http://[{}]:8080/file' | sha256sum",
        server.address
    ));
    let took = start.elapsed();
    let expected = server.must(&format!("sha256sum < {}", server.dir.join("www/file").display()));
    assert_eq!(fetched, expected);
    println!("{megabytes} MB with {LOSS} lost each way: {took:?}");
}

#[test]
fn a_line_of_750_ms_each_way_works() {
    let lab = Lab::new();
    let server = lab.node(Underlay::V4).with(&["--inbound", "allow"]).started();
    let machine = lab.machine(Underlay::V4);
    lab.lengthen(&machine, Weather { delay: FAR, ..Weather::CLEAR }, 42);
    let client = crate::lab::node::Node::new(machine).knows(&server).started();
    let (rtt, took) = eventually(Duration::from_secs(30), "a reply", || client.ping(server.address, 3));
    println!("first reply after {took:?}, then {rtt} ms");
    let _shell = listening(&server, "python3 -m http.server 8081 --bind ::", 8081);
    let page = format!("curl -s --fail -m 25 -o page 'http://[{}]:8081/'", server.address);
    client.must(&format!("cd {} && {page}", client.dir.display()));
    let replies = client.must(&format!("ping -6 -n -c 5 -i 0.5 -W 4 {}", server.address));
    assert!(replies.contains("5 received"), "{replies}");
}
