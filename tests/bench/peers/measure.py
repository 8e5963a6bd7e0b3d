"""The measurements, each on a running pair. Nothing here knows any program."""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from net import CLOCK_TICKS, BenchError, run, stop, sysctl

IPERF_PORT = "5201"
UDP_PORT = "5300"
IPERF_RECEIVE_BUFFER = 4 << 20
# Larger than any step takes; a program that moves nothing must not hang the run.
PATIENCE_S = 20


@dataclass
class Effort:
    """How long each measurement takes."""

    tcp_s: float = 5.0
    settle_s: float = 2.0
    idle_pings: int = 1000
    load_pings: int = 300
    udp_step_s: float = 1.0
    udp_steps: int = 8


QUICK = Effort(tcp_s=1.0, settle_s=0.3, idle_pings=200, load_pings=100, udp_step_s=0.3, udp_steps=4)


def percentile(values, q):
    v = sorted(values)
    return v[min(len(v) - 1, int(q / 100 * len(v)))]


def machine_busy_seconds():
    """user+nice+system+irq+softirq of all CPUs, from /proc/stat."""
    f = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(f[i]) for i in (0, 1, 2, 5, 6)) / CLOCK_TICKS


def wait_quiet(limit, patience_s):
    """Waits until the machine is used less than `limit` of it; returns its share."""
    end = time.monotonic() + patience_s
    while True:
        before = machine_busy_seconds()
        time.sleep(min(1.0, max(0.2, patience_s)))
        share = (machine_busy_seconds() - before) / os.cpu_count()
        if share <= limit or time.monotonic() > end:
            return share


def foreign_cpu_seconds(pair):
    """CPU time of every user process outside the pair's namespaces and but for us.

    Includes reaped children, so that a compiler that came and went is seen.
    """
    inside = {os.stat(f"/run/netns/{n.ns}").st_ino for n in pair.nodes}
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            if int(pid) in (2, os.getpid()) or int(fields[1]) in (2, os.getpid()):
                continue  # kernel threads work for us too
            if os.stat(f"/proc/{pid}/ns/net").st_ino not in inside:
                total += sum(map(int, fields[11:15]))
        except OSError:
            continue
    return total / CLOCK_TICKS


def build_probe(folder):
    """Compiles the traffic probe."""
    out = Path(folder) / "netprobe"
    run([os.environ.get("CC", "cc"), "-O2", "-o", out, Path(__file__).with_name("netprobe.c")])
    return out


def first_reply(node, probe, address, timeout_s):
    """Starts waiting for the first ping reply; the probe prints when it came."""
    return node.popen([probe, "wait", address, timeout_s], stdout=subprocess.PIPE, text=True)


def reply_at(waiting):
    """When the reply came (CLOCK_MONOTONIC, as `time.monotonic`), or None."""
    try:
        return json.loads(waiting.stdout.readline() or "{}").get("reply_at")
    finally:
        stop([waiting])


