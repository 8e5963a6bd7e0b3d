"""Runs tunnel programs side by side, in two network namespaces joined by one veth pair, and prints both sides.

  sudo -E scripts/bench                                   all that is installed, 5 rounds
  sudo -E scripts/bench --quick                           does it work? veth and azora, under a minute
  sudo -E scripts/bench --no-offload                      trains cut to single packets, as without offloads
  sudo -E scripts/bench --loss 1                          TCP beside the bare link under the same loss
  sudo -E scripts/bench --rate 20mbit                     a thin link: round trips under load
  sudo -E scripts/bench --azora-flags 'azora:--log warn' --azora-flags 'debug:--log debug'

Programs are taken from PATH or a variable; nothing is fetched. --list says which are there. It needs root,
/dev/net/tun, iproute2, iperf3, ping, nft and a C compiler.

Per round and program, on a fresh pair:
  start        from the start of the second daemon (b) to the first reply to its ping of a
  RTT idle     1000 pings 2 ms apart; percentiles over single packets
  TCP          a>b, b>a, 4 streams a>b: iperf3, 5 s each (15 with --loss), cubic, Gbit/s received
  CPU          during a>b: utime+stime of both daemons (or of the machine, iperf3 included) per byte of payload
  UDP 1400 B   iperf3 -u -b 3G -l 1400, its server with a receive buffer of 4 MiB: what arrives, and the loss
  UDP 64 B     1 s a step: a flood, then bisection for the largest delivered rate with under 1 % loss
  RTT under TCP  300 pings 10 ms apart beside one TCP stream
  RSS          the larger of both daemons, at rest and after all that
Rounds interleave the programs. With --rate and --loss, UDP is left out: the link itself drops.

Both daemons, both iperf3 and the kernel share this machine's cores, and there is no network card: throughput is the
total CPU cost turned upside down. A veth carries a whole train of 64 KB for the price of a packet, which flatters
whoever sends trains, so look at --no-offload too. Distrust a run where others took more than a few per cent of the CPU.
"""

import argparse
import atexit
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import chart
import measure
import programs
import report
from measure import Effort, Meter
from net import TAG, BenchError, Pair, Underlay, cubic_allowed, run, stop, sweep

ROOT = Path(__file__).resolve().parents[3]
DAEMON = "azora-meshing-daemon"
NICE = -20
# What others may use of the machine when a measurement begins, and how long we wait for that.
QUIET_SHARE, QUIET_WAIT_S = 0.05, 60.0
TOOLS = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iperf3", "iperf3"),
    ("ping", "iputils-ping"),
    ("sysctl", "procps"),
    ("nft", "nftables"),
    (os.environ.get("CC", "cc"), "build-essential"),
]


