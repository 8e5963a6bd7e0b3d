//! Trouble with the machine: disk, descriptors, files, other users, missing rights.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::node::{AZORA, DAEMON, Node};
use crate::lab::process::{Process, Ran, check_one_line, run};
use crate::lab::{Lab, Underlay, eventually, ip, long};

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;
/// The first contacts are saved after 3 s, and tried again a minute later (`daemon/saver.rs`).
const TOLD: Duration = Duration::from_secs(8);
const SAVED_AGAIN: Duration = Duration::from_secs(75);

/// What one daemon has to do with, which is as many as it serves control connections.
const DESCRIPTORS: usize = 64;

/// A small disk that is gone with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        let ran =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "azora-test"]).arg(at));
        assert_eq!(ran.code, 0, "{}", ran.err);
        Self(at.to_owned())
    }

    fn fill(&self) {
        let full = fs::write(self.0.join("fill"), vec![0; 8 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn a_full_disk_stops_no_traffic_and_loses_no_key() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let machine = lab.machine(Underlay::V4);
    let disk = SmallDisk::mount(&machine.dir.join("state"));
    let mut node = Node::new(machine).knows(&server);
    node.start();
    disk.fill();
    assert!(!disk.0.join("peers").exists(), "no room from the first save on");
    node.reaches(&server, Duration::from_secs(5));
    let key = fs::read(disk.0.join("identity.key")).unwrap();
    let newcomer = lab.node(Underlay::V4).knows(&server).started();
    newcomer.reaches(&node, Duration::from_secs(5));
    eventually(TOLD, "the status says that nothing is saved", || says_not_saved(&node).then_some(()));
    node.reaches(&server, Duration::from_secs(1));
    let ran = node.azora(&["firewall", "add", "in", "allow", "-p", "tcp", "--port", "80"]);
    println!("a rule on a full disk: exit {}, {}", ran.code, ran.err.trim());
    assert!(ran.code == 0 || !ran.err.trim().is_empty(), "what cannot be saved is said");
    node.stop();
    assert_eq!(fs::read(disk.0.join("identity.key")).unwrap(), key, "the key is intact");
    node.start();
    assert_eq!(node.status()["node_id"], node.id.as_str());
    node.reaches(&server, Duration::from_secs(5));
    if long() {
        eventually(TOLD, "it says so again", || says_not_saved(&node).then_some(()));
        disk.make_room();
        eventually(SAVED_AGAIN, "and no longer", || (!says_not_saved(&node)).then_some(()));
        assert!(disk.0.join("peers").exists());
    }
}

fn says_not_saved(node: &Node) -> bool {
    let status = node.status();
    status["health"].as_array().unwrap().iter().any(|problem| problem["code"] == "state-not-saved")
}

#[test]
fn a_node_out_of_descriptors_carries_traffic_and_answers_again() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let node = lab.node(Underlay::V4).knows(&server).started();
    node.reaches(&server, Duration::from_secs(5));
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let limited = run(Command::new("prlimit").args([&limit, "--pid", &node.pid().to_string()]));
    assert_eq!(limited.code, 0, "{}", limited.err);
    let crowd: Vec<_> = (0..200).map_while(|_| UnixStream::connect(node.socket()).ok()).collect();
    println!("{} idle control connections", crowd.len());
    eventually(Duration::from_secs(5), "no descriptor is left", || {
        (node.proc_count("fd") >= DESCRIPTORS - 2).then_some(())
    });
    let asked = node.azora(&["status", "--check", "live"]);
    assert_eq!(asked.code, 0, "who asks is answered meanwhile: {asked:?}");
    let newcomer = lab.node(Underlay::V4).knows(&node).started();
    newcomer.reaches(&node, Duration::from_secs(5));
    assert!(node.proc_count("fd") >= DESCRIPTORS - 2, "the crowd is there still");
    assert!(node.ping(server.address, 1).is_some(), "the mesh goes on meanwhile");
    node.must("nft flush ruleset");
    drop(crowd);
    let (_, took) = eventually(Duration::from_secs(5), "the control socket answers again", || {
        (node.azora(&["status", "--check", "live"]).code == 0).then_some(())
    });
    println!("answers again after {took:?}");
    eventually(Duration::from_secs(70), "the guard is back", || {
        node.sh("nft list table inet azora_azora0").out.contains("drop").then_some(())
    });
}

#[test]
fn a_bad_identity_file_is_refused_and_never_replaced() {
    let lab = Lab::alone();
    let mut node = lab.node(Underlay::V4);
    let file = node.state_dir().join("identity.key");
    let good = fs::read(&file).unwrap();
    let elsewhere = node.dir.join("elsewhere");
    let spoil: [(&str, &dyn Fn()); 7] = [
        ("readable by all", &|| fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap()),
        ("a symlink", &|| {
            fs::rename(&file, &elsewhere).unwrap();
            symlink(&elsewhere, &file).unwrap();
        }),
        ("a directory", &|| {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }),
        ("empty", &|| fs::write(&file, "").unwrap()),
        ("half-written", &|| fs::write(&file, &good[..good.len() / 2]).unwrap()),
        ("with junk behind it", &|| fs::write(&file, [&good[..], b"junk\n"].concat()).unwrap()),
        ("of another owner", &|| chown(&file, Some(NOBODY), None).unwrap()),
    ];
    for (what, spoil) in spoil {
        spoil();
        let before = (fs::symlink_metadata(&file).unwrap().permissions(), fs::read(&file).ok());
        let logged = node.log().len();
        node.launch();
        let code =
            node.exit(Duration::from_secs(5)).unwrap_or_else(|| panic!("starts with a key file {what}"));
        let said = node.log().split_off(logged);
        println!("{what}: {}", said.trim());
        assert_ne!(code, 0, "{what}");
        check_one_line(&said, &["identity.key"]);
        let after = (fs::symlink_metadata(&file).unwrap().permissions(), fs::read(&file).ok());
        assert_eq!(after, before, "{what}: the file is left as it was");
        assert!(!node.interfaces().contains(&"azora0".to_owned()), "{what}: nothing is left");
        let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
        fs::write(&file, &good).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }
    node.start();
    assert_eq!(node.status()["node_id"], node.id.as_str());
}

#[test]
fn closed_and_full_outputs_stop_nothing() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let mut node = lab.node(Underlay::V4).knows(&server).logging("debug");
    for outputs in [">&- 2>&-", ">/dev/full 2>&1"] {
        node.launch_under(&["sh", "-c", &format!("exec \"$@\" {outputs}"), "sh"]);
        node.wait_ready();
        node.reaches(&server, Duration::from_secs(5));
        assert_eq!(node.azora(&["down"]).code, 0);
        assert_eq!(node.azora(&["up"]).code, 0);
        node.reaches(&server, Duration::from_secs(5));
        assert_eq!(node.stop(), 0, "{outputs}");
    }
}

