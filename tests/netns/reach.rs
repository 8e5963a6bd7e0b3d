//! Any node reaches any other by address, knowing one neighbour or nobody.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::node::{Node, PORT};
use crate::lab::{Lab, Underlay, eventually, percentile};

const FIRST_REPLY_MS: f64 = 1000.0;
const FIRST_REPLY_MEDIAN_MS: f64 = 100.0;

/// Node 8 knows only 1, 7 only 2, 6 only 3, 5 only 4; 2, 3 and 4 know only 1, the bootstrap of all.
#[test]
fn eight_nodes_that_know_one_neighbour_each_reach_all_others() {
    let lab = Lab::new();
    let mut nodes: Vec<Node> = Vec::new();
    for knows in [None, Some(1), Some(1), Some(1), Some(4), Some(3), Some(2), Some(1)] {
        let node = lab.node(Underlay::V4);
        let node = match knows {
            Some(number) => node.knows(&nodes[number - 1]),
            None => node,
        };
        nodes.push(node.started());
    }

    let mut first_contact = Vec::new();
    let mut all = Vec::new();
    for from in (0..nodes.len()).rev() {
        for to in (0..nodes.len()).filter(|&to| to != from) {
            let ms = first_reply(&nodes[from], &nodes[to]);
            all.push(ms);
            if from > to {
                first_contact.push(ms);
            }
        }
    }
    println!(
        "first reply, 56 ordered pairs: p50 {:.1} ms, p95 {:.1} ms, max {:.1} ms; 28 first contacts: p50 {:.1} ms",
        percentile(&all, 50),
        percentile(&all, 95),
        percentile(&all, 100),
        percentile(&first_contact, 50),
    );
    assert!(percentile(&all, 50) <= FIRST_REPLY_MEDIAN_MS);
    assert!(percentile(&first_contact, 50) <= FIRST_REPLY_MEDIAN_MS);

    let found = nodes[7].json(&["dht", "lookup", &nodes[6].address.to_string()]);
    assert_eq!(found["found"], true, "{found}");
    assert_eq!(found["node_id"], nodes[6].id.as_str());
    assert!(!found["holders"].as_array().unwrap().is_empty(), "who held the record: {found}");
    assert_eq!(found["endpoints"][0], nodes[6].endpoint().to_string());

    new_pairs_meet_without_the_bootstrap(&lab, nodes);
}

/// Kills node 1; node 8, which was told of nobody else, starts anew, and a ninth node joins through node 2.
fn new_pairs_meet_without_the_bootstrap(lab: &Lab, mut nodes: Vec<Node>) {
    nodes[0].kill();
    nodes[7].kill();
    nodes[7].start();
    let ninth = lab.node(Underlay::V4).knows(&nodes[1]).started();
    for other in &nodes[1..] {
        first_reply(&ninth, other);
    }
    for other in &nodes[1..7] {
        first_reply(&nodes[7], other);
    }
    let tenth = lab.node(Underlay::V4).knows(&nodes[6]).started();
    first_reply(&ninth, &tenth);
    first_reply(&nodes[4], &tenth);
}

/// In a mesh this small the servers of the DHT all know each other beforehand; its clients are in nobody's table, so
/// each first ping here is a lookup, a handshake and the packet that waited for both.
#[test]
fn clients_of_the_dht_that_never_met_reach_each_other_by_one_lookup() {
    let lab = Lab::new();
    let first = lab.node(Underlay::V4).started();
    let servers =
        [lab.node(Underlay::V4).knows(&first).started(), lab.node(Underlay::V4).knows(&first).started()];
    let client = |server: &Node| lab.node(Underlay::V4).with(&["--dht", "client"]).knows(server).started();
    let clients: Vec<_> = (0..6).map(|number| client(&servers[number % 2])).collect();
    let mut samples = Vec::new();
    for (number, from) in clients.iter().enumerate() {
        for to in &clients[number + 1..] {
            assert!(from.peer(to).is_none_or(|peer| peer["state"] == "known"), "no session before");
            samples.push(first_reply(from, to));
        }
    }
    println!(
        "first contact of {} pairs: p50 {:.1} ms, max {:.1} ms",
        samples.len(),
        percentile(&samples, 50),
        percentile(&samples, 100)
    );
    assert!(percentile(&samples, 50) <= FIRST_REPLY_MEDIAN_MS);
}

