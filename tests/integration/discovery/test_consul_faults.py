"""A scripted server in Consul's place: each odd answer is a clear error within a bounded time."""

import asyncio
import json
from typing import Any

import pytest

from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_discovery.book import ADDRESSES_PER_SOURCE_MAX
from butterfly_discovery.claims import Claim
from butterfly_discovery.consul_claims import ConsulClaims
from butterfly_discovery.consul_client import ask_consul
from butterfly_discovery.consul_settings import ConsulSettings
from butterfly_discovery.consul_source import ConsulSource
from tests.support.odd_http import HANGS, Stall, odd_http, reply

TOKEN = "9b6e2a11-secret"
PATIENCE_SECONDS = 30.0
NOT_CONSUL = r"this is no (answer of Consul|list of instances)"


def settings(url: str, **changes: Any) -> ConsulSettings:
    values: dict[str, Any] = {"timeout_seconds": 5.0, "pause_seconds": 0.01, **changes}
    return ConsulSettings(url, token=lambda: TOKEN, **values)


def source(url: str, **changes: Any) -> ConsulSource:
    me = Address("10.0.0.1", 7000)
    chosen = settings(url, **changes)
    return ConsulSource(chosen, cluster_name="test", me=me, service_id="butterfly-1")


def instance(host: Any, port: Any = 7000, *, cluster: Any = "test") -> dict[str, Any]:
    service = {"Address": host, "Port": port, "Meta": {"butterfly_cluster": cluster}}
    return {"Node": {"Address": "10.9.9.9"}, "Service": service}


def listing(*entries: Any, index: str | None = "7") -> bytes:
    return reply(json.dumps(entries).encode(), index=index)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(b"No cluster leader", status=500), r"status 500, .*No cluster leader"),
        (reply(b"", status=503), r"status 503"),
        (reply(b"Permission denied", status=403), r"lacks the rule: service \"butterfly\""),
        (reply(b"ACL not found", status=403), r"does not know the token"),
        (reply(b"<html>hello</html>"), NOT_CONSUL),
        (reply(b""), NOT_CONSUL),
        (reply(b"\x00\xff\xfe"), NOT_CONSUL),
        (reply(b"null"), NOT_CONSUL),
        (reply(b'{"a": 1}'), NOT_CONSUL),
        (reply(b"[" * 100_000), NOT_CONSUL),
        (reply(b"[]", index=None), NOT_CONSUL),
        (reply(b"[]", index="many"), NOT_CONSUL),
        (reply(b"[]", index="9" * 5000), NOT_CONSUL),
        (reply(b"", status=404), NOT_CONSUL),
        (reply(b"[]", Content_Encoding="gzip")[:-2] + b"\x1f\x8b", NOT_CONSUL),
        (reply(b"[", length=1000), r"cannot be asked"),
        (b"", r"cannot be asked"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"cannot be asked"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", r"cannot be asked"),
    ],
)
async def test_an_odd_answer_is_a_clear_error_that_shows_no_token(answer: bytes, said: str) -> None:
    async with odd_http(answer) as server, asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unreachable, match=said) as error:
            await source(server.url).next()

    assert server.url in str(error.value)
    assert TOKEN not in f"{error.value!r}"
    assert len(str(error.value)) < 1000


async def test_a_server_that_echoes_the_token_does_not_get_it_into_an_error() -> None:
    echo = reply(f"no such thing as {TOKEN}".encode(), status=500)
    async with odd_http(echo) as server:
        with pytest.raises(Unreachable, match=r"no such thing as \(token\)"):
            await source(server.url).next()


async def test_a_server_that_hangs_is_given_up_in_time() -> None:
    async with odd_http(HANGS) as server, asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unreachable, match=r"gave no answer within 0\.2 s"):
            await source(server.url, timeout_seconds=0.2).next()


async def test_a_server_that_hangs_in_the_middle_of_its_answer_is_given_up_in_time() -> None:
    half = Stall(reply(b"[", length=1000))
    async with odd_http(listing(), half) as server, asyncio.timeout(PATIENCE_SECONDS):
        node = source(server.url, timeout_seconds=0.2, wait_seconds=1.0)
        await node.next()
        with pytest.raises(Unreachable, match=r"gave no answer within 1\.2\d* s"):
            await node.next()


async def test_an_answer_without_end_is_cut_off() -> None:
    endless = reply(b" " * (64 << 20))
    async with odd_http(endless) as server, asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(Unreachable, match=r"sends more than 100000 bytes"):
            await source(server.url, answer_bytes_max=100_000).next()

        assert server.bytes_sent < 32 << 20


async def test_a_redirect_is_not_followed_with_the_token() -> None:
    async with odd_http(listing(instance("10.0.0.6"))) as elsewhere:
        away = reply(b"", status=307, Location=f"{elsewhere.url}/v1/health/service/butterfly")
        async with odd_http(away) as server:
            with pytest.raises(Unreachable, match="status 307"):
                await source(server.url).next()

        assert elsewhere.asked == []


