"""Requests that may be sent on to another server: within limits, and without credentials."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from butterfly_core.errors import SourceError
from butterfly_weights.errors import TransientFailure
from butterfly_weights.http_answers import ERROR_BODY_BYTES_MAX, plain_etag
from butterfly_weights.http_connection import (
    BROKEN,
    HttpConnection,
    StreamedResponse,
    without_query,
)
from butterfly_weights.source import SourceOptions

REDIRECTS_MAX = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LANDINGS_MAX = 20_000
_CONNECTIONS_MAX = 4
_URL_CHARACTERS_MAX = 16_384
_FOR_THE_FIRST_SERVER_ALONE = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True, slots=True)
class Linked:
    """What a server says of an object that it keeps elsewhere (a hub's X-Linked-… fields)."""

    etag: str
    size: str


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a request came to rest; often a signed address that expires."""

    url: str
    linked: Linked | None


class Landings:
    """Where objects were found to lie, so that not each range is sent on anew. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Landing] = OrderedDict()

    def get(self, url: str) -> Landing | None:
        with self._lock:
            return self._known.get(url)

    def put(self, url: str, landing: Landing) -> None:
        with self._lock:
            self._known[url] = landing
            while len(self._known) > _LANDINGS_MAX:
                self._known.popitem(last=False)

    def forget(self, url: str) -> None:
        with self._lock:
            self._known.pop(url, None)


class RedirectingConnection:
    """An ``HttpConnection`` that follows redirects: at most five, from https never to http.

    Authorization is for the first server alone. An address found by a redirect is used until it
    is refused (signed ones expire) or breaks; then the first server is asked again.
    """

    def __init__(self, base_url: str, options: SourceOptions, landings: Landings) -> None:
        self._home = origin_of(urlsplit(base_url))
        self._options, self._landings = options, landings
        self._connections: OrderedDict[str, HttpConnection] = OrderedDict()
        self._interrupted = False

    def get(self, method: str, url: str, headers: Mapping[str, str]) -> StreamedResponse:
        """The response that is none of a redirect. Raises TransientFailure, SourceError."""
        known = self._landings.get(url) if method == "GET" else None
        if known is not None:
            response = self._at(known, url, method, headers)
            if response is not None:
                return response
        return self._from_home(method, url, headers)

    def drop(self) -> None:
        """Close all; the next request connects anew."""
        for connection in list(self._connections.values()):
            connection.drop()

    def interrupt(self) -> None:
        """From another thread: whoever is blocked on this gets an error."""
        self._interrupted = True
        for connection in list(self._connections.values()):
            connection.interrupt()

    def _at(
        self, landing: Landing, url: str, method: str, headers: Mapping[str, str]
    ) -> StreamedResponse | None:
        """From where it lay the last time; None when the address is good no more."""
        try:
            response = self._send(method, landing.url, headers, landing.linked)
        except (TransientFailure, SourceError):
            self._landings.forget(url)
            raise
        expired = 300 <= response.status < 500 and response.status not in (412, 416, 429)
        if not expired:
            return _named(response, landing.linked)
        self._landings.forget(url)
        self._put_aside(landing.url, response)
        return None

    def _from_home(self, method: str, url: str, headers: Mapping[str, str]) -> StreamedResponse:
        here, linked = url, None
        for _ in range(REDIRECTS_MAX + 1):
            response = self._send(method, here, headers, linked)
            if response.status not in _REDIRECTS:
                if here != url and response.status in (200, 206):
                    self._landings.put(url, Landing(here, linked))
                return _named(response, linked)
            if origin_of(urlsplit(here)) == self._home:
                linked = linked or _linked(response)
            if method == "HEAD" and linked:
                # Signed addresses are often for GET alone, and everything is said already.
                return _as_told(response, linked)
            self._put_aside(here, response)
            here = next_url(here, response.headers.get("location", ""))
        raise SourceError(
            f"{method} {url}: sent on more than {REDIRECTS_MAX} times, at last to "
            f"{without_query(here)}"
        )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], linked: Linked | None
    ) -> StreamedResponse:
        if self._interrupted:
            raise TransientFailure("the read was interrupted")
        origin = origin_of(urlsplit(url))
        left_out = set() if origin == self._home else set(_FOR_THE_FIRST_SERVER_ALONE)
        if linked:
            left_out.add("if-match")  # the store has an ETag of its own
        fields = {name: value for name, value in headers.items() if name.lower() not in left_out}
        return self._to(origin).get(method, url, fields)

    def _to(self, origin: str) -> HttpConnection:
        connection = self._connections.pop(origin, None)
        connection = connection or HttpConnection(origin, self._options)
        self._connections[origin] = connection
        while len(self._connections) > _CONNECTIONS_MAX:
            self._connections.popitem(last=False)[1].drop()
        return connection

    def _put_aside(self, url: str, response: StreamedResponse) -> None:
        """Read an answer that nobody wants, or lose the connection if that is too much."""
        try:
            response.read(ERROR_BODY_BYTES_MAX)
            read = response.isclosed()
        except BROKEN:
            read = False
        if not read:
            self._to(origin_of(urlsplit(url))).drop()


def origin_of(url: SplitResult) -> str:
    """Scheme, host and port: what a credential belongs to. Raises SourceError."""
    try:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
    except (ValueError, KeyError):
        raise SourceError(f"{without_query(url.geturl())} is no http:// or https:// URL") from None
    host = url.hostname or ""
    if not host:
        raise SourceError(f"{without_query(url.geturl())} names no host")
    return f"{url.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def next_url(here: str, location: str) -> str:
    """Where a redirect leads. Raises SourceError for what is not followed."""
    what = f"{without_query(here)} sends on to"
    fits = 0 < len(location) <= _URL_CHARACTERS_MAX and location.isascii()
    if not fits or any(character <= " " for character in location):
        raise SourceError(f"{what} {location[:100]!r}, which is no address")
    try:
        there = urlsplit(urljoin(here, location))
        origin_of(there)
    except ValueError as error:
        raise SourceError(f"{what} {location[:100]!r}: {error}") from None
    if there.username is not None or there.password is not None:
        raise SourceError(f"{what} an address with a user name: that is not followed")
    if here.startswith("https://") and there.scheme != "https":
        raise SourceError(f"{what} {without_query(there.geturl())}: from https never to http")
    return there._replace(fragment="").geturl()


def _linked(response: StreamedResponse) -> Linked | None:
    etag = plain_etag(response.headers.get("x-linked-etag", "")).removeprefix("W/")
    size = response.headers.get("x-linked-size", "")
    return Linked(etag, size) if etag and size.isascii() and size.isdigit() else None


def _named(response: StreamedResponse, linked: Linked | None) -> StreamedResponse:
    """The name that the first server gave the content stands for that of its store."""
    if linked and response.status in (200, 206):
        del response.headers["etag"]
        response.headers["etag"] = f'"{linked.etag}"'
    return response


def _as_told(response: StreamedResponse, linked: Linked) -> StreamedResponse:
    """The answer to a HEAD as if the object lay where it was asked for."""
    response.status = 200
    del response.headers["content-length"]
    response.headers["content-length"] = linked.size
    return _named(response, linked)