fn first_reply(from: &Node, to: &Node) -> f64 {
    let ms = from.ping(to.address, 2);
    let ms = ms.unwrap_or_else(|| panic!("machine {} gets no reply from {}", from.number, to.number));
    assert!(ms <= FIRST_REPLY_MS, "machine {} to {}: first reply after {ms} ms", from.number, to.number);
    ms
}

#[test]
fn two_nodes_on_one_lan_find_each_other_without_any_bootstrap() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let lab = Lab::new();
        let one = lab.node(underlay).without("--no-lan-discovery").started();
        let two = lab.node(underlay).without("--no-lan-discovery").started();
        let (_, took) = eventually(Duration::from_secs(5), "the LAN neighbour is a contact", || {
            (two.status()["dht"]["contacts"].as_u64()? >= 1).then_some(())
        });
        println!("{underlay:?}: LAN neighbour known {took:?} after ready");
        first_reply(&one, &two);
        first_reply(&two, &one);
    }
}

/// Codes of what a node says is wrong, worst first.
fn codes(node: &Node) -> Vec<serde_json::Value> {
    let health = node.status()["health"].clone();
    health.as_array().unwrap().iter().map(|entry| entry["code"].clone()).collect()
}

/// What a node says of one of its peers.
fn peer(node: &Node, peer: &Node) -> Option<serde_json::Value> {
    let peers = node.status()["peers"].clone();
    peers.as_array().unwrap().iter().find(|row| row["node_id"] == peer.id.as_str()).cloned()
}

/// Also: no node takes its own announcements, which come back, for a second machine's.
#[test]
fn a_copied_identity_on_the_lan_is_told_at_both_machines() {
    let lab = Lab::new();
    let original = lab.node(Underlay::V4).without("--no-lan-discovery").started();
    let other = lab.node(Underlay::V4).without("--no-lan-discovery").started();
    original.reaches(&other, Duration::from_secs(5));
    let mut copy = lab.node(Underlay::V4).without("--no-lan-discovery");
    std::fs::copy(original.state_dir().join("identity.key"), copy.state_dir().join("identity.key")).unwrap();
    for node in [&original, &other] {
        assert!(!codes(node).contains(&"key-in-use".into()), "{:?}", codes(node));
    }
    copy.launch();
    let (_, took) = eventually(Duration::from_secs(10), "the copy is heard", || {
        let told = |node: &Node| codes(node).contains(&"key-in-use".into());
        (told(&original) && told(&copy)).then_some(())
    });
    println!("both were told after {took:?}");
    assert!(!codes(&other).contains(&"key-in-use".into()), "{:?}", codes(&other));
}

#[test]
fn an_address_that_nobody_has_is_answered_with_no_route() {
    let lab = Lab::new();
    let one = lab.node(Underlay::V4).started();
    let two = lab.node(Underlay::V4).knows(&one).started();
    assert!(two.ping(one.address, 2).is_some());
    let said = two.sh("ping -6 -n -c 3 -i 1 -W 2 6ff:1234::1").out;
    assert!(said.contains("No route") || said.contains("unreachable"), "{said}");
}