def arguments():
    head, _, rest = __doc__.partition("\n")
    ap = argparse.ArgumentParser(
        prog="scripts/bench",
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ap.add_argument("--rounds", type=int, help="default: 5")
    ap.add_argument("--peers", metavar="NAME,..", help="of these programs only (default: all that are installed)")
    ap.add_argument("--label", default="", help="appended to the names of the files")
    ap.add_argument("--no-offload", action="store_true", help="no train of packets crosses the veth whole")
    ap.add_argument("--rate", metavar="20mbit", help="bottleneck of the link (tbf), with a queue of 100 ms")
    ap.add_argument(
        "--loss",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="lost each way; implies --no-offload, or a whole train would count as one packet",
    )
    ap.add_argument("--mtu", type=int, default=1500, help="of the link (default: 1500); tunnels follow it")
    ap.add_argument(
        "--azora-flags",
        action="append",
        default=[],
        metavar="LABEL:FLAGS",
        help="also run our daemon with these flags; may be repeated (label azora: called by the flags)",
    )
    ap.add_argument("--bin", type=Path, metavar="DIR", help="our two programs (default: build a release)")
    ap.add_argument("--out", type=Path, default=ROOT / "target/bench", help="folder for JSON, Markdown and SVG")
    ap.add_argument("--quick", action="store_true", help="1 short round of veth and azora: does everything work?")
    ap.add_argument("--list", action="store_true", help="say which programs are there and which are not, and end")
    args = ap.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.peers = args.peers or ("veth,azora" if args.quick else None)
    if not 0 <= args.loss < 100:
        ap.error("--loss is a percentage below 100")
    return args


def require():
    """Says all that is missing at once."""
    missing = []
    if os.geteuid():
        missing.append("root, for network namespaces: sudo -E scripts/bench")
    missing += [f"{tool}: apt-get install {package}" for tool, package in TOOLS if not shutil.which(tool)]
    if not Path("/dev/net/tun").exists():
        missing.append("/dev/net/tun: modprobe tun")
    if missing:
        sys.exit("The benchmark cannot run here yet. Missing:\n  " + "\n  ".join(missing))


def our_daemon(given, build):
    """Path of our daemon, its CLI beside it; None when there is none and none is to be built."""
    if given:
        daemon = given if given.is_file() else given / DAEMON
        absent = [str(p) for p in (daemon, daemon.with_name("azora")) if not p.is_file()]
        if absent:
            sys.exit(f"--bin: no {' and no '.join(absent)}")
        return daemon.resolve()
    if not shutil.which("cargo"):
        sys.exit("cargo is not on PATH (under sudo: sudo -E env PATH=\"$PATH\" scripts/bench), or give --bin DIR")
    info = run(["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"], cwd=ROOT)
    daemon = Path(json.loads(info)["target_directory"]) / "release" / DAEMON
    if build:
        print("building the release ...", file=sys.stderr)
        if subprocess.run(["cargo", "build", "--release", "--locked", "--bins"], cwd=ROOT).returncode:
            sys.exit("the build failed")
    return daemon if daemon.is_file() else None


def variants(texts):
    """Name and flags of every `LABEL:FLAGS`; one whose label is taken is called by all of it."""
    out = []
    for text in texts:
        label, _, flags = text.partition(":")
        if not label or label.startswith("-") or not flags:
            sys.exit(f"--azora-flags: {text!r} is not LABEL:FLAGS")
        taken = label == "azora" or label in dict(out)
        out.append((text if taken else label, flags))
    return out


def prioritise():
    """Puts this process and its children before the rest of a shared machine; among them, each as it comes."""
    group = Path("/proc/self/autogroup")  # with autogroups, `nice` counts inside a session only
    if group.exists():
        group.write_text(str(NICE))
        atexit.register(group.write_text, "0")
    else:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


def end_on_signals():
    """The first signal unwinds, so that all that was made is removed; later ones do not disturb that."""

    def end(number, _):
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        sys.exit(128 + number)

    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, end)


def start_pair(program, pair, probe):
    """Starts both sides; returns ms from the start of side b to its first ping reply."""
    program.prepare(pair)
    a, b = pair.nodes
    program.start(a)
    if not program.ceiling:
        time.sleep(1.0)
        a.check_alive()
    waiting = measure.first_reply(b, probe, program.address(a), program.start_timeout_s)
    try:
        time.sleep(0.05)
        began = time.monotonic()
        program.start(b)
    except BaseException:
        stop([waiting])
        raise
    first = measure.reply_at(waiting)
    if first is None:
        logs = "\n".join(f"[{n.side}] {n.daemon_log()}" for n in pair.nodes)
        raise BenchError(f"no ping reply in {program.start_timeout_s} s\n{logs}")
    back = measure.first_reply(a, probe, program.address(b), program.start_timeout_s)
    if measure.reply_at(back) is None:
        raise BenchError("ping works from b to a only")
    for n in pair.nodes:
        n.check_alive()
        route = n.run(["ip", "route", "get", program.address(n.peer)])
        if f" dev {program.iface(n)} " not in route:
            raise BenchError(f"traffic would bypass {program.iface(n)}: {route.strip()}")
    return (first - began) * 1000


def one_round(program, underlay, effort, probe):
    """All figures of one program, from a fresh pair."""
    with Pair(underlay) as pair:
        start_ms = start_pair(program, pair, probe)
        time.sleep(effort.settle_s)
        rss_idle = max(n.rss_mib() for n in pair.nodes)
        bulk = udp = {}
        with Meter(pair, program.address(pair.b), probe, effort) as m:
            m.warm_up()
            idle = m.ping_idle()
            ab, ba, four = m.tcp(), m.tcp("-R"), m.tcp("-P", "4")
            if not underlay.rate and not underlay.loss:
                bulk, udp = m.udp_bulk(), m.udp_rate()
            load = m.ping_under_load()
        for n in pair.nodes:
            n.check_alive()
        figures = {
            "tcp_ab_gbps": ab["gbps"],
            "tcp_ba_gbps": ba["gbps"],
            "tcp4_gbps": four["gbps"],
            "udp64_kpps_lt1pct": udp.get("kpps_lt1pct_loss"),
            "udp64_kpps_max": udp.get("kpps_max_delivered"),
            "udp64_kpps_flood": udp.get("kpps_at_flood"),
            "udp1400_gbps": bulk.get("gbps"),
            "udp1400_loss_pct": bulk.get("loss_pct"),
            "rtt_idle_p50_us": idle["p50_us"],
            "rtt_idle_p99_us": idle["p99_us"],
            "rtt_load_p50_us": load["p50_us"],
            "rtt_load_p99_us": load["p99_us"],
            "machine_cpu_s_per_gb": ab["machine_cpu_s_per_gb"],
            "foreign_cpu_pct": max(x["foreign_cpu_pct"] for x in (ab, ba, four)),
        }
        if not program.ceiling:
            figures |= {
                "daemon_cpu_s_per_gb": ab["daemon_cpu_s_per_gb"],
                "rss_idle_mib": rss_idle,
                "rss_load_mib": max(n.rss_mib() for n in pair.nodes),
                "start_ms": start_ms,
            }
        raw = {"tcp_ab": ab, "tcp_ba": ba, "tcp4": four, "udp1400": bulk, "udp64": udp, "idle": idle, "load": load}
        return figures | {"raw": raw}


