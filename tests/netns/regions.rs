//! Two regions, cut from each other but for daemons with a foot in both.

use std::fs;
use std::time::{Duration, Instant};

use crate::lab::pinger::Pinger;
use crate::lab::region::{Regions, Side};
use crate::lab::{Lab, eventually, long};
use crate::programs::listening;
use crate::relays::kind;

/// From the cut, or the death of who carries, until every pair talks.
const TALKS: Duration = Duration::from_secs(5);
/// From the end of the cut to the straight way.
const DIRECT: Duration = Duration::from_secs(60);
/// Of iperf3.
const PORT: u16 = 5201;

/// The longest silence of all pairs since `start`, once each is answered again.
fn talk(pingers: &[Pinger], start: Instant, what: &str) -> Duration {
    let took = pingers.iter().map(|pinger| pinger.first_after(start, TALKS, what));
    took.max().unwrap()
}

#[test]
fn regions_talk_by_way_of_a_daemon_in_both_and_of_another_one_when_it_dies() {
    let lab = Lab::new();
    let regions = Regions::new(&lab);
    let first = regions.node(Side::West).with(&["--inbound", "allow"]).started();
    let start = |side| regions.node(side).with(&["--inbound", "allow"]).knows(&first).started();
    let (second, east) = (start(Side::West), [start(Side::East), start(Side::East)]);
    let west = [&first, &second];
    let in_both = || {
        let node = regions.node_in_both();
        let file = node.dir.join("azora.toml");
        fs::write(&file, "[relay]\nenabled = true\nlimits = { kbit_s = 100000 }\n").unwrap();
        node.with(&["--config", file.to_str().unwrap()]).knows(&first).knows(&east[0]).started()
    };
    let mut bridges = [in_both(), in_both()];
    let pairs: Vec<_> = west.iter().flat_map(|a| east.iter().map(|b| (*a, b))).collect();
    let _server = listening(&east[0], &format!("iperf3 -s -p {PORT}"), PORT);
    for (a, b) in &pairs {
        a.reaches(b, Duration::from_secs(5));
        b.reaches(a, Duration::from_secs(5));
    }
    for node in west.into_iter().chain(&east) {
        for bridge in &bridges {
            node.reaches(bridge, Duration::from_secs(5));
        }
    }
    let all = |wanted: &str| pairs.iter().all(|(a, b)| kind(a, b) == wanted && kind(b, a) == wanted);
    eventually(Duration::from_secs(10), "all direct", || all("direct").then_some(()));
    let pingers: Vec<_> = pairs.iter().map(|(a, b)| Pinger::start(a, b.address, "0.1")).collect();
    let flow_s = if long() { 120 } else { 16 };
    let line = format!("iperf3 -6 -c {} -p {PORT} -t {flow_s} -b 5M --connect-timeout 3000", east[0].address);
    let mut flow = first.spawn(&line, "iperf3.log");
    let begin = Instant::now();
    eventually(TALKS, "pings", || pingers.iter().all(|pinger| pinger.since(begin).len() > 10).then_some(()));

    regions.cut();
    let cut = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    let after_cut = talk(&pingers, cut + Duration::from_millis(300), "every pair talks after the cut");
    eventually(TALKS, "no straight way is used", || {
        pairs.iter().all(|(a, b)| kind(a, b) != "direct").then_some(())
    });
    let used = first.peer(&east[0]).unwrap()["path"]["via"][0].as_str().unwrap().to_owned();
    let victim = bridges.iter().position(|node| node.id == used).unwrap();
    let trace = first.json(&["trace", &east[0].id]);
    let hops = trace["hops"].as_array().unwrap();
    assert_eq!(
        (hops.len(), &hops[0]["node_id"], &hops[1]["node_id"]),
        (2, &used.clone().into(), &east[0].id.clone().into())
    );
    assert!(hops.iter().all(|hop| hop["rtt_ms"].is_f64()), "{trace}");
    bridges[victim].kill();
    let death = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    let after_death = talk(&pingers, death + Duration::from_millis(300), "every pair talks after the death");

    regions.mend();
    let mended = Instant::now();
    if !long() {
        // The next look for a straight way may be most of a minute away.
        for (a, b) in &pairs {
            assert_eq!(a.azora(&["ping", &b.id, "--until-direct", "--interval", "0.3"]).code, 0);
        }
    }
    let (_, direct) = eventually(DIRECT, "all direct again", || all("direct").then_some(()));
    let gap = pingers.iter().map(|pinger| pinger.longest_gap(mended)).max().unwrap();
    let ended = flow.ended(Duration::from_secs(flow_s + 30));
    assert!(ended.is_some_and(|status| status.success()), "the TCP flow breaks: {}", flow.log());
    println!(
        "every pair talks {after_cut:?} after the cut, {after_death:?} after the death of the bridge; straight \
         {direct:?} after the end of the cut, longest gap then {gap:?}"
    );
    assert!(gap < Duration::from_secs(3), "{gap:?}");
}
