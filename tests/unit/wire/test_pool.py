"""Who waits for a connection that another caller dials."""

import asyncio

import pytest

from butterfly_core.address import Address
from butterfly_core.errors import NotAuthenticated, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.connection import Connection
from butterfly_wire.limits import WireLimits
from butterfly_wire.pool import Pool

PEER = Address("10.0.0.1", 7000)


class FailingDialer:
    """Every dial waits until the test lets it fail."""

    limits = WireLimits(handshake_timeout_seconds=0.05)

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.dials_count = 0
        self.may_fail = asyncio.Event()

    async def dial(
        self, address: Address, purpose: str, *, expect: NodeId | None, timeout_seconds: float
    ) -> tuple[Connection, NodeId]:
        self.dials_count += 1
        await self.may_fail.wait()
        raise self.error


async def ask(pool: Pool) -> str:
    try:
        await pool.call(PEER, "echo", {}, timeout_seconds=60)
    except (Unreachable, NotAuthenticated) as error:
        return str(error)
    return "an answer"


async def test_one_failed_dial_fails_all_who_waited_for_it() -> None:
    dialer = FailingDialer(Unreachable("nobody listens"))
    pool = Pool(dialer)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(pool)) for _ in range(20)]
        await asyncio.sleep(0)
        dialer.may_fail.set()

    assert [task.result() for task in asking] == ["nobody listens"] * 20
    assert dialer.dials_count == 1

    assert await ask(pool) == "nobody listens"
    assert dialer.dials_count == 2


async def test_a_peer_that_answers_wrongly_is_asked_by_each_caller() -> None:
    """What one expected of the peer, another may not."""
    dialer = FailingDialer(NotAuthenticated("another node"))
    pool = Pool(dialer)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(ask(pool))
        await asyncio.sleep(0)
        dialer.may_fail.set()

    assert dialer.dials_count == 3


async def test_a_caller_that_gives_up_leaves_the_dial_to_the_next() -> None:
    dialer = FailingDialer(Unreachable("nobody listens"))
    pool = Pool(dialer)
    impatient, patient = (asyncio.ensure_future(ask(pool)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    dialer.may_fail.set()

    assert await patient == "nobody listens"
    assert dialer.dials_count == 2


async def test_a_stream_does_not_wait_for_ever_behind_another_s_dial() -> None:
    dialer = FailingDialer(Unreachable("nobody listens"))
    pool = Pool(dialer)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(ask(pool))
        await asyncio.sleep(0)

        with pytest.raises(Unreachable, match="no connection to 10"):
            await anext(pool.stream(PEER, "generate", {}))

        assert not first.done()
        dialer.may_fail.set()
