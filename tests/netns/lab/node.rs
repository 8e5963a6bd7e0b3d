//! One daemon in one machine, and its command line.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::process::{Process, Ran, run};
use crate::lab::{Machine, eventually};

/// The daemon under test.
pub(crate) const DAEMON: &str = env!("CARGO_BIN_EXE_azora-meshing-daemon");
/// The command line under test.
pub(crate) const AZORA: &str = env!("CARGO_BIN_EXE_azora");
/// UDP port of every node.
pub(crate) const PORT: u16 = 5747;
/// Memory of a daemon through whatever a test does to it (the goal for all that hostile input and faults may cost).
const MEMORY_KB_MAX: u64 = 128 << 10;
/// From start to ready.
const READY: Duration = Duration::from_secs(10);

/// A machine with an identity and, once started, a daemon.
pub(crate) struct Node {
    machine: Machine,
    pub(crate) id: String,
    pub(crate) address: Ipv6Addr,
    log_level: &'static str,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Node {
    /// Makes the identity; nothing runs yet.
    pub(crate) fn new(machine: Machine) -> Self {
        let state = machine.dir.join("state");
        let made = run(Command::new(AZORA).args(["key", "generate", "--state-dir"]).arg(&state));
        assert_eq!(made.code, 0, "azora key generate: {}{}", made.out, made.err);
        let shown = run(Command::new(AZORA).args(["key", "show", "--json", "--state-dir"]).arg(&state));
        let shown: Value =
            serde_json::from_str(&shown.out).unwrap_or_else(|e| panic!("key show: {e}: {shown:?}"));
        Self {
            machine,
            id: shown["node_id"].as_str().unwrap().to_owned(),
            address: shown["address"].as_str().unwrap().parse().unwrap(),
            log_level: "info",
            arguments: vec!["--no-lan-discovery".into()],
            process: None,
        }
    }

    /// Adds daemon flags.
    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Removes a daemon flag that every node of the lab has.
    pub(crate) fn without(mut self, flag: &str) -> Self {
        self.arguments.retain(|argument| argument != flag);
        self
    }

    /// Logs at another level than `info`.
    pub(crate) const fn logging(mut self, level: &'static str) -> Self {
        self.log_level = level;
        self
    }

    /// Knows another node from the start.
    pub(crate) fn knows(self, other: &Self) -> Self {
        let bootstrap = other.contact();
        self.with(&["--bootstrap", &bootstrap])
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the daemon and does not wait.
    pub(crate) fn launch(&mut self) {
        self.launch_under(&[]);
    }

    /// Starts the daemon behind a wrapper such as `prlimit --nofile=64`.
    pub(crate) fn launch_under(&mut self, wrapper: &[&str]) {
        assert!(self.process.is_none(), "already started");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).args(wrapper).args(self.daemon_line());
        self.process = Some(Process::spawn(&mut command, &self.machine.dir.join("daemon.log")));
    }

    /// The daemon and its flags, word by word.
    pub(crate) fn daemon_line(&self) -> Vec<String> {
        let mut words = vec![DAEMON.to_owned(), "--state-dir".into(), self.state_dir().display().to_string()];
        words.extend(["--socket".into(), self.socket().display().to_string()]);
        words.extend(["--log".into(), self.log_level.into()]);
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// Takes `azora wait` as the answer to "are you ready".
    pub(crate) fn wait_ready(&mut self) {
        eventually(READY, "the daemon answers on its socket", || {
            if !self.is_running() {
                panic!("the daemon ended: {}", self.log());
            }
            self.socket().exists().then_some(())
        });
        let waited = self.azora(&["wait", "--timeout", "10"]);
        assert_eq!(waited.code, 0, "azora wait: {}{}", waited.out, waited.err);
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.machine.dir.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.machine.dir.join("run/azora.sock")
    }

    /// Where other nodes reach it on the underlay.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.machine.ip, PORT)
    }

    /// `NODEID@IP:PORT`.
    pub(crate) fn contact(&self) -> String {
        format!("{}@{}", self.id, self.endpoint())
    }

