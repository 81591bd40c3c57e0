"""A real Consul: nodes appear and vanish, agents die and come back, tokens change."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_discovery.consul_settings import ConsulSettings
from butterfly_discovery.consul_source import ConsulSource
from tests.support.consul_server import ConsulAgent, consul_agent

PATIENCE_SECONDS = 60.0


def source(settings: ConsulSettings, number: int = 1, *, cluster: str = "test") -> ConsulSource:
    me = Address(f"10.0.0.{number}", 7000)
    return ConsulSource(settings, cluster_name=cluster, me=me, service_id=f"butterfly-{number}")


def at(*numbers: int) -> frozenset[Address]:
    return frozenset(Address(f"10.0.0.{number}", 7000) for number in numbers)


@asynccontextmanager
async def running(*sources: ConsulSource) -> AsyncIterator[None]:
    """These nodes say that they live; at the end they leave."""
    tasks = [asyncio.create_task(each.run()) for each in sources]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def until(seen_by: ConsulSource, wanted: frozenset[Address]) -> None:
    """Watch until this is the list; errors on the way are what callers live through."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if await seen_by.next() == wanted:
                    return
            except Unreachable:
                await asyncio.sleep(0.1)


async def for_ever(node: ConsulSource) -> None:
    while True:
        await node.next()


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.05)


async def restart(consul: ConsulAgent, *, wiped: bool) -> None:
    consul.kill()
    if wiped:
        consul.wipe()
    consul.spawn()
    await asyncio.to_thread(consul.until_ready)


async def entry(consul: ConsulAgent) -> Any:
    (found,) = await asyncio.to_thread(consul.ask, "GET", "health/service/butterfly")
    return found


async def test_before_anybody_registers_nobody_is_there(consul: ConsulAgent) -> None:
    assert await source(consul.settings()).next() == frozenset()


async def test_a_node_appears_with_its_address_and_a_check_that_it_lives(
    consul: ConsulAgent,
) -> None:
    node = source(consul.settings())
    async with running(node):
        await until(node, at(1))

        found = await entry(consul)
        assert found["Service"]["ID"] == "butterfly-1"
        assert found["Service"]["Tags"] == ["cluster-test"]
        assert found["Service"]["Meta"]["butterfly_address"] == "10.0.0.1:7000"
        (check,) = [check for check in found["Checks"] if check["ServiceID"]]
        assert check["Type"] == "ttl"
        assert check["CheckID"] == "service:butterfly-1"
    assert node.problem is None


async def test_a_node_that_lives_stays_for_longer_than_its_ttl(consul: ConsulAgent) -> None:
    node = source(consul.settings(ttl_seconds=1.0))
    async with running(node):
        await until(node, at(1))
        await asyncio.sleep(2.5)

        assert await source(consul.settings()).next() == at(1)


async def test_a_node_that_leaves_is_gone_at_once(consul: ConsulAgent) -> None:
    watcher = source(consul.settings(), 9)
    async with running(source(consul.settings(ttl_seconds=600.0))):
        await until(watcher, at(1))
    await until(watcher, frozenset())

    assert await asyncio.to_thread(consul.ask, "GET", "agent/services") == {}


async def test_a_node_that_dies_without_a_word_is_gone_after_its_ttl(consul: ConsulAgent) -> None:
    watcher = source(consul.settings(), 9)
    async with running(source(consul.settings(ttl_seconds=1.0, leave_seconds=0.0))):
        await until(watcher, at(1))
    await until(watcher, frozenset())

    (check,) = [check for check in (await entry(consul))["Checks"] if check["ServiceID"]]
    assert check["Status"] == "critical"


@pytest.mark.slow
async def test_a_dead_node_is_forgotten_by_consul(consul: ConsulAgent) -> None:
    settings = consul.settings(ttl_seconds=1.0, leave_seconds=0.0, forget_seconds=60.0)
    async with running(source(settings)):
        await until(source(consul.settings(), 9), at(1))
    # Consul takes no less than 60 s, and looks every 30 s.
    async with asyncio.timeout(180.0):
        while await asyncio.to_thread(consul.ask, "GET", "agent/services"):
            await asyncio.sleep(1.0)


async def test_a_node_marked_critical_is_out_until_it_says_again_that_it_lives(
    consul: ConsulAgent,
) -> None:
    watcher = source(consul.settings(), 9)
    async with running(source(consul.settings())):
        await until(watcher, at(1))
        await asyncio.to_thread(consul.ask, "PUT", "agent/check/fail/service:butterfly-1", {})
        await until(watcher, frozenset())
        await until(watcher, at(1))


async def test_a_watcher_waits_and_hears_of_a_change_when_it_comes(consul: ConsulAgent) -> None:
    watcher = source(consul.settings(wait_seconds=600.0), 9)
    async with running(source(consul.settings(), 1)):
        await until(watcher, at(1))
        waiting = asyncio.create_task(until(watcher, at(1, 2)))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        async with running(source(consul.settings(), 2)):
            await waiting


async def test_without_news_the_same_answer_comes_after_the_wait(consul: ConsulAgent) -> None:
    watcher = source(consul.settings(wait_seconds=1.0))
    loop = asyncio.get_running_loop()

    assert await watcher.next() == frozenset()
    begun = loop.time()
    assert await watcher.next() == frozenset()
    assert loop.time() - begun >= 0.9


async def test_a_cancelled_watch_goes_on_where_it_was(consul: ConsulAgent) -> None:
    watcher = source(consul.settings(wait_seconds=600.0), 9)
    await watcher.next()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await watcher.next()
    async with running(source(consul.settings(), 1)):
        await until(watcher, at(1))


