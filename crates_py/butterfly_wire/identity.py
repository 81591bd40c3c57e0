"""Who a node is on the wire: its TLS contexts, and what a peer's certificate proves.

Contexts are kept, renewed when their certificate is half through its life, and replaced whole
when the files behind them have changed (``watching.py``). What stands keeps its own.
"""

import os
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from butterfly_core.errors import ConfigError, InvalidValue, NotAuthenticated
from butterfly_core.ids import NodeId, parse_node_id
from butterfly_wire.authority import URI_PREFIX
from butterfly_wire.credentials import Credentials, SecretCredentials, Shown
from butterfly_wire.secret import ClusterSecret

SERVER_NAME = "butterfly"
"""What a dialer calls every peer; who it is, its certificate says."""
refusals: ContextVar[list[ssl.SSLError]] = ContextVar("refusals")
"""Where a server's handshake leaves why it refused: a client that is told may go away before
the error comes out of the handshake."""
_NAME_CHARS_MAX = 80


def now_utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _Contexts:
    credentials: Credentials
    shown: Shown
    server: ssl.SSLContext
    client: ssl.SSLContext


class TlsIdentity:
    """The TLS contexts of one node; TLS 1.3 only, both sides show a certificate.

    Ask for a context for each connection. Raises ConfigError for credentials that no peer
    would accept.
    """

    def __init__(
        self,
        credentials: ClusterSecret | Credentials,
        node_id: NodeId,
        *,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self.node_id = node_id
        self._clock = clock
        self._changing = threading.Lock()
        if isinstance(credentials, ClusterSecret):
            credentials = SecretCredentials(credentials)
        self._contexts = self._made(credentials)

    @property
    def credentials(self) -> Credentials:
        """What is in use."""
        return self._contexts.credentials

    @property
    def shown_since(self) -> datetime:
        """When the certificate that this node shows begins."""
        return self._current().shown.since

    @property
    def shown_until(self) -> datetime:
        """When it ends."""
        return self._current().shown.until

    def replace(self, credentials: Credentials) -> None:
        """Use other credentials for new connections; safe in any thread.

        Raises ConfigError for those that no peer would accept; then nothing changes.
        """
        made = self._made(credentials)
        with self._changing:
            self._contexts = made

    def server_context(self) -> ssl.SSLContext:
        """The context for accepted connections."""
        return self._current().server

    def client_context(self) -> ssl.SSLContext:
        """The context for dialed connections."""
        return self._current().client

    def peer_id(self, certificate: Mapping[str, Any] | None) -> NodeId | None:
        """Whom a verified certificate names (the form of ``SSLObject.getpeercert()``).

        None when it names nobody and need not; then the peer is who its hello says. Raises
        NotAuthenticated.
        """
        names = _names_in(certificate)
        if not names and not self.credentials.peers_are_named:
            return None
        return node_id_of(certificate)

    def _current(self) -> _Contexts:
        before = self._contexts
        if before.shown.is_due(self._clock()):
            made = self._made(before.credentials)
            with self._changing:
                if self._contexts is before:  # else they were replaced meanwhile
                    self._contexts = made
        return self._contexts

    def _made(self, credentials: Credentials) -> _Contexts:
        shown = credentials.show(self.node_id, self._clock())
        trusted = credentials.trusted_pem
        try:
            server = _context(ssl.PROTOCOL_TLS_SERVER, trusted, shown.pem)
            client = _context(ssl.PROTOCOL_TLS_CLIENT, trusted, shown.pem)
        except ssl.SSLError as error:
            raise ConfigError(f"certificates that OpenSSL refuses: {error}") from error
        if not credentials.peers_are_named:
            _rehearse(server, client)
        return _Contexts(credentials, shown, server, client)


def _context(side: int, trusted_pem: str, shown_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the node id in the certificate is checked instead
    context.verify_mode = ssl.CERT_REQUIRED
    # An authority below a root that is not listed may be believed alone.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # A resumed session would skip the certificates, and so outlive a changed secret.
    context.options |= ssl.OP_NO_TICKET
    context.sslobject_class = _Client
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
        context.sslobject_class = _TellingServer
    context.load_verify_locations(cadata=trusted_pem)
    with _as_file(shown_pem) as path:
        context.load_cert_chain(path)
    return context


def _rehearse(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    """Shake hands with oneself: what a peer would refuse is found before one does.

    Raises ConfigError.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=SERVER_NAME)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                raise ConfigError(
                    "certificate_file is not accepted by the authorities in ca_file: "
                    f"{explained(error)}"
                ) from error


class PeerCertificateError(ssl.SSLCertVerificationError):
    """A peer's certificate was not accepted; ``about`` says which one, with its dates."""

    about = ""


def explained(error: ssl.SSLError) -> str:
    """What OpenSSL found wrong, and with which certificate where that is known."""
    reason = getattr(error, "verify_message", "") or error.reason or str(error)
    about = getattr(error, "about", "")
    return f"{reason} ({about})" if about else reason


def _telling(tls: ssl.SSLObject, error: ssl.SSLCertVerificationError) -> PeerCertificateError:
    told = PeerCertificateError(*error.args)
    told.reason, told.library = error.reason, error.library
    told.verify_code, told.verify_message = error.verify_code, error.verify_message
    told.about = _about(tls)
    return told


def _about(tls: ssl.SSLObject) -> str:
    """The certificate that a peer showed and that was refused: who, from when, to when."""
    # Public from Python 3.13 on; before it the inner object has the same.
    inner: Any = getattr(tls, "_sslobj", None)
    chain = inner.get_unverified_chain() if hasattr(inner, "get_unverified_chain") else None
    if not chain:
        return ""
    info = chain[0].get_info()
    fields = [field for part in info.get("subject", ()) for field in part]
    who = ", ".join(f"{key}={value}" for key, value in fields)[:_NAME_CHARS_MAX]
    span = f"valid from {info.get('notBefore')} to {info.get('notAfter')}"
    return f"the certificate of {who!r}, {span}"


class _Client(ssl.SSLObject):
    """A client's TLS that tells which certificate it refuses."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise _telling(self, error) from error


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
            self._held = _telling(self, error)
            refusals.get([]).append(self._held)
            raise ssl.SSLWantReadError from error


def node_id_of(certificate: Mapping[str, Any] | None) -> NodeId:
    """The node that a verified certificate names (the form of ``SSLObject.getpeercert()``).

    Raises NotAuthenticated when it does not name exactly one.
    """
    found = _names_in(certificate)
    if len(found) != 1:
        raise NotAuthenticated(f"a peer's certificate names {len(found)} nodes; it must name one")
    try:
        return parse_node_id(found[0].removeprefix(URI_PREFIX))
    except InvalidValue as error:
        raise NotAuthenticated(f"a peer's certificate: {error}") from error


def _names_in(certificate: Mapping[str, Any] | None) -> list[str]:
    names = (certificate or {}).get("subjectAltName", ())
    return [value for kind, value in names if kind == "URI" and value.startswith(URI_PREFIX)]


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
