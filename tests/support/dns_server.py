"""A real DNS server, dnsmasq on loopback, whose records a test changes while it runs.

with dns_server() as server:
    server.serve(srv("_butterfly._tcp.example.com", "127.0.0.1", 7000))
    # ask server.address; a target may be a number, so that nobody needs to resolve it
"""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from butterfly_core.address import Address
from tests.support.needs import need

ZONE = "example.com"
_START_SECONDS_MAX = 30.0
_PORTS_TRIED_MAX = 10


def srv(name: str, target: str = "", port: int = 0, priority: int = 0, weight: int = 0) -> str:
    """A line of dnsmasq's configuration: one SRV record; without a target it is ``.``."""
    return f"srv-host={name},{target},{port},{priority},{weight}" if target else f"srv-host={name}"


def host(name: str, *addresses: str) -> str:
    """A line: A and AAAA records."""
    return f"host-record={','.join([name, *addresses])}"


def cname(name: str, target: str) -> str:
    """A line: an alias. dnsmasq knows it only while it knows the target."""
    return f"cname={name},{target}"


def forward(server: Address, zone: str = ZONE) -> str:
    """A line: ask that server about the zone instead of answering."""
    return f"server=/{zone}/{server.host}#{server.port}"


@dataclass
class DnsServer:
    """A dnsmasq that answers for example.com; names that it lacks do not exist (NXDOMAIN)."""

    folder: Path
    address: Address
    lines: tuple[str, ...] = ()
    ttl_seconds: int = 0
    process: subprocess.Popen[bytes] | None = None

    def serve(self, *lines: str, ttl_seconds: int = 0) -> None:
        """Answer these records and no others from now on. dnsmasq reads them only at its start."""
        self.lines, self.ttl_seconds = lines, ttl_seconds
        self.stop()
        self.start()

    def start(self) -> None:
        """Start with the last records, and wait until it answers."""
        own = [] if any(line.startswith("server=") for line in self.lines) else [f"local=/{ZONE}/"]
        text = [
            f"port={self.address.port}",
            f"listen-address={self.address.host}",
            "bind-interfaces",
            "no-resolv",
            "no-hosts",
            "user=",
            "pid-file=",
            "cache-size=0",
            f"local-ttl={self.ttl_seconds}",
            "host-record=ready.test,127.0.0.1",
            *own,
            *self.lines,
        ]
        settings = self.folder / "dnsmasq.conf"
        settings.write_text("\n".join(text) + "\n")
        command = ["dnsmasq", "--keep-in-foreground", "--log-facility=-", f"--conf-file={settings}"]
        with (self.folder / "dnsmasq.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._wait()

    def stop(self) -> None:
        """End it: from now on nobody answers."""
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None

    def pause(self) -> None:
        """Stay silent: questions are taken and not answered."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def _wait(self) -> None:
        question = dns.message.make_query("ready.test", "A")
        until = time.monotonic() + _START_SECONDS_MAX
        while time.monotonic() < until:
            assert self.process
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "dnsmasq.log").read_text())
            try:
                dns.query.udp(question, self.address.host, timeout=0.2, port=self.address.port)
            except (dns.exception.DNSException, OSError):
                continue
            return
        raise TimeoutError("dnsmasq does not answer")


@contextmanager
def dns_server(
    *lines: str, ttl_seconds: int = 0, address: Address | None = None
) -> Iterator[DnsServer]:
    """A running server on a free port of 127.0.0.1, or at ``address``."""
    need(shutil.which("dnsmasq") is not None, "dnsmasq")
    with tempfile.TemporaryDirectory(prefix="dns-") as folder:
        server = _started(Path(folder), lines, ttl_seconds, address)
        try:
            yield server
        finally:
            if server.process:
                server.resume()
            server.stop()


def _started(
    folder: Path, lines: tuple[str, ...], ttl_seconds: int, address: Address | None
) -> DnsServer:
    for _ in range(_PORTS_TRIED_MAX):
        server = DnsServer(folder, address or _free(), lines, ttl_seconds)
        try:
            server.start()
        except RuntimeError:  # somebody took the port
            if address:
                raise
            continue
        return server
    raise RuntimeError((folder / "dnsmasq.log").read_text())


def _free() -> Address:
    """A port that is free for TCP and UDP."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        try:
            tcp.bind(("127.0.0.1", port))
        except OSError:
            return _free()
        return Address("127.0.0.1", port)
