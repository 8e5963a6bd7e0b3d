//! `azora config`, and the daemon's `--test`.

use crate::fake::{PEER, node_id};
use crate::run::{azora, azora_command, daemon, daemon_command};

/// A directory with one file in it.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("azora.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn wrong_files_exit_2_with_line_and_key() {
    let check = |text: &str, needle: &str| {
        let (_directory, path) = file(text);
        for ran in [azora(&["config", "check", &path]), daemon(&["--test", "--config", &path])] {
            ran.exits(2).complains(&[&path, needle, "azora config init"]);
        }
    };
    check("[tun]\nname = \"azora0\"\nmtuu = 1300\n", ":3:1: unknown field `mtuu`");
    check("[tun]\nmtu = 9000\n", ":2:7: mtu 9000 is outside 1280 to 1420");
    check("[store]\nquota = 1\n", ":1:2: unknown field `store`");
    check("[relay]\nlimits = { kbit_s = 0 }\n", ":2:10: kbit_s 0 is outside 1 to");
    check("[relay]\npeers = [\"x\"]\n", ":2:9:");
    check("[net]\nbootstrap = [\"x\"]\n", ":2:");
    check("not toml\n", ":1:");
    let make_one = ["/nonexistent", "No such file", "make one: `azora config init FILE`"];
    daemon(&["--test", "--config", "/nonexistent"]).exits(2).complains(&make_one);
    azora(&["config", "show", "--config", "/nonexistent"]).exits(2).complains(&make_one);
    let (_directory, path) = file("[net]\nlisten = []\n");
    azora(&["config", "check", &path]).exits(2).complains(&["net.listen"]);
}

/// Whoever names a configuration means its daemon, not the default one.
#[test]
fn a_named_file_that_cannot_be_used_is_no_default() {
    let (_directory, broken) = file("not toml\n");
    for path in ["/nonexistent", &broken] {
        azora(&["--config", path, "status"]).exits(2).complains(&[path]);
        azora(&["--config", path, "wait", "--timeout", "1"]).exits(2).complains(&[path]);
        azora(&["--config", path, "key", "show"]).exits(2).complains(&[path]);
        // Who names the socket as well means that.
        azora(&["--config", path, "--socket", "/nonexistent", "status"]).exits(3);
    }
}

/// As if it were not set; an empty flag is still refused.
#[test]
fn empty_variables_say_nothing() {
    let empty = |mut command: std::process::Command, arguments: &[&str]| -> crate::run::Ran {
        for name in ["AZORA_SOCKET", "AZORA_STATE_DIR", "AZORA_LOG"] {
            command.env(name, "");
        }
        command.args(arguments).output().unwrap().into()
    };
    empty(daemon_command(), &["--test"]).exits(0);
    empty(azora_command(), &["status", "--socket", "/nonexistent"]).exits(3);
    empty(azora_command(), &["--config", "/nonexistent", "key", "show"])
        .exits(2)
        .complains(&["/nonexistent"]);
    let shown = empty(azora_command(), &["config", "show"]).exits(0).out;
    assert!(shown.contains("node.socket = \"/run/azora/azora.sock\""), "{shown}");
}

#[test]
fn good_files_exit_0() {
    let (_directory, path) = file("[tun]\nmtu = 1300\n");
    assert_eq!(azora(&["config", "check", &path]).exits(0).out, format!("{path}: ok\n"));
    assert_eq!(daemon(&["--test", "--config", &path]).exits(0).err, "");
    let shown = azora(&["config", "show", "--config", &path]).exits(0).out;
    let mtu = shown.lines().find(|line| line.starts_with("tun.mtu")).unwrap();
    assert!(mtu.starts_with("tun.mtu = 1300 ") && mtu.ends_with("# file"), "{mtu}");
    let (_directory, again) = file(&shown);
    azora(&["config", "check", &again]).exits(0);
}

