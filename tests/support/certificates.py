"""An operator's own certificate authority, for tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from butterfly_wire.credentials import CertificateFiles

NOW = datetime.now(UTC).replace(microsecond=0)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        protection = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, protection)


@dataclass
class OperatorAuthority:
    """Signs what it is asked to, also what no node should show."""

    name: str = "lab authority"
    parent: "OperatorAuthority | None" = None

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.parent or self
        self.certificate = (
            self._begun(self.name, issuer, self.key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(issuer.key, SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        *,
        uris: Sequence[str] = (),
        usages: Sequence[ObjectIdentifier] | None = BOTH,
        since: datetime = NOW - timedelta(days=1),
        until: datetime = NOW + timedelta(days=90),
        name: str = "a machine",
        junk: ObjectIdentifier | None = None,
    ) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        """A certificate and its key; ``junk`` is an extension that cannot be parsed."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._begun(name, self, key, since, until).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        if usages is not None:
            made = made.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if junk is not None:
            broken = x509.UnrecognizedExtension(junk, b"\x30\x03junk")
            made = made.add_extension(broken, critical=False)
        signed = made.sign(self.key, SHA256())
        return signed.public_bytes(serialization.Encoding.PEM), key

    def _begun(
        self,
        name: str,
        issuer: "OperatorAuthority",
        key: ec.EllipticCurvePrivateKey,
        since: datetime = NOW - timedelta(days=400),
        until: datetime = NOW + timedelta(days=400),
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(until)
        )


def write_files(
    folder: Path,
    ca_pem: bytes,
    shown: tuple[bytes, ec.EllipticCurvePrivateKey],
    *,
    password: bytes | None = None,
) -> CertificateFiles:
    """The three files of a node."""
    folder.mkdir(exist_ok=True)
    files = CertificateFiles(folder / "ca.pem", folder / "node.pem", folder / "node.key")
    files.ca.write_bytes(ca_pem)
    files.certificate.write_bytes(shown[0])
    files.private_key.write_bytes(key_pem(shown[1], password))
    files.private_key.chmod(0o600)
    return files
