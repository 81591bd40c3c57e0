"""One world for the contract tests: the same made of sockets and made of memory.

At the end of a test nothing may be left: no task, no descriptor.
"""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from butterfly_wire.memory import MemoryNetwork
from tests.support.wire_world import World, descriptors


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fail when a test leaves a task or a socket."""
    before, tasks = descriptors(), asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
    assert not left
    gc.collect()
    assert {entry for entry in descriptors() - before if "socket" in entry} == set()


@pytest.fixture(params=["tcp", "memory"])
async def world(request: pytest.FixtureRequest, nothing_left: None) -> AsyncIterator[World]:
    made = World(MemoryNetwork() if request.param == "memory" else None)
    yield made
    await made.close()


@pytest.fixture
async def tcp(nothing_left: None) -> AsyncIterator[World]:
    """Only the world of sockets."""
    made = World(None)
    yield made
    await made.close()
