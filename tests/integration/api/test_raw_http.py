"""What goes over the wire, seen without the official client."""

import asyncio
import json
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import pytest

from butterfly.api.limits import ApiLimits
from butterfly.api.views import Check
from butterfly_core.errors import EngineLost, NotServing
from tests.support.api_fakes import FakeNode, FakeServing

Start = Callable[..., Awaitable[str]]
CHAT = {"messages": [{"role": "user", "content": "a very private question"}]}
KEY = "a-key-of-16-chars"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


async def post(
    http: aiohttp.ClientSession, url: str, **kwargs: Any
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    async with http.post(url, **kwargs) as response:
        return response.status, await response.json(), response.headers


async def events(response: aiohttp.ClientResponse) -> list[str]:
    text = (await response.read()).decode()
    return [block for block in text.split("\n\n") if block]


async def test_a_stream_is_events_and_ends_with_done(
    start: Start, http: aiohttp.ClientSession
) -> None:
    url = await start()
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        blocks = await events(response)
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["X-Request-Id"].startswith("req-")

    assert blocks[-1] == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[1]["choices"][0]["delta"] == {"content": "H"}
    assert chunks[1]["choices"][0]["finish_reason"] is None
    assert chunks[-2]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 13


async def test_without_the_wish_no_usage_is_streamed(
    start: Start, http: aiohttp.ClientSession
) -> None:
    url = await start()
    body = {"prompt": "a", "stream": True}
    async with http.post(f"{url}/v1/completions", json=body) as response:
        assert b"usage" not in await response.read()


async def test_a_waiting_stream_is_kept_alive(
    start: Start, http: aiohttp.ClientSession, serving: FakeServing
) -> None:
    serving.gate = asyncio.Event()
    url = await start(limits=ApiLimits(keep_alive_seconds=0.02))
    async with http.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True}) as response:
        seen = b""
        while b": keep-alive\n\n: keep-alive\n\n" not in seen:
            seen += await response.content.readany()
        serving.gate.set()
        seen += await response.content.read()
    assert seen.endswith(b"data: [DONE]\n\n")


async def test_an_error_before_the_first_token_has_its_own_status(
    start: Start, http: aiohttp.ClientSession, serving: FakeServing
) -> None:
    serving.fail_after = 0
    serving.failure = NotServing("electing", phase="election", retry_after_seconds=3)
    url = await start()

    status, body, headers = await post(
        http, f"{url}/v1/chat/completions", json={**CHAT, "stream": True}
    )

    assert (status, headers["Retry-After"]) == (503, "3")
    assert body["error"]["phase"] == "election"


