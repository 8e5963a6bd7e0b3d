//! What people read.

use std::time::{Duration, Instant};

use auramesh::control::message::Request;

use crate::fake::{Fake, OWN, PEER, SILENT, node_id, ssh};
use crate::run::azora;

#[test]
fn status_says_first_what_is_wrong_and_what_to_do() {
    let healthy = Fake::healthy();
    let out = healthy.azora(&["status"]).exits(0).out;
    let expected = format!(
        "running, all is well\n\
         node id    {}\n\
         address    {}\n\
         interface  azora0 up, mtu 1420\n\
         listen     0.0.0.0:5747, [::]:5747\n\
         endpoints  203.0.113.7:5747\n\
         dht        server, 37 contacts, about 120 nodes in the network\n\
         nat        seen at 203.0.113.9:40001, pcp maps 203.0.113.9:5747, reached through {}, relay of 2 nodes, 1 channel open\n\
         tcp        1 stream to others (203.0.113.5:443), 2 streams taken at 0.0.0.0:443\n\
         data       tun tcp-udp, udp trains, superframes, aes-256-gcm or chacha20-poly1305\n\
         peers      4, 1 with data in the last 30 s\n\
         drops      policy 3 (policy: not let in; azora --socket {} firewall trace shows what)\n\
         version    0.1.0\n",
        node_id(OWN),
        node_id(OWN).address(),
        &node_id(4).to_string()[..10],
        healthy.socket.display()
    );
    assert_eq!(out, expected);
    let with_peers = healthy.azora(&["status", "--peers"]).exits(0).out;
    assert!(with_peers.starts_with(&out));
    let dropped = format!(
        "{out}\nDROPPED  PACKETS  MEANING\n\
         policy   3        not let in by the rules: azora --socket {} firewall trace shows what\n",
        healthy.socket.display()
    );
    assert_eq!(healthy.azora(&["status", "--drops"]).exits(0).out, dropped);
    assert!(with_peers.contains(&node_id(SILENT).to_string()));
    let (relay, peer) = (&node_id(4).to_string()[..10], &node_id(PEER).to_string()[..10]);
    let change = format!(
        "CHANGED    NODE ID     FROM                                   TO                        WHY\n\
         1 min ago  {peer}  relay 203.0.113.5:5747 via {relay}  direct 198.51.100.7:5747  check answered\n"
    );
    assert!(with_peers.ends_with(&change), "{with_peers}");
    let lonely = Fake::lonely().azora(&["status"]).exits(0).out;
    let mut lines = lonely.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("running, but no other node is known; try: azora --socket /"), "{first}");
    assert!(first.ends_with("/azora.sock peers add NODEID@IP:PORT"), "{first}");
    assert_eq!(lines.next(), Some("  also the clock is wrong; try: set it"));
    let new = Fake::new().azora(&["status"]).exits(0).out;
    assert!(new.starts_with("running, all is well; no peers yet; `azora --socket /"), "{new}");
    assert!(new.lines().next().unwrap().ends_with("/azora.sock peers add NODEID@IP:PORT` adds one"), "{new}");
}

#[test]
fn checks_print_one_line_and_exit_0_or_1() {
    let check = |fake: &Fake, what: &str, code: i32, line: &str| {
        assert_eq!(fake.azora(&["status", "--check", what]).exits(code).out, line);
    };
    let (healthy, lonely) = (Fake::healthy(), Fake::lonely());
    check(&healthy, "live", 0, "live\n");
    check(&healthy, "ready", 0, "ready\n");
    check(&lonely, "live", 0, "live\n");
    check(&lonely, "ready", 1, "not ready: no other node is known, the clock is wrong\n");
}

#[test]
fn peers_are_a_table() {
    let out = Fake::healthy().azora(&["peers"]).exits(0).out;
    let lines: Vec<Vec<&str>> =
        out.lines().map(|line| line.split("  ").filter(|c| !c.is_empty()).map(str::trim).collect()).collect();
    assert_eq!(lines[0], ["STATE", "ADDRESS", "PATH", "RTT", "RX", "TX", "LAST RX", "NODE ID"]);
    let (address, id) = (node_id(PEER).address().to_string(), node_id(PEER).to_string());
    let expected =
        ["flowing", &address, "direct 198.51.100.7:5747", "0.310 ms", "2.0 KiB", "100 B", "0.4 s", &id];
    assert_eq!(lines[1], expected);
    assert_eq!(lines[2][2], "none (no answer for 14.0 s)");
    assert_eq!((lines[3][2], lines[4][2]), ("none (idle)", "none (stopped)"));
    let unheard = Fake::unheard();
    let out = unheard.azora(&["peers"]).exits(0).out;
    assert!(out.contains("direct 198.51.100.7:5747 (heard, but no answer for 14.0 s)"), "{out}");
    let out = unheard.azora(&["status"]).exits(0).out;
    assert!(
        out.starts_with("running, nothing is wrong here, but a peer does not answer (azora --socket"),
        "{out}"
    );
    assert!(Fake::lonely().azora(&["peers"]).exits(0).out.contains("azora.sock peers add"));
}

