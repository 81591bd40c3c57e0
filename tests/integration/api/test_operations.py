"""What operators, keys and logs see."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from butterfly.api.views import Check
from tests.support.api_fakes import FakeNode
from tests.support.raw_http import post, raw

Start = Callable[..., Awaitable[str]]
CHAT = {"messages": [{"role": "user", "content": "a very private question"}]}
KEY = "a-key-of-16-chars"


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


async def test_a_fresh_status_is_refused_with_the_reason_when_there_is_no_majority(
    start: Start, http: aiohttp.ClientSession, node: FakeNode
) -> None:
    url = await start()
    async with http.get(f"{url}/status?fresh=1") as response:
        assert response.status == 200
    node.behind = "1 of 3 voters is heard"
    async with http.get(f"{url}/status?fresh=1") as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert "1 of 3 voters" in (await response.json())["error"]["message"]
    async with http.get(f"{url}/status") as response:
        assert response.status == 200


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
    assert status == 200
    assert body == {"entries": 2, "freed_bytes": 12_345, "dry_run": False}


async def test_age_and_dry_run_reach_the_cache(
    start: Start, http: aiohttp.ClientSession, node: FakeNode
) -> None:
    url = f"{await start()}/admin/clear-cache"
    status, body, _ = await post(http, url, json={"older_than_seconds": 60, "dry_run": True})

    assert (status, body["dry_run"]) == (200, True)
    assert (node.cleared, node.cache_bytes) == ([(60.0, True)], 12_345)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"older_than_seconds": -1}, "0 or more"),
        ({"older_than_seconds": "7d"}, "must be int or float"),
        ({"older_than_seconds": True}, "must be int or float"),
        ({"dry_run": 1}, "must be bool"),
        ({"older": 1}, "known are older_than_seconds, dry_run"),
        ([], "must be a JSON object"),
    ],
)
async def test_an_order_to_the_cache_that_makes_no_sense_deletes_nothing(
    start: Start, http: aiohttp.ClientSession, node: FakeNode, body: Any, told: str
) -> None:
    url = await start()
    status, answer, _ = await post(http, f"{url}/admin/clear-cache", json=body)

    assert status == 400
    assert told in answer["error"]["message"]
    assert node.cleared == []


async def test_a_pinned_root_is_given_up_by_its_name_and_with_a_key(
    start: Start, http: aiohttp.ClientSession, node: FakeNode
) -> None:
    url = f"{await start(api_keys=frozenset({KEY}))}/admin/repin"
    key = {"Authorization": f"Bearer {KEY}"}
    node.pinned_root = "r1"

    assert (await post(http, url, json={"root": "r1"}))[0] == 401
    assert (await post(http, url, json={}, headers=key))[0] == 400
    assert (await post(http, url, json={"root": "r2"}, headers=key))[0] == 400
    assert node.pinned_root == "r1"
    status, body, _ = await post(http, url, json={"root": "r1"}, headers=key)
    assert (status, body) == (200, {"given_up": "r1"})
    assert node.pinned_root == ""


async def test_another_model_is_offered_with_a_key_and_in_the_words_of_the_configuration(
    start: Start, http: aiohttp.ClientSession, node: FakeNode
) -> None:
    url = f"{await start(api_keys=frozenset({KEY}))}/admin/load"
    key = {"Authorization": f"Bearer {KEY}"}
    place = {"source_type": "s3", "source_path": "s3://models/b", "name": "b"}

    assert (await post(http, url, json=place))[0] == 401
    for body in ({}, {"source_type": "s3"}, {**place, "dtype": "auto"}, {**place, "name": 1}):
        assert (await post(http, url, json=body, headers=key))[0] == 400
    assert node.offers == []
    status, answer, _ = await post(http, url, json=place, headers=key)
    assert (status, answer) == (200, {"offer": 1})
    assert node.offers == [place]
    off = url.replace("/load", "/call-off-load")
    assert (await post(http, off))[0] == 401
    assert (await post(http, off, headers=key))[:2] == (200, {"offer": 1})
    assert (await post(http, off, headers=key))[0] == 400


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


async def test_a_strangers_name_for_loopback_is_refused_without_keys_only(
    start: Start, http: aiohttp.ClientSession
) -> None:
    open_url, keyed_url = await start(), await start(api_keys=frozenset({KEY}))
    headers = {"Host": "evil.example", "Authorization": f"Bearer {KEY}"}
    async with http.get(f"{open_url}/status", headers=headers) as response:
        assert response.status == 403
    async with http.get(f"{keyed_url}/status", headers=headers) as response:
        assert response.status == 200


async def test_a_made_up_method_is_refused(start: Start) -> None:
    assert b" 400 " in await raw(await start(), b"BREW /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
