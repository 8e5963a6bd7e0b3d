"""A chart of the medians with their spread, as SVG by hand: no library is needed."""

from html import escape

from report import number

# Key, title, decimals.
PANELS = [
    ("tcp_ab_gbps", "TCP, one flow: Gbit/s (more is better)", 2),
    ("daemon_cpu_s_per_gb", "CPU of both daemons: ns per byte (less is better)", 2),
    ("udp64_kpps_lt1pct", "64-byte UDP, under 1 % loss: thousand packets/s (more is better)", 0),
    ("rtt_idle_p50_us", "Round trip, idle: µs, median (less is better)", 0),
    ("rtt_load_p50_us", "Round trip beside a TCP flow: µs, median (less is better)", 0),
    ("rss_load_mib", "Memory of a loaded daemon: MiB (less is better)", 1),
]
COLUMNS = 2
WIDTH, PANEL, LABEL_MIN, VALUE, LETTER = 1040, 520, 110, 70, 7.5
ROW, TITLE, GAP = 20, 30, 16
OURS, OTHERS, INK, FAINT = "#1f6feb", "#9aa4b1", "#1f2328", "#59636e"


def text(x, y, content, size=12, fill=INK, anchor="start", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(content)}</text>'
    )


def panel(peers, key, title, decimals, x, y):
    """One metric: a bar for each program, and a line from its least to its greatest value."""
    out = [text(x + 10, y + 18, title, 13, weight="bold")]
    shown = {name: p for name, p in peers.items() if key in p["summary"]}
    top = max(p["summary"][key]["max"] for p in shown.values()) or 1
    label = max(LABEL_MIN, *(LETTER * len(name) + 10 for name in shown))
    span = PANEL - label - VALUE - 20
    for i, (name, p) in enumerate(shown.items()):
        s = p["summary"][key]
        left, middle = x + label, y + TITLE + i * ROW + ROW / 2
        width, low, high = (span * s[k] / top for k in ("median", "min", "max"))
        weight = "bold" if p["ours"] else "normal"
        out += [
            text(left - 6, middle + 4, name, anchor="end", weight=weight),
            f'<rect x="{left:.1f}" y="{middle - 7}" width="{max(1, width):.1f}" height="14" rx="2" '
            f'fill="{OURS if p["ours"] else OTHERS}"/>',
            f'<line x1="{left + low:.1f}" x2="{left + high:.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{INK}" stroke-width="1.5"/>',
            text(left + max(width, high) + 6, middle + 4, number(s["median"], decimals), weight=weight),
        ]
    return out


def write(path, document):
    """Writes the chart; the bare link is left out, it would dwarf the rest."""
    peers = {n: p for n, p in document["peers"].items() if not p["ceiling"] and p["summary"]}
    panels = [panel for panel in PANELS if any(panel[0] in p["summary"] for p in peers.values())]
    if not panels:
        return
    height = TITLE + ROW * len(peers) + GAP
    rows = -(-len(panels) // COLUMNS)
    total = 50 + rows * height + 24
    m = document["machine"]
    body = [text(10, 26, f"Programs side by side, {document['conditions']}", 16, weight="bold")]
    for i, (key, title, decimals) in enumerate(panels):
        body += panel(peers, key, title, decimals, PANEL * (i % COLUMNS), 44 + height * (i // COLUMNS))
    note = (
        f"{document['when'][:10]}, medians of {document['rounds']} round(s), lines from least to greatest; "
        f"both ends on one machine: {m['cpu']}, {m['cores']} cores, Linux {m['kernel']}"
    )
    body.append(text(10, total - 12, note, 11, FAINT))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total}" '
        f'viewBox="0 0 {WIDTH} {total}" font-family="system-ui, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )
