"""A real Consul: of many who claim to found exactly one does; only a known claim is replaced."""

import asyncio
import json
from typing import Any

import pytest

from butterfly_core.errors import Unreachable
from butterfly_discovery.claims import Claim, ClaimUnreadable
from butterfly_discovery.consul_claims import ConsulClaims
from tests.support.consul_server import ConsulAgent

KEY = "butterfly/test/founding"
MINE = Claim("10.0.0.1:7000", None, 0)
THEIRS = Claim("10.0.0.2:7000", None, 0)


@pytest.fixture
def claims(consul: ConsulAgent) -> ConsulClaims:
    return ConsulClaims(consul.settings(), cluster_name="test")


async def put(consul: ConsulAgent, value: bytes) -> None:
    await asyncio.to_thread(consul.ask, "PUT", f"kv/{KEY}", value)


async def test_at_first_nobody_claims(claims: ConsulClaims) -> None:
    assert await claims.read() is None


async def test_a_claim_is_created_once(claims: ConsulClaims) -> None:
    assert await claims.write(MINE, replacing=None)
    assert not await claims.write(THEIRS, replacing=None)

    found = await claims.read()
    assert found is not None
    assert (found.candidate, found.cluster_id) == (MINE.candidate, None)
    assert found.version > 0


async def test_of_twenty_who_claim_at_once_exactly_one_wins(consul: ConsulAgent) -> None:
    async def claim(number: int) -> bool:
        mine = Claim(f"10.0.0.{number}:7000", None, 0)
        return await ConsulClaims(consul.settings(), cluster_name="test").write(
            mine, replacing=None
        )

    won = await asyncio.gather(*(claim(number) for number in range(20)))

    assert sum(won) == 1
    found = await ConsulClaims(consul.settings(), cluster_name="test").read()
    assert found is not None
    assert found.candidate == f"10.0.0.{won.index(True)}:7000"


async def test_of_twenty_who_take_over_at_once_exactly_one_does(claims: ConsulClaims) -> None:
    await claims.write(MINE, replacing=None)
    seen = await claims.read()
    others = [Claim(f"10.0.1.{number}:7000", None, 0) for number in range(20)]

    won = await asyncio.gather(*(claims.write(other, replacing=seen) for other in others))

    assert sum(won) == 1


async def test_only_the_version_that_was_read_is_replaced(claims: ConsulClaims) -> None:
    await claims.write(MINE, replacing=None)
    seen = await claims.read()
    assert seen is not None
    founded = Claim(MINE.candidate, "c1", 0)

    assert await claims.write(founded, replacing=seen)
    assert not await claims.write(THEIRS, replacing=seen)

    found = await claims.read()
    assert found is not None
    assert (found.candidate, found.cluster_id) == (MINE.candidate, "c1")


async def test_a_claim_written_again_after_a_lost_answer_is_ours(claims: ConsulClaims) -> None:
    assert await claims.write(MINE, replacing=None)
    assert await claims.write(MINE, replacing=None)


async def test_a_claim_that_was_removed_meanwhile_is_not_replaced(
    consul: ConsulAgent, claims: ConsulClaims
) -> None:
    await claims.write(MINE, replacing=None)
    seen = await claims.read()
    await asyncio.to_thread(consul.ask, "DELETE", f"kv/{KEY}")

    assert not await claims.write(THEIRS, replacing=seen)
    assert await claims.read() is None


async def test_each_cluster_name_has_its_own_claim(
    consul: ConsulAgent, claims: ConsulClaims
) -> None:
    other = ConsulClaims(consul.settings(), cluster_name="other")

    assert await claims.write(MINE, replacing=None)
    assert await other.write(THEIRS, replacing=None)


async def test_a_claim_outlives_a_killed_consul(consul: ConsulAgent, claims: ConsulClaims) -> None:
    await claims.write(MINE, replacing=None)
    before = await claims.read()
    consul.kill()
    with pytest.raises(Unreachable, match="cannot be asked"):
        await claims.read()
    consul.spawn()
    await asyncio.to_thread(consul.until_ready)

    assert await claims.read() == before


def claim(**changes: Any) -> bytes:
    sound = {"cluster_name": "test", "candidate": "a:1", "cluster_id": None}
    return json.dumps({**sound, **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"founded by hand",
        b"null",
        b"[1]",
        b"[" * 1000,
        b"\xff\xfe",
        claim(cluster_name="other"),
        claim(candidate=7),
        claim(candidate=""),
        claim(candidate="a\nb"),
        claim(cluster_id=["c1"]),
        claim(cluster_id="c" * 129),
        claim(more=1),
        claim() + b" " * 1024,
    ],
)
async def test_anything_else_under_the_key_is_an_error_that_names_it_and_is_left_alone(
    consul: ConsulAgent, claims: ConsulClaims, content: bytes
) -> None:
    await put(consul, content)

    with pytest.raises(ClaimUnreadable, match=f"key {KEY} .* consul kv delete {KEY}"):
        await claims.read()
    with pytest.raises(ClaimUnreadable):
        await claims.write(MINE, replacing=None)


async def test_a_token_without_the_right_to_the_key_is_told_the_missing_rule(
    consul: ConsulAgent,
) -> None:
    weak = await asyncio.to_thread(consul.new_token, 'service "butterfly" { policy = "write" }')
    claims = ConsulClaims(consul.settings(token=lambda: weak), cluster_name="test")

    with pytest.raises(Unreachable, match=f'lacks the rule: key "{KEY}"'):
        await claims.write(MINE, replacing=None)
