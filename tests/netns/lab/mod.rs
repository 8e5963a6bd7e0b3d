//! Machines for one test: namespaces, a bridge between them, and everything gone again at the end.
//!
//! ```text
//!   azPxCn1 ─ eth0 ══ p1 ┐
//!   azPxCn2 ─ eth0 ══ p2 ┤ br0 in azPxClan          P: process, C: counter of the test
//!   azPxCn3 ─ eth0 ══ p3 ┘
//! ```
//! A namespace has 10.77.0.N/24 or fd77::N/64 on `eth0`, never both: a test says which underlay it uses. Machines on an
//! internet with global addresses, and behind NATs: [`nat`].

pub(crate) mod capture;
pub(crate) mod line;
pub(crate) mod nat;
pub(crate) mod node;
pub(crate) mod pinger;
pub(crate) mod plug;
pub(crate) mod process;
pub(crate) mod region;

use std::cell::{Cell, RefCell};
use std::fs::{self, File, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use crate::lab::line::{Line, Weather};
use crate::lab::node::Node;
use crate::lab::plug::{Outlet, Provider};
use crate::lab::process::{Process, Ran, run};

/// Labs that measure throughput, gaps, processor use or memory have this machine for themselves.
static QUIET: RwLock<()> = RwLock::new(());
static COUNTER: AtomicU32 = AtomicU32::new(0);
static CHECKED: Once = Once::new();

/// Programs that the tests call, and the Debian package of each.
const TOOLS: [(&str, &str); 14] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("iperf3", "iperf3"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("timeout", "coreutils"),
    ("prlimit", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("miniupnpd", "miniupnpd-nftables"),
];

/// The version of IP that carries the mesh's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    V4,
    V6,
}

impl Underlay {
    /// The version of an address.
    pub(crate) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Whether `AZORA_TEST_LONG` asks for the long figures.
pub(crate) fn long() -> bool {
    std::env::var_os("AZORA_TEST_LONG").is_some()
}

/// One namespace with an underlay address.
pub(crate) struct Machine {
    pub(crate) netns: String,
    pub(crate) number: u8,
    pub(crate) ip: IpAddr,
    pub(crate) dir: PathBuf,
    outlet: Outlet,
    /// Where `eth1` is plugged in, and its address.
    second: Option<(Outlet, IpAddr)>,
}

/// The namespaces of one test.
pub(crate) struct Lab {
    prefix: String,
    count: Cell<u8>,
    routers: Cell<u8>,
    subscribers: Cell<u8>,
    has_internet: Cell<bool>,
    lines: RefCell<Vec<Rc<Line>>>,
    dir: TempDir,
    _company: Company,
}

/// Whether other labs may be there at the same time.
enum Company {
    Others { _guard: RwLockReadGuard<'static, ()> },
    Nobody { _guard: RwLockWriteGuard<'static, ()> },
}

impl Lab {
    /// An empty bridge, beside other labs. Fails when this machine cannot run the tests.
    pub(crate) fn new() -> Self {
        Self::with(Company::Others { _guard: QUIET.read().unwrap_or_else(PoisonError::into_inner) })
    }

    /// The same without any other lab on this machine, for what is measured.
    pub(crate) fn alone() -> Self {
        Self::with(Company::Nobody { _guard: QUIET.write().unwrap_or_else(PoisonError::into_inner) })
    }

    /// Alone where figures are judged (`AZORA_TEST_LONG`), beside other labs where they are only told.
    pub(crate) fn for_figures() -> Self {
        if long() { Self::alone() } else { Self::new() }
    }

    fn with(company: Company) -> Self {
        CHECKED.call_once(|| {
            check_machine();
            remove_leftovers();
        });
        let prefix = format!("az{}x{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        // Daemons of other users find their own directory below it.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let lab = Self {
            prefix,
            count: Cell::new(0),
            routers: Cell::new(0),
            subscribers: Cell::new(0),
            has_internet: Cell::new(false),
            lines: RefCell::default(),
            dir,
            _company: company,
        };
        let lan = lab.namespace("lan");
        ip(&format!("-n {lan} link add br0 type bridge"));
        ip(&format!("-n {lan} link set br0 up"));
        lab
    }

    /// The namespace that holds the bridge; a capture there sees every frame between two machines.
    pub(crate) fn lan(&self) -> String {
        format!("{}lan", self.prefix)
    }

    /// A machine on the bridge.
    pub(crate) fn machine(&self, underlay: Underlay) -> Machine {
        let number = next(&self.count);
        let address = match underlay {
            Underlay::V4 => IpAddr::V4(Ipv4Addr::new(10, 77, 0, number)),
            Underlay::V6 => IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())),
        };
        let outlet = Outlet {
            netns: self.lan(),
            port: format!("p{number}"),
            gateway: None,
            behind: None,
            bridged: true,
        };
        self.machine_at(number, outlet, address)
    }

    /// A machine that is plugged in elsewhere than on the bridge.
    fn machine_from(&self, provider: &dyn Provider, underlay: Underlay) -> Machine {
        let number = next(&self.count);
        let (outlet, address) = provider.outlet(&format!("p{number}"), underlay);
        self.machine_at(number, outlet, address)
    }

    fn machine_at(&self, number: u8, outlet: Outlet, address: IpAddr) -> Machine {
        let netns = self.namespace(&format!("n{number}"));
        outlet.connect(&netns, "eth0", address);
        let dir = self.dir.path().join(format!("n{number}"));
        fs::create_dir(&dir).unwrap();
        Machine { netns, number, ip: address, dir, outlet, second: None }
    }

    /// Lays a line with distance to a machine, which lasts as long as the lab.
    pub(crate) fn lengthen(&self, machine: &Machine, weather: Weather, seed: u64) -> Rc<Line> {
        self.keep(machine.outlet.lengthen((&machine.netns, "eth0"), machine.ip, weather, seed))
    }

    fn keep(&self, line: Line) -> Rc<Line> {
        let line = Rc::new(line);
        self.lines.borrow_mut().push(Rc::clone(&line));
        line
    }

    /// A new namespace whose addresses are usable at once.
    fn namespace(&self, name: &str) -> String {
        let netns = format!("{}{name}", self.prefix);
        ip(&format!("netns add {netns}"));
        ip(&format!("-n {netns} link set lo up"));
        inside(&netns, || {
            fs::write("/proc/sys/net/ipv6/conf/all/accept_dad", "0").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        });
        netns
    }

    /// A machine with an identity, its daemon not yet started.
    pub(crate) fn node(&self, underlay: Underlay) -> Node {
        Node::new(self.machine(underlay))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            print_logs(self.dir.path());
        }
        // The lab with the number 1 is not that with the number 12.
        let is_ours = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_digit());
        remove_namespaces(|name| name.strip_prefix(&self.prefix).is_some_and(is_ours));
    }
}

