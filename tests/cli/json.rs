//! The JSON of every reading command, over a real socket.

use auramesh::control::message::{Request, Status};
use serde_json::{Value, json};

use crate::fake::{Fake, OWN, PEER, SILENT, node_id};
use crate::run::azora;

/// Keys of an object, in the order in which they are printed.
fn keys(out: &str, object: &Value) -> Vec<String> {
    let mut keys: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
    keys.sort_by_key(|key| out.find(&format!("\"{key}\":")));
    keys
}

fn id(seed: u8) -> String {
    node_id(seed).to_string()
}

fn address(seed: u8) -> String {
    node_id(seed).address().to_string()
}

#[test]
fn status_is_as_documented() {
    let ran = Fake::healthy().azora(&["status", "--json"]).exits(0);
    let status = ran.json();
    let documented =
        "version node_id address state interface listen endpoints dht nat data streams health peers drops";
    assert_eq!(keys(&ran.out, &status).join(" "), documented);
    assert_eq!(status["state"], "running");
    assert_eq!(status["node_id"], id(OWN));
    assert_eq!(status["address"], address(OWN));
    assert_eq!(status["interface"], json!({"name": "azora0", "up": true, "mtu": 1420}));
    assert_eq!(status["listen"], json!(["0.0.0.0:5747", "[::]:5747"]));
    assert_eq!(status["dht"], json!({"mode": "server", "contacts": 37, "network_size_estimate": 120}));
    let relays = json!([{"node_id": id(4), "data": true}]);
    let nat = json!({
        "mapped": "203.0.113.9:40001", "firewalled": false, "mapping_varies": false, "relays": relays, "relayed_for": 2, "channels": 1,
        "port_mapping": {"protocol": "pcp", "endpoint": "203.0.113.9:5747", "told": true}
    });
    assert_eq!(status["nat"], nat);
    let streams = json!({
        "udp_blocked_s": null, "opened": [{"node_id": id(4), "endpoint": "203.0.113.5:443", "tls": true}],
        "listen": ["0.0.0.0:443"], "taken": 2, "counters": {"accepted": 5, "failed": 0}
    });
    assert_eq!(status["streams"], streams);
    let ciphers = ["aes-256-gcm", "chacha20-poly1305"];
    let data = json!({
        "tun_offload": "tcp-udp", "tun_refused": 0, "udp_offload": "trains", "superframes": true, "ciphers": ciphers
    });
    assert_eq!(status["data"], data);
    assert_eq!(status["health"], json!([]));
    assert_eq!(status["drops"]["policy"], 3);
    let flowing = json!({
        "node_id": id(PEER), "address": address(PEER), "name": null, "state": "flowing",
        "path": {"kind": "direct", "endpoint": "198.51.100.7:5747", "via": []},
        "standby": [{"kind": "relay", "endpoint": "203.0.113.5:5747", "via": [id(4)], "no_data": true}],
        "rtt_ms": 0.31, "loss": 0.0, "mtu": 1420, "cipher": "aes-256-gcm", "session_age_s": 12.0,
        "last_rx_s": 0.4, "rx_bytes": 2048, "tx_bytes": 100, "drops": {"replay": 0}, "why_relayed": null,
        "history": [{
            "ago_s": 75.0, "why": "check answered",
            "from": {"kind": "relay", "endpoint": "203.0.113.5:5747", "via": [id(4)]},
            "to": {"kind": "direct", "endpoint": "198.51.100.7:5747", "via": []}
        }]
    });
    assert_eq!(status["peers"][0], flowing);
    assert_eq!(status["peers"][1]["path"], json!({"kind": "none", "endpoint": null, "via": []}));
    assert_eq!(status["peers"][1]["rtt_ms"], Value::Null);
    assert!(serde_json::from_str::<Status>(&ran.out).is_ok(), "programs in Rust read it as the type");
    let health = Fake::lonely().azora(&["status", "--json"]).exits(0).json()["health"][0].clone();
    assert_eq!(health["code"], "no-contacts");
    assert!(health["text"].is_string() && health["fix"].is_string());
}

#[test]
fn own_node_and_inspect() {
    let fake = Fake::healthy();
    let own = json!({"node_id": id(OWN), "address": address(OWN)});
    assert_eq!(fake.azora(&["id", "--json"]).exits(0).json(), own);
    assert_eq!(fake.azora(&["ip", "--json"]).exits(0).json(), own);
    assert_eq!(fake.asked().len(), 2);
    let offline = azora(&["inspect", &id(PEER), "--json"]).exits(0).json();
    assert_eq!(offline, json!({"node_id": id(PEER), "address": address(PEER)}));
    assert_eq!(azora(&["inspect", &format!("{}.azora", id(PEER)), "--json"]).exits(0).json(), offline);
    let known = fake.azora(&["inspect", &address(PEER), "--json"]).exits(0).json();
    assert_eq!(known["node_id"], id(PEER));
    assert_eq!(known["endpoints"], json!(["198.51.100.7:5747"]));
}