#[test]
fn ping_names_who_by_which_path_and_how_fast() {
    let fake = Fake::healthy();
    let (peer, silent) = (node_id(PEER).to_string(), node_id(SILENT).to_string());
    let out = fake.azora(&["ping", &peer, "-c", "2", "--interval", "0.001"]).exits(0).out;
    let (address, short) = (node_id(PEER).address(), &peer[..10]);
    let expected = format!(
        "reply from {address} ({short}): relay 198.51.100.7:5747 (no data) 1.400 ms\n\
         reply from {address} ({short}): direct 198.51.100.7:5747 2.400 ms\n\
         2 sent, 2 received, 0% lost, rtt min/p50/max 1.400/1.400/2.400 ms\n"
    );
    assert_eq!(out, expected);
    let until = |count| fake.azora(&["ping", &peer, "-c", count, "--interval", "0.001", "--until-direct"]);
    let out = until("9").exits(0).out;
    assert!(out.ends_with("\ndirect after 0.0 s\n"), "{out}");
    let out = until("1").exits(1).out;
    let why = format!(
        "through a relay: both sides are behind symmetric NATs\n  try: azora --socket {} ping {peer} --until-direct looks again\n",
        fake.socket.display()
    );
    assert!(out.ends_with(&why), "{out}");
    let out = fake.azora(&["ping", &silent, "-c", "1"]).exits(1).out;
    let socket = fake.socket.display();
    let expected = format!(
        "no reply to 1: no record found\n1 sent, 0 received, 100% lost\n\
         try: azora --socket {socket} probe {silent} tells how far it gets\n"
    );
    assert_eq!(out, expected);
    let out = fake.azora(&["ping", &format!("{peer}@192.0.2.9:1"), "-c", "1"]).exits(0).out;
    assert!(
        out.contains(" relay 198.51.100.7:5747 (no data) 1.400 ms, not at the given 192.0.2.9:1\n"),
        "{out}"
    );
    let out = fake.azora(&["ping", &format!("{peer}@198.51.100.7:5747"), "-c", "1"]).exits(0).out;
    assert!(out.contains(" relay 198.51.100.7:5747 (no data) 1.400 ms\n"), "{out}");
}

#[test]
fn trace_says_who_does_not_answer() {
    let fake = Fake::healthy();
    let out = fake.azora(&["trace", &node_id(PEER).to_string()]).exits(0).out;
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("1  relay ") && lines[0].ends_with(" 198.51.100.7:5747  1.500 ms"), "{out}");
    assert!(
        lines[1].starts_with("2  relay ") && lines[1].ends_with(" -                  no answer"),
        "{out}"
    );
    assert!(lines[2].starts_with("3  target") && lines[2].ends_with(" 4.250 ms"), "{out}");
    let silent = node_id(SILENT);
    let out = fake.azora(&["trace", &silent.to_string()]).exits(1).out;
    let socket = fake.socket.display();
    let next = format!("try: azora --socket {socket} probe {silent} tells how far it gets");
    assert_eq!(out, format!("no record found\n{next}\n"));
}

#[test]
fn probe_names_the_fix() {
    let out = Fake::healthy().azora(&["probe", &node_id(SILENT).to_string()]).exits(1).out;
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("key        ok      1.500 ms"), "{out}");
    assert!(lines[1].starts_with("handshake  FAILED  1.500 ms"), "{out}");
    assert_eq!(lines[2], "try: open UDP port 5747 there");
    let out = Fake::healthy().azora(&["probe", &node_id(PEER).to_string()]).exits(0).out;
    let last = out.lines().last().unwrap();
    assert!(last.contains("on that node, `azora status`") && last.contains("refused by its rules"), "{out}");
}

#[test]
fn netcheck_is_a_table_with_what_to_do_below() {
    let fake = Fake::healthy();
    let out = fake.azora(&["netcheck"]).exits(0).out;
    let expected = format!(
        "UDP                    yes      2 contacts on the internet answered\n\
         IPv6                   no       this machine does not have a global IPv6 address\n\
         MappingVariesByDestIP  unknown  needs 2 contacts in different networks\n\
         try: azora --socket {} peers add NODEID@IP:PORT\n",
        fake.socket.display()
    );
    assert_eq!(out, expected);
    assert_eq!(fake.asked(), [Request::Netcheck]);
}

