"""What other answers than a node's become."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from butterfly.admin.node_http import ANSWER_BYTES_MAX, NodeHttp, node_at
from butterfly_core.errors import (
    ButterflyError,
    NotAuthenticated,
    ProtocolViolation,
    Refused,
    Unreachable,
)

Serve = Callable[[bytes], NodeHttp]


@contextmanager
def one_answer(raw: bytes) -> Iterator[NodeHttp]:
    """A server that reads one request and answers with these bytes."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):  # the reader may hang up first
            connection.recv(65536)
            connection.sendall(raw)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield node_at(f"http://127.0.0.1:{server.getsockname()[1]}", "the-key")
        thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as servers:
        yield lambda raw: servers.enter_context(one_answer(raw))


def http(status: str, body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


OPENAI_ERROR = json.dumps({"error": {"message": "not now", "type": "x"}}).encode()


@pytest.mark.parametrize(
    ("raw", "error", "expected"),
    [
        (b"SSH-2.0-OpenSSH\r\n", Unreachable, "does not answer"),
        (b"", Unreachable, "does not answer"),
        (http("200 OK", b"<html>"), ProtocolViolation, "something else than JSON"),
        (http("200 OK", b"[1]"), ProtocolViolation, "no object"),
        (http("401 Unauthorized", b""), NotAuthenticated, "--api-key-file"),
        (http("503 Service Unavailable", OPENAI_ERROR), Refused, "answers 503: not now"),
        (http("500 Oops", b""), Refused, "no reason given"),
        (http("302 Found", b"", "Location: http://elsewhere/\r\n"), Refused, "answers 302"),
    ],
)
def test_each_odd_answer_is_told_apart(
    raw: bytes, error: type[ButterflyError], expected: str, serve: Serve
) -> None:
    with pytest.raises(error, match=expected):
        serve(raw).status()


def test_an_endless_answer_is_cut(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"

    with pytest.raises(ProtocolViolation):
        serve(head + b'{"a": "' + b"x" * ANSWER_BYTES_MAX).status()


def test_a_stream_is_given_line_by_line(serve: Serve) -> None:
    node = serve(http("200 OK", b"data: 1\r\n\ndata: 2\n"))

    assert list(node.stream("/v1/x", {})) == ["data: 1", "", "data: 2"]


def test_the_clock_of_an_answer_is_compared(serve: Serve) -> None:
    date = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    offset = serve(http("200 OK", b"{}", date)).clock_offset()

    assert offset is not None
    assert offset < -1e9
