"""The programs that are compared: the bare link, our daemon, and everybody else's (also in meshes.py).

A subclass of `Program` knows how to start one program on both sides of a pair. The driver calls `prepare(pair)` once,
then `start(pair.a)`, then `start(pair.b)`, and measures from a to `address(b)`. To add one, write the class and
name it in `known()`.
"""

import json
import os
import shlex
import shutil
from pathlib import Path

from net import run


class Program:
    """One row of the figures."""

    name = ""
    program = None  # the binary's name on PATH, if it is to be looked for there
    env = None  # the variable that names the binary instead
    tools = ()  # other programs that it needs, as (program, Debian package)
    ceiling = False  # no daemon: a reference of the kernel, not a competitor
    ours = False
    settings = ""  # what a reader must know: MTU, threads, offloads, transport
    start_timeout_s = 30.0

    def binary(self):
        """Path of the program, or None."""
        path = os.environ.get(self.env) if self.env else None
        if not path and self.program:
            path = shutil.which(self.program)
        return str(Path(path).resolve()) if path and Path(path).is_file() else None

    def missing(self):
        """Why this one cannot run here, or None."""
        if not self.ceiling and not self.binary():
            return " and ".join(
                [f"${self.env} names no program"] * bool(self.env)
                + [f"no {self.program} on PATH"] * bool(self.program)
            )
        absent = [f"{tool} (apt-get install {package})" for tool, package in self.tools if not shutil.which(tool)]
        return f"needs {', '.join(absent)}" if absent else None

    def version(self):
        """One line."""
        return self._version_line("--version") if not self.ceiling else ""

    def _version_line(self, flag):
        return run([self.binary(), flag], check=False).split("\n")[0].strip()

    def prepare(self, pair):
        """Keys and configuration files, in node.dir. Not timed."""

    def start(self, node):
        """Starts the program on one side; returns once nothing is left to do here."""
        raise NotImplementedError

    def address(self, node):
        """The overlay address of a side, valid after prepare()."""
        return {"a": "10.88.0.1", "b": "10.88.0.2"}[node.side]

    def iface(self, node):
        """Name of the tunnel interface of a side: the driver refuses figures that went around it."""
        return f"tun-{node.side}"


class Veth(Program):
    name = "veth"
    ceiling = True
    settings = "the bare link, no tunnel"

    def start(self, node):
        pass

    def address(self, node):
        return node.ip

    def iface(self, node):
        return node.veth


class Azora(Program):
    """Our daemon; `azora` stands beside it."""

    ours = True
    port = 5747
    tools = (("nft", "nftables"),)

    def __init__(self, daemon, name="azora", flags=""):
        self.daemon, self.name, self.flags = daemon, name, shlex.split(flags)
        self.settings = f"flags {flags}" if flags else "defaults, inbound allowed"

    def binary(self):
        return str(self.daemon) if self.daemon else None

    def missing(self):
        return super().missing() if self.daemon else "not built"

    def prepare(self, pair):
        cli = self.daemon.with_name("azora")
        self.nodes = {}
        for n in pair.nodes:
            state = n.dir / "state"
            state.mkdir(mode=0o700)
            run([cli, "key", "generate", "--state-dir", state])
            self.nodes[n.side] = json.loads(run([cli, "key", "show", "--state-dir", state, "--json"]))

    def address(self, node):
        return self.nodes[node.side]["address"]

    def start(self, node):
        argv = [self.daemon, "--state-dir", node.dir / "state", "--socket", node.dir / "sock"]
        argv += ["--tun", self.iface(node), "--listen", f"{node.ip}:{self.port}"]
        argv += ["--no-lan-discovery", "--inbound", "allow", *self.flags]
        if node.side == "b":
            argv += ["--bootstrap", f"{self.nodes['a']['node_id']}@{node.peer.ip}:{self.port}"]
        node.daemon(argv)


class WireGuard(Program):
    """WireGuard in user space: all of them speak the same control protocol."""

    port = 51820
    tools = (("wg", "wireguard-tools"),)

    def __init__(self, name, program, env, args, settings, environ=None):
        self.name, self.program, self.env = name, program, env
        self.args, self.environ = args, environ or {}
        self.settings = f"mtu 1420; {settings}"

    def iface(self, node):
        # The control sockets of both sides share /var/run/wireguard: names must differ.
        return f"wg{os.getpid()}{node.side}"

    def prepare(self, pair):
        self.mtu = pair.underlay.tunnel_mtu(1420, 80)
        secrets = {n.side: run(["wg", "genkey"]).strip() for n in pair.nodes}
        public = {side: run(["wg", "pubkey"], input=secret).strip() for side, secret in secrets.items()}
        for n in pair.nodes:
            (n.dir / "wg.conf").write_text(
                f"[Interface]\nPrivateKey = {secrets[n.side]}\nListenPort = {self.port}\n"
                f"[Peer]\nPublicKey = {public[n.peer.side]}\n"
                f"Endpoint = {n.peer.ip}:{self.port}\nAllowedIPs = {self.address(n.peer)}/32\n"
            )

    def start(self, node):
        dev = self.iface(node)
        node.daemon([self.binary(), *self.args, dev], env=self.environ)
        control = Path(f"/var/run/wireguard/{dev}.sock")
        node.wait_for(f"{control}", 10, lambda: control.exists() and node.has_link(dev))
        node.run(["wg", "setconf", dev, node.dir / "wg.conf"])
        node.run(["ip", "addr", "add", f"{self.address(node)}/24", "dev", dev])
        node.run(["ip", "link", "set", dev, "mtu", self.mtu, "up"])


def wireguards():
    rust = ["-f", "-v", "error", "--disable-drop-privileges"]
    quiet = {"LOG_LEVEL": "error"}
    go = "Go runtime, workers = cores"
    return [
        WireGuard(
            "wireguard-go-gso",
            None,
            "WIREGUARD_GO_GSO_BIN",
            ["-f"],
            f"{go}; a version of 2023 or later: TUN and UDP offloads",
            quiet,
        ),
        WireGuard(
            "wireguard-go",
            "wireguard-go",
            "WIREGUARD_GO_BIN",
            ["-f"],
            f"{go}; versions before 2023 have no TUN or UDP offload",
            quiet,
        ),
        WireGuard(
            "gotatun",
            "gotatun",
            "GOTATUN_BIN",
            rust,
            "tokio, workers = cores; sendmmsg, recvmmsg, UDP GRO; no TUN offload",
        ),
        WireGuard(
            "boringtun",
            "boringtun-cli",
            "BORINGTUN_BIN",
            rust,
            "4 threads; multi-queue TUN; connected UDP sockets; no offload",
        ),
    ]


def known(daemon, variants):
    """All programs by name, in the order of the table; `variants` of our daemon are pairs of name and flags."""
    import meshes

    ours = [Azora(daemon)] + [Azora(daemon, name, flags) for name, flags in variants]
    return {p.name: p for p in [Veth(), *ours, *wireguards(), *meshes.meshes()]}