impl Machine {
    /// The arguments run by `ip netns exec` in this machine.
    pub(crate) fn command(&self, program: &str) -> Command {
        command(&self.netns, program)
    }

    /// Runs a shell line in this machine; it may fail.
    pub(crate) fn sh(&self, line: &str) -> Ran {
        run(self.command("sh").args(["-c", line]))
    }

    /// Runs a shell line in this machine, which must succeed; its output.
    pub(crate) fn must(&self, line: &str) -> String {
        let ran = self.sh(line);
        assert_eq!(ran.code, 0, "`{line}` in {}: {}{}", self.netns, ran.out, ran.err);
        ran.out
    }

    /// Starts a program in this machine that runs until the value is dropped.
    pub(crate) fn spawn(&self, line: &str, log: &str) -> Process {
        Process::spawn(self.command("sh").args(["-c", &format!("exec {line}")]), &self.dir.join(log))
    }

    /// Runs `work` on a thread inside this machine's network; sockets made there stay there.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns, work)
    }

    /// Adds an underlay address that is usable at once.
    pub(crate) fn add_address(&self, address: IpAddr) {
        self.outlet.address(&self.netns, "eth0", address);
    }

    /// Is plugged in elsewhere, as a laptop that leaves the LAN for another.
    pub(crate) fn move_to(&mut self, provider: &dyn Provider) {
        let (outlet, address) = provider.outlet(&format!("p{}", self.number), Underlay::of(self.ip));
        outlet.take_over(&self.outlet, &self.netns, "eth0", address);
        (self.outlet, self.ip) = (outlet, address);
    }

    /// Gets a second device, `eth1`, with an address of its own.
    pub(crate) fn plug_in(&mut self, provider: &dyn Provider, underlay: Underlay) {
        let (outlet, address) = provider.outlet(&format!("q{}", self.number), underlay);
        outlet.connect(&self.netns, "eth1", address);
        self.second = Some((outlet, address));
    }

    /// The address of `eth1`.
    pub(crate) fn second_address(&self) -> IpAddr {
        self.second.as_ref().unwrap().1
    }

    /// Loses its addresses of one version of IP, and the way out that they had.
    pub(crate) fn lose(&self, underlay: Underlay) {
        let (device, ..) = self.device(underlay);
        let version = if underlay == Underlay::V4 { "-4" } else { "-6" };
        self.sh(&format!("ip {version} route del default dev {device}"));
        self.must(&format!("ip {version} addr flush dev {device} scope global"));
    }

    /// Has them again.
    pub(crate) fn regain(&self, underlay: Underlay) {
        let (device, outlet, address) = self.device(underlay);
        outlet.address(&self.netns, device, address);
    }

    /// The device with the address of this version of IP.
    fn device(&self, underlay: Underlay) -> (&'static str, &Outlet, IpAddr) {
        let second = self.second.iter().map(|(outlet, address)| ("eth1", outlet, *address));
        let mut all = std::iter::once(("eth0", &self.outlet, self.ip)).chain(second);
        all.find(|(.., address)| Underlay::of(*address) == underlay).unwrap()
    }

    /// Moves to another underlay address, as a laptop that changes networks does.
    pub(crate) fn roam(&mut self, address: IpAddr) {
        let length = if address.is_ipv4() { 24 } else { 64 };
        let old = self.ip;
        ip(&format!("-n {} addr del {old}/{length} dev eth0", self.netns));
        self.add_address(address);
        self.ip = address;
    }

    /// Names of the network interfaces here, `lo` included.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        self.inside(|| {
            let all = nix::net::if_::if_nameindex().unwrap();
            all.iter().map(|entry| entry.name().to_string_lossy().into_owned()).collect()
        })
    }
}