#[test]
fn ping_prints_one_object_a_line() {
    let fake = Fake::healthy();
    let arguments = ["ping", &id(PEER), "-c", "3", "--interval", "0.001", "--json"];
    let ran = fake.azora(&arguments).exits(0);
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let why = json!({
        "text": "both sides are behind symmetric NATs", "fix": format!("azora ping {} --until-direct looks again", id(PEER))
    });
    let first = json!({
        "seq": 1, "node_id": id(PEER), "rtt_ms": 1.4, "path": "relay", "endpoint": "198.51.100.7:5747",
        "no_data": true, "why_relayed": why
    });
    assert_eq!(lines[0], first);
    assert_eq!(lines[1]["path"], "direct");
    let last = json!({"sent": 3, "received": 3, "rtt_ms": {"min": 1.4, "p50": 2.4, "max": 3.4}});
    assert_eq!(lines[3], last);
    let asked: Vec<_> = fake.asked().into_iter().collect();
    assert!(matches!(asked[2], Request::Ping { timeout_ms: 5000, seq: 3, .. }), "one request a ping");

    let until: Vec<_> = arguments.iter().copied().chain(["--until-direct"]).collect();
    let ran = fake.azora(&until).exits(0);
    assert_eq!(ran.out.lines().count(), 3, "two pings and the statistics");
    let last: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert!(last["direct_after_s"].as_f64().is_some_and(|s| s < 10.0), "{last}");
    let asked = fake.asked();
    let seeks: Vec<_> =
        asked.iter().map(|ask| matches!(ask, Request::Ping { seek_direct: true, .. })).collect();
    assert_eq!(seeks, [true, false], "the first one looks for a direct path");
    let until = ["ping", &id(PEER), "-c", "1", "--json", "--until-direct"];
    let ran = fake.azora(&until).exits(1);
    let last: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    assert_eq!((&last["received"], &last["why_relayed"]), (&json!(1), &why));

    let silent = ["ping", &id(SILENT), "-c", "2", "--interval", "0.001", "--json"];
    let ran = fake.azora(&silent).exits(1);
    assert_eq!(ran.out.lines().last().unwrap(), "{\"sent\":2,\"received\":0,\"rtt_ms\":null}");
    assert_eq!(ran.out.lines().next().unwrap(), "{\"seq\":1,\"lost\":\"no record found\"}");
}

#[test]
fn dht_and_probe() {
    let fake = Fake::healthy();
    let ran = fake.azora(&["dht", "lookup", &address(PEER), "--json"]).exits(0);
    let expected = json!({
        "target": address(PEER), "found": true, "node_id": id(PEER), "endpoints": ["198.51.100.7:5747"],
        "rounds": 2, "rpcs": 7, "elapsed_ms": 3.1, "holders": [id(OWN)], "record_age_s": 40.0, "record_seq": 3,
        "steps": [
            {"node_id": id(OWN), "round": 1, "shared_bits": 3, "answered_ms": 1.2, "held": true, "contacts": 20},
            {"node_id": id(SILENT), "round": 2, "shared_bits": 11, "answered_ms": null, "held": false, "contacts": 0}
        ]
    });
    assert_eq!(ran.json(), expected);
    assert_eq!(fake.azora(&["dht", "lookup", &id(SILENT), "--json"]).exits(1).json()["found"], false);
    let status = fake.azora(&["dht", "status", "--json"]).exits(0).json();
    assert_eq!(status["buckets"], json!([{"distance_bits": 256, "contacts": 20, "replacements": 4}]));
    assert_eq!(status["refused"]["records_invalid"], 2);
    let probe = fake.azora(&["probe", &id(PEER), "--json"]).exits(0).json();
    assert_eq!(probe["stages"][0]["name"], "key");
    let failed = fake.azora(&["probe", &id(SILENT), "--json"]).exits(1).json();
    assert_eq!(failed["stages"][1]["ok"], false);
    assert_eq!(failed["stages"][1]["fix"], "open UDP port 5747 there");
}

#[test]
fn netcheck_has_its_verdicts_in_order() {
    let report = Fake::healthy().azora(&["netcheck", "--json"]).exits(0).json();
    assert_eq!(report["global_v4"], "198.51.100.7:5747");
    assert_eq!(report["global_v6"], Value::Null);
    let first = json!({
        "name": "UDP", "verdict": "yes", "detail": "2 contacts on the internet answered", "fix": null
    });
    assert_eq!(report["checks"][0], first);
    assert_eq!(report["checks"][2]["verdict"], "unknown");
    assert_eq!(report["relays"], json!([{"node_id": id(4), "data": true, "rtt_ms": 1.5}]));
    assert_eq!(report["mtu"], 1420);
}