async def test_the_token_goes_out_in_its_header_alone() -> None:
    async with odd_http(listing()) as server:
        await source(server.url).next()

    request, _, fields = server.asked[0].partition("\r\n")
    assert f"X-Consul-Token: {TOKEN}\r\n" in fields
    assert TOKEN not in request


def indexes(asked: list[str]) -> list[str | None]:
    queries = [head.split(" ", 2)[1].partition("?")[2].split("&") for head in asked]
    return [
        next((field.removeprefix("index=") for field in query if field.startswith("index=")), None)
        for query in queries
    ]


async def test_an_index_that_goes_backwards_is_forgotten() -> None:
    answers = [listing(index="100"), listing(index="40"), listing(index="41"), listing(index="42")]
    async with odd_http(*answers) as server:
        node = source(server.url)
        for _ in range(4):
            await node.next()

    assert indexes(server.asked) == [None, "100", None, "41"]


async def test_an_index_of_zero_does_not_make_a_question_that_never_waits() -> None:
    async with odd_http(listing(index="0")) as server:
        node = source(server.url)
        await node.next()
        await node.next()

    assert indexes(server.asked) == [None, "1"]


async def test_after_an_error_the_next_question_is_answered_at_once() -> None:
    async with odd_http(listing(), reply(b"", status=500), listing()) as server:
        node = source(server.url)
        await node.next()
        with pytest.raises(Unreachable):
            await node.next()
        await node.next()

    assert indexes(server.asked) == [None, "7", None]


async def test_answers_that_come_at_once_are_paced() -> None:
    loop = asyncio.get_running_loop()
    async with odd_http(listing()) as server:
        node = source(server.url, pause_seconds=0.2)
        begun = loop.time()
        for _ in range(5):
            await node.next()

    assert loop.time() - begun >= 4 * 0.1


async def test_a_broken_instance_does_not_hide_the_others() -> None:
    broken: list[Any] = [
        None,
        7,
        [],
        {},
        {"Service": None},
        instance(7),
        instance("a b", "7000"),
        instance("10.0.0.3", 0),
        instance("10.0.0.3", 70_000),
        instance("10.0.0.3", -1),
        instance("0.0.0.0"),
        instance("a:b]"),
        instance("x" * 300),
        instance("10.0.0.4", cluster="other"),
        instance("10.0.0.4", cluster=None),
    ]
    async with odd_http(listing(*broken, instance("10.0.0.2"), instance(""))) as server:
        found = await source(server.url).next()

    assert found == {Address("10.0.0.2", 7000), Address("10.9.9.9", 7000)}


async def test_at_most_1024_are_taken_and_everywhere_the_same() -> None:
    many = [instance(f"10.1.{n // 250}.{n % 250}") for n in range(1500)]
    async with odd_http(listing(*many), listing(*reversed(many))) as server:
        one, other = await source(server.url).next(), await source(server.url).next()

    assert len(one) == ADDRESSES_PER_SOURCE_MAX
    assert one == other


@pytest.mark.parametrize("answer", [reply(b"what?", status=500), reply(b"no", status=404), HANGS])
async def test_registering_at_a_broken_agent_goes_on_and_ends_in_time(
    answer: bytes | Stall,
) -> None:
    async with odd_http(answer) as server, asyncio.timeout(PATIENCE_SECONDS):
        node = source(server.url, timeout_seconds=0.2, retry_seconds_max=0.1, leave_seconds=0.2)
        running = asyncio.create_task(node.run())
        while len(server.asked) < 3:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert node.problem is not None
    assert "PUT /v1/agent/service/register" in server.asked[0]


@pytest.mark.parametrize("body", [b"maybe", b"1", b'"true"', b"null", b"{}", b""])
async def test_a_claim_is_ours_only_when_consul_says_true(body: bytes) -> None:
    async with odd_http(reply(body)) as server:
        claims = ConsulClaims(settings(server.url), cluster_name="test")
        with pytest.raises(Unreachable):
            await claims.write(Claim("a:1", None, 0), replacing=None)


@pytest.mark.parametrize("entry", [7, "text", {}, {"ModifyIndex": 0}, {"ModifyIndex": True}, []])
async def test_an_entry_without_a_version_is_no_claim(entry: Any) -> None:
    entries = [{"Value": "e30=", **entry}] if isinstance(entry, dict) else [entry]
    async with odd_http(reply(json.dumps(entries).encode())) as server:
        with pytest.raises(Unreachable):
            await ConsulClaims(settings(server.url), cluster_name="test").read()


async def test_claims_are_read_consistently() -> None:
    async with odd_http(reply(b"", status=404)) as server:
        assert await ConsulClaims(settings(server.url), cluster_name="test").read() is None

    assert "GET /v1/kv/butterfly/test/founding?consistent=1 " in server.asked[0]


async def test_a_host_that_no_resolver_takes_is_unreachable() -> None:
    async def look(api: Any) -> Any:
        raise UnicodeError("label empty or too long")

    with pytest.raises(Unreachable, match="cannot be asked"):
        await ask_consul(settings("http://127.0.0.1:8500"), look, needs="")
