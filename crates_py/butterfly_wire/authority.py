"""The certificate authority that a cluster secret stands for, and the certificates it signs.

The authority is no server: its Ed25519 key is derived from the secret, so every holder of the
secret can sign, and checks others against the same authority. The authority's certificate is
the same, byte for byte, wherever it is made. A node's certificate binds a random key to the
node's id (SAN ``URI:butterfly:node:<id>``).
"""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from butterfly_core.ids import NodeId
from butterfly_wire.secret import derive_key

LEAF_LIFE = timedelta(days=30)
CLOCK_SKEW = timedelta(days=1)
"""Clocks of two nodes may differ by this much."""
URI_PREFIX = "butterfly:node:"
"""What the URI in a certificate that names a node begins with."""
_CA_PURPOSE = b"butterfly ca v1"
_CA_FROM = datetime(2020, 1, 1, tzinfo=UTC)
_CA_UNTIL = datetime(2120, 1, 1, tzinfo=UTC)


class Authority:
    """The certificate authority that a secret stands for."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derive_key(secret, _CA_PURPOSE))
        public = self._key.public_key()
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        # The name tells authorities apart, so that OpenSSL picks the right one of two.
        self.fingerprint = sha256(raw).hexdigest()[:16]
        """Tells secrets apart without telling them; every certificate shows it."""
        self._name = _common_name(f"butterfly ca {self.fingerprint}")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(1)
            .not_valid_before(_CA_FROM)
            .not_valid_after(_CA_UNTIL)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, algorithm=None)
        )
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()

    def mint(self, node_id: NodeId, now: datetime) -> bytes:
        """A fresh key and its certificate, as PEM."""
        key = Ed25519PrivateKey.generate()
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        uri = x509.UniformResourceIdentifier(URI_PREFIX + node_id)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_common_name(f"butterfly node {node_id}"))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .sign(self._key, algorithm=None)
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return private + certificate.public_bytes(serialization.Encoding.PEM)


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
