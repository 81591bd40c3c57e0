"""Sizes, times and counts that a client can run into."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from butterfly.api.limits import ApiLimits
from tests.support.api_fakes import FakeServing
from tests.support.raw_http import post, raw, raw_until_reset

Start = Callable[..., Awaitable[str]]
CHAT = {"messages": [{"role": "user", "content": "a very private question"}]}
KEY = "a-key-of-16-chars"


async def test_a_client_that_does_not_read_is_dropped(start: Start, serving: FakeServing) -> None:
    serving.script = "x" * 200_000
    serving.text_model.context_length = None
    url = await start(limits=ApiLimits(write_timeout_seconds=0.2))
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 200_000}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await serving.until_running(1)

    await serving.until_idle()
    assert not reader.at_eof()
    writer.transport.abort()


async def test_a_body_over_the_limit_is_refused(
    start: Start, http: aiohttp.ClientSession, serving: FakeServing
) -> None:
    url = await start(limits=ApiLimits(body_bytes_max=1000))
    long = {"prompt": "x" * 2000}

    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    for kwargs in ({"json": long}, {"data": in_chunks()}):
        status, body, _ = await post(http, f"{url}/v1/completions", **kwargs)
        assert (status, body["error"]["code"]) == (413, "request_too_large")
    assert not serving.requests


async def test_a_small_body_that_unpacks_to_a_large_one_is_refused(
    start: Start, http: aiohttp.ClientSession
) -> None:
    url = await start(limits=ApiLimits(body_bytes_max=10_000))
    packed = zlib.compress(json.dumps({"prompt": "x" * 5_000_000}).encode())

    status, body, _ = await post(
        http, f"{url}/v1/completions", data=packed, headers={"Content-Encoding": "deflate"}
    )
    assert len(packed) < 10_000
    assert (status, body["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_does_not_come_is_given_up(start: Start) -> None:
    url = await start(limits=ApiLimits(body_timeout_seconds=0.05))
    answer = await raw(
        url, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
    )
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("request_head", [b"", b"GET /health HTTP/1.1\r\nHost: "])
async def test_a_connection_that_says_nothing_is_closed(start: Start, request_head: bytes) -> None:
    url = await start(limits=ApiLimits(header_timeout_seconds=0.05))

    assert await raw_until_reset(url, request_head) == b""


async def test_a_connection_that_has_asked_may_stay(
    start: Start, http: aiohttp.ClientSession
) -> None:
    url = await start(limits=ApiLimits(header_timeout_seconds=0.05))
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b'{"status": "ok"}')
        await asyncio.sleep(0.1)
    writer.transport.abort()


async def test_connections_over_the_limit_are_turned_away(start: Start) -> None:
    url = await start(limits=ApiLimits(connections_max=1))
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b'{"status": "ok"}')

    assert await raw_until_reset(url, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    writer.transport.abort()


async def test_no_http_gets_an_answer_and_harms_nothing(
    start: Start, http: aiohttp.ClientSession
) -> None:
    url = await start()

    assert b"400" in await raw(url, b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    async with http.get(f"{url}/health") as response:
        assert response.status == 200
