"""What calls and streams promise, over sockets and in memory alike."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from butterfly_core.address import Address
from butterfly_core.errors import (
    ButterflyError,
    ConfigError,
    InvalidValue,
    NotAuthenticated,
    NotServing,
    Refused,
    RequestError,
    Unreachable,
)
from butterfly_core.ids import NodeId
from butterfly_wire.secret import ClusterSecret
from tests.support.wire_world import ANNA, BERT, World, until

Body = Mapping[str, Any]
OLD, NEW = b"the old secret of all", b"the new secret of all"


async def echo(caller: NodeId, body: Body) -> Body:
    return {"caller": caller, **body}


async def count(caller: NodeId, body: Body) -> AsyncIterator[Body]:
    for number in range(body["to"]):
        yield {"number": number}


class Waiting:
    """A handler that waits for ever, and tells when it began and how it ended."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def call(self, caller: NodeId, body: Body) -> Body:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return {}

    async def stream(self, caller: NodeId, body: Body) -> AsyncIterator[Body]:
        try:
            yield {"first": True}
            await self.call(caller, body)
        finally:
            self.cancelled.set()


async def serve(world: World, **handlers: Any) -> Address:
    """A listener with these; a name that ends in _stream is one."""
    listener = world.listener()
    for name, handler in handlers.items():
        if name.endswith("_stream"):
            listener.on_stream(name, handler)
        else:
            listener.on_call(name, handler)
    return await listener.start()


async def test_a_call_brings_the_reply_and_the_handler_knows_the_caller(world: World) -> None:
    address = await serve(world, echo=echo)

    reply = await world.pool().call(
        address, "echo", {"blob": b"\0\xff", "list": [1, None, "ö"]}, timeout_seconds=5, expect=ANNA
    )

    assert reply == {"caller": BERT, "blob": b"\0\xff", "list": [1, None, "ö"]}


async def test_many_calls_share_one_connection_and_may_end_in_any_order(world: World) -> None:
    gates = [asyncio.Event() for _ in range(100)]

    async def gated(caller: NodeId, body: Body) -> Body:
        await gates[body["n"]].wait()
        if body["n"]:
            gates[body["n"] - 1].set()
        return body

    listener = world.listener()
    listener.on_call("gated", gated)
    address = await listener.start()
    pool = world.pool()
    gates[-1].set()

    replies = await asyncio.gather(
        *(pool.call(address, "gated", {"n": n}, timeout_seconds=20) for n in range(100))
    )

    assert [reply["n"] for reply in replies] == list(range(100))
    assert listener.connection_count == 1


@pytest.mark.parametrize("kind", [Refused, RequestError, Unreachable, InvalidValue])
async def test_an_error_of_the_handler_arrives_as_its_class(
    world: World, kind: type[ButterflyError]
) -> None:
    async def fail(caller: NodeId, body: Body) -> Body:
        raise kind("the story")

    address = await serve(world, fail=fail)

    with pytest.raises(kind) as caught:
        await world.pool().call(address, "fail", {}, timeout_seconds=5)
    assert type(caught.value) is kind
    assert str(caught.value) == "the story"
    assert "said by node aaaaaaaa" in caught.value.__notes__[0]


async def test_not_serving_keeps_its_fields(world: World) -> None:
    async def fail(caller: NodeId, body: Body) -> Body:
        raise NotServing("soon", phase="warmup", retry_after_seconds=9)

    address = await serve(world, fail=fail)

    with pytest.raises(NotServing) as caught:
        await world.pool().call(address, "fail", {}, timeout_seconds=5)
    assert (caught.value.phase, caught.value.retry_after_seconds) == ("warmup", 9)


