//! Exit codes 2 and 3: wrong usage, and no daemon.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use auramesh::control::message::Request;
use auramesh::control::{CONNECTIONS_KEPT, CONNECTIONS_MAX};

use crate::fake::{Fake, OWN, PEER, SLOW, node_id};
use crate::run::{Ran, azora, azora_command};

#[test]
fn wrong_usage_exits_2() {
    let id = node_id(PEER).to_string();
    let check = |arguments: &[&str], needle: &str| {
        azora(arguments).exits(2).complains(&[needle]);
    };
    check(&[], "Usage: azora");
    check(&["frobnicate"], "frobnicate");
    check(&["status", "--frobnicate"], "--frobnicate");
    check(&["status", "--check", "alive"], "live, ready");
    check(&["ping"], "TARGET");
    check(&["ping", "laptop"], "NODEID@IP:PORT");
    check(&["ping", "2001:db8::1"], "600::/8");
    check(&["ping", &id, "-c", "0"], "a whole number from 1");
    check(&["ping", &id, "--interval", "0"], "seconds");
    check(&["ping", &id, "--timeout", "61"], "60 seconds");
    check(&["ping", &id, "--timeout", "NaN"], "seconds");
    check(&["inspect", &id[..51]], "52 characters");
    check(
        &["ping", "10.77.0.3:5747"],
        "5747 lacks the node's ID: write NODEID@10.77.0.3:5747 (`azora id` on that node",
    );
    check(&["key"], "Usage: azora key");
    check(&["dht"], "Usage: azora dht");
    check(&["peers", "add", &id], &format!("write {id}@IP:PORT"));
    check(&["peers", "add", "192.0.2.1:5747"], "write NODEID@192.0.2.1:5747");
    check(&["ping", &format!("{id}@example.org:5747")], "names are not resolved");
    check(&["peers", "add", &format!("{id}@192.0.2.1:0")], "port 0");
    check(&["peers", "--json", "remove", &id], "--json");
    check(&["firewall", "add"], "Usage: azora firewall add");
    check(&["firewall", "add", "out", "allow"], "out");
    check(&["firewall", "add", "in", "allow", "--port", "22"], "tcp or udp");
    check(&["firewall", "add", "in", "allow", "-p", "icmp", "--port", "22"], "tcp or udp");
    check(&["firewall", "add", "in", "allow", "-p", "sctp"], "tcp, udp, icmp");
    check(&["firewall", "add", "in", "allow", "-p", "tcp", "--port", "65536"], "1 to 65535");
    check(&["firewall", "add", "in", "allow", "-p", "tcp", "--port", "1-2"], "a rule for each port");
    check(&["firewall", "remove", "x"], "azora firewall list");
    check(&["completions", "tcsh"], "bash");
    check(&["id", "--socket", ""], "--socket");
}

#[test]
fn no_daemon_exits_3() {
    let directory = tempfile::tempdir().unwrap();
    let (none, stale) = (directory.path().join("none.sock"), directory.path().join("stale.sock"));
    drop(UnixListener::bind(&stale).unwrap());
    let id = node_id(PEER).to_string();
    let commands: &[&[&str]] = &[
        &["id"],
        &["ip"],
        &["inspect", "600::1"],
        &["up"],
        &["down"],
        &["status"],
        &["peers"],
        &["peers", "remove", &id],
        &["ping", &id],
        &["dht", "lookup", &id],
        &["dht", "status"],
        &["probe", &id],
        &["trace", &id],
        &["firewall", "list"],
        &["firewall", "add", "in", "allow"],
        &["firewall", "remove", "1"],
        &["wait", "--timeout", "0.3"],
    ];
    for socket in [none, stale] {
        let socket = socket.to_str().unwrap();
        for command in commands {
            let ran = azora(&[command, ["--socket", socket].as_slice()].concat()).exits(3);
            ran.complains(&[socket, "no daemon answers", "try: start it", "its log says why it ended"]);
        }
        let ran = azora(&["status", "--check", "live", "--socket", socket]).exits(1);
        assert!(ran.out.starts_with("not live: no daemon answers at "), "{ran:?}");
        azora(&["report", "--socket", socket]).exits(0);
    }
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    azora(&["id", "--socket", file]).exits(3).complains(&[&format!("{file} is no socket"), "--socket"]);
}

/// As a process does that was stopped: the system takes connections for it.
#[test]
fn a_daemon_that_is_silent_is_told_of_soon_and_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("silent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let silent = |arguments: &[&str]| {
        let mut command = azora_command();
        command.env("AZORA_SOCKET", &socket).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let soon = format!("azora: the daemon at {} does not answer yet; waiting for up to ", socket.display());
    let (id, mut probe) = (silent(&["id"]), silent(&["probe", &node_id(PEER).to_string()]));
    let mut line = String::new();
    BufReader::new(probe.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("{soon}62 s\n"));
    probe.kill().unwrap();
    probe.wait().unwrap();
    let ran: Ran = id.wait_with_output().unwrap().into();
    let ran = ran.exits(1);
    assert_eq!(ran.err.matches("does not answer yet").count(), 1, "{ran:?}");
    ran.complains(&[
        &soon,
        "12 s",
        "is stopped, or overloaded",
        "\n  try: ps -eo",
        "kill -CONT",
        "journalctl",
    ]);
    drop(listener);
}

