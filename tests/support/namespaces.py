"""Nodes as hosts of their own: a network namespace each, one switch between them, real packets.

The switch is a bridge in a namespace of its own. Every host has a second link to this machine,
so that a test reaches a node's HTTP port also while the node is cut off from the others. Packets
are dropped without a word, as a broken network does it: connections stay half-open.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.needs import need

PEER_PORT = 7000
HTTP_PORT = 8080


def need_namespaces() -> None:
    """Skip, or fail in CI, without root, ip and iptables."""
    tools = all(shutil.which(tool, path=_PATH) for tool in ("ip", "iptables"))
    need(os.geteuid() == 0 and tools, "root, iproute2 and iptables, for network namespaces")


@dataclass(frozen=True)
class Host:
    """One namespace: ``address`` among the hosts, ``control`` as this machine reaches it."""

    name: str
    address: str
    control: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)


class Switch:
    """Hosts on one network, and the cuts between them."""

    def __init__(self, count: int) -> None:
        self._tag = f"bf{os.getpid() % 100_000}"
        self._second = os.getpid() % 150 + 78
        self._middle = f"{self._tag}s"
        self.hosts = [
            Host(f"{self._tag}h{i}", f"10.77.0.{i + 1}", f"10.{self._second}.{i}.2")
            for i in range(count)
        ]

    def build(self) -> None:
        _ip("netns", "add", self._middle)
        _ip("-n", self._middle, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._middle, "link", "set", "switch", "up")
        for i, host in enumerate(self.hosts):
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            port, control = f"p{i}", f"{self._tag}c{i}"
            _ip(
                *("-n", host.name, "link", "add", "lan", "type", "veth"),
                *("peer", "name", port, "netns", self._middle),
            )
            _ip("-n", self._middle, "link", "set", port, "master", "switch", "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "lan")
            _ip("-n", host.name, "link", "set", "lan", "up")
            _ip("link", "add", control, "type", "veth", "peer", "name", "ctl", "netns", host.name)
            _ip("address", "add", f"10.{self._second}.{i}.1/30", "dev", control)
            _ip("link", "set", control, "up")
            _ip("-n", host.name, "address", "add", f"{host.control}/30", "dev", "ctl")
            _ip("-n", host.name, "link", "set", "ctl", "up")

    def destroy(self) -> None:
        for i in range(len(self.hosts)):
            _try_ip("link", "delete", f"{self._tag}c{i}")
        for name in [self._middle, *(host.name for host in self.hosts)]:
            _try_ip("netns", "delete", name)

    # What breaks.

    def cut(self, source: Host, target: Host) -> None:
        """Nothing of ``source`` arrives at ``target`` any more."""
        _in(target, "iptables", "-A", "INPUT", "-s", source.address, "-j", "DROP")

    def isolate(self, host: Host) -> None:
        """No packet in or out, but for the test's own."""
        _in(host, "iptables", "-A", "INPUT", "-i", "lan", "-j", "DROP")
        _in(host, "iptables", "-A", "OUTPUT", "-o", "lan", "-j", "DROP")

    def deafen(self, host: Host) -> None:
        """It hears nobody, but everybody hears it."""
        _in(host, "iptables", "-A", "INPUT", "-i", "lan", "-j", "DROP")

    def silence(self, host: Host) -> None:
        """Nobody hears it, but it hears everybody."""
        _in(host, "iptables", "-A", "OUTPUT", "-o", "lan", "-j", "DROP")

    def heal(self) -> None:
        for host in self.hosts:
            _in(host, "iptables", "-F")


@contextmanager
def switched(count: int) -> Iterator[Switch]:
    """Hosts that reach each other; gone afterwards, with all that runs in them."""
    need_namespaces()
    switch = Switch(count)
    try:
        switch.build()
        yield switch
    finally:
        switch.destroy()


@contextmanager
def switched_cluster(
    folder: Path, model: Mapping[str, Any], *, nodes: int, **sections: Mapping[str, Any]
) -> Iterator[tuple[LocalCluster, Switch]]:
    """Equal nodes, one to a host; ``sections`` are merged over the defaults here."""
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    with switched(nodes) as switch:
        cluster = LocalCluster()
        seeds = [f"{host.address}:{PEER_PORT}" for host in switch.hosts]
        for i, host in enumerate(switch.hosts):
            settings = _settings(folder, i, host, seeds, model, secret)
            for section, keys in sections.items():
                settings[section] = {**settings.get(section, {}), **keys}
            cluster.nodes.append(LocalNode(f"node-{i}", folder, settings, {}, host.prefix))
        try:
            yield cluster, switch
        finally:
            cluster.stop()


def _settings(
    folder: Path,
    number: int,
    host: Host,
    seeds: Sequence[str],
    model: Mapping[str, Any],
    secret: Path,
) -> dict[str, dict[str, Any]]:
    return {
        "cluster": {
            "cluster_name": "switched",
            "seed_nodes": list(seeds),
            "quorum_size": len(seeds) // 2 + 1,
        },
        "model": dict(model),
        "node": {
            "bind_address": f"{host.address}:{PEER_PORT}",
            "http_address": f"{host.control}:{HTTP_PORT}",
            "data_dir": str(folder / f"node-{number}"),
            "capacity": round(0.9 / len(seeds), 3),
        },
        "engine": {"kv_cache_tokens": 2048, "threads": 1},
        # insecure: HTTP without keys on the control link; the peers have their secret
        "security": {"cluster_secret_file": str(secret), "insecure": True},
    }


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_ENVIRONMENT = {**os.environ, "PATH": _PATH}


def _ip(*words: str) -> None:
    _run("ip", *words)


def _try_ip(*words: str) -> None:
    subprocess.run(["ip", *words], env=_ENVIRONMENT, capture_output=True)


def _in(host: Host, *words: str) -> None:
    _run(*host.prefix, *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, env=_ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