async def test_an_error_in_the_middle_is_an_event_and_there_is_no_done(
    start: Start, http: aiohttp.ClientSession, serving: FakeServing
) -> None:
    serving.fail_after, serving.failure = 3, EngineLost("the engine died")
    url = await start()
    async with http.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        blocks = await events(response)

    error = json.loads(blocks[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_lost"
    assert not any("[DONE]" in block for block in blocks)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_cancels_its_generation(
    start: Start, http: aiohttp.ClientSession, serving: FakeServing, stream: bool
) -> None:
    serving.gate = asyncio.Event()
    url = await start()
    asked = asyncio.ensure_future(
        http.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": stream})
    )
    await serving.until_running(1)
    if stream:
        (await asked).close()
    else:
        asked.cancel()

    await serving.until_idle()
    assert len(serving.closed) == 1


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


async def raw(url: str, request: bytes) -> bytes:
    """Send these bytes and read until the server closes, or its answer's first piece."""
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read(65_536)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("request_head", [b"", b"GET /health HTTP/1.1\r\nHost: "])
async def test_a_connection_that_says_nothing_is_closed(start: Start, request_head: bytes) -> None:
    url = await start(limits=ApiLimits(header_timeout_seconds=0.05))

    assert await raw_until_reset(url, request_head) == b""


async def raw_until_reset(url: str, request: bytes) -> bytes:
    try:
        return await raw(url, request)
    except ConnectionResetError:
        return b""


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


async def test_operators_see_status_health_and_metrics(
    start: Start, http: aiohttp.ClientSession
) -> None:
    url = await start()
    async with http.get(f"{url}/status") as response:
        assert (await response.json())["state"] == "OPERATIONAL"
    async with http.get(f"{url}/health") as response:
        assert await response.json() == {"status": "ok"}
    async with http.get(f"{url}/metrics") as response:
        assert await response.text() == "up 1\n"
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")


async def test_readiness_names_what_blocks(
    start: Start, http: aiohttp.ClientSession, node: FakeNode
) -> None:
    url = await start()
    async with http.get(f"{url}/readiness") as response:
        assert response.status == 200
        assert await response.json() == {
            "ready": True,
            "blocking": None,
            "checks": [{"name": "serving", "ok": True, "detail": "OPERATIONAL"}],
        }
    node.checks = [Check("quorum", True, "3 of 3"), Check("loaded", False, "45 %")]
    async with http.get(f"{url}/readiness") as response:
        assert response.status == 503
        assert (await response.json())["blocking"] == "loaded"


async def test_the_cache_is_cleared_by_post_only(start: Start, http: aiohttp.ClientSession) -> None:
    url = await start()
    async with http.get(f"{url}/admin/clear-cache") as response:
        assert response.status == 405
        assert (await response.json())["error"]["code"] == "method_not_allowed"
        assert response.headers["Allow"] == "POST"

    status, body, _ = await post(http, f"{url}/admin/clear-cache")
    assert (status, body) == (200, {"freed_bytes": 12_345})


async def test_a_page_of_another_site_cannot_clear_the_cache(
    start: Start, http: aiohttp.ClientSession, node: FakeNode
) -> None:
    url = await start()
    headers = {"Origin": "http://evil.example"}

    status, body, told = await post(http, f"{url}/admin/clear-cache", headers=headers)

    assert (status, body["error"]["code"]) == (403, "foreign_origin")
    assert node.cache_bytes
    assert not any(name.startswith("Access-Control") for name in told)


async def test_with_keys_only_health_is_open(start: Start, http: aiohttp.ClientSession) -> None:
    url = await start(api_keys=frozenset({KEY}))
    paths = {"/health": 200, "/readiness": 200, "/status": 401, "/metrics": 401, "/none": 401}
    for path, expected in paths.items():
        async with http.get(url + path) as response:
            assert (path, response.status) == (path, expected)
    async with http.get(f"{url}/status", headers={"Authorization": f"Bearer {KEY}"}) as response:
        assert response.status == 200
    status, _, headers = await post(http, f"{url}/admin/clear-cache")
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Bearer")


async def test_an_unknown_path_has_openais_shape(start: Start, http: aiohttp.ClientSession) -> None:
    url = await start()
    status, body, headers = await post(http, f"{url}/v1/nowhere", json={})

    assert status == 404
    assert body["error"]["type"] == "invalid_request_error"
    assert headers["Server"] == "butterfly"


async def test_the_clients_request_id_comes_back(start: Start, http: aiohttp.ClientSession) -> None:
    url = await start()
    for path, body in [("/v1/chat/completions", CHAT), ("/v1/nowhere", {})]:
        _, _, headers = await post(http, url + path, json=body, headers={"X-Request-Id": "mine-1"})
        assert headers["X-Request-Id"] == "mine-1"


async def test_the_access_log_shows_no_prompt_and_no_key(
    start: Start, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    url = await start(api_keys=frozenset({KEY}))
    with caplog.at_level(logging.DEBUG):
        await post(
            http,
            f"{url}/v1/chat/completions?x=query",
            json=CHAT,
            headers={"Authorization": f"Bearer {KEY}"},
        )

    assert "POST /v1/chat/completions 200" in caplog.text
    for secret in ("private", KEY, "query", "Hello there"):
        assert secret not in caplog.text
