"""A real Consul server of one node on this machine, with ACLs on, for tests.

    with consul_agent(tmp_path) as agent:
        source = ConsulSource(agent.settings(), cluster_name="test", ...)
        agent.kill()
        agent.start()

Its tokens have the rights that the crate's README asks for, and no others. With ``tls`` it speaks
HTTPS only, with certificates of a CA of its own, and wants one from its clients.
"""

import datetime
import ipaddress
import json
import re
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from butterfly_discovery.consul_settings import ConsulSettings, token_from_file
from tests.support.leash import die_with_the_tests
from tests.support.needs import need
from tests.support.s3 import free_port

ROOT = Path(__file__).parents[2]
BINARY = ROOT / ".servers" / "consul"
README = ROOT / "crates_py" / "butterfly_discovery" / "README.md"
START_SECONDS = 60.0
_ATTEMPTS = 3
_LOG_CHARACTERS = 2000


class NotStarted(AssertionError):
    """Consul does not run; carries the end of its log."""


@dataclass
class ConsulAgent:
    """A server that may be killed and started again; ``folder`` holds all its files."""

    folder: Path
    clusters: Sequence[str]
    tls: bool
    master: str = field(default_factory=lambda: str(uuid.uuid4()))
    token: str = field(default_factory=lambda: str(uuid.uuid4()))
    ports: tuple[int, int, int] = (0, 0, 0)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.ports[0]}"

    @property
    def token_file(self) -> Path:
        """Holds ``token``, as a node is given it."""
        return self.folder / "token"

    def tls_file(self, name: str) -> Path:
        """``ca.pem``, ``node.pem`` or ``node.key``."""
        return self.folder / name

    def settings(self, **changes: Any) -> ConsulSettings:
        """For the token's file; a short TTL, so that tests need not wait."""
        files = {
            "ca_file": self.tls_file("ca.pem"),
            "certificate_file": self.tls_file("node.pem"),
            "key_file": self.tls_file("node.key"),
        }
        values: dict[str, Any] = {
            "url": self.url,
            "token": token_from_file(self.token_file),
            "ttl_seconds": 3.0,
            "wait_seconds": 20.0,
            "pause_seconds": 0.05,
            "retry_seconds_max": 1.0,
            **(files if self.tls else {}),
        }
        return ConsulSettings(**{**values, **changes})

    def ask(self, method: str, path: str, body: Any = None, *, token: str = "") -> Any:
        """An operator's question, with all rights; the JSON of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            data=None if body is None else data,
            headers={"X-Consul-Token": token or self.master},
            method=method,
        )
        context = None
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls_file("ca.pem"))
            context.load_cert_chain(self.tls_file("node.pem"), self.tls_file("node.key"))
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def new_token(self, rules: str, token: str = "") -> str:
        """A token with other rights than a node should have."""
        policy = self.ask("PUT", "acl/policy", {"Name": f"p-{uuid.uuid4()}", "Rules": rules})
        body = {"Policies": [{"ID": policy["ID"]}], **({"SecretID": token} if token else {})}
        return str(self.ask("PUT", "acl/token", body)["SecretID"])

    def rotate_token(self) -> None:
        """A new token in the file; the old one is no longer known."""
        old = self.ask("GET", "acl/token/self", token=self.token)["AccessorID"]
        self.token = str(uuid.uuid4())
        self._make_token()
        self.token_file.write_text(self.token + "\n")
        self.ask("DELETE", f"acl/token/{old}")

    def start(self) -> None:
        """Returns when it has a leader and the nodes' token is valid. Raises NotStarted."""
        self.spawn()
        self.until_ready()

    def spawn(self) -> None:
        """The first half of ``start``, quick. The server ends with the thread that calls it."""
        (self.folder / "consul.json").write_text(json.dumps(self._configuration()))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "agent", "-config-file", self.folder / "consul.json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_the_tests,
            )

    def until_ready(self) -> None:
        """The second half of ``start``; may run in another thread. Raises NotStarted."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise NotStarted((self.folder / "log").read_text()[-_LOG_CHARACTERS:])
            time.sleep(0.1)

    def kill(self) -> None:
        """With kill -9; what it wrote to disk stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def wipe(self) -> None:
        """Lose everything that a killed server wrote."""
        shutil.rmtree(self.folder / "data")

    def forget_all(self) -> None:
        """No services and no keys, as at the start."""
        for service in self.ask("GET", "agent/services"):
            self.ask("PUT", f"agent/service/deregister/{service}")
        self.ask("DELETE", "kv/butterfly?recurse=1")

    def _ready(self) -> bool:
        try:
            self.ask("GET", "kv/?keys&consistent")
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 404:  # no leader yet
                    return False
        except OSError:
            return False
        try:
            self.ask("GET", "acl/token/self", token=self.token)
        except urllib.error.HTTPError as error:
            error.close()
            self._make_token()
        return True

    def _make_token(self) -> None:
        policies = []
        for cluster in self.clusters:
            name = f"butterfly-{cluster}-{uuid.uuid4()}"
            body = {"Name": name, "Rules": readme_policy(cluster)}
            policies.append({"ID": self.ask("PUT", "acl/policy", body)["ID"]})
        self.ask("PUT", "acl/token", {"SecretID": self.token, "Policies": policies})

    def _configuration(self) -> dict[str, Any]:
        http, server, gossip = self.ports
        files = {
            "ca_file": str(self.tls_file("ca.pem")),
            "cert_file": str(self.tls_file("server.pem")),
            "key_file": str(self.tls_file("server.key")),
            "verify_incoming_https": True,
        }
        return {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "consul-of-a-test",
            "data_dir": str(self.folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "log_level": "WARN",
            "disable_update_check": True,
            "performance": {"raft_multiplier": 1},
            "ports": {
                "http": -1 if self.tls else http,
                "https": http if self.tls else -1,
                "server": server,
                "serf_lan": gossip,
                "serf_wan": -1,
                "dns": -1,
                "grpc": -1,
            },
            "acl": {
                "enabled": True,
                "default_policy": "deny",
                "tokens": {"master": self.master, "agent": self.master},
            },
            **(files if self.tls else {}),
        }


@contextmanager
def consul_agent(
    folder: Path, *, clusters: Sequence[str] = ("test",), tls: bool = False
) -> Iterator[ConsulAgent]:
    """A running server; its ``token`` is one for nodes of these clusters."""
    need(BINARY.exists(), "Consul in .servers/")
    agent = ConsulAgent(folder, clusters, tls)
    agent.token_file.write_text(agent.token + "\n")
    agent.token_file.chmod(0o600)
    if tls:
        write_certificates(folder)
    for attempt in range(1, _ATTEMPTS + 1):
        # Somebody else may take a port between choosing and using it.
        agent.ports = (free_port(), free_port(), free_port())
        try:
            agent.start()
            break
        except NotStarted:
            if attempt == _ATTEMPTS:
                raise
    try:
        yield agent
    finally:
        agent.kill()


def readme_policy(cluster_name: str) -> str:
    """The ACL policy that the crate's README tells operators to use."""
    (rules,) = re.findall(r"^```hcl\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    return str(rules).replace("CLUSTER_NAME", cluster_name)


def write_certificates(folder: Path) -> None:
    """``ca.pem``, and certificate and key of ``server`` and ``node``."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the CA of a test")])
    limits = x509.BasicConstraints(ca=True, path_length=0)
    ca = _certificate(ca_name, ca_name, ca_key.public_key()).add_extension(limits, critical=True)
    (folder / "ca.pem").write_bytes(_pem(ca.sign(ca_key, hashes.SHA256())))
    for owner in ("server", "node"):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, owner)])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = _certificate(name, ca_name, key.public_key()).add_extension(here, critical=False)
        (folder / f"{owner}.pem").write_bytes(_pem(signed.sign(ca_key, hashes.SHA256())))
        (folder / f"{owner}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _certificate(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