#[test]
fn lookups_and_inspections_say_what_is_known() {
    let fake = Fake::healthy();
    let found = fake.azora(&["dht", "lookup", &node_id(PEER).to_string()]).exits(0).out;
    assert!(found.starts_with("found      2 rounds, 7 requests, 3.100 ms\n"), "{found}");
    assert!(found.contains("record     number 3, signed 40.0 s ago\n"), "{found}");
    let asked = found.split("\n\n").nth(1).unwrap();
    assert!(asked.starts_with("ROUND  NODE        SHARED BITS  ANSWER\n1      "), "{found}");
    assert!(asked.contains("  3            the record, 20 contacts, 1.200 ms\n2      "), "{found}");
    assert!(asked.ends_with("  11           none\n"), "{found}");
    let missing = fake.azora(&["dht", "lookup", &node_id(SILENT).to_string()]).exits(1).out;
    assert!(missing.starts_with("not found  ") && missing.contains("azora.sock dht status"), "{missing}");
    let alone = Fake::lonely();
    let own = alone.azora(&["dht", "lookup", &node_id(PEER).to_string()]).exits(0).out;
    assert!(own.starts_with("own copy, nobody could be asked  0 rounds"), "{own}");
    assert!(own.contains("no other node is known yet\n") && own.contains("azora.sock peers add"), "{own}");
    let status = fake.azora(&["dht", "status"]).exits(0).out;
    assert!(status.contains("2^256     20        4\n"), "{status}");
    assert!(status.contains("refused     1 node of a crowded network, 2 invalid records\n"), "{status}");
    let id = node_id(PEER).to_string();
    let offline = azora(&["inspect", &id]).exits(0).out;
    assert_eq!(offline, format!("node id  {id}\naddress  {}\n", node_id(PEER).address()));
}

#[test]
fn changes_say_what_they_did() {
    let fake = Fake::healthy();
    let peer = node_id(PEER).to_string();
    assert_eq!(fake.azora(&["up"]).exits(0).out, "the interface is up\n");
    assert!(fake.azora(&["down"]).exits(0).out.contains("azora.sock up"));
    let rule = ["firewall", "add", "in", "allow", "-p", "tcp", "--port", "22", "--peer", &peer];
    let out = fake.azora(&rule).exits(0).out;
    assert_eq!(out, format!("rule 9: in allow -p tcp --port 22 --peer {peer}\n"));
    assert_eq!(fake.asked().last(), Some(&Request::FirewallAdd(ssh())));
    let out = fake.azora(&["firewall", "add", "in", "allow"]).exits(0).out;
    assert!(
        out.contains("every node of the mesh may connect") && out.contains(" firewall remove 9 undoes"),
        "{out}"
    );
    let rules = fake.azora(&["firewall", "list"]).exits(0).out;
    assert!(
        rules.starts_with("N  PROTOCOL  PORT  PEER\n7  any       any   any\n8  tcp       22    "),
        "{rules}"
    );
    let (socket, refused) = (fake.socket.display(), fake.azora(&["firewall", "trace"]).exits(0).out);
    let fix = format!("let in by: azora --socket {socket} firewall add in allow --peer {peer}");
    let lines = [
        format!("tcp port 22 from {peer}: 3 packets, the last 9.0 s ago\n  {fix}\n"),
        format!("protocol 132 from {peer}: 1 packet, the last 1 min ago\n  {fix}\n"),
    ];
    assert_eq!(refused, lines.concat());
    let none = Fake::new().azora(&["firewall", "trace"]).exits(0).out;
    assert!(none.starts_with("nothing was refused lately by this node"), "{none}");
    let open = Fake::open().azora(&["firewall", "list"]).exits(0).out;
    assert_eq!(
        open.strip_suffix(&rules),
        Some("everything comes in, whatever the rules say: the daemon runs with inbound allow\n")
    );
    let added = fake.azora(&["peers", "add", &format!("{peer}@192.0.2.9:5747")]).exits(0).out;
    let next = format!(" probe {peer}@192.0.2.9:5747 tells whether it answers there\n");
    assert!(added.ends_with(&next), "{added}");
    assert!(added.starts_with("added ") && added.contains(" at 192.0.2.9:5747; azora --socket "), "{added}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the real time that a real process takes")]
fn wait_ends_when_ready_or_late() {
    assert_eq!(Fake::healthy().azora(&["wait"]).exits(0).out, "ready\n");
    let start = Instant::now();
    let late = Fake::lonely().azora(&["wait", "--timeout", "0.3"]).exits(1);
    late.complains(&["not ready after 0.3 s: no other node is known", "azora.sock status"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    let started_late =
        Fake::lonely_after(Duration::from_millis(500)).azora(&["wait", "--timeout", "2"]).exits(1);
    started_late.complains(&["not ready after 2 s: no other node is known"]);
}