#[test]
fn the_key_is_in_no_output_and_no_process_listing() {
    let lab = Lab::alone();
    let server = lab.node(Underlay::V4).started();
    let node = lab.node(Underlay::V4).knows(&server).logging("trace").started();
    node.reaches(&server, Duration::from_secs(5));
    let file = fs::read_to_string(node.state_dir().join("identity.key")).unwrap();
    let secret = file.split_whitespace().nth(1).unwrap();
    let seed = data_encoding::BASE32_NOPAD.decode(secret.to_uppercase().as_bytes()).unwrap();
    assert_eq!(seed.len(), 32, "the second word of the file is the seed");
    let needles = [
        secret.to_owned(),
        data_encoding::HEXLOWER.encode(&seed),
        data_encoding::BASE64.encode(&seed).trim_end_matches('=').to_owned(),
    ];
    let mut places = vec![("log", node.log())];
    for (name, words) in [
        ("status", &["status", "--json"][..]),
        ("status for people", &["status", "--peers"]),
        ("report", &["report"]),
        ("config show", &["config", "show"]),
        ("id", &["id"]),
        ("key show", &["key", "show", "--state-dir", &node.state_dir().display().to_string()]),
    ] {
        let ran = run(Command::new(AZORA).args(words).env("AZORA_SOCKET", node.socket()));
        places.push((name, ran.out + &ran.err));
    }
    for name in ["environ", "cmdline"] {
        let bytes = fs::read(format!("/proc/{}/{name}", node.pid())).unwrap();
        places.push((name, String::from_utf8_lossy(&bytes).into_owned()));
    }
    for (place, text) in &places {
        for needle in &needles {
            let text = if needle.contains(char::is_uppercase) { text.clone() } else { text.to_lowercase() };
            assert!(!text.contains(needle.as_str()), "the key is in the {place}");
        }
    }
    assert!(places[0].1.contains("DEBUG"), "the log says more than usual:\n{}", places[0].1);
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let core: Vec<_> = limits.lines().find(|l| l.contains("core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4], "0", "no core file: {core:?}");
}

/// Copies a program to where other users may run it.
fn copy_for_others(node: &Node, program: &str) -> String {
    let copy = node.dir.join(Path::new(program).file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    copy.display().to_string()
}

#[test]
fn other_users_may_read_only_with_the_group_and_change_nothing() {
    let lab = Lab::alone();
    let node = lab.node(Underlay::V4).started();
    let azora = copy_for_others(&node, AZORA);
    let socket = node.socket().display().to_string();
    let as_nobody = |group: &str, words: &[&str]| -> Ran {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", &format!("--regid={group}"), &azora]);
        run(command.args(words).args(["--socket", &socket]))
    };
    let stranger = as_nobody("65534", &["status"]);
    assert!([1, 3].contains(&stranger.code), "{stranger:?}");
    assert!(stranger.err.to_lowercase().contains("permitted"), "{}", stranger.err);
    assert!(stranger.err.contains("with sudo") && !stranger.err.contains("group"), "{}", stranger.err);
    assert_eq!(as_nobody("0", &["status"]).code, 0, "the socket's group reads");
    let run_dir = node.socket().parent().unwrap().display().to_string();
    node.must(&format!("chgrp daemon {run_dir} {socket}"));
    let stranger = as_nobody("65534", &["status"]);
    assert!(stranger.err.contains("join the group daemon"), "{}", stranger.err);
    node.must(&format!("chgrp root {run_dir} {socket}"));
    for change in [
        &["down"][..],
        &["firewall", "add", "in", "allow", "-p", "tcp", "--port", "22"],
        &["peers", "remove", &node.id],
    ] {
        let refused = as_nobody("0", change);
        assert_eq!(refused.code, 1, "{change:?}: {refused:?}");
        println!("{change:?}: {}", refused.err.trim());
    }
    assert_eq!(node.status()["interface"]["up"], true);
    assert_eq!(node.json(&["firewall", "list"]).as_array().map(Vec::len), Some(0));
}

/// A shell line that runs `words` where everybody may open `/dev/net/tun`, which is what udev makes of it.
fn with_open_tun(node: &Node, words: &str) -> String {
    let device = node.dir.join("tun").display().to_string();
    node.must(&format!("test -e {device} || mknod -m 666 {device} c 10 200"));
    format!("sh -c 'mount --bind {device} /dev/net/tun && exec {words}'")
}

#[test]
fn without_rights_it_names_the_three_ways() {
    let lab = Lab::alone();
    let mut node = lab.node(Underlay::V4);
    let daemon = copy_for_others(&node, DAEMON);
    let state = node.dir.join("nobody");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let words = format!("{daemon} --state-dir {0}/s --socket {0}/r/azora.sock", state.display());
    let drop = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";
    let ran = node.sh(&format!("timeout 5 {drop} {words}"));
    println!("{}", ran.err.trim());
    assert!([1, 2].contains(&ran.code), "{ran:?}");
    check_one_line(&ran.err, &["root", "cap_net_admin", "tuntap"]);

    // The third way: a device made in advance, and no capability at all.
    let azora = copy_for_others(&node, AZORA);
    let key =
        |command: &str| node.sh(&format!("{drop} {azora} key {command} --state-dir {}/s", state.display()));
    key("generate");
    let shown = key("show --json");
    let shown: serde_json::Value =
        serde_json::from_str(&shown.out).unwrap_or_else(|e| panic!("{e}: {shown:?}"));
    for line in [
        "tuntap add dev azora0 mode tun multi_queue user nobody".to_owned(),
        "link set azora0 mtu 1420 up".to_owned(),
        format!("addr add {}/128 dev azora0", shown["address"].as_str().unwrap()),
        "-6 route add 600::/8 dev azora0".to_owned(),
    ] {
        ip(&format!("-n {} {line}", node.netns));
    }
    let config = state.join("azora.toml");
    fs::write(&config, "[policy]\nlan_guard = false\n").unwrap();
    let other = lab.node(Underlay::V4).started();
    let line = format!(
        "{drop} {words} --config {} --no-lan-discovery --bootstrap {}",
        config.display(),
        other.contact()
    );
    let mut process = node.spawn(&with_open_tun(&node, &line), "unprivileged.log");
    eventually(Duration::from_secs(10), "reaches another node without any capability", || {
        assert!(process.is_running(), "{}", process.log());
        node.ping(other.address, 1)
    });
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    // What it cannot take down is not said to be down.
    let socket = state.join("r/azora.sock");
    let azora = |command: &str| node.sh(&format!("{AZORA} --socket {} {command}", socket.display()));
    let down = azora("down");
    assert!(down.code == 1 && down.err.contains("as root: ip link set azora0 down"), "{down:?}");
    let status: serde_json::Value = serde_json::from_str(&azora("status --json").out).unwrap();
    assert_eq!(status["state"], "running");
    ip(&format!("-n {} link set azora0 down", node.netns));
    eventually(Duration::from_secs(15), "health watches over it as before", || {
        azora("status").out.contains("is not up with its address and route").then_some(())
    });
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(process.ended(Duration::from_secs(5)).and_then(|status| status.code()), Some(0));
    assert!(node.interfaces().contains(&"azora0".to_owned()), "a prepared device stays");
    node.kill();
}

/// The user that a process runs as.
fn process_user(process: &Process) -> u32 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// As the systemd unit starts it: a user of its own with one capability, which `nft` inherits, and a `/proc` of
/// processes only (`ProcSubset=pid`), so that no kernel setting can be written.
#[test]
fn cap_net_admin_alone_is_enough() {
    let lab = Lab::alone();
    let mut node = lab.node(Underlay::V4);
    let other = lab.node(Underlay::V4).started();
    let daemon = copy_for_others(&node, DAEMON);
    let state = node.dir.join("nobody");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let caps = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all,+net_admin \
                --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin";
    let socket = state.join("r/azora.sock");
    let line = format!(
        "{caps} {daemon} --state-dir {}/s --socket {} --no-lan-discovery --bootstrap {}",
        state.display(),
        socket.display(),
        other.contact()
    );
    let line =
        with_open_tun(&node, &line).replace("exec ", "mount -t proc -o subset=pid proc /proc && exec ");
    let mut process = node.spawn(&line, "net_admin.log");
    eventually(Duration::from_secs(10), "reaches another node", || {
        assert!(process.is_running(), "{}", process.log());
        node.ping(other.address, 1)
    });
    assert!(node.must("nft list tables").contains("azora_azora0"), "the guard is installed");
    // Not dumpable: no other process of the user may look into its memory, since its files in /proc are root's (proc(5)).
    let files = fs::metadata(format!("/proc/{}/environ", process.pid())).unwrap();
    assert_eq!((files.uid(), process_user(&process)), (0, NOBODY));
    assert!(process.log().contains("CAP_SYS_NICE"), "says what it goes without: {}", process.log());
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(
        process.ended(Duration::from_secs(5)).and_then(|status| status.code()),
        Some(0),
        "{}",
        process.log()
    );
    assert!(!node.must("nft list tables").contains("azora"), "and removed");
    assert_eq!(node.interfaces(), ["lo", "eth0"]);
    node.kill();
}

/// What carries packets runs before programs, where that is allowed, and nothing else does.
#[test]
fn the_threads_that_carry_packets_run_first() {
    let lab = Lab::alone();
    let node = lab.node(Underlay::V4).started();
    let may = node.sh("test $(nice -n -20 nice) = -20").code == 0;
    let (inward, outward) = if may { (-10, -5) } else { (0, 0) };
    eventually(Duration::from_secs(5), "each thread has its place", || {
        let nice = node.nice();
        let others = nice.iter().filter(|(thread, _)| !["azora-in", "azora-out"].contains(&thread.as_str()));
        (nice.get("azora-in") == Some(&inward)
            && nice.get("azora-out") == Some(&outward)
            && others.into_iter().all(|(_, nice)| *nice == 0))
        .then_some(())
    });
}

/// A daemon that leads its session, as a service does, runs before other sessions; otherwise theirs stays as it is, also
/// where their leader has no process ID, as for a program started into a running container.
#[test]
fn a_session_of_its_own_runs_first() {
    let own = fs::read_to_string("/proc/self/autogroup");
    let lab = Lab::alone();
    let node = lab.node(Underlay::V4);
    let started = |prefix: &str| {
        let dir = node.dir.join(prefix.split(' ').next().unwrap());
        let line = format!(
            "{prefix} {DAEMON} --state-dir {dir}/s --socket {dir}/r/azora.sock --no-lan-discovery",
            dir = dir.display()
        );
        let process = node.spawn(&line, &format!("{prefix}.log"));
        eventually(Duration::from_secs(10), "ready", || process.log().contains("ready node=").then_some(()));
        fs::read_to_string(format!("/proc/{}/autogroup", process.pid()))
    };
    let nice = |group: &std::io::Result<String>| {
        group.as_ref().ok().map(|group| group.rsplit(' ').next().unwrap().trim().to_owned())
    };
    assert_eq!(nice(&started("env")), nice(&own), "the session of whoever runs this test");
    let leads = nice(&started("setsid"));
    if own.is_ok() && node.sh("test $(nice -n -20 nice) = -20").code == 0 {
        assert_eq!(leads.as_deref(), Some("-10"));
    }
    // Last, because what it runs ends a moment after `unshare` does.
    let foreign = "unshare --pid --fork --kill-child";
    assert_eq!(nice(&started(foreign)), nice(&own), "a session from outside of the namespace");
}

/// A reload takes the whole file or nothing of it.
#[test]
fn a_bad_configuration_on_reload_changes_nothing() {
    let lab = Lab::alone();
    let node = lab.node(Underlay::V4);
    let config = node.dir.join("azora.toml");
    fs::write(&config, "[policy]\nallow = [{ proto = \"tcp\", port = 22 }]\n").unwrap();
    let mut node = node.with(&["--config", &config.display().to_string()]).started();
    let other = lab.node(Underlay::V4).knows(&node).started();
    other.reaches(&node, Duration::from_secs(5));
    let rules = node.json(&["firewall", "list"]);
    for bad in [
        "[policy]\nallow = []\nunknown = 1\n",
        "[policy]\nallow = [{ proto = \"tcp\", port = 99999 }]\n",
        "[tun]\nmtu = -5\n",
        "[policy\n",
    ] {
        let logged = node.log().len();
        fs::write(&config, bad).unwrap();
        node.signal(nix::sys::signal::Signal::SIGHUP);
        let (said, _) = eventually(Duration::from_secs(5), "the log says what is wrong", || {
            let said = node.log().split_off(logged);
            said.contains("azora.toml").then_some(said)
        });
        println!("{bad:?}: {}", said.trim());
        assert_eq!(node.json(&["firewall", "list"]), rules, "{bad:?}");
    }
    assert!(node.is_running());
    let good = "[tun]\nmtu = 1300\n[policy]\nallow = [{ proto = \"tcp\", port = 443 }]\n";
    fs::write(&config, good).unwrap();
    for round in ["a good file is taken", "what waits for a restart is told again"] {
        let logged = node.log().len();
        node.signal(nix::sys::signal::Signal::SIGHUP);
        let (said, _) = eventually(Duration::from_secs(5), round, || {
            let said = node.log().split_off(logged);
            said.contains("configuration reloaded").then_some(said)
        });
        assert!(said.contains("tun.mtu") && said.contains("restart") && !said.contains("policy"), "{said}");
        assert!(node.json(&["firewall", "list"]).to_string().contains("443"));
    }
    other.reaches(&node, Duration::from_secs(2));
}