#[test]
fn a_node_without_contacts_says_so() {
    let lab = Lab::new();
    let nowhere = lab.node(Underlay::V4);
    let alone = lab.node(Underlay::V4).knows(&nowhere);
    let mut alone = alone;
    alone.launch();
    let (health, took) = eventually(Duration::from_secs(30), "health names the dead bootstrap", || {
        let ran = alone.azora(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&ran.out).ok()?;
        status["health"].as_array()?.first().cloned()
    });
    println!("after {took:?}: {health}");
    assert!(health["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{health}");
    assert_eq!(alone.azora(&["status", "--check", "live"]).code, 0);
    assert_eq!(alone.azora(&["status", "--check", "ready"]).code, 1);
}

/// What is kept from getting out or in here is no fault of the others; and that nobody answers is told as long as it lasts,
/// also when all sessions have been given up.
#[test]
fn a_node_that_is_cut_off_says_so_and_names_its_own_packet_filter() {
    let lab = Lab::new();
    let other = lab.node(Underlay::V4).without("--no-lan-discovery").started();
    let node = lab.node(Underlay::V4).without("--no-lan-discovery").started();
    node.reaches(&other, Duration::from_secs(5));
    let filter = |hook: &str| {
        let chain = format!("chain x {{ type filter hook {hook} priority 0; udp sport 5747 drop; }}");
        node.must(&format!("nft 'table ip filter {{ {chain}; }}'"));
    };
    filter("output");
    // What is not asked for anything is not missed.
    let ask = || node.azora(&["ping", &other.id, "-c", "1", "--timeout", "1"]).code;
    // Though the other one is heard all the time.
    eventually(Duration::from_secs(5), "the filter is named", || {
        ask();
        (codes(&node).first()? == "udp-filtered").then_some(())
    });
    let said = node.azora(&["ping", &other.id, "-c", "1"]).out;
    assert!(said.contains("the packet filter of this machine refuses to let UDP out"), "{said}");
    let drops = node.azora(&["status", "--drops"]).out;
    assert!(drops.contains("this machine's packet filter refused to send it"), "{drops}");
    node.must("nft delete table ip filter");
    other.reaches(&node, Duration::from_secs(30));

    filter("input");
    assert_eq!(ask(), 1);
    let said = node.azora(&["ping", &other.id, "-c", "1"]).out;
    assert!(!said.contains("refuses to let UDP out"), "that is over: {said}");
    eventually(Duration::from_secs(60), "the peer is given up", || {
        ask();
        (peer(&node, &other)?["state"] == "known").then_some(())
    });
    let given_up = std::time::Instant::now();
    eventually(Duration::from_secs(40), "what was sent before is forgotten", || {
        let codes = codes(&node);
        assert!(codes.contains(&"no-answer".into()), "{codes:?} {:?} later", given_up.elapsed());
        (codes == ["no-answer"] && given_up.elapsed() > Duration::from_secs(5)).then_some(())
    });
    let is_over = |line: &str| line.contains("over after ") && line.ends_with(": no-answer");
    assert!(!node.log().lines().any(is_over), "{}", node.log());
    node.must("nft delete table ip filter");
    node.reaches(&other, Duration::from_secs(30));
    eventually(Duration::from_secs(10), "all is well again", || codes(&node).is_empty().then_some(()));
}

/// Whoever asks for a node from a machine that is cut off is told of the machine, not of that node.
#[test]
fn a_node_that_is_cut_off_blames_nobody_else() {
    const CUT_OFF: &str = "is this machine still online";
    let lab = Lab::new();
    let first = lab.node(Underlay::V4).started();
    let second = lab.node(Underlay::V4).knows(&first).started();
    let node = lab.node(Underlay::V4).knows(&first).started();
    for other in [&first, &second] {
        node.reaches(other, Duration::from_secs(5));
    }
    // Before that: the right place, and the key of another.
    let (stranger, contact) = (lab.node(Underlay::V4), first.contact());
    let (_, place) = contact.split_once('@').unwrap();
    let asked = node.azora(&["ping", "-c", "1", "--timeout", "3", &format!("{}@{place}", stranger.id)]);
    let named = format!("the node at {place} is {}", first.id);
    assert!(asked.code == 1 && asked.out.contains(&named), "{}", asked.out);

    // A place far away that somebody named, and that does not answer, says nothing of the network.
    let far = format!("{}@192.0.2.9:5747", lab.node(Underlay::V4).id);
    let asked = node.azora(&["ping", "-c", "6", "--timeout", "1", &far]);
    assert!(asked.code == 1 && asked.out.contains("this machine has no route to 192.0.2.9"), "{}", asked.out);
    assert!(
        codes(&node).is_empty() && !node.log().contains("TCP is tried"),
        "{:?} {}",
        codes(&node),
        node.log()
    );

    node.must(
        "nft 'table ip filter { chain x { type filter hook input priority 0; udp dport 5747 drop; }; }'",
    );
    let nobody = "6aa:bb:cc::1";
    let asked = node.azora(&["dht", "lookup", nobody]);
    assert_eq!(asked.code, 1);
    assert!(asked.out.contains("nobody answered") && asked.out.contains(CUT_OFF), "{}", asked.out);
    let asked = node.azora(&["inspect", nobody]);
    assert!(asked.out.contains("nobody answered") && asked.out.contains(CUT_OFF), "{}", asked.out);
    let asked = node.azora(&["probe", nobody]);
    assert!(!asked.out.contains("has a record of it") && asked.out.contains(CUT_OFF), "{}", asked.out);
    eventually(Duration::from_secs(60), "all are known to be silent", || {
        let asked =
            [&first, &second].map(|other| node.azora(&["ping", &other.id, "-c", "1", "--timeout", "1"]));
        (asked[1].code == 1 && asked[1].out.contains(CUT_OFF)).then_some(())
    });
    for command in [&["ping", "-c", "1", nobody][..], &["trace", &second.id], &["probe", &second.id]] {
        let asked = node.azora(command);
        assert!(asked.code == 1 && asked.out.contains(CUT_OFF), "{command:?}: {}", asked.out);
    }
    // What it has kept itself nobody else has shown.
    let kept = node.azora(&["dht", "lookup", &second.id]);
    assert!(kept.out.starts_with("own copy, nobody ") && kept.out.contains("\ntry "), "{}", kept.out);
    let probe = node.azora(&["probe", &second.id]).out;
    assert!(probe.contains("is this node's own copy: ") && !probe.contains("candidates"), "{probe}");
    node.must("nft delete table ip filter");
    node.reaches(&first, Duration::from_secs(30));
    let asked = node.azora(&["dht", "lookup", nobody]);
    assert!(asked.out.contains("not found") && !asked.out.contains(CUT_OFF), "{}", asked.out);
}

/// What keeps a node from its configured peers is named while it lasts, and `wait` does not take the node for ready.
#[test]
fn what_keeps_a_node_from_its_peers_is_named_and_waited_for() {
    let lab = Lab::new();
    let first = lab.node(Underlay::V4).started();
    let mut routeless = lab.node(Underlay::V4);
    let far = format!("{}@192.0.2.9:5747", lab.node(Underlay::V4).id);
    routeless = routeless.with(&["--bootstrap", &far]);
    let mut filtered = lab.node(Underlay::V4).knows(&first);
    let chain = "chain x { type filter hook output priority 0; udp sport 5747 drop; }";
    filtered.must(&format!("nft 'table ip filter {{ {chain}; }}'"));
    for (node, why) in [
        (&mut routeless, "this machine has no route to 192.0.2.9"),
        (&mut filtered, "the packet filter of this machine refuses to let UDP out"),
    ] {
        node.launch();
        eventually(Duration::from_secs(10), "the daemon answers", || node.socket().exists().then_some(()));
        let waited = node.azora(&["wait", "--timeout", "3"]);
        assert!(
            waited.code != 0 && waited.err.contains(why),
            "{}: {}{}",
            waited.code,
            waited.out,
            waited.err
        );
        eventually(Duration::from_secs(10), "the cause is in the status", || {
            node.azora(&["status"]).out.contains(why).then_some(())
        });
    }
    filtered.must("nft delete table ip filter");
    filtered.wait_ready();
}

/// A neighbour that has died says nothing of the way out, and nothing of the others; and where there is no network at
/// all, nothing else is to be told.
#[test]
fn a_dead_neighbour_and_a_missing_network_are_not_taken_for_a_firewall() {
    let lab = Lab::new();
    let near = |rule: &str| {
        let node = lab.node(Underlay::V6).without("--no-lan-discovery");
        let chain = format!("chain out {{ type filter hook output priority 0; {rule} }}");
        node.must(&format!("nft 'table ip6 ways {{ {chain}; }}'"));
        node.started()
    };
    let one = near("");
    // The one that dies is known by an address of the link alone, the other one by an address of the network alone.
    let mut two = near("ip6 daddr fe80::/10 meta l4proto udp drop;");
    let mut gone = near("ip6 daddr != { fe80::/10, ff00::/8 } meta l4proto udp drop;");
    for other in [&two, &gone] {
        one.reaches(other, Duration::from_secs(5));
    }
    gone.kill();
    let said = one.azora(&["ping", &gone.id, "-c", "2"]).out;
    assert!(said.contains("nothing has come from it for "), "{said}");
    eventually(Duration::from_secs(30), "it is given up", || {
        (peer(&one, &gone)?["state"] == "known").then_some(())
    });
    assert_eq!(codes(&one), Vec::<serde_json::Value>::new(), "{}", one.log());
    assert!(!one.log().contains("UDP does not get through"), "{}", one.log());

    assert_eq!(one.azora(&["peers", "remove", &gone.id]).code, 0);
    assert_eq!(peer(&one, &gone), None, "it is forgotten");
    assert_eq!(one.azora(&["peers", "remove", &gone.id]).code, 1, "once");

    let uplink = one.must(&format!("ip -o route get {}", two.ip));
    let device = uplink
        .split_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1)
        .unwrap_or_else(|| panic!("{uplink}"));
    one.must(&format!("ip link set {device} down"));
    eventually(
        Duration::from_secs(1),
        "the network is missed at once, although a peer has just answered",
        || (codes(&one) == ["no-network"]).then_some(()),
    );
    eventually(Duration::from_secs(10), "no peer is to blame", || {
        let said = one.azora(&["peers"]).out;
        assert!(said.starts_with("this machine is on no network") && !said.contains("no answer"), "{said}");
        said.contains("(no network here)").then_some(())
    });
    one.must(&format!("ip link set {device} up"));
    one.add_address(one.ip);
    one.reaches(&two, Duration::from_secs(20));

    assert_eq!(two.stop(), 0);
    let said = one.azora(&["ping", &two.id, "-c", "1"]).out;
    assert!(said.contains("its daemon has stopped, as it said itself"), "{said}");

    assert_eq!(one.azora(&["firewall", "add", "in", "allow"]).code, 0);
    one.must(&format!("ip link set {device} down"));
    // What has nothing to do with it is told on.
    eventually(Duration::from_secs(10), "the network is missed", || {
        (codes(&one) == ["no-network", "rule-open"]).then_some(())
    });
    assert_eq!(one.azora(&["firewall", "remove", "1"]).code, 0);
    assert_eq!(codes(&one), ["no-network"]);
    let said = one.azora(&["ping", &two.id, "-c", "3"]).out;
    assert!(said.contains("this machine is on no network"), "{said}");
    one.must(&format!("ip link set {device} up"));
    one.add_address(one.ip);
    two.start();
    two.reaches(&one, Duration::from_secs(20));
    eventually(Duration::from_secs(10), "all is well again", || codes(&one).is_empty().then_some(()));
    assert!(!one.log().contains("UDP does not get through"), "{}", one.log());
}