/// Nobody is told that a daemon is silent which only has much to do.
#[test]
fn a_daemon_that_works_is_not_silent() {
    let ran =
        Fake::healthy().azora(&["ping", "--timeout", "4", "-c", "1", &node_id(SLOW).to_string()]).exits(0);
    assert_eq!(ran.err, "");
}

#[test]
fn the_socket_comes_from_flag_environment_or_file() {
    let fake = Fake::healthy();
    let socket = fake.socket.to_str().unwrap();
    let id = format!("{}\n", node_id(OWN));
    assert_eq!(azora(&["--socket", socket, "id"]).exits(0).out, id);
    assert_eq!(azora(&["id", "--socket", socket]).exits(0).out, id);
    assert_eq!(fake.azora(&["id"]).exits(0).out, id);
    fake.azora(&["id", "--socket", "/nonexistent"]).exits(3);
    let file = fake.directory.path().join("azora.toml");
    std::fs::write(&file, format!("[node]\nsocket = \"{socket}\"\n")).unwrap();
    assert_eq!(azora(&["--config", file.to_str().unwrap(), "id"]).exits(0).out, id);
    assert_eq!(fake.azora(&["peers", "add", &format!("{}@192.0.2.1:1", node_id(PEER))]).exits(0).err, "");
}

#[test]
fn failures_of_the_daemon_exit_1_with_their_next_step() {
    let fake = Fake::healthy();
    let ran = fake.azora(&["peers", "remove", &node_id(PEER).to_string()]);
    ran.exits(1).complains(&["azora: that node is no peer\n", "/azora.sock peers` lists them\n"]);
    fake.azora(&["firewall", "remove", "1"]).exits(1).complains(&["no rule 1", "azora.sock firewall list"]);
    assert_eq!(fake.azora(&["firewall", "remove", "8"]).exits(0).out, "removed rule 8\n");
    assert!(matches!(fake.asked().last(), Some(Request::FirewallRemove { index: 8 })));
}

/// Two users on one machine: the second may neither open the socket nor, when let in, change anything.
#[test]
fn another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become another user");
        return;
    }
    let fake = Fake::healthy();
    let strange = stranger_of(&fake);
    let stranger = |arguments: &[&str]| -> Ran { strange(arguments).output().unwrap().into() };
    stranger(&["id"]).exits(1).complains(&["not permitted", "sudo"]);
    open(fake.socket.parent().unwrap(), 0o755);
    stranger(&["id"]).exits(1).complains(&["not permitted", "sudo"]);
    open(&fake.socket, 0o666);
    stranger(&["id"]).exits(0);
    fake.asked();
    for change in [&["up"][..], &["down"], &["firewall", "add", "in", "allow"], &["firewall", "remove", "8"]]
    {
        stranger(change).exits(1).complains(&["only root and the daemon's user", "sudo"]);
    }
    assert!(fake.asked().is_empty(), "the handler heard nothing of it");
}

/// Programs of users who may only read cannot take every place.
#[test]
#[expect(clippy::disallowed_methods, reason = "the real time that a real process takes")]
fn root_is_answered_whatever_others_ask() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become another user");
        return;
    }
    let fake = Fake::lonely();
    let stranger = stranger_of(&fake);
    open(fake.socket.parent().unwrap(), 0o755);
    open(&fake.socket, 0o666);
    let waiting: Vec<_> = (0..CONNECTIONS_MAX + 8)
        .map(|_| stranger(&["wait", "--timeout", "60"]).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    let start = Instant::now();
    let mut running = 0;
    while running < CONNECTIONS_MAX - CONNECTIONS_KEPT {
        assert!(start.elapsed() < Duration::from_secs(30), "{running} wait");
        std::thread::sleep(Duration::from_millis(50));
        running += fake.asked().len();
    }
    let start = Instant::now();
    fake.azora(&["id"]).exits(0);
    assert!(start.elapsed() < Duration::from_secs(5), "at once");
    for mut child in waiting {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes commands of another user. The socket is closed to that one.
fn stranger_of(fake: &Fake) -> impl Fn(&[&str]) -> Command {
    let program = fake.directory.path().join("azora");
    // By another process: a descriptor of ours open for writing could be inherited by a child of another test, and
    // the copy could not be run then (ETXTBSY).
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_azora")).arg(&program).status();
    assert!(copied.unwrap().success());
    open(&program, 0o755);
    open(fake.directory.path(), 0o755);
    let socket = fake.socket.clone();
    move |arguments| {
        let mut command = crate::run::plain(&program);
        command.env("AZORA_SOCKET", &socket).args(arguments).uid(65_534).gid(65_534);
        command
    }
}