async def test_a_bug_in_a_handler_is_a_refusal_without_its_details(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def bug(caller: NodeId, body: Body) -> Body:
        raise KeyError("a private thing")

    address = await serve(world, bug=bug)

    with pytest.raises(Refused, match="KeyError") as caught:
        await world.pool().call(address, "bug", {}, timeout_seconds=5)
    assert "private" not in str(caught.value)
    assert "a private thing" in caplog.text


async def test_an_unknown_method_is_refused(world: World) -> None:
    address = await serve(world, echo=echo)

    with pytest.raises(Refused, match="no method 'other'"):
        await world.pool().call(address, "other", {}, timeout_seconds=5)
    with pytest.raises(Refused, match="no method 'echo'"):
        await anext(world.pool().stream(address, "echo", {}))


async def test_a_call_without_an_answer_in_time_ends_and_so_does_its_handler(
    world: World,
) -> None:
    waiting = Waiting()
    address = await serve(world, wait=waiting.call)

    with pytest.raises(Unreachable, match=r"no answer to 'wait' within 0\.2 s"):
        await world.pool().call(address, "wait", {}, timeout_seconds=0.2)
    await asyncio.wait_for(waiting.cancelled.wait(), 5)


async def test_cancelling_a_call_cancels_its_handler_and_nothing_else(world: World) -> None:
    waiting = Waiting()
    address = await serve(world, wait=waiting.call, echo=echo)
    pool = world.pool()
    call = asyncio.ensure_future(pool.call(address, "wait", {}, timeout_seconds=60))
    await waiting.began.wait()

    call.cancel()

    await asyncio.wait_for(waiting.cancelled.wait(), 5)
    assert await pool.call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}


async def test_a_stream_brings_all_items_in_order(world: World) -> None:
    address = await serve(world, count_stream=count)

    items = [
        item["number"]
        async for item in world.pool().stream(address, "count_stream", {"to": 3000}, expect=ANNA)
    ]

    assert items == list(range(3000))


async def test_a_stream_that_fails_brings_what_came_before(world: World) -> None:
    async def fail(caller: NodeId, body: Body) -> AsyncIterator[Body]:
        yield {"n": 1}
        raise NotServing("gone", phase="draining")

    address = await serve(world, fail_stream=fail)
    items = world.pool().stream(address, "fail_stream", {})

    assert await anext(items) == {"n": 1}
    with pytest.raises(NotServing, match="gone"):
        await anext(items)


async def test_closing_a_stream_cancels_its_handler(world: World) -> None:
    waiting = Waiting()
    address = await serve(world, wait_stream=waiting.stream)

    async with aclosing(world.pool().stream(address, "wait_stream", {})) as items:
        assert await anext(items) == {"first": True}
    await asyncio.wait_for(waiting.cancelled.wait(), 5)


async def test_a_slow_consumer_holds_the_producer_back(world: World) -> None:
    world.limits = replace(world.limits, stream_window_bytes=10_000)
    produced = 0

    async def flood(caller: NodeId, body: Body) -> AsyncIterator[Body]:
        nonlocal produced
        for produced in range(1, 2001):  # noqa: B007 - it is what the test looks at
            yield {"blob": bytes(1000)}

    address = await serve(world, flood_stream=flood)
    taken = 0
    async with aclosing(world.pool().stream(address, "flood_stream", {})) as items:
        async for _ in items:
            taken += 1
            if taken % 50 == 0:
                await asyncio.sleep(0.01)
            assert produced - taken <= 12

    assert taken == 2000


async def test_a_stream_that_falls_silent_ends_after_its_idle_timeout(world: World) -> None:
    waiting = Waiting()
    address = await serve(world, wait_stream=waiting.stream)
    items = world.pool().stream(address, "wait_stream", {}, idle_timeout_seconds=0.2)
    await anext(items)

    with pytest.raises(Unreachable, match=r"brought nothing for 0\.2 s"):
        await anext(items)
    await asyncio.wait_for(waiting.cancelled.wait(), 5)


