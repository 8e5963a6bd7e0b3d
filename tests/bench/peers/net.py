"""Two network namespaces joined by one veth pair, and processes inside them."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
# Names of all that a run makes begin with it and its process ID.
TAG = "azbench"
# What a thin link's router holds before it drops, in ms: too much, as most do.
QUEUE_MS = 100
ALLOWED = "net.ipv4.tcp_allowed_congestion_control"
PR_SET_PDEATHSIG = 1


class BenchError(Exception):
    """A program or a measurement did not work; the message says why."""


def run(argv, check=True, **kw):
    """Runs a short command and returns its stdout."""
    p = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, **kw)
    if check and p.returncode:
        raise BenchError(f"{' '.join(map(str, argv))}: rc {p.returncode}: {p.stderr.strip()[-500:]}")
    return p.stdout


def die_with_parent():
    """In a child: should this run be killed, its daemons end with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Underlay:
    """What joins the two namespaces."""

    mtu: int = 1500
    # False: packets of a train cross one by one, as over a card without offloads.
    offload: bool = True
    rate: str | None = None  # bottleneck of both directions, as tc writes it: 20mbit
    loss: float = 0.0  # percent, each way

    def tunnel_mtu(self, default, overhead):
        """A program's default MTU on a 1500-byte underlay, else the largest that fits."""
        return default if self.mtu == 1500 else self.mtu - overhead

    def shape(self, node):
        """Applies it to one side's veth, which exists."""
        node.run(["ip", "link", "set", node.veth, "mtu", self.mtu, "up"])
        if not self.offload:
            node.run(["ip", "link", "set", node.veth, "gso_max_segs", 1])
        if self.rate:
            node.run(
                ["tc", "qdisc", "add", "dev", node.veth, "root", "tbf"]
                + ["rate", self.rate, "burst", "16kb", "latency", f"{QUEUE_MS}ms"]
            )
        if self.loss:
            # nft rather than netem, which not every kernel has; at the receiver, where trains have been cut.
            drop = f"numgen random mod 100000 < {round(self.loss * 1000)} drop"
            chain = f"type filter hook ingress device {node.veth} priority 0; policy accept"
            node.run(
                ["nft", "-f", "-"],
                input=f"table netdev loss {{\n chain ingress {{\n {chain}\n {drop}\n }}\n}}\n",
            )


@dataclass
class Node:
    """One side of the pair: a namespace, its underlay address, its work folder."""

    side: str  # "a" or "b"
    ns: str
    ip: str
    dir: Path
    peer: "Node" = None
    daemons: list = field(default_factory=list)

    @property
    def veth(self):
        return f"veth-{self.side}"

    def argv(self, argv):
        # `ip netns exec` execs its command, so a child's pid is the daemon's pid.
        return ["ip", "netns", "exec", self.ns, *map(str, argv)]

    def run(self, argv, check=True, **kw):
        return run(self.argv(argv), check=check, **kw)

    def popen(self, argv, **kw):
        return subprocess.Popen(self.argv(argv), preexec_fn=die_with_parent, **kw)

    def daemon(self, argv, env=None):
        """Starts a daemon of the program under test; its output goes to a log file."""
        # A debugging shell's RUST_BACKTRACE or GODEBUG must not change what is measured.
        base = {k: v for k, v in os.environ.items() if not k.startswith(("RUST_", "GO", "AZORA_"))}
        with open(self.dir / "daemon.log", "ab") as log:
            p = self.popen(
                argv,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**base, **(env or {})},
                cwd=self.dir,
            )
        self.daemons.append(p)

    def daemon_log(self, chars=600):
        try:
            return (self.dir / "daemon.log").read_text(errors="replace")[-chars:]
        except OSError:
            return ""

    def check_alive(self):
        for p in self.daemons:
            if p.poll() is not None:
                raise BenchError(f"daemon {self.side} ended, rc {p.returncode}: {self.daemon_log()}")

    def wait_for(self, what, timeout, test):
        end = time.monotonic() + timeout
        while not test():
            self.check_alive()
            if time.monotonic() > end:
                raise BenchError(f"{what} did not appear in {timeout} s: {self.daemon_log()}")
            time.sleep(0.002)

    def has_link(self, name):
        return bool(self.run(["ip", "-o", "link", "show", "dev", name], check=False))

    def cpu_seconds(self):
        """utime+stime of this side's daemons, from /proc/PID/stat."""
        total = 0.0
        for p in self.daemons:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{p.pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
        return total

    def rss_mib(self):
        total = 0.0
        for p in self.daemons:
            status = Path(f"/proc/{p.pid}/status").read_text()
            total += sum(int(kib) for kib in re.findall(r"^VmRSS:\s+(\d+)", status, re.M)) / 1024
        return total


class Pair:
    """Both sides; a context manager that removes all it made."""

    def __init__(self, underlay):
        self.underlay = underlay
        self.dir = Path(tempfile.mkdtemp(prefix=f"{TAG}{os.getpid()}-"))
        self.a, self.b = (
            Node(s, f"{TAG}{os.getpid()}-{s}", f"10.77.0.{i}", self.dir / s)
            for i, s in ((1, "a"), (2, "b"))
        )
        self.a.peer, self.b.peer = self.b, self.a
        self.nodes = (self.a, self.b)

    def __enter__(self):
        try:
            for n in self.nodes:
                n.dir.mkdir()
                run(["ip", "netns", "add", n.ns])
                # The host's default may be bbr, whose pacing adds noise of its own.
                n.run(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=cubic"])
                n.run(["ip", "link", "set", "lo", "up"])
            run(
                ["ip", "link", "add", self.a.veth, "netns", self.a.ns, "type", "veth"]
                + ["peer", "name", self.b.veth, "netns", self.b.ns]
            )
            # No default route: an overlay address must not be reachable around the tunnel.
            for n in self.nodes:
                self.underlay.shape(n)
                n.run(["ip", "addr", "add", f"{n.ip}/24", "dev", n.veth])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        stop([p for n in self.nodes for p in n.daemons])
        for n in self.nodes:
            n.daemons = []
            run(["ip", "netns", "del", n.ns], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)


def sweep():
    """Removes what earlier runs left that were killed."""

    def ended(pid):
        return not Path(f"/proc/{pid}").exists()

    for name, pid in re.findall(rf"^({TAG}(\d+)-[ab])\b", run(["ip", "netns", "list"]), re.M):
        if ended(pid):
            run(["ip", "netns", "del", name], check=False)
    for folder in Path(tempfile.gettempdir()).glob(f"{TAG}*-*"):
        pid = folder.name.removeprefix(TAG).split("-")[0]
        if pid.isdigit() and ended(pid):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def sysctl(name, value):
    """Sets a variable of the whole machine for a while."""
    before = run(["sysctl", "-n", name]).strip()
    run(["sysctl", "-qw", f"{name}={value}"])
    try:
        yield
    finally:
        run(["sysctl", "-qw", f"{name}={before}"])


def cubic_allowed():
    """Lets namespaces choose cubic where the host's default is another."""
    allowed = run(["sysctl", "-n", ALLOWED]).split()
    return sysctl(ALLOWED, " ".join(allowed + ["cubic"] * ("cubic" not in allowed)))


def stop(procs, grace=3.0):
    """Ends the given child processes, and only those."""
    for p in procs:
        if p.poll() is None:
            p.send_signal(signal.SIGTERM)
    end = time.monotonic() + grace
    for p in procs:
        try:
            p.wait(max(0.01, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