async def test_clusters_of_two_names_do_not_see_each_other(consul: ConsulAgent) -> None:
    settings = consul.settings()
    ours, theirs = source(settings, 1), source(settings, 2, cluster="other")
    async with running(ours, theirs):
        await until(ours, at(1))
        await until(theirs, at(2))
        assert await source(settings, 9).next() == at(1)


@pytest.mark.parametrize("wiped", [False, True], ids=["same data", "wiped data"])
async def test_nodes_come_back_to_an_agent_that_was_killed(
    consul: ConsulAgent, wiped: bool
) -> None:
    # A wiped server holds a question with an index of the past for the whole wait.
    settings = consul.settings(wait_seconds=2.0)
    one, two = source(settings, 1), source(settings, 2)
    async with running(one, two):
        await until(one, at(1, 2))
        await restart(consul, wiped=wiped)
        await until(one, at(1, 2))
        await until(two, at(1, 2))
        await soon(lambda: one.problem is None and two.problem is None)


async def test_while_the_agent_is_down_the_source_says_so_and_goes_on(
    consul: ConsulAgent,
) -> None:
    node = source(consul.settings())
    async with running(node):
        await until(node, at(1))
        consul.kill()
        with pytest.raises(Unreachable, match=r"Consul at http://127.0.0.1:\d+ cannot be asked"):
            await for_ever(node)
        await soon(lambda: node.problem is not None)
        consul.spawn()
        await asyncio.to_thread(consul.until_ready)
        await until(node, at(1))
        await soon(lambda: node.problem is None)


async def test_an_entry_that_somebody_removed_is_written_again(consul: ConsulAgent) -> None:
    node = source(consul.settings())
    async with running(node):
        await until(node, at(1))
        await asyncio.to_thread(consul.ask, "PUT", "agent/service/deregister/butterfly-1", {})
        await until(node, frozenset())
        await until(node, at(1))


async def test_a_changed_token_counts_at_once_and_the_entry_moves_to_it(
    consul: ConsulAgent,
) -> None:
    node, watcher = source(consul.settings()), source(consul.settings(), 9)
    async with running(node):
        await until(node, at(1))
        await asyncio.to_thread(consul.rotate_token)
        await asyncio.sleep(consul.settings().ttl_seconds)  # one sign of life, by the new token
        assert node.problem is None
        # The agent tells its server of a change with the token that the entry came with.
        await asyncio.to_thread(consul.ask, "PUT", "agent/check/fail/service:butterfly-1", {})
        await until(watcher, frozenset())
        await until(watcher, at(1))
    await until(watcher, frozenset())


async def test_a_token_that_consul_does_not_know_is_a_problem_and_never_shown(
    consul: ConsulAgent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "0e1d3b5a-1111-2222-3333-444455556666"
    node = source(consul.settings(token=lambda: wrong))

    with pytest.raises(Unreachable, match=r"does not know the token") as refused:
        await node.next()
    async with running(node):
        await soon(lambda: node.problem is not None)

    assert "does not know the token" in str(node.problem)
    assert "not registered" in caplog.text
    assert wrong not in f"{node.problem} {refused.value!r} {caplog.text}"


async def test_a_token_without_the_right_to_register_is_told_the_missing_rule(
    consul: ConsulAgent,
) -> None:
    weak = await asyncio.to_thread(consul.new_token, 'node_prefix "" { policy = "read" }')
    node = source(consul.settings(token=lambda: weak))
    async with running(node):
        await soon(lambda: node.problem is not None)

    assert 'lacks the rule: service "butterfly" { policy = "write" }' in str(node.problem)
    assert "README" in str(node.problem)


async def test_a_token_that_may_not_read_nodes_sees_nobody_and_that_is_a_problem(
    consul: ConsulAgent,
) -> None:
    weak = await asyncio.to_thread(consul.new_token, 'service "butterfly" { policy = "write" }')
    node = source(consul.settings(token=lambda: weak, wait_seconds=1.0))
    async with running(node):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while node.problem is None:
                assert await node.next() == frozenset()
        assert "node_prefix" in str(node.problem)


async def test_a_missing_token_file_is_named(consul: ConsulAgent, tmp_path: Path) -> None:
    node = source(consul.settings())
    kept = consul.token_file.rename(tmp_path / "token")
    try:
        with pytest.raises(Unreachable, match=r"token file .*token: No such file"):
            await node.next()
    finally:
        kept.rename(consul.token_file)


async def test_https_works_with_the_own_authority_and_a_client_certificate_alone(
    tmp_path: Path,
) -> None:
    with consul_agent(tmp_path, tls=True) as consul:
        node = source(consul.settings())
        async with running(node):
            await until(node, at(1))

        without_ca = source(consul.settings(ca_file=None))
        with pytest.raises(Unreachable, match=r"cannot be asked.*certificate"):
            await without_ca.next()
        unknown = source(consul.settings(certificate_file=None, key_file=None))
        with pytest.raises(Unreachable, match=r"https://127.0.0.1"):
            await unknown.next()
        missing = source(consul.settings(key_file=tmp_path / "none.key"))
        with pytest.raises(Unreachable, match=r"cannot use the TLS files .*none\.key"):
            await missing.next()


async def test_the_environment_does_not_replace_the_token(
    consul: ConsulAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of somebody else")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://192.0.2.1:1")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")

    assert await source(consul.settings()).next() == frozenset()
