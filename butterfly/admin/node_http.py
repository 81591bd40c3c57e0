"""Asks a running node over its HTTP port; the standard library only, so it starts at once.

No redirects are followed and no proxy is used: the API key goes where the person said.
"""

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from butterfly_core.errors import (
    InvalidValue,
    NotAuthenticated,
    ProtocolViolation,
    Refused,
    Unreachable,
)

ANSWER_BYTES_MAX = 16 * 2**20
LINE_BYTES_MAX = 2**20


@dataclass(frozen=True, slots=True)
class NodeHttp:
    """One node's HTTP interface. Times in seconds."""

    url: str
    """``http://host:port``, checked by ``node_at``."""
    api_key: str | None = None
    timeout_seconds: float = 5.0

    def status(self, *, fresh: bool = False) -> Mapping[str, Any]:
        """GET /status; ``fresh``: no older than the question, or it is refused.

        Raises Unreachable, NotAuthenticated, Refused, ProtocolViolation.
        """
        return self.get("/status?fresh=1" if fresh else "/status")

    def get(self, path: str) -> Mapping[str, Any]:
        with self._answer("GET", path, None) as answer:
            return self._parse(answer)

    def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._answer("POST", path, body) as answer:
            return self._parse(answer)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """POST, then the answer's lines as they come; closing the iterator hangs up."""
        with self._answer("POST", path, body) as answer:
            while line := answer.readline(LINE_BYTES_MAX):
                yield line.decode(errors="replace").rstrip("\r\n")

    def clock_offset(self, path: str = "/health") -> float | None:
        """Seconds by which the other clock is ahead (its Date header has whole seconds)."""
        before = time.time()
        with self._answer("GET", path, None) as answer:
            return offset_of(answer.getheader("Date"), before, time.time())

    def at(self, address: str) -> "NodeHttp":
        """Another node of the cluster, asked with the same key."""
        return node_at(f"http://{address}", self.api_key).within(self.timeout_seconds)

    def within(self, timeout_seconds: float) -> "NodeHttp":
        """The same node, with another patience."""
        return replace(self, timeout_seconds=timeout_seconds)

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        headers = {"Accept": "application/json", "User-Agent": "butterfly-admin"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            content = None if body is None else json.dumps(body).encode()
            if content is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            self._refuse(answer, path)
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"{self.url}{path} does not answer: {error or type(error).__name__}; is a node "
                "running there? (its address is [node] http_address; name another with --url)"
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname or "", parts.port, timeout=self.timeout_seconds)

    def _refuse(self, answer: http.client.HTTPResponse, path: str) -> None:
        if answer.status < 300:
            return
        if answer.status in (401, 403):
            raise NotAuthenticated(
                f"{self.url}{path} answers {answer.status}: it wants an API key; name the file "
                "that holds it with --api-key-file"
            )
        raise Refused(f"{self.url}{path} answers {answer.status}: {_story(answer.read(65536))}")

    def _parse(self, answer: http.client.HTTPResponse) -> Mapping[str, Any]:
        content = answer.read(ANSWER_BYTES_MAX)
        try:
            parsed = json.loads(content)
        except ValueError as error:
            raise ProtocolViolation(
                f"{self.url} answers something else than JSON ({content[:60]!r}); "
                "is this a Butterfly node?"
            ) from error
        if not isinstance(parsed, dict):
            raise ProtocolViolation(
                f"{self.url} answers JSON, but no object; is this a Butterfly node?"
            )
        return parsed


def node_at(url: str, api_key: str | None = None) -> NodeHttp:
    """Check ``http://host:port``. Raises InvalidValue."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        usable = False
    if not usable or parts.username is not None:
        raise InvalidValue(f"{url!r} is not a node's URL; write http://127.0.0.1:8080")
    return NodeHttp(f"{parts.scheme}://{parts.netloc}", api_key)


def offset_of(date: str | None, before: float, after: float) -> float | None:
    """How far a clock that wrote ``date`` is ahead of ours, in seconds; None without a date.

    An HTTP date is cut to the second, so half a second is added; the request's middle is
    taken as the moment at which it was written.
    """
    if date is None:
        return None
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return theirs + 0.5 - (before + after) / 2


def _story(content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace").strip() or "no reason given"
