"""Byte ranges over HTTP, straight into the final buffer."""

import http.client
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from butterfly_core.errors import SourceError
from butterfly_weights.errors import LoadCancelled, TransientFailure
from butterfly_weights.http_answers import (
    ERROR_BODY_BYTES_MAX,
    Refusal,
    changed,
    check_range,
    check_whole,
    condition_of,
    out_of_range,
    read_refusal,
    version_of,
)
from butterfly_weights.http_connection import BROKEN, HttpConnection, StreamedResponse, told
from butterfly_weights.retrying import Pace, Tries
from butterfly_weights.source import ObjectInfo, OnBytes, SourceOptions, tell_nobody
from butterfly_weights.views import Cursor


class Signing(Protocol):
    """What makes a request acceptable to the server."""

    @property
    def who(self) -> str: ...
    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]: ...
    def refresh(self) -> bool: ...
    def refused(self, refusal: Refusal, what: str) -> SourceError: ...


class Connection(Protocol):
    """One connection, or several that look like one; as ``HttpConnection``."""

    def get(self, method: str, url: str, headers: Mapping[str, str]) -> StreamedResponse: ...
    def drop(self) -> None: ...
    def interrupt(self) -> None: ...


class HttpFolder(Protocol):
    """The source that a reader belongs to."""

    @property
    def base_url(self) -> str: ...
    @property
    def signer(self) -> Signing: ...
    @property
    def pace(self) -> Pace: ...
    @property
    def options(self) -> SourceOptions: ...
    def url(self, name: str) -> str: ...


class HttpReader:
    """One connection to a server, used by one thread."""

    def __init__(self, folder: HttpFolder, connection: Connection | None = None) -> None:
        self._folder = folder
        self._connection = connection or HttpConnection(folder.base_url, folder.options)
        self._closed = threading.Event()

    def read_into(
        self, info: ObjectInfo, offset: int, views: Sequence[memoryview], on_bytes: OnBytes
    ) -> None:
        cursor, pace = Cursor(views), self._folder.pace
        tries = self._tries()

        def landed(count: int) -> None:
            pace.came(count)
            on_bytes(count)

        while cursor.done < cursor.total:
            try:
                with pace.slot():
                    self._read_some(info, offset + cursor.done, cursor, landed)
            except TransientFailure as failure:
                self._hold_back(failure)
                place = f"{cursor.done} of {cursor.total} bytes from byte {offset} had come"
                tries.failed(failure, place)

    def stat(self, name: str) -> ObjectInfo:
        """Size and version, by HEAD. Raises NotFound, SourceError."""
        tries = self._tries()
        while True:
            try:
                response = self._request("HEAD", name, {})
                response.read()
                headers = lower_headers(response)
                size = check_whole(headers, name, bytes_max=1 << 62)
                return ObjectInfo(name, size, version_of(headers))
            except TransientFailure as failure:
                self._hold_back(failure)
                tries.failed(failure, "no answer")

    def read_whole(self, name: str, *, bytes_max: int) -> bytes:
        """A small object. Raises NotFound, ModelError when larger than that, SourceError."""
        tries = self._tries()
        while True:
            try:
                return self._read_whole(name, bytes_max)
            except TransientFailure as failure:
                self._hold_back(failure)
                tries.failed(failure, "none of it came whole")

    def reset(self) -> None:
        self._connection.drop()

    def interrupt(self) -> None:
        self._closed.set()
        self._connection.interrupt()

    def close(self) -> None:
        self._closed.set()
        self._connection.drop()

    def _tries(self) -> Tries:
        return Tries(self._folder.options, self._closed.wait)

    def _hold_back(self, failure: TransientFailure) -> None:
        self._connection.drop()
        if failure.slow_down:
            self._folder.pace.slow_down()

    def _read_some(self, info: ObjectInfo, offset: int, cursor: Cursor, on_bytes: OnBytes) -> None:
        if self._closed.is_set():
            raise LoadCancelled(f"reading {info.name} was cancelled")
        count = cursor.total - cursor.done
        headers = {"Range": f"bytes={offset}-{offset + count - 1}", **condition_of(info)}
        response = self._request("GET", info.name, headers, info=info, offset=offset)
        try:
            check_range(response.status, lower_headers(response), info, offset, count)
            while cursor.done < cursor.total:
                _fill(response, cursor, info.name, on_bytes)
        except BaseException:
            self._connection.drop()  # the rest of the body must not be read as an answer
            raise
        _finish(response)

    def _read_whole(self, name: str, bytes_max: int) -> bytes:
        response = self._request("GET", name, {})
        try:
            size = check_whole(lower_headers(response), name, bytes_max=bytes_max)
            content = bytearray(size)
            cursor = Cursor([memoryview(content)])
            while cursor.done < size:
                _fill(response, cursor, name, tell_nobody)
        except BaseException:
            self._connection.drop()
            raise
        _finish(response)
        return bytes(content)

    def _request(
        self,
        method: str,
        name: str,
        headers: Mapping[str, str],
        *,
        info: ObjectInfo | None = None,
        offset: int = 0,
    ) -> StreamedResponse:
        """The response to a request that was granted; else the error that it means."""
        url, signer = self._folder.url(name), self._folder.signer
        for may_refresh in (True, False):
            response = self._connection.get(method, url, signer.headers(method, url, headers))
            if response.status in (200, 206):
                return response
            refusal = self._refusal(response)
            if not (refusal.credentials_expired and may_refresh and signer.refresh()):
                break
        if info and refusal.status == 412:
            raise changed(info, "has another version (412)")
        if info and refusal.status == 416:
            raise out_of_range(refusal.headers, info, offset)
        place = headers.get("Range", "").replace("bytes=", ", bytes ")
        raise signer.refused(refusal, f"{name}{place} ({method} {url})")

    def _refusal(self, response: http.client.HTTPResponse) -> Refusal:
        try:
            body = response.read(ERROR_BODY_BYTES_MAX)
        except BROKEN:
            body = b""
        self._connection.drop()
        return read_refusal(response.status, lower_headers(response), body)


def lower_headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _fill(response: StreamedResponse, cursor: Cursor, name: str, on_bytes: OnBytes) -> None:
    """The next step of the views. It is told of as a whole, because a socket gives some KiB at a
    time; when the connection breaks, what had come until then is told."""
    view, done = cursor.rest(), 0
    try:
        while done < view.nbytes:
            count = response.receive_into(view[done:])
            if not count:
                raise TransientFailure(f"{name}: the server closed the connection in the middle")
            done += count
    except BROKEN as error:
        raise TransientFailure(f"{name}: {told(error)}") from error
    finally:
        if done:
            cursor.advance(done)
            on_bytes(done)


def _finish(response: http.client.HTTPResponse) -> None:
    """Tell http.client that the body was read, so that the connection can be used again."""
    response.length = 0
    try:
        response.read()
    except BROKEN as error:
        raise SourceError(f"the end of a response: {told(error)}") from error
