"""What comes out of the rounds: medians and spread, comparisons, JSON and Markdown."""

import json
import os
import platform
from pathlib import Path
from statistics import median

from net import run

HIGH, LOW, NEITHER = "higher", "lower", None
# Title, key of a round's figure, decimals, which is better. The keys are those of the JSON file.
METRICS = [
    ("TCP a>b Gbit/s", "tcp_ab_gbps", 2, HIGH),
    ("TCP b>a Gbit/s", "tcp_ba_gbps", 2, HIGH),
    ("TCP x4 Gbit/s", "tcp4_gbps", 2, HIGH),
    ("UDP 64 B kpps, <1% loss", "udp64_kpps_lt1pct", 1, HIGH),
    ("UDP 64 B kpps, most", "udp64_kpps_max", 1, HIGH),
    ("UDP 64 B kpps at flood", "udp64_kpps_flood", 1, HIGH),
    ("UDP 1400 B of 3 Gbit/s", "udp1400_gbps", 2, HIGH),
    ("UDP 1400 B loss %", "udp1400_loss_pct", 2, LOW),
    ("RTT idle p50 us", "rtt_idle_p50_us", 0, LOW),
    ("RTT idle p99 us", "rtt_idle_p99_us", 0, LOW),
    ("RTT under TCP p50 us", "rtt_load_p50_us", 0, LOW),
    ("RTT under TCP p99 us", "rtt_load_p99_us", 0, LOW),
    ("daemon CPU ns/byte", "daemon_cpu_s_per_gb", 2, LOW),
    ("machine CPU ns/byte", "machine_cpu_s_per_gb", 2, LOW),
    ("RSS idle MiB", "rss_idle_mib", 1, LOW),
    ("RSS loaded MiB", "rss_load_mib", 1, LOW),
    ("start ms", "start_ms", 0, LOW),
    ("others' CPU % during TCP", "foreign_cpu_pct", 1, NEITHER),
]


def summary(rounds):
    """Median, least, greatest and all values of each figure."""
    out = {}
    for _, key, _, _ in METRICS:
        values = [r[key] for r in rounds if r.get(key) is not None]
        if values:
            out[key] = {"median": median(values), "min": min(values), "max": max(values), "all": values}
    return out


def shown(peers):
    """The metrics that somebody has."""
    return [m for m in METRICS if any(m[1] in p["summary"] for p in peers.values())]


def number(value, d):
    """With so many decimals, and two more where those would show nothing (a thin link in Gbit/s)."""
    return f"{value:.{d + 2 if 0 < value < 0.1 and d else d}f}"


def cell(s, d):
    if not s:
        return "-"
    spread = f" ({number(s['min'], d)}..{number(s['max'], d)})" if len(s["all"]) > 1 else ""
    return number(s["median"], d) + spread


def figures(peers):
    """Rows of the large table: a metric each, every program's median and spread."""
    rows = [["median (min..max)", *peers]]
    for title, key, d, _ in shown(peers):
        row = [title]
        for p in peers.values():
            row.append(cell(p["summary"].get(key), d))
        rows.append(row)
    return rows


def comparison(peers, ours):
    """Rows of one of our variants beside the best of the others, and the bare link."""
    rows = [[f"medians of {ours}", "", "best other program", "", "how many times better", "share of the bare link"]]
    mine = peers[ours]["summary"]
    bare = next((p["summary"] for p in peers.values() if p["ceiling"]), {})
    others = {n: p["summary"] for n, p in peers.items() if not p["ceiling"] and not p["ours"]}
    for title, key, d, better in shown(peers):
        if better is None or key not in mine:
            continue
        value = mine[key]["median"]
        pick = max if better == HIGH else min
        rivals = {n: s[key]["median"] for n, s in others.items() if key in s}
        name = pick(rivals, key=rivals.get) if rivals else ""
        row = [title, number(value, d)]
        if name:
            worse, best = (rivals[name], value) if better == HIGH else (value, rivals[name])
            row += [name, number(rivals[name], d), f"{best / worse:.2f}" if worse else "-"]
        else:
            row += ["-", "-", "-"]
        goodput = key.startswith("tcp") and key in bare
        row.append(f"{100 * value / bare[key]['median']:.0f} %" if goodput else "")
        rows.append(row)
    return rows


def markdown(rows):
    """A table whose columns also line up as plain text."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)


def machine():
    cpu = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": next((x.split(":")[1].strip() for x in cpu.splitlines() if "model name" in x), platform.machine()),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "iperf3": run(["iperf3", "--version"], check=False).split(" (")[0].strip(),
    }


def tables(peers):
    parts = [markdown(figures(peers))]
    if not all(p["ours"] for p in peers.values()):
        ours = [name for name, p in peers.items() if p["ours"] and p["summary"]]
        parts += [markdown(comparison(peers, name)) for name in ours]
    return "\n\n".join(parts)


def write(stem, document):
    """Writes the JSON and the Markdown file."""
    stem.with_name(stem.name + ".json").write_text(json.dumps(document, indent=1, default=str) + "\n")
    peers, m = document["peers"], document["machine"]
    lines = [
        "# Programs side by side",
        "",
        f"{document['when']}, {document['conditions']}; {document['rounds']} rounds, interleaved.",
        f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, {m['iperf3']}; both ends on this machine.",
        "",
        tables(peers),
        "",
    ]
    for name, p in peers.items():
        lines.append(f"- **{name}** {p['version']}: {p['settings']}")
        lines += [f"  - round {i} failed: {' '.join(error.split())}" for i, error in p["errors"]]
    stem.with_name(stem.name + ".md").write_text("\n".join(lines) + "\n")
