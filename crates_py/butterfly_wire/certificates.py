"""The operator's own certificates: three PEM files, read at once and checked before use.

Whatever a peer would refuse in a handshake is refused here first, by the name of the file.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from butterfly_core.errors import ConfigError, InvalidValue
from butterfly_core.ids import NodeId, parse_node_id
from butterfly_wire.authority import URI_PREFIX

FILE_BYTES_MAX = 1 << 18
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_COMPARED = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Three files that fit together."""

    certificate_file: Path
    shown_pem: bytes = field(repr=False)
    """Private key, certificate and the chain above it."""
    trusted_pem: str
    named: NodeId | None
    """The node that the certificate names; None for a certificate that names none."""
    since: datetime
    until: datetime
    issuer: str
    trusted_names: tuple[str, ...]

    def check(self, node_id: NodeId, now: datetime) -> None:
        """Raises ConfigError when this node cannot show this certificate now."""
        check_dates(self.certificate_file, self.since, self.until, now)
        if self.named not in (None, node_id):
            raise ConfigError(
                f"certificate_file {self.certificate_file} is that of node {self.named}, this "
                f"node is {node_id}; get one for {URI_PREFIX}{node_id}, or one without such a URI"
            )


def check_dates(path: Path, since: datetime, until: datetime, now: datetime) -> None:
    """Raises ConfigError with both dates when now is not between them."""
    span = f"it is valid from {since:%Y-%m-%d %H:%M:%S} to {until:%Y-%m-%d %H:%M:%S} UTC"
    if now > until:
        raise ConfigError(f"certificate_file {path} has expired: {span}; replace it")
    if now < since:
        raise ConfigError(
            f"certificate_file {path} is not yet valid: {span}, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M:%S}; check the clock"
        )


def load_certificates(ca: Path, certificate: Path, private_key: Path) -> Certificates:
    """Read and check the three files. Raises ConfigError that names the file at fault."""
    trusted_pem, trusted_names = _read_authorities(ca)
    chain_pem = _read("certificate_file", certificate)
    with _well_formed("certificate_file", certificate):
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        _check_usage(certificate, leaf)
        named, issuer = _named(certificate, leaf), _name(leaf.issuer)
        since, until = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        public_key = leaf.public_key().public_bytes(*_COMPARED)
    key_pem = _read("private_key_file", private_key, secret=True)
    with _well_formed("private_key_file", private_key):
        belongs = _public_of(private_key, key_pem) == public_key
    if not belongs:
        raise ConfigError(
            f"private_key_file {private_key} does not belong to certificate_file {certificate}; "
            "replace both together"
        )
    return Certificates(
        certificate_file=certificate,
        shown_pem=key_pem + b"\n" + chain_pem,
        trusted_pem=trusted_pem,
        named=named,
        since=since,
        until=until,
        issuer=issuer,
        trusted_names=trusted_names,
    )


def _read_authorities(path: Path) -> tuple[str, tuple[str, ...]]:
    """The authorities in a file as PEM, and their names. Raises ConfigError."""
    content = _read("ca_file", path)
    with _well_formed("ca_file", path):
        found = x509.load_pem_x509_certificates(content)
        for each in found:
            if not _is_authority(each):
                raise ConfigError(
                    f"ca_file {path} holds {_name(each.subject)}, which is no certificate "
                    "authority; put only authorities there, and the node's own certificate in "
                    "certificate_file"
                )
        names = tuple(_name(each.subject) for each in found)
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in found), names


def _read(key: str, path: Path, *, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{key} {path}: {error.strerror}") from error
    if secret and mode & 0o077:
        raise ConfigError(
            f"{key} {path} has mode {mode:04o}, so others than its owner can use it; run: "
            f"chmod 600 {path}"
        )
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{key} {path} is longer than {FILE_BYTES_MAX} bytes")
    return content


@contextmanager
def _well_formed(key: str, path: Path) -> Iterator[None]:
    """Parts of a certificate are parsed when they are looked at, so that is done in here."""
    try:
        yield
    except _MALFORMED as error:
        raise ConfigError(
            f"{key} {path} is not what it must be, PEM: {error}; replace it"
        ) from error


def _public_of(path: Path, pem: bytes) -> bytes:
    """The public half of a private key. Raises ConfigError."""
    if b"ENCRYPTED" in pem:
        raise ConfigError(
            f"private_key_file {path} is encrypted; a node cannot ask for a password: store it "
            "decrypted, mode 600"
        )
    return load_pem_private_key(pem, None).public_key().public_bytes(*_COMPARED)


def _check_usage(path: Path, leaf: x509.Certificate) -> None:
    """A node is server and client; a certificate that limits its use must allow both."""
    try:
        usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    needed = {
        "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
        "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    missing = [name for name, usage in needed.items() if usage not in usages]
    if missing:
        raise ConfigError(
            f"certificate_file {path} may not be used for {' and '.join(missing)}; a node accepts "
            "and dials, so its extended key usage needs serverAuth and clientAuth"
        )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _named(path: Path, leaf: x509.Certificate) -> NodeId | None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    found = [uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)]
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError(f"certificate_file {path} names {len(found)} nodes; it may name one")
    try:
        return parse_node_id(found[0])
    except InvalidValue as error:
        raise ConfigError(f"certificate_file {path}: {URI_PREFIX}{found[0]}: {error}") from error


def _name(name: x509.Name) -> str:
    return name.rfc4514_string()[:200]