def choose(args, known):
    """The programs to run, and what is known of them beforehand."""
    names = args.peers.split(",") if args.peers else list(known)
    names += [n for n, p in known.items() if p.ours and n != "azora" and n not in names]
    if unknown := [n for n in names if n not in known]:
        sys.exit(f"unknown programs {', '.join(unknown)}; there are {', '.join(known)}")
    chosen, results = [], {}
    for p in (p for n, p in known.items() if n in names):
        if why := p.missing():
            print(f"without {p.name}: {why}", file=sys.stderr)
            continue
        chosen.append(p)
        about = {"version": p.version(), "settings": p.settings, "binary": p.binary()}
        results[p.name] = about | {"ours": p.ours, "ceiling": p.ceiling, "rounds": [], "errors": [], "summary": {}}
    if not chosen:
        sys.exit("nothing to run")
    return chosen, results


def conditions(u):
    parts = [f"MTU {u.mtu}", "offloads on" if u.offload else "offloads off"]
    parts += [f"{u.rate} bottleneck"] * bool(u.rate) + [f"{u.loss:g} % loss each way"] * bool(u.loss)
    return ", ".join(parts)


def main():
    args = arguments()
    # A user's PATH often lacks where daemons are.
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    if args.list:
        for p in programs.known(our_daemon(args.bin, build=False), variants(args.azora_flags)).values():
            print(f"{p.name:17} {p.missing() or p.binary() or 'kernel'}")
        return 0
    require()
    underlay = Underlay(args.mtu, not args.no_offload and not args.loss, args.rate, args.loss)
    # Under loss a flow's rate is a matter of luck for seconds.
    effort = measure.QUICK if args.quick else Effort(tcp_s=15.0 if args.loss else 5.0)
    known = programs.known(our_daemon(args.bin, build=True), variants(args.azora_flags))
    chosen, results = choose(args, known)
    started = datetime.datetime.now().isoformat(timespec="seconds")
    document = {
        "when": started,
        "conditions": conditions(underlay),
        "rounds": args.rounds,
        "quick": args.quick,
        "machine": report.machine(),
        "metrics": [{"title": title, "key": key, "better": better} for title, key, _, better in report.METRICS],
        "peers": results,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / (started.replace(":", "") + (f"-{args.label}" if args.label else ""))

    end_on_signals()
    sweep()
    if not args.quick:
        prioritise()
    with cubic_allowed(), tempfile.TemporaryDirectory(prefix=f"{TAG}{os.getpid()}-") as scratch:
        probe = measure.build_probe(scratch)
        for i in range(args.rounds):
            # Rounds interleave the programs, each from another start, to share the noise.
            shift = i * len(chosen) // args.rounds
            for program in chosen[shift:] + chosen[:shift]:
                began = time.monotonic()
                result = results[program.name]
                measure.wait_quiet(QUIET_SHARE, 0 if args.quick else QUIET_WAIT_S)
                try:
                    r = one_round(program, underlay, effort, probe)
                    result["rounds"].append(r)
                    note = f"{r['tcp_ab_gbps']:.2f} Gbit/s, idle {r['rtt_idle_p50_us']:.0f} us"
                except (BenchError, subprocess.SubprocessError, OSError, ValueError, KeyError) as e:
                    result["errors"].append([i + 1, f"{type(e).__name__}: {e}"])
                    note = f"FAILED: {e}"
                took = time.monotonic() - began
                print(f"round {i + 1} {program.name}: {note} ({took:.0f} s)", file=sys.stderr, flush=True)
                result["summary"] = report.summary(result["rounds"])
                report.write(stem, document)
                chart.write(stem.with_name(stem.name + ".svg"), document)
    print(report.tables(results))
    print(f"\n{stem}.json, .md, .svg", file=sys.stderr)
    return 1 if any(p["errors"] for p in results.values()) else 0


sys.exit(main())
