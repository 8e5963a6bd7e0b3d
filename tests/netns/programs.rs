//! Programs that know nothing of the mesh, across it.

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::node::Node;
use crate::lab::process::{Process, run};
use crate::lab::{Lab, Underlay, eventually, long, noise};

const FILE_BYTES: usize = 200_000_000;
/// Percentage points that the mesh may lose more than the bare link.
const LOSS_MORE: f64 = 0.0;

#[test]
fn unmodified_programs_work_over_an_ipv4_underlay() {
    unmodified_programs(Underlay::V4);
}

#[test]
fn unmodified_programs_work_over_an_ipv6_underlay() {
    unmodified_programs(Underlay::V6);
}

fn unmodified_programs(underlay: Underlay) {
    let lab = Lab::alone();
    let server = lab.node(underlay).with(&["--inbound", "allow"]).started();
    let client = lab.node(underlay).with(&["--inbound", "allow"]).knows(&server).started();
    client.reaches(&server, Duration::from_secs(5));
    curl_fetches_200_mb(&client, &server);
    ssh_logs_in(&client, &server);
    iperf3_runs(&client, &server);
    pings_are_not_lost(&client, &server);
}

fn curl_fetches_200_mb(client: &Node, server: &Node) {
    let directory = server.dir.join("www");
    fs::create_dir(&directory).unwrap();
    let block = noise(7, 1 << 20);
    let content: Vec<u8> = block.iter().copied().cycle().take(FILE_BYTES).collect();
    fs::write(directory.join("file"), content).unwrap();
    let line =
        format!("python3 -m http.server 8000 --bind {} --directory {}", server.address, directory.display());
    let _server = listening(server, &line, 8000);
    let sum = |text: &str| text.split_whitespace().next().unwrap().to_owned();
    let expected = sum(&server.must(&format!("sha256sum {}/file", directory.display())));
    let start = Instant::now();
    let got = client.must(&format!("curl -sS --fail 'http://[{}]:8000/file' | sha256sum", server.address));
    let took = start.elapsed();
    println!("curl: 200 MB in {took:?}, {:.0} Mbit/s", FILE_BYTES as f64 * 8e-6 / took.as_secs_f64());
    assert_eq!(sum(&got), expected);
}

fn ssh_logs_in(client: &Node, server: &Node) {
    let (dir, address) = (server.dir.display(), server.address);
    fs::create_dir_all("/run/sshd").unwrap();
    server.must(&format!(
        "ssh-keygen -q -t ed25519 -N '' -f {dir}/host && ssh-keygen -q -t ed25519 -N '' -f {dir}/user"
    ));
    let config = format!(
        "ListenAddress [{address}]:2222\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nPidFile none\n\
         UsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    );
    fs::write(server.dir.join("sshd_config"), config).unwrap();
    let sshd = run(server.command("sh").args(["-c", "PATH=$PATH:/usr/sbin command -v sshd"])).out;
    let _sshd = listening(server, &format!("{} -D -e -f {dir}/sshd_config", sshd.trim()), 2222);
    let said = client.must(&format!(
        "ssh -F none -p 2222 -i {dir}/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ConnectTimeout=5 root@{address} 'echo logged in from $SSH_CONNECTION'"
    ));
    assert!(said.contains(&format!("logged in from {}", client.address)), "{said}");
}

fn iperf3_runs(client: &Node, server: &Node) {
    let _iperf3 = listening(server, &format!("iperf3 -s -B {}", server.address), 5201);
    let seconds = if long() { 30 } else { 5 };
    for (what, flags) in [
        ("TCP out", format!("-t {seconds}")),
        ("TCP back", format!("-t {seconds} -R")),
        ("TCP, 50 flows", "-t 3 -P 50".to_owned()),
        ("UDP", "-t 3 -u -b 20M -l 1000".to_owned()),
    ] {
        // Its server takes one client at a time and a moment between two.
        let (report, _) = eventually(Duration::from_secs(60), what, || {
            let said = client.sh(&format!("iperf3 -J -c {} {flags}", server.address));
            let report: Value = serde_json::from_str(&said.out).unwrap();
            let busy = report["error"].as_str().is_some_and(|error| error.contains("busy"));
            assert!(busy || said.code == 0, "iperf3 {what}: {}", report["error"]);
            (!busy).then_some(report)
        });
        let end = &report["end"];
        if what == "UDP" {
            let (lost, rate) = (end["sum"]["lost_percent"].as_f64(), end["sum"]["bits_per_second"].as_f64());
            let lost = lost.unwrap_or_else(|| panic!("iperf3 {what} has no result: {report}"));
            println!("iperf3 {what}: {:.1} Mbit/s, {lost:.2} % lost", rate.unwrap() * 1e-6);
            assert!(lost < 1.0, "UDP at 20 Mbit/s lost {lost} %");
        } else {
            let rate = end["sum_received"]["bits_per_second"].as_f64();
            let rate = rate.unwrap_or_else(|| panic!("iperf3 {what} has no result: {report}"));
            println!("iperf3 {what}: {:.0} Mbit/s", rate * 1e-6);
            assert!(rate > 1e6, "{what}: {rate} bit/s");
        }
    }
}

/// At 100 a second, both ways of the mesh against the bare link.
fn pings_are_not_lost(client: &Node, server: &Node) {
    let count = if long() { 10_000 } else { 1_000 };
    let lost = |address: &str| -> f64 {
        // `-i 0.01` sends 62 a second: iputils rounds its wait up to the kernel's ticks.
        let said = client.must(&format!("ping -n -q -c {count} -i 0.009 -W 1 {address} || true"));
        let (before, _) = said.split_once("% packet loss").unwrap();
        before.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (bare, mesh) = (lost(&server.ip.to_string()), lost(&server.address.to_string()));
    println!("{count} pings at 100/s: bare link lost {bare} %, mesh {mesh} %");
    assert!(mesh <= bare + LOSS_MORE, "bare {bare} %, mesh {mesh} %");
}

/// Starts a server and waits until its port answers.
pub(crate) fn listening(server: &Node, line: &str, port: u16) -> Process {
    let mut process = server.spawn(line, "server.log");
    let address = server.address;
    eventually(Duration::from_secs(10), line, || {
        assert!(process.is_running(), "{line}: {}", process.log());
        server.inside(|| TcpStream::connect((address, port))).ok()
    });
    process
}