async def test_calls_and_streams_under_way_end_when_the_peer_closes(world: World) -> None:
    waiting = Waiting()
    listener = world.listener()
    listener.on_call("wait", waiting.call)
    listener.on_stream("wait_stream", waiting.stream)
    address = await listener.start()
    pool = world.pool()
    items = pool.stream(address, "wait_stream", {})
    await anext(items)
    call = asyncio.ensure_future(pool.call(address, "wait", {}, timeout_seconds=60))
    await waiting.began.wait()

    await listener.close()

    with pytest.raises(Unreachable):
        await anext(items)
    with pytest.raises(Unreachable):
        await call
    assert waiting.cancelled.is_set()


async def test_a_pool_dials_again_when_the_peer_is_back(world: World) -> None:
    first = world.listener()
    first.on_call("echo", echo)
    address = await first.start()
    pool = world.pool()
    await pool.call(address, "echo", {}, timeout_seconds=5)
    await first.close()
    with pytest.raises(Unreachable):
        await pool.call(address, "echo", {}, timeout_seconds=5)
    again = world.listener(bind=address)
    again.on_call("echo", echo)
    await again.start()

    assert await pool.call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "null\x00"])
async def test_a_name_that_cannot_be_looked_up_is_out_of_reach(world: World, host: str) -> None:
    with pytest.raises(Unreachable):
        await world.pool().call(Address(host, 7000), "echo", {}, timeout_seconds=5)


async def test_a_closed_pool_calls_nobody_and_ends_what_is_under_way(world: World) -> None:
    waiting = Waiting()
    address = await serve(world, wait=waiting.call)
    pool = world.pool()
    call = asyncio.ensure_future(pool.call(address, "wait", {}, timeout_seconds=60))
    await waiting.began.wait()

    await pool.close()

    with pytest.raises(Unreachable):
        await call
    with pytest.raises(Unreachable, match="closes its connections"):
        await pool.call(address, "wait", {}, timeout_seconds=5)


async def test_an_unused_connection_is_closed_and_made_again(world: World) -> None:
    world.limits = replace(world.limits, idle_seconds=0.1)
    listener = world.listener()
    listener.on_call("echo", echo)
    address = await listener.start()
    pool = world.pool()
    await pool.call(address, "echo", {}, timeout_seconds=5)
    await until(lambda: listener.connection_count == 0)

    assert await pool.call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}


async def test_where_nothing_listens_is_unreachable(world: World) -> None:
    listener = world.listener()
    address = await listener.start()
    await listener.close()

    with pytest.raises(Unreachable, match=f"no connection to {address}"):
        await world.pool().call(address, "echo", {}, timeout_seconds=5)


async def test_a_port_in_use_is_a_configuration_error(world: World) -> None:
    address = await serve(world, echo=echo)

    with pytest.raises(ConfigError, match=f"cannot listen on {address}.*another program"):
        await world.listener(bind=address).start()


async def test_another_cluster_name_is_refused_with_both_names(world: World) -> None:
    address = await serve(world, echo=echo)

    with pytest.raises(Refused, match="cluster name 'other', this node belongs to 'test'"):
        await world.pool(cluster_name="other").call(address, "echo", {}, timeout_seconds=5)


async def test_another_secret_is_not_authenticated_with_advice(world: World) -> None:
    address = await serve(world, echo=echo)
    pool = world.pool(secret=ClusterSecret(b"another secret altogether"))

    with pytest.raises(NotAuthenticated, match="use the same cluster secret file"):
        await pool.call(address, "echo", {}, timeout_seconds=5)


async def test_another_node_than_expected_is_not_authenticated(world: World) -> None:
    address = await serve(world, echo=echo)
    pool = world.pool()
    with pytest.raises(NotAuthenticated, match=f"is node {ANNA}, expected {BERT}"):
        await pool.call(address, "echo", {}, timeout_seconds=5, expect=BERT)
    await pool.call(address, "echo", {}, timeout_seconds=5)

    with pytest.raises(NotAuthenticated, match=f"is node {ANNA}, expected {BERT}"):
        await pool.call(address, "echo", {}, timeout_seconds=5, expect=BERT)


