"""Mesh networks by others: nebula, yggdrasil, tinc, mycelium, EasyTier."""

import json
import subprocess

from net import run
from programs import Program


class Nebula(Program):
    """Certificates, Noise, UDP; side a is the lighthouse."""

    port = 4242
    tools = (("nebula-cert", "nebula"),)
    settings = "mtu 1300 (default); AES-256-GCM; routines 1; recvmmsg batch 64; no offload"
    config = """
pki: {{ca: {dir}/../ca.crt, cert: {dir}/node.crt, key: {dir}/node.key}}
static_host_map: {hosts}
lighthouse: {{am_lighthouse: {lighthouse}, interval: 60, hosts: {lighthouses}}}
listen: {{host: 0.0.0.0, port: {port}}}
punchy: {{punch: false}}
tun: {{dev: {dev}, mtu: {mtu}}}
logging: {{level: warning, format: text}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""

    def __init__(self, name, program, env):
        self.name, self.program, self.env = name, program, env

    def version(self):
        return self._version_line("-version")

    def prepare(self, pair):
        ca = ["-out-crt", pair.dir / "ca.crt", "-out-key", pair.dir / "ca.key"]
        run(["nebula-cert", "ca", "-name", "bench", *ca])
        for n in pair.nodes:
            run(
                ["nebula-cert", "sign", "-name", n.side, "-ip", f"{self.address(n)}/24"]
                + ["-ca-crt", pair.dir / "ca.crt", "-ca-key", pair.dir / "ca.key"]
                + ["-out-crt", n.dir / "node.crt", "-out-key", n.dir / "node.key"]
            )
            (n.dir / "config.yml").write_text(
                self.config.format(
                    dir=n.dir,
                    hosts=json.dumps({self.address(n.peer): [f"{n.peer.ip}:{self.port}"]}),
                    lighthouse=json.dumps(n.side == "a"),
                    lighthouses=json.dumps([] if n.side == "a" else [self.address(n.peer)]),
                    port=self.port,
                    dev=self.iface(n),
                    mtu=pair.underlay.tunnel_mtu(1300, 60),
                )
            )

    def start(self, node):
        node.daemon([self.binary(), "-config", node.dir / "config.yml"])


class Yggdrasil(Program):
    """Key-derived IPv6 addresses, spanning-tree routing, streams over TCP."""

    port = 9001
    settings = (
        "mtu 65535 (default); links over tcp://, which keeps the large packets whole; "
        "end-to-end encrypted on top; Go runtime"
    )

    def __init__(self, name, program, env):
        self.name, self.program, self.env = name, program, env

    def version(self):
        lines = run([self.binary(), "-version"], check=False).split("\n")
        return " ".join(line.strip() for line in lines if "ersion" in line)

    def prepare(self, pair):
        self.addresses = {}
        for n in pair.nodes:
            config = json.loads(run([self.binary(), "-genconf", "-json"]))
            config.update(
                Peers=[f"tcp://{n.peer.ip}:{self.port}"] if n.side == "b" else [],
                Listen=[f"tcp://{n.ip}:{self.port}"],
                AdminListen="none",
                MulticastInterfaces=[],
                IfName=self.iface(n),
                NodeInfoPrivacy=True,
            )
            path = n.dir / "yggdrasil.json"
            path.write_text(json.dumps(config))
            self.addresses[n.side] = run([self.binary(), "-useconffile", path, "-address"]).strip()

    def address(self, node):
        return self.addresses[node.side]

    def start(self, node):
        node.daemon([self.binary(), "-useconffile", node.dir / "yggdrasil.json", "-loglevel", "error"])


class Tinc(Program):
    """tinc 1.0: one thread, one packet a system call."""

    name = "tinc"
    program = "tincd"
    env = "TINCD_BIN"
    settings = "mtu 1500, MSS clamped to the path; one thread; AES-256-CBC + SHA-256 (defaults); LZO off"

    def prepare(self, pair):
        for n in pair.nodes:
            (n.dir / "hosts").mkdir()
            connect = f"ConnectTo = {n.peer.side}\n" if n.side == "b" else ""
            (n.dir / "tinc.conf").write_text(
                f"Name = {n.side}\nInterface = {self.iface(n)}\nDeviceType = tun\nAddressFamily = ipv4\n{connect}"
            )
            up = n.dir / "tinc-up"
            up.write_text(
                f"#!/bin/sh\nip addr add {self.address(n)}/24 dev $INTERFACE\n"
                f"ip link set $INTERFACE mtu {pair.underlay.tunnel_mtu(1500, 0)} up\n"
            )
            up.chmod(0o755)
            (n.dir / "hosts" / n.side).write_text(f"Address = {n.ip}\nSubnet = {self.address(n)}/32\n")
            run([self.binary(), "-c", n.dir, "-K2048"], stdin=subprocess.DEVNULL)
        for n in pair.nodes:
            other = n.peer.dir / "hosts" / n.peer.side
            (n.dir / "hosts" / n.peer.side).write_bytes(other.read_bytes())

    def start(self, node):
        node.daemon([self.binary(), "-c", node.dir, "-D", f"--pidfile={node.dir}/pid"])


class Mycelium(Program):
    """Key-derived IPv6 addresses, babel-like routing, links over TCP or QUIC."""

    port = 9651
    program = "mycelium"
    env = "MYCELIUM_BIN"

    def __init__(self, scheme, mtu=None):
        self.name, self.scheme, self.mtu = f"mycelium-{scheme}", scheme, mtu
        self.settings = (
            f"mtu {mtu or '1400 (default)'}; link over {scheme}://; AES-256-GCM end to end; "
            "tokio, workers = cores; TUN TSO"
        )

    def prepare(self, pair):
        self.addresses = {}
        for n in pair.nodes:
            with_key = [self.binary(), "--key-file", n.dir / "key.bin"]
            run([*with_key, "generate-keys"], cwd=n.dir)
            self.addresses[n.side] = json.loads(run([*with_key, "inspect", "--json"], cwd=n.dir))["address"]

    def address(self, node):
        return self.addresses[node.side]

    def start(self, node):
        dev = self.iface(node)
        argv = [self.binary(), "--silent", "--key-file", node.dir / "key.bin"]
        argv += ["--tun-name", dev, "--disable-peer-discovery"]
        argv += ["--tcp-listen-port", self.port, "--quic-listen-port", self.port]
        if node.side == "b":
            argv += ["--peers", f"{self.scheme}://{node.peer.ip}:{self.port}"]
        node.daemon(argv)
        if self.mtu:
            node.wait_for(dev, 10, lambda: node.has_link(dev))
            node.run(["ip", "link", "set", dev, "mtu", self.mtu])


class EasyTier(Program):
    """A mesh with a protocol of its own over UDP or TCP, AES-GCM."""

    port = 11010
    program = "easytier-core"
    env = "EASYTIER_BIN"

    def __init__(self, scheme):
        self.name, self.scheme = f"easytier-{scheme}", scheme
        self.settings = (
            f"mtu 1360 (default with encryption); link over {scheme}://; AES-GCM (default); "
            "tokio, 2 threads (default); no proxies"
        )

    def start(self, node):
        argv = [self.binary(), "--network-name", "bench", "--network-secret", "bench"]
        argv += ["--ipv4", f"{self.address(node)}/24", "--dev-name", self.iface(node)]
        argv += ["--hostname", node.side, "--instance-name", node.side]
        argv += ["--listeners", f"{self.scheme}://{node.ip}:{self.port}"]
        argv += ["--rpc-portal", "127.0.0.1:15888", "--console-log-level", "error"]
        argv += ["--disable-upnp", "true", "--disable-ipv6", "true"]
        if node.side == "b":
            argv += ["--peers", f"{self.scheme}://{node.peer.ip}:{self.port}"]
        node.daemon(argv)


def meshes():
    return [
        Nebula("nebula", "nebula", "NEBULA_BIN"),
        Nebula("nebula-new", None, "NEBULA_NEW_BIN"),
        Yggdrasil("yggdrasil", "yggdrasil", "YGGDRASIL_BIN"),
        Yggdrasil("yggdrasil-new", None, "YGGDRASIL_NEW_BIN"),
        Tinc(),
        Mycelium("tcp"),
        # At its default of 1400, version 0.7.10 resets the QUIC link at every full-sized packet
        # on a 1500-byte underlay, so no TCP transfer completes.
        Mycelium("quic", mtu=1280),
        EasyTier("udp"),
        EasyTier("tcp"),
    ]