/// What `ping` and `probe` say of a target that does not answer; they must agree.
fn said_of(node: &Node, target: &str) -> String {
    let ping = node.azora(&["ping", target, "-c", "1"]);
    let probe = node.azora(&["probe", target, "--json"]);
    assert_eq!((ping.code, probe.code), (1, 1), "{}{}", ping.out, probe.out);
    let probe: serde_json::Value = serde_json::from_str(&probe.out).unwrap();
    let failed = probe["stages"].as_array().unwrap().last().unwrap().clone();
    let cause = failed["detail"].as_str().unwrap();
    let cause = cause.split(" (").next().unwrap();
    // Seconds have passed.
    let timeless = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    assert!(timeless(&ping.out).contains(&timeless(cause)), "ping: {}\nprobe: {failed}", ping.out);
    ping.out
}

#[test]
fn ping_and_probe_name_the_same_cause() {
    let lab = Lab::new();
    let mut nowhere = lab.node(Underlay::V4);
    let alone = lab.node(Underlay::V4).started();
    let said = said_of(&alone, &nowhere.id);
    assert!(
        said.contains("no other node is known yet") && said.contains(" peers add NODEID@IP:PORT"),
        "{said}"
    );

    let mut misled = lab.node(Underlay::V4).knows(&nowhere);
    misled.launch();
    eventually(Duration::from_secs(10), "the daemon answers", || {
        (misled.azora(&["status", "--check", "live"]).code == 0).then_some(())
    });
    let said = said_of(&misled, &nowhere.id);
    assert!(said.contains(&format!("no answer at {}", nowhere.endpoint())), "{said}");
    let said = said_of(&misled, &alone.id);
    assert!(said.contains(&format!("the configured peer {} does not answer", nowhere.id)), "{said}");

    let two = lab.node(Underlay::V4).knows(&alone).started();
    alone.reaches(&two, Duration::from_secs(5));
    let said = said_of(&two, &nowhere.id);
    assert!(said.contains("no node that we know of has a record of it"), "{said}");
    let own = two.azora(&["ping", &two.address.to_string()]);
    assert!(own.code == 1 && own.err.contains("this is the node itself"), "{}{}", own.out, own.err);

    let mut gone = alone;
    gone.kill();
    for moment in ["at once", "when it was given up"] {
        let said = said_of(&two, &gone.id);
        assert!(said.contains("nothing has come from it for "), "{moment}: {said}");
        let trace = two.azora(&["trace", &gone.id]);
        assert!(
            trace.code == 1 && trace.out.contains("nothing has come from it for "),
            "{moment}: {}",
            trace.out
        );
        eventually(Duration::from_secs(30), "it is given up", || {
            (peer(&two, &gone)?["state"] == "known").then_some(())
        });
    }

    let logged = |what: &str| {
        eventually(Duration::from_secs(15), what, || misled.log().contains(what).then_some(()));
    };
    logged(&format!(" probe {}", nowhere.contact()));
    nowhere.start();
    // By itself it would try again after up to a minute.
    misled.reaches(&nowhere, Duration::from_secs(10));
    logged(" s: bootstrap-unreachable");
}

