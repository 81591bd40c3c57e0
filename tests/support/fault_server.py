"""A small S3-like server in this process that serves one folder, and misbehaves on order.

with fault_server(folder) as server:
    checkpoint = read_checkpoint(source_of(server))
    server.add(flip_bit(at=5000), name="model.safetensors", times=1)
"""

import hashlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.s3 import serving

PLACE = "bucket/model"
_STALL_SECONDS_MAX = 60


@dataclass
class Asked:
    """One request: ``first`` and ``last`` byte when it asked for a range."""

    method: str
    name: str
    first: int | None = None
    last: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Answer:
    """What will be sent. ``sent`` bytes of the body, then ``ending``."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    sent: int | None = None
    ending: Literal["keep", "close", "reset", "stall"] = "keep"


Change = Callable[[Answer, Asked, bytes], None]
"""Spoils an answer; the bytes are the whole object."""


@dataclass
class Fault:
    """Applies ``change`` to GETs of the object, ``times`` times (None: always)."""

    change: Change
    name: str
    times: int | None
    hits: int = 0


@dataclass
class FaultServer:
    """A running server; ``objects`` may be changed at any time. ``dress`` changes every answer,
    those to HEAD too."""

    objects: dict[str, bytes]
    lists: bool = True
    dress: Change | None = None
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def add(self, change: Change, *, name: str = "", times: int | None = None) -> Fault:
        """Misbehave from now on; "" is every object but listings."""
        fault = Fault(change, name, times)
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Behave again."""
        with self.lock:
            self.faults.clear()

    def answer(self, asked: Asked) -> Answer:
        """The answer to a request, spoiled by the faults that apply."""
        with self.lock:
            self.asked.append(asked)
            content = self.objects.get(asked.name)
            if content is None:
                return refusal(404, "NoSuchKey")
            answer = _sound_answer(asked, content)
            if self.dress:
                self.dress(answer, asked, content)
            if asked.method == "GET":
                for fault in self.faults:
                    if fault.name in ("", asked.name) and fault.hits != fault.times:
                        before = (answer.status, dict(answer.headers), answer.body)
                        fault.change(answer, asked, content)
                        now = (answer.status, answer.headers, answer.body)
                        fault.hits += now != before or answer.ending != "keep"
            return answer

    def listing(self) -> Answer:
        """ListObjectsV2 of the folder, whatever was asked."""
        if not self.lists:
            return refusal(403, "AccessDenied")
        prefix = PLACE.partition("/")[2]
        entries = "".join(
            f"<Contents><Key>{escape(f'{prefix}/{name}')}</Key><Size>{len(content)}</Size>"
            f"<ETag>&quot;{etag_of(content)}&quot;</ETag></Contents>"
            for name, content in sorted(self.objects.items())
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        headers = {"Content-Type": "application/xml", "Content-Length": str(len(body.encode()))}
        return Answer(200, headers, body.encode())


@lru_cache(maxsize=8)
def etag_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def refusal(status: int, code: str, **headers: str) -> Answer:
    """An S3 error response."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {**fields, "Content-Length": str(len(body))}, body)


def _sound_answer(asked: Asked, content: bytes) -> Answer:
    headers = {"ETag": f'"{etag_of(content)}"', "Content-Length": str(len(content))}
    if asked.first is None or asked.last is None:
        return Answer(200, headers, content)
    if asked.first >= len(content):
        return refusal(416, "InvalidRange", Content_Range=f"bytes */{len(content)}")
    body = content[asked.first : asked.last + 1]
    last = asked.first + len(body) - 1
    headers["Content-Range"] = f"bytes {asked.first}-{last}/{len(content)}"
    headers["Content-Length"] = str(len(body))
    return Answer(206, headers, body)


# Faults, to be given to FaultServer.add.


def flip_bit(at: int) -> Change:
    """One bit of the object's byte ``at`` is wrong on its way."""

    def change(answer: Answer, asked: Asked, _content: bytes) -> None:
        place = at - (asked.first or 0)
        if 0 <= place < len(answer.body):
            spoiled = bytearray(answer.body)
            spoiled[place] ^= 0x10
            answer.body = bytes(spoiled)

    return change


def refuse(status: int, code: str, **headers: str) -> Change:
    """An error response; an underscore in a header's name becomes a hyphen."""

    def change(answer: Answer, _asked: Asked, _content: bytes) -> None:
        other = refusal(status, code, **headers)
        answer.status, answer.headers, answer.body = other.status, other.headers, other.body

    return change


def cut(ending: Literal["close", "reset", "stall"]) -> Change:
    """Half of the body, then the connection is closed, reset, or silent."""

    def change(answer: Answer, _asked: Asked, _content: bytes) -> None:
        answer.sent, answer.ending = len(answer.body) // 2, ending

    return change


def without_ranges(answer: Answer, _asked: Asked, content: bytes) -> None:
    """200 and the whole object, whatever range was asked for."""
    answer.status, answer.body = 200, content
    answer.headers.pop("Content-Range", None)
    answer.headers["Content-Length"] = str(len(content))


def with_header(name: str, value: str | None) -> Change:
    """A header field set to something else, or left out."""

    def change(answer: Answer, _asked: Asked, _content: bytes) -> None:
        answer.headers.pop(name, None)
        if value is not None:
            answer.headers[name] = value

    return change


def chunked(answer: Answer, _asked: Asked, _content: bytes) -> None:
    """Transfer-Encoding: chunked."""
    answer.headers.pop("Content-Length", None)
    answer.headers["Transfer-Encoding"] = "chunked"
    size = f"{len(answer.body):x}".encode()
    answer.body = size + b"\r\n" + answer.body + b"\r\n0\r\n\r\n"


@contextmanager
def fault_server(
    folder: Path, *, lists: bool = True, tls: ssl.SSLContext | None = None
) -> Iterator[FaultServer]:
    """Serve a folder's files as ``bucket/model/NAME``."""
    objects = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    server = FaultServer(objects, lists=lists)

    class Handler(_Handler):
        owner = server

    with serving(Handler, tls=tls) as url:
        server.url = url
        try:
            yield server
        finally:
            server.over.set()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    owner: FaultServer

    def do_CONNECT(self) -> None:
        """Be a proxy for HTTPS too: pass bytes on until one side ends."""
        host, _, port = self.path.rpartition(":")
        self.owner.asked.append(Asked("CONNECT", self.path))
        with socket.create_connection((host, int(port)), timeout=10) as other:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=_pass_on, args=(other, self.connection))
            back.start()
            _pass_on(self.connection, other)
            back.join()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        """Tests print nothing."""

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if "list-type=2" in self.path:
            self._send(self.owner.listing())
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, path.removeprefix(f"{PLACE}/"), headers=headers)
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            asked.first, asked.last = int(found[1]), int(found[2])
        self._send(self.owner.answer(asked))

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body if answer.sent is None else answer.body[: answer.sent])
        self.wfile.flush()
        if answer.ending == "keep":
            return
        self.close_connection = True
        if answer.ending == "stall":
            self.owner.over.wait(_STALL_SECONDS_MAX)
        elif answer.ending == "reset":
            at_once = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            # shutdown() would end the stream in order; only closing with linger 0 resets it.
            self.connection.close()
