"""What a node shows of itself and whom it believes: out of the cluster secret, or the operator's.

With the secret every node mints its own certificate. With the operator's certificate authority
(``ca_file``, ``certificate_file``, ``private_key_file``) the certificates come from outside.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from butterfly_core.ids import NodeId
from butterfly_wire.authority import CLOCK_SKEW, LEAF_LIFE, Authority
from butterfly_wire.certificates import Certificates, load_certificates
from butterfly_wire.secret import ClusterSecret, load_secret


@dataclass(frozen=True, slots=True)
class Shown:
    """What a node shows of itself, and when."""

    pem: bytes = field(repr=False)
    """Private key, certificate and the chain above it."""
    since: datetime
    until: datetime
    renew_at: datetime | None = None
    """From here on another one is due; None for what comes from outside."""

    def is_due(self, now: datetime) -> bool:
        """True when another one must be made; also after a clock was set back."""
        return self.renew_at is not None and not self.since <= now < self.renew_at


class Credentials(Protocol):
    """Whom a node believes, and what it shows. Never changes; a new file makes a new one."""

    @property
    def trusted_pem(self) -> str:
        """The certificates of the authorities that peers may be signed by."""
        ...

    @property
    def peers_are_named(self) -> bool:
        """True when every certificate must name its node."""
        ...

    @property
    def named(self) -> NodeId | None:
        """The only node that may show this; None when any may."""
        ...

    @property
    def mints(self) -> str:
        """Which authority signed what this node shows; for people."""
        ...

    @property
    def accepts(self) -> tuple[str, ...]:
        """Which authorities are believed; for people."""
        ...

    def show(self, node_id: NodeId, now: datetime) -> Shown:
        """What to show now. Raises ConfigError."""
        ...


class SecretCredentials:
    """Certificates minted here, 30 days each, out of the cluster secret."""

    peers_are_named = True
    named = None

    def __init__(self, secret: ClusterSecret) -> None:
        authorities = [Authority(accepted) for accepted in secret.accepted]
        self._authority = authorities[0]
        self.trusted_pem = "".join(each.certificate_pem for each in authorities)
        self.mints = self._authority.fingerprint
        self.accepts = tuple(each.fingerprint for each in authorities)

    def show(self, node_id: NodeId, now: datetime) -> Shown:
        pem = self._authority.mint(node_id, now)
        return Shown(pem, now - CLOCK_SKEW, now + LEAF_LIFE, now + LEAF_LIFE / 2)


class OperatorCredentials:
    """Certificates that the operator's own authority signed."""

    peers_are_named = False

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self.trusted_pem = certificates.trusted_pem
        self.named = certificates.named
        self.mints = certificates.issuer
        self.accepts = certificates.trusted_names

    def show(self, node_id: NodeId, now: datetime) -> Shown:
        files = self._certificates
        files.check(node_id, now)
        return Shown(files.shown_pem, files.since, files.until)


class CredentialSource(Protocol):
    """Files that credentials are read from."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """A change of one of these means new credentials."""
        ...

    def load(self) -> Credentials:
        """Read them now. Raises ConfigError that names the file."""
        ...


@dataclass(frozen=True, slots=True)
class SecretFile:
    """The cluster secret's file."""

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    def load(self) -> Credentials:
        return SecretCredentials(load_secret(self.path))


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The operator's three PEM files."""

    ca: Path
    """Authorities that are believed; several while one replaces another."""
    certificate: Path
    """This node's certificate, then those between it and the authority."""
    private_key: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.ca, self.certificate, self.private_key)

    def load(self) -> Credentials:
        return OperatorCredentials(load_certificates(*self.paths))