/// The arguments run by `ip netns exec` in a namespace.
pub(crate) fn command(netns: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, program]);
    command
}

/// The next number of a kind.
fn next(count: &Cell<u8>) -> u8 {
    count.set(count.get().checked_add(1).unwrap());
    count.get()
}

/// Runs `work` on a thread of its own inside a network namespace.
pub(crate) fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(Path::new("/run/netns").join(netns)).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs `ip` with these words, which must succeed.
pub(crate) fn ip(words: &str) {
    let ran = run(Command::new("ip").args(words.split_whitespace()));
    assert_eq!(ran.code, 0, "ip {words}: {}", ran.err);
}

/// Asks `question` every 20 ms until it has an answer; the time it took.
pub(crate) fn eventually<T>(
    limit: Duration,
    what: &str,
    mut question: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(answer) = question() {
            return (answer, start.elapsed());
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The value at `percent` of sorted samples.
pub(crate) fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub(crate) fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

/// Bytes that look random and are the same in every run.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| (random.next() >> 56) as u8).collect()
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number; its upper bits are the better ones.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next number from 0 to below 1.
    pub(crate) fn share(&mut self) -> f64 {
        f64::from((self.next() >> 32) as u32) / 2f64.powi(32)
    }
}

fn check_machine() {
    let mut missing = Vec::new();
    if !nix::unistd::Uid::effective().is_root() {
        missing.push("root: namespaces and devices need it, try `sudo -E scripts/test`".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun: load the module with `modprobe tun`".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let places: Vec<_> = path.split(':').chain(["/usr/sbin", "/sbin"]).collect();
    for (tool, package) in TOOLS {
        if !places.iter().any(|place| Path::new(place).join(tool).exists()) {
            missing.push(format!("{tool}: apt-get install {package}"));
        }
    }
    assert!(missing.is_empty(), "the namespace tests cannot run here, missing:\n  {}", missing.join("\n  "));
}

/// Namespaces of a run that was killed before it could clean up.
fn remove_leftovers() {
    remove_namespaces(|name| {
        let digits = name.strip_prefix("az").and_then(|rest| rest.split_once('x'));
        digits.is_some_and(|(process, _)| {
            process.parse::<u32>().is_ok() && !Path::new("/proc").join(process).exists()
        })
    });
}

fn remove_namespaces(ours: impl Fn(&str) -> bool) {
    let list = run(Command::new("ip").args(["netns", "list"])).out;
    for name in list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| ours(name)) {
        let left = run(Command::new("ip").args(["netns", "pids", name])).out;
        for process in left.split_whitespace() {
            run(Command::new("kill").args(["-9", process]));
        }
        run(Command::new("ip").args(["netns", "del", name]));
    }
}

fn print_logs(dir: &Path) {
    const LINES_PER_LOG: usize = 40;
    for number in 1..=u8::MAX {
        let Ok(files) = fs::read_dir(dir.join(format!("n{number}"))) else { break };
        for file in files
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
        {
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().collect();
            println!(
                "--- machine {number}, end of {}",
                file.file_name().unwrap_or_default().to_string_lossy()
            );
            for line in &lines[lines.len().saturating_sub(LINES_PER_LOG)..] {
                println!("{line}");
            }
        }
    }
}