@pytest.mark.parametrize(
    ("served", "called"),
    [
        ((OLD,), (OLD, NEW)),
        ((OLD, NEW), (NEW, OLD)),
        ((NEW, OLD), (OLD, NEW)),
        ((NEW, OLD), (NEW,)),
    ],
)
async def test_neighbouring_steps_of_a_secret_s_change_talk(
    world: World, served: tuple[bytes, ...], called: tuple[bytes, ...]
) -> None:
    listener = world.listener(secret=ClusterSecret(*served))
    listener.on_call("echo", echo)
    address = await listener.start()

    await world.pool(secret=ClusterSecret(*called)).call(address, "echo", {}, timeout_seconds=5)


@pytest.mark.parametrize(
    ("served", "called"), [((NEW,), (OLD, NEW)), ((OLD,), (NEW, OLD)), ((NEW,), (OLD,))]
)
async def test_a_secret_that_only_one_side_accepts_is_not_authenticated(
    world: World, served: tuple[bytes, ...], called: tuple[bytes, ...]
) -> None:
    listener = world.listener(secret=ClusterSecret(*served))
    listener.on_call("echo", echo)
    address = await listener.start()

    with pytest.raises(NotAuthenticated, match="same cluster secret file"):
        await world.pool(secret=ClusterSecret(*called)).call(address, "echo", {}, timeout_seconds=5)


async def test_a_body_over_the_frame_limit_is_refused_on_either_side(world: World) -> None:
    world.limits = replace(world.limits, frame_bytes_max=10_000)

    async def big(caller: NodeId, body: Body) -> Body:
        return {"blob": bytes(20_000)}

    address = await serve(world, echo=echo, big=big)
    pool = world.pool()
    with pytest.raises(InvalidValue, match="over the limit of 10000 bytes"):
        await pool.call(address, "echo", {"blob": bytes(20_000)}, timeout_seconds=5)
    with pytest.raises(InvalidValue, match="over the limit of 10000 bytes"):
        await pool.call(address, "big", {}, timeout_seconds=5)

    assert await pool.call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}


async def test_too_many_calls_at_once_are_refused(world: World) -> None:
    world.limits = replace(world.limits, exchanges_max=2)
    waiting = Waiting()
    address = await serve(world, wait=waiting.call)
    pool = world.pool()
    calls = [
        asyncio.ensure_future(pool.call(address, "wait", {}, timeout_seconds=60)) for _ in range(2)
    ]
    await waiting.began.wait()

    with pytest.raises(Refused, match=r"2 calls to .* are under way"):
        await pool.call(address, "wait", {}, timeout_seconds=5)
    for call in calls:
        call.cancel()


async def test_too_many_connections_are_refused(world: World) -> None:
    world.limits = replace(world.limits, connections_max=1)
    address = await serve(world, echo=echo)
    await world.pool().call(address, "echo", {}, timeout_seconds=5)

    with pytest.raises(Refused, match="1 connections already"):
        await world.pool(node_id=NodeId("c" * 32)).call(address, "echo", {}, timeout_seconds=5)


async def test_a_node_may_call_itself(world: World) -> None:
    address = await serve(world, echo=echo)

    reply = await world.pool(node_id=ANNA).call(address, "echo", {}, timeout_seconds=5, expect=ANNA)

    assert reply == {"caller": ANNA}


def test_a_second_handler_for_a_name_is_a_mistake() -> None:
    from butterfly_wire.acceptor import Acceptor
    from butterfly_wire.limits import WireLimits

    acceptor = Acceptor("test", ANNA, WireLimits())
    acceptor.on_call("echo", echo)
    with pytest.raises(InvalidValue, match="has a handler already"):
        acceptor.on_call("echo", echo)