#[test]
fn a_probe_tries_for_a_whole_effort_of_its_own() {
    let lab = Lab::new();
    let nowhere = lab.node(Underlay::V4);
    let one = lab.node(Underlay::V4).started();
    let two = lab.node(Underlay::V4).knows(&one).started();
    one.reaches(&two, Duration::from_secs(5));
    let target = nowhere.contact();
    // Its effort goes on for another three seconds.
    assert_eq!(two.azora(&["ping", &target, "-c", "1", "--timeout", "2"]).code, 1);
    let probe = two.azora(&["probe", &target, "--json"]);
    let probe: serde_json::Value = serde_json::from_str(&probe.out).unwrap();
    let handshake = probe["stages"].as_array().unwrap().last().unwrap();
    assert_eq!(handshake["name"], "handshake", "{probe}");
    assert!(handshake["elapsed_ms"].as_f64().unwrap() >= 5000.0, "{probe}");
}

#[test]
fn an_endpoint_that_was_given_is_not_said_to_answer_when_another_does() {
    let lab = Lab::new();
    let one = lab.node(Underlay::V4).started();
    let two = lab.node(Underlay::V4).knows(&one).started();
    let handshake = |target: &str| {
        let report = two.json(&["probe", target]);
        let stage = |name: &str| {
            let stages = report["stages"].as_array().unwrap();
            stages.iter().find(|stage| stage["name"] == name).unwrap()["detail"].as_str().unwrap().to_owned()
        };
        (stage("candidates"), stage("handshake"))
    };
    let (candidates, said) = handshake(&one.contact());
    assert_eq!(candidates.matches(&one.endpoint().to_string()).count(), 1, "{candidates}");
    assert!(said.ends_with(&format!(" at {}", one.endpoint())), "{said}");
    let wrong = format!("{}@{}:4", one.id, one.ip);
    let (candidates, said) = handshake(&wrong);
    assert!(candidates.starts_with(&format!("{}:4, ", one.ip)), "{candidates}");
    assert!(said.contains(&format!("at {}, not at the given {}:4", one.endpoint(), one.ip)), "{said}");
    assert!(said.contains("no check of it was answered"), "{said}");
    let said = two.azora(&["ping", &wrong, "-c", "1"]).out;
    assert!(said.contains(&format!("not at the given {}:4", one.ip)), "{said}");

    // It is tried although the session stands elsewhere.
    let second = IpAddr::from([10, 77, 0, 99]);
    one.add_address(second);
    let (_, said) = handshake(&format!("{}@{second}:{PORT}", one.id));
    assert!(said.contains(&format!("at {}, and at the given {second}:{PORT} in ", one.endpoint())), "{said}");
}
