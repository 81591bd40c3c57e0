"""Who a node is on the wire: a certificate that it mints itself out of the cluster secret.

The certificate authority is no server: its Ed25519 key is derived from the secret, so every
holder of the secret can sign, and checks others against the same authority. The authority's
certificate is the same, byte for byte, wherever it is made. A node's certificate binds a
random key to the node's id (SAN ``URI:butterfly:node:<id>``).
"""

import os
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from butterfly_core.errors import InvalidValue, NotAuthenticated
from butterfly_core.ids import NodeId, parse_node_id
from butterfly_wire.secret import ClusterSecret, derive_key

LEAF_LIFE = timedelta(days=30)
CLOCK_SKEW = timedelta(days=1)
"""Clocks of two nodes may differ by this much."""
SERVER_NAME = "butterfly"
"""What a dialer calls every peer; who it is, its certificate says."""
_CA_PURPOSE = b"butterfly ca v1"
_URI_PREFIX = "butterfly:node:"
_CA_FROM = datetime(2020, 1, 1, tzinfo=UTC)
_CA_UNTIL = datetime(2120, 1, 1, tzinfo=UTC)


def _now() -> datetime:
    return datetime.now(UTC)


class TlsIdentity:
    """Makes the TLS contexts of one node; TLS 1.3 only, both sides show a certificate.

    Ask for a context for each connection: it is made anew when half of the certificate's life
    is over, and kept otherwise.
    """

    def __init__(
        self,
        secret: ClusterSecret,
        node_id: NodeId,
        *,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.node_id = node_id
        self._authority = _Authority(secret.current)
        self._trusted = "".join(_Authority(s).certificate_pem for s in secret.accepted)
        self._clock = clock
        self._renew_at = datetime.min.replace(tzinfo=UTC)
        self._contexts: dict[int, ssl.SSLContext] = {}

    def server_context(self) -> ssl.SSLContext:
        """The context for accepted connections."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """The context for dialed connections."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, side: int) -> ssl.SSLContext:
        now = self._clock()
        if now >= self._renew_at:
            leaf = self._authority.mint(self.node_id, now)
            self._contexts = {
                ssl.PROTOCOL_TLS_SERVER: self._make(ssl.PROTOCOL_TLS_SERVER, leaf),
                ssl.PROTOCOL_TLS_CLIENT: self._make(ssl.PROTOCOL_TLS_CLIENT, leaf),
            }
            self._renew_at = now + LEAF_LIFE / 2
        return self._contexts[side]

    def _make(self, side: int, leaf_pem: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the node id in the certificate is checked instead
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would skip the certificates, and so outlive a changed secret.
        context.options |= ssl.OP_NO_TICKET
        if side == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0
            context.sslobject_class = _TellingServer
        context.load_verify_locations(cadata=self._trusted)
        with _as_file(leaf_pem) as path:
            context.load_cert_chain(path)
        return context


class _TellingServer(ssl.SSLObject):
    """A server's TLS that tells a refused client why.

    asyncio drops the connection when a handshake fails, and OpenSSL's alert with it: the client
    sees the end of the stream and cannot know that its certificate was the reason. So the error
    is held back once, as a wish for more input; asyncio then writes out what waits (the alert),
    and the client's answer to it brings the error out.
    """

    _held: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._held is not None:
            raise self._held
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            self._held = error
            raise ssl.SSLWantReadError from error


class _Authority:
    """The certificate authority that a secret stands for."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derive_key(secret, _CA_PURPOSE))
        public = self._key.public_key()
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        # The name tells authorities apart, so that OpenSSL picks the right one of two.
        self._name = _common_name(f"butterfly ca {sha256(raw).hexdigest()[:16]}")
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
        uri = x509.UniformResourceIdentifier(_URI_PREFIX + node_id)
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


def node_id_of(certificate: Mapping[str, Any] | None) -> NodeId:
    """The node that a verified certificate names (the form of ``SSLObject.getpeercert()``).

    Raises NotAuthenticated when it does not name exactly one.
    """
    names = (certificate or {}).get("subjectAltName", ())
    found = [value for kind, value in names if kind == "URI" and value.startswith(_URI_PREFIX)]
    if len(found) != 1:
        raise NotAuthenticated(f"a peer's certificate names {len(found)} nodes; it must name one")
    try:
        return parse_node_id(found[0].removeprefix(_URI_PREFIX))
    except InvalidValue as error:
        raise NotAuthenticated(f"a peer's certificate: {error}") from error


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


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path under which OpenSSL finds these bytes; in memory where the system can do that."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("butterfly-leaf")
        with os.fdopen(descriptor, "wb") as memory:
            memory.write(content)
            memory.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # mode 0600, gone at the end
            file.write(content)
            file.flush()
            yield file.name