    /// Runs the command line against this daemon.
    pub(crate) fn azora(&self, arguments: &[&str]) -> Ran {
        run(Command::new(AZORA).args(arguments).arg("--socket").arg(self.socket()))
    }

    /// Runs a reading command with `--json`, which must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.azora(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, 0, "azora {arguments:?}: {}{}\n{}", ran.out, ran.err, self.log());
        serde_json::from_str(&ran.out)
            .unwrap_or_else(|error| panic!("azora {arguments:?}: {error}: {}", ran.out))
    }

    pub(crate) fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// What `status` says about one peer.
    pub(crate) fn peer(&self, other: &Self) -> Option<Value> {
        let status = self.status();
        status["peers"].as_array()?.iter().find(|peer| peer["node_id"] == other.id.as_str()).cloned()
    }

    /// One kernel ping over the mesh: milliseconds to the first reply.
    pub(crate) fn ping(&self, to: Ipv6Addr, timeout_s: u32) -> Option<f64> {
        let ran = run(self
            .command("ping")
            .args(["-6", "-n", "-c1", "-W"])
            .arg(timeout_s.to_string())
            .arg(to.to_string()));
        let (_, after) = ran.out.split_once("time=")?;
        after.split_whitespace().next()?.parse().ok()
    }

    /// Pings until a reply comes.
    pub(crate) fn reaches(&self, other: &Self, limit: Duration) -> Duration {
        let what = format!("machine {} reaches {}", self.number, other.number);
        eventually(limit, &what, || self.ping(other.address, 1)).1
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().pid()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// Ends the daemon as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Ends the daemon as a service manager does; its exit code.
    pub(crate) fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.exit(Duration::from_secs(5))
            .unwrap_or_else(|| panic!("SIGTERM does not end the daemon: {}", self.log()))
    }

    /// The exit code, when the daemon ends within `limit`.
    pub(crate) fn exit(&mut self, limit: Duration) -> Option<i32> {
        let status = self.process.as_mut().unwrap().ended(limit)?;
        self.process = None;
        Some(status.code().unwrap_or(255))
    }

    /// What the daemon logged so far, over all its starts.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.machine.dir.join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A number out of `/proc/PID/status`, kilobytes for memory.
    pub(crate) fn proc_status(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time used so far by the threads that still run.
    pub(crate) fn cpu_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        stats.map(|stat| Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())).sum()
    }

    /// How often each of its threads went to sleep and was woken, by thread number and name.
    pub(crate) fn wake_ups(&self) -> BTreeMap<(u32, String), u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
        let states = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let field = |state: &str, name: &str| {
            state.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned())).unwrap()
        };
        states
            .map(|state| {
                let thread = (field(&state, "Pid:").parse().unwrap(), field(&state, "Name:"));
                (thread, field(&state, "voluntary_ctxt_switches:").parse().unwrap())
            })
            .collect()
    }

    /// Nice value of each of its threads, by name.
    pub(crate) fn nice(&self) -> BTreeMap<String, i32> {
        let threads = self.wake_ups().into_keys();
        let of = |thread: u32| {
            let stat = fs::read_to_string(format!("/proc/{}/task/{thread}/stat", self.pid())).unwrap();
            // The 19th field of proc_pid_stat(5); the second ends with the last parenthesis.
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
        };
        threads.map(|(thread, name)| (name, of(thread))).collect()
    }

    /// Entries in a directory of `/proc/PID`.
    pub(crate) fn proc_count(&self, directory: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{directory}", self.pid())).unwrap().count()
    }

    /// Names of the daemon's threads, without those that tokio makes for what blocks and keeps for ten seconds after.
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        let mut names: Vec<_> = names.filter(|name| name.trim_end() != "tokio-rt-worker").collect();
        names.sort();
        names
    }
}

impl Deref for Node {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !thread::panicking() {
            let (number, log) = (self.machine.number, self.log());
            assert!(!log.contains("panicked at"), "machine {number} panicked:\n{log}");
            if self.process.is_some() {
                assert!(self.is_running(), "the daemon of machine {number} ended by itself:\n{log}");
                let peak = self.proc_status("VmHWM");
                assert!(peak <= MEMORY_KB_MAX, "the daemon of machine {number} took {peak} kB");
            }
        }
    }
}
