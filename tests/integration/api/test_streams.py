"""Streams as bytes: events, keep-alives, errors, and clients that go away."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from butterfly.api.limits import ApiLimits
from butterfly_core.errors import EngineLost, NotServing
from tests.support.api_fakes import FakeServing
from tests.support.raw_http import events, post

Start = Callable[..., Awaitable[str]]
CHAT = {"messages": [{"role": "user", "content": "a very private question"}]}
KEY = "a-key-of-16-chars"


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


async def test_an_error_after_a_keep_alive_is_an_event_too(
    start: Start, http: aiohttp.ClientSession, serving: FakeServing
) -> None:
    serving.gate, serving.gated_from = asyncio.Event(), 0
    serving.fail_after, serving.failure = 0, NotServing("electing", phase="election")
    url = await start(limits=ApiLimits(keep_alive_seconds=0.02))
    async with http.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True}) as response:
        await response.content.readuntil(b": keep-alive\n\n")
        serving.gate.set()
        blocks = await events(response)

    assert response.status == 200
    assert json.loads(blocks[-1].removeprefix("data: "))["error"]["phase"] == "election"


async def test_two_choices_share_one_stream(start: Start, http: aiohttp.ClientSession) -> None:
    url = await start()
    body = {"prompt": ["a", "b"], "stream": True}
    async with http.post(f"{url}/v1/completions", json=body) as response:
        blocks = await events(response)

    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
    for index in (0, 1):
        of_one = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in of_one) == "Hello there."
        assert of_one[-1]["finish_reason"] == "stop"
