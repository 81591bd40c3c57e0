"""One HTTP connection that is kept alive, and dropped at any doubt."""

import base64
import http.client
import io
import os
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit

from butterfly_core.errors import ConfigError, SourceError
from butterfly_weights.errors import TransientFailure
from butterfly_weights.source import SourceOptions

BROKEN = (OSError, http.client.HTTPException)
"""What a connection that fails may raise."""


@lru_cache(maxsize=8)
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"CA file {ca_file}: {error}") from error


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Checks certificates and names; trusts ``ca_file``, AWS_CA_BUNDLE, SSL_CERT_FILE (which
    OpenSSL itself looks at) or the system."""
    chosen = str(ca_file) if ca_file else os.environ.get("AWS_CA_BUNDLE") or None
    return _tls_context(chosen)


def proxy_for(url: SplitResult, options: SourceOptions) -> SplitResult | None:
    """The proxy to use: the configured one, else the environment's (NO_PROXY honoured)."""
    if options.proxy_url:
        return urlsplit(options.proxy_url)
    if not url.hostname or urllib.request.proxy_bypass(url.hostname):
        return None
    found = urllib.request.getproxies().get(url.scheme)
    return urlsplit(found) if found else None


class StreamedResponse(http.client.HTTPResponse):
    """A response whose body can be taken straight from its socket.

    ``readinto`` waits for a whole view and, when the connection breaks, does not say how much of it
    had come; and what it is built on takes a few calls for each 16 KiB that TLS gives at a time.
    """

    def __init__(self, sock: socket.socket, *args: Any, **keywords: Any) -> None:
        super().__init__(sock, *args, **keywords)
        self._socket, self._is_drained = sock, False

    def receive_into(self, view: memoryview) -> int:
        """At least one byte of the body, 0 when the connection has ended. Raises ``BROKEN``."""
        if self._is_drained:
            return self._socket.recv_into(view, view.nbytes)
        count = int(self.fp.readinto1(view))
        # What was read along with the head comes first. Nothing of it is left when less came than
        # fits, or when more fits than is ever kept.
        self._is_drained = count < view.nbytes or view.nbytes > io.DEFAULT_BUFFER_SIZE
        return count


class HttpConnection:
    """Requests to one host, one at a time. The body of a response must be read whole, or the
    connection dropped, before the next."""

    def __init__(self, base_url: str, options: SourceOptions) -> None:
        self._base = urlsplit(base_url)
        self._options = options
        self._proxy = proxy_for(self._base, options)
        self._connection: http.client.HTTPConnection | None = None
        self._response: StreamedResponse | None = None
        self._socket: socket.socket | None = None

    def get(self, method: str, url: str, headers: Mapping[str, str]) -> StreamedResponse:
        """Send a request without a body and read the response's head.

        Raises TransientFailure, or SourceError for a certificate; the connection is then dropped.
        """
        try:
            connection = self._connection or self._connect()
            parts, fields = urlsplit(url), dict(headers)
            proxy = self._proxy if parts.scheme == "http" else None
            if proxy is None:
                parts = parts._replace(scheme="", netloc="")
            else:
                fields |= _proxy_headers(proxy)
            connection.request(method, parts.geturl(), headers=fields)
            response = self._response = cast(StreamedResponse, connection.getresponse())
            return response
        except ssl.SSLCertVerificationError as error:
            self.drop()
            raise SourceError(
                f"{method} {without_query(url)}: the server's certificate is not trusted "
                f"({error.verify_message}): name its authority's file in AWS_CA_BUNDLE, or in "
                "SSL_CERT_FILE"
            ) from error
        except BROKEN as error:
            self.drop()
            raise TransientFailure(f"{method} {without_query(url)}: {told(error)}") from error

    def drop(self) -> None:
        """Close; the next request connects anew."""
        # A response that ends with its connection holds the socket alone, so close both.
        for kept in (self._response, self._connection):
            if kept is not None:
                kept.close()
        self._connection = self._response = self._socket = None

    def interrupt(self) -> None:
        """From another thread: whoever is blocked on this connection gets an error."""
        kept = self._socket
        if kept is not None:
            with suppress(OSError):
                kept.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._base.hostname or "", self._base.port
        proxy = self._proxy
        through = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
        seconds = self._options.connect_timeout_seconds
        connection: http.client.HTTPConnection
        if self._base.scheme == "https":
            context = tls_context(self._options.ca_file)
            connection = http.client.HTTPSConnection(*through, timeout=seconds, context=context)
            if proxy:
                connection.set_tunnel(host, port or 443, headers=_proxy_headers(proxy))
        else:
            connection = http.client.HTTPConnection(*through, timeout=seconds)
        connection.response_class = StreamedResponse
        try:
            connection.connect()
            connection.sock.settimeout(self._options.stall_timeout_seconds)
        except BaseException:
            connection.close()
            raise
        self._connection, self._socket = connection, connection.sock
        return connection


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """The user and password that a proxy's URL carries."""
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def without_query(url: str) -> str:
    """An address for messages: a signed one carries its secret behind the question mark."""
    return url.partition("?")[0]


def told(error: BaseException) -> str:
    """An exception for people: some have no text of their own."""
    if isinstance(error, TimeoutError):
        return "no byte came in time"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
