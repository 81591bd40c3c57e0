"""Starting on a port and ending with streams open."""

import asyncio
import json

import aiohttp
import pytest

from butterfly.api.app import make_app
from butterfly.api.server import ApiServer
from butterfly_core.address import Address
from butterfly_core.errors import ConfigError
from butterfly_telemetry.metrics import HttpMetrics, Metrics
from tests.support.api_fakes import FakeNode, FakeServing

ANY = Address("127.0.0.1", 0)
STREAM = {"prompt": "a", "stream": True}


def server_of(
    serving: FakeServing, bind: Address = ANY, metrics: Metrics | None = None
) -> ApiServer:
    metrics = metrics or Metrics()
    app = make_app(
        FakeNode(),
        serving,
        metrics.render,
        api_keys=frozenset(),
        observer=HttpMetrics(metrics),
    )
    return ApiServer(app, bind)


async def test_a_port_in_use_is_told() -> None:
    first = server_of(FakeServing())
    address = await first.start()
    try:
        with pytest.raises(ConfigError, match=rf"http_address {address}: cannot listen"):
            await server_of(FakeServing(), address).start()
    finally:
        await first.close()


async def test_closing_ends_an_open_stream_with_an_error_event() -> None:
    serving = FakeServing(gate=asyncio.Event())
    server = server_of(serving)
    address = await server.start()
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://{address}/v1/completions", json=STREAM) as response,
    ):
        await response.content.readuntil(b"\n\n")
        async with asyncio.timeout(10):
            await server.close()
        last = (await response.content.read()).decode()

    error = json.loads(last.strip().removeprefix("data: "))["error"]
    assert (error["code"], error["phase"]) == ("not_serving", "draining")
    assert serving.running == 0


async def test_closing_answers_a_waiting_request_with_503() -> None:
    serving = FakeServing(gate=asyncio.Event())
    server = server_of(serving)
    address = await server.start()

    async def ask(http: aiohttp.ClientSession) -> int:
        async with http.post(f"http://{address}/v1/completions", json={"prompt": "a"}) as response:
            return response.status

    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        asked = group.create_task(ask(http))
        await serving.until_running(1)
        await server.close()
    assert asked.result() == 503


async def test_closing_with_grace_lets_an_answer_end() -> None:
    serving = FakeServing(gate=asyncio.Event())
    server = server_of(serving)
    address = await server.start()
    async with (
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as group,
        http.post(f"http://{address}/v1/completions", json=STREAM) as response,
    ):
        closing = group.create_task(server.close(grace_seconds=10))
        await asyncio.sleep(0)
        assert serving.gate is not None
        serving.gate.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        await closing


async def test_requests_and_answers_show_in_the_metrics() -> None:
    server = server_of(FakeServing())
    address = await server.start()
    async with aiohttp.ClientSession() as http:
        await (await http.post(f"http://{address}/v1/completions", json=STREAM)).read()
        await (await http.get(f"http://{address}/no/such/path")).read()
        text = await (await http.get(f"http://{address}/metrics")).text()
    await server.close()

    assert 'answers_total{finish="stop"} 1.0' in text
    assert 'http_requests_total{method="POST",route="/v1/completions",status="200"} 1.0' in text
    assert 'http_requests_total{method="GET",route="unknown",status="404"} 1.0' in text
    assert "answers_open 0.0" in text