class Meter:
    """Measures the tunnel of a pair, from side a towards side b's address."""

    def __init__(self, pair, address, probe, effort):
        self.pair, self.a, self.b = pair, pair.a, pair.b
        self.address, self.probe, self.effort = address, probe, effort
        self.server = None

    def __enter__(self):
        self.server = self.b.popen(
            ["iperf3", "-s", "-p", IPERF_PORT], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(0.3)
        return self

    def __exit__(self, *exc):
        stop([self.server])

    def _iperf_argv(self, seconds, extra=()):
        return ["iperf3", "-J", "-c", self.address, "-p", IPERF_PORT, "-t", str(seconds), *extra]

    def _iperf(self, seconds, extra=()):
        try:
            p = subprocess.run(
                self.a.argv(self._iperf_argv(seconds, extra)),
                capture_output=True,
                text=True,
                timeout=seconds + PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"iperf3 {' '.join(extra)} hung for {seconds + PATIENCE_S} s") from None
        out = json.loads(p.stdout or "{}")
        if p.returncode or not out.get("end"):
            raise BenchError(f"iperf3 {' '.join(extra)}: {out.get('error') or p.stderr.strip()}")
        return out["end"]

    def warm_up(self):
        """A second of TCP: path MTU found, buffers grown."""
        self._iperf(1.0)

    def tcp(self, *extra):
        """One iperf3 run: Gbit/s received, and CPU seconds per GB (10^9 bytes), which are ns per byte."""
        cpu0 = [n.cpu_seconds() for n in self.pair.nodes]
        busy0, foreign0, t0 = machine_busy_seconds(), foreign_cpu_seconds(self.pair), time.monotonic()
        end = self._iperf(self.effort.tcp_s, extra)
        took = time.monotonic() - t0
        foreign = max(0.0, foreign_cpu_seconds(self.pair) - foreign0)
        cpu = [n.cpu_seconds() - c for n, c in zip(self.pair.nodes, cpu0)]
        busy = machine_busy_seconds() - busy0
        gb = end["sum_received"]["bytes"] / 1e9
        if not gb:
            raise BenchError("iperf3 moved no bytes")
        return {
            "gbps": end["sum_received"]["bits_per_second"] / 1e9,
            "retransmits": end.get("sum_sent", {}).get("retransmits"),
            "gbytes": gb,
            "daemon_cpu_s_per_gb": sum(cpu) / gb,
            "daemon_cpu_s_per_gb_a": cpu[0] / gb,
            "daemon_cpu_s_per_gb_b": cpu[1] / gb,
            "machine_cpu_s_per_gb": busy / gb,
            "foreign_cpu_pct": 100 * foreign / took / os.cpu_count(),
        }

    def udp_bulk(self):
        """iperf3 offers 3 Gbit/s of 1400-byte datagrams: Gbit/s received, and loss in percent.

        Its server gets a larger receive buffer: with the usual one it loses half of them on the bare link, in pauses
        of its own. (`iperf3 -w` would also enlarge the sender's, which then overruns the interface.)
        """
        with sysctl("net.core.rmem_default", IPERF_RECEIVE_BUFFER):
            got = self._iperf(self.effort.tcp_s, ("-u", "-b", "3G", "-l", "1400"))["sum_received"]
        return {
            "gbps": got["bits_per_second"] / 1e9,
            "offered_gbps": got["packets"] * 1400 * 8 / got["seconds"] / 1e9,
            "loss_pct": got["lost_percent"],
        }

    def ping(self, count, interval_s):
        """RTTs in microseconds, packet by packet, as ping prints them."""
        p = subprocess.run(
            self.a.argv(["ping", "-n", "-i", str(interval_s), "-c", str(count), "-W", "2", self.address]),
            capture_output=True,
            text=True,
            timeout=count * interval_s * 4 + 30,
        )
        rtts = [float(x) * 1000 for x in re.findall(r"time=([\d.]+) ms", p.stdout)]
        if not rtts:
            raise BenchError(f"no ping reply: {p.stdout[-200:]}{p.stderr[-200:]}")
        return {
            "p50_us": percentile(rtts, 50),
            "p99_us": percentile(rtts, 99),
            "min_us": min(rtts),
            "max_us": max(rtts),
            "loss": 1 - len(rtts) / count,
        }

    def ping_idle(self):
        return self.ping(self.effort.idle_pings, 0.002)

    def ping_under_load(self):
        """Pings 10 ms apart beside one TCP stream, which had a second to grow."""
        count = self.effort.load_pings
        bulk = self.a.popen(
            self._iperf_argv(count * 0.01 + 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(1.0)
            return self.ping(count, 0.01)
        finally:
            try:
                bulk.wait(15)
            except subprocess.TimeoutExpired:
                stop([bulk])

    def udp_once(self, size, pps):
        """One step of sending; pps 0 is as fast as the sender can."""
        seconds = self.effort.udp_step_s
        rx = self.b.popen([self.probe, "recv", UDP_PORT, seconds + 2], stdout=subprocess.PIPE, text=True)
        try:
            rx.stdout.readline()  # "ready"
            tx = json.loads(self.a.run([self.probe, "send", self.address, UDP_PORT, size, pps, seconds]))
            got = json.loads(rx.stdout.readline())
            rx.wait(5)
        finally:
            stop([rx])
        return {
            "offered_pps": tx["pps"],
            "delivered_pps": got["received"] / tx["seconds"],
            "loss": 1 - got["received"] / max(1, tx["sent"]),
        }

    def udp_rate(self, size=64, limit=0.01):
        """Largest delivered rate with under 1 % loss, by bisection of the offered rate.

        The first step offers as much as the sender can; it shows the delivered rate
        under overload, which some programs let collapse.
        """
        flood = self.udp_once(size, 0)
        tries = [flood]
        best = flood["delivered_pps"] if flood["loss"] < limit else 0.0
        if not best:
            guess = max(1000.0, flood["delivered_pps"])
            good, bad = max(500.0, guess / 50), max(flood["offered_pps"], guess * 1.1)
            for _ in range(self.effort.udp_steps):
                t = self.udp_once(size, guess)
                tries.append(t)
                if t["loss"] < limit:
                    best = max(best, t["delivered_pps"])
                    good = guess
                else:
                    bad = guess
                guess = (good * bad) ** 0.5
        return {
            "kpps_lt1pct_loss": best / 1e3,
            "kpps_max_delivered": max(t["delivered_pps"] for t in tries) / 1e3,
            "kpps_at_flood": flood["delivered_pps"] / 1e3,
            "tries": tries,
        }