#[test]
fn show_takes_what_the_daemon_would_from_flags_and_environment() {
    let shown = |arguments: &[&str]| {
        let mut command = azora_command();
        command.env("AZORA_LOG", "warn").env("AZORA_STATE_DIR", "/s").env("AZORA_SOCKET", "/run/y");
        command.args(["config", "show"]).args(arguments);
        crate::run::Ran::from(command.output().unwrap()).exits(0).out
    };
    let check = |shown: &str, key: &str, value: &str, origin: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(line.contains(&format!("= \"{value}\"")) && line.ends_with(&format!("# {origin}")), "{line}");
    };
    let by_variables = shown(&[]);
    check(&by_variables, "node.log", "warn", "environment");
    check(&by_variables, "node.state_dir", "/s", "environment");
    check(&by_variables, "node.socket", "/run/y", "environment");
    check(&shown(&["--socket", "/run/x"]), "node.socket", "/run/x", "flag");
}

#[test]
fn wrong_flags_and_variables_of_the_daemon_exit_2() {
    let check = |arguments: &[&str], needle: &str| {
        daemon(arguments).exits(2).complains(&[needle]);
    };
    check(&["--test", "--tun", "userspace-networking"], "not available yet");
    check(&["--test", "--tun", "a/b"], "interface name");
    check(&["--test", "--listen", "5747"], "IP:PORT");
    check(&["--test", "--listen", "[::]:1", "--listen", "[::]:1"], "twice");
    check(&["--test", "--bootstrap", "192.0.2.1:5747"], "NODEID@IP:PORT");
    check(
        &["--test", "--bootstrap", &format!("{}@example.org:5747", node_id(PEER))],
        "names are not resolved",
    );
    check(&["--test", "--dht", "both"], "auto, server, client");
    check(&["--test", "--inbound", "maybe"], "deny, allow");
    check(&["--test", "--tun-offload", "udp"], "auto, tcp, none");
    check(&["--test", "--udp-offload", "tcp"], "auto, none");
    check(&["--test", "--cipher", "aes"], "chacha20-poly1305");
    check(&["--test", "--workers", "9"], "to 8");
    check(&["--test", "--workers", "two"], "--workers");
    check(&["--test", "--log", "loud"], "error, warn, info, debug, trace");
    check(&["--test", "--metrics", "9747"], "IP:PORT");
    check(&["--test", "--state-dir", ""], "state-dir");
    check(&["--test", "--socks5-server", "127.0.0.1:1"], "--socks5-server");
    let ran: crate::run::Ran =
        daemon_command().env("AZORA_LOG", "loud").arg("--test").output().unwrap().into();
    ran.exits(2).complains(&["loud"]);
    daemon(&["--test", "--tun-offload", "tcp", "--udp-offload", "none", "--no-superframes"]).exits(0);
    daemon(&["--test", "--workers", "8"]).exits(0);
    daemon(&["--test", "--no-lan-discovery", "--dht", "client", "--listen", "127.0.0.1:0"]).exits(0);
}

#[test]
fn init_writes_the_example_and_never_over_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("etc/azora.toml");
    let init = ["config", "init", "--config", path.to_str().unwrap()];
    azora(&init).exits(0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), auramesh::config::EXAMPLE);
    azora(&["config", "check", path.to_str().unwrap()]).exits(0);
    std::fs::write(&path, "# mine\n").unwrap();
    azora(&init).exits(1).complains(&["exists already", "--force"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "# mine\n");
    azora(&[&init[..], &["--force"]].concat()).exits(0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), auramesh::config::EXAMPLE);
    let other = directory.path().join("other.toml");
    azora(&["config", "init", other.to_str().unwrap(), "--config", "/nonexistent"]).exits(0);
    assert_eq!(std::fs::read_to_string(&other).unwrap(), auramesh::config::EXAMPLE);
    let wrong: crate::run::Ran = azora_command()
        .env("AZORA_CONFIG", "/proc/azora.toml")
        .args(["config", "init"])
        .output()
        .unwrap()
        .into();
    wrong.exits(1).complains(&["/proc/azora.toml"]);
}