#[test]
fn trace_names_every_node_on_the_way() {
    let fake = Fake::healthy();
    let hop = |seed, endpoint: Option<&str>, relay, rtt: Option<f64>| json!({"node_id": id(seed), "address": address(seed), "endpoint": endpoint, "relay": relay, "rtt_ms": rtt});
    let expected = json!({
        "target": address(PEER), "node_id": id(PEER), "lost": null,
        "hops": [
            hop(4, Some("198.51.100.7:5747"), true, Some(1.5)),
            hop(5, None, true, None),
            hop(PEER, None, false, Some(4.25)),
        ]
    });
    assert_eq!(fake.azora(&["trace", &address(PEER), "--json"]).exits(0).json(), expected);
    let lost = fake.azora(&["trace", &id(SILENT), "--json"]).exits(1).json();
    assert_eq!((&lost["hops"], &lost["lost"]), (&json!([]), &json!("no record found")));
}

#[test]
fn firewall_peers_wait_and_config() {
    let fake = Fake::healthy();
    let rules = json!([
        {"index": 7, "proto": null, "port": null, "peer": null},
        {"index": 8, "proto": "tcp", "port": 22, "peer": id(PEER)}
    ]);
    assert_eq!(fake.azora(&["firewall", "list", "--json"]).exits(0).json(), rules);
    let fix = format!("azora firewall add in allow --peer {}", id(PEER));
    let refused = json!([
        {"peer": id(PEER), "proto": "tcp", "port": 22, "times": 3, "ago_s": 9, "fix": fix},
        {"peer": id(PEER), "proto": "132", "port": null, "times": 1, "ago_s": 90, "fix": fix}
    ]);
    assert_eq!(fake.azora(&["firewall", "trace", "--json"]).exits(0).json(), refused);
    assert_eq!(fake.azora(&["peers", "--json"]).exits(0).json()[0]["state"], "flowing");
    assert_eq!(fake.azora(&["wait", "--json"]).exits(0).json(), json!({"ready": true, "missing": []}));
    let settings = fake.azora(&["config", "show", "--json"]).exits(0).json();
    assert_eq!(settings[4], json!({"key": "tun.mtu", "value": "1420", "origin": "default"}));
}

#[test]
fn report_has_everything_and_no_addresses() {
    let fake = Fake::healthy();
    let secret = [
        "198.51.100.7",
        "203.0.113.7",
        "203.0.113.5",
        "203.0.113.9",
        &id(4),
        &id(OWN),
        &id(PEER),
        &address(OWN),
        &address(PEER),
    ];
    let report = fake.azora(&["report", "--json"]).exits(0);
    let parsed = report.json();
    assert_eq!(parsed["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(parsed["daemon"]["dht"]["contacts"], 37);
    let here = &parsed["daemon"]["status"];
    assert_eq!(here["node_id"], "node-1");
    assert_eq!(here["address"], "600::1");
    assert_eq!(here["listen"], json!(["0.0.0.0:5747", "[::]:5747"]));
    let text = fake.azora(&["report"]).exits(0);
    for hidden in secret {
        assert!(!report.out.contains(hidden) && !text.out.contains(hidden), "{hidden}");
        assert!(fake.azora(&["report", "--with-addresses"]).exits(0).out.contains(hidden));
    }
    assert!(text.out.contains("192.0.2.1:5747"), "a stand-in with the port: {}", text.out);
    for says in [&text.out, &report.out] {
        assert!(says.contains("node IDs (node-N) and mesh addresses (600::N is that of node-N)"), "{says}");
        assert!(says.contains("IP addresses (192.0.2.N, 2001:db8::N, link-local ones fe80::N)"), "{says}");
    }
}

/// The daemon goes away in the middle.
#[test]
fn ping_ends_with_the_statistics_whatever_ends_it() {
    use std::io::{BufRead, BufReader, Read};

    let fake = Fake::healthy();
    let mut child = crate::run::azora_command()
        .env("AZORA_SOCKET", &fake.socket)
        .args(["ping", &node_id(PEER).to_string(), "--json", "-c", "5", "--interval", "0.5"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let (mut first, mut rest) = (String::new(), String::new());
    out.read_line(&mut first).unwrap();
    drop(fake);
    out.read_to_string(&mut rest).unwrap();
    let ended: crate::run::Ran = child.wait_with_output().unwrap().into();
    assert!(ended.exits(3).err.contains("no daemon answers"));
    let last: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!((&last["sent"], &last["received"]), (&json!(2), &json!(1)), "{rest}");
}
