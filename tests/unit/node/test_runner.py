import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly.node.runner import Runner
from butterfly_cluster.commands import (
    PassValidation,
    RejectDigests,
    ReportWarm,
    encode_command,
)
from butterfly_cluster.lifecycle import (
    ConnectPipeline,
    Effect,
    EngineDied,
    HoldLayers,
    JoinCluster,
    NodeState,
    ReloadLayers,
    RestartEngine,
    Serve,
    Started,
)
from butterfly_cluster.node_duties import Facts
from tests.support.clusters import CAPACITY, assigned, digests, engine, loading, node, registered


class World:
    """A runner over a replica that the test commits to."""

    def __init__(self) -> None:
        facts = Facts(registered(1), engine=engine(1), capacity=CAPACITY)
        self.local = Local(facts)
        self.replica = Replica(self.local.changed)
        self.done: list[Effect] = []
        self.cancelled: list[Effect] = []
        kinds = (JoinCluster, HoldLayers, ReloadLayers, ConnectPipeline, Serve, RestartEngine)
        self.runner = Runner(self.local, self.replica, dict.fromkeys(kinds, self._carry_out))

    async def _carry_out(self, effect: Any) -> None:
        self.done.append(effect)
        if isinstance(effect, HoldLayers):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(effect)
                raise

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not reached():
                await self.local.changed.wait(0.01)


@pytest.fixture
async def world() -> Any:
    made = World()
    running = asyncio.create_task(made.runner.run())
    yield made
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_committed_entries_walk_a_node_to_operational(world: World) -> None:
    world.runner.post(Started())
    world.replica.restore_state(loading(1))
    await world.until(lambda: world.local.node.state is NodeState.LOADING)
    index = world.replica.state.index
    for command in (
        digests(world.replica.state, 1),
        PassValidation(1, "root"),
        ReportWarm(1, node(1)),
    ):
        index += 1
        world.replica.apply(index, encode_command(command))
    await world.until(lambda: len(world.done) == 4)

    assert world.local.node.state is NodeState.OPERATIONAL
    assert world.done == [JoinCluster(), HoldLayers(1, 0, 4), ConnectPipeline(1), Serve(1)]


async def test_a_newer_load_ends_the_older_one(world: World) -> None:
    world.runner.post(Started())
    world.replica.restore_state(loading(1))
    await world.until(lambda: HoldLayers(1, 0, 4) in world.done)

    world.replica.apply(99, encode_command(assigned(2, [1])))
    await world.until(lambda: HoldLayers(2, 0, 4) in world.done)

    assert world.cancelled == [HoldLayers(1, 0, 4)]


async def test_a_rejection_is_obeyed_once_and_the_loop_goes_on(world: World) -> None:
    world.runner.post(Started())
    state = loading(1)
    world.replica.restore_state(state)
    await world.until(lambda: HoldLayers(1, 0, 4) in world.done)

    world.replica.apply(90, encode_command(digests(state, 1)))
    world.replica.apply(91, encode_command(RejectDigests(1, node(1), "layers.2 differs")))
    await world.until(lambda: ReloadLayers(1, "layers.2 differs", 1) in world.done)
    await asyncio.sleep(0.05)

    assert sum(isinstance(effect, ReloadLayers) for effect in world.done) == 1
    assert world.local.node.state is NodeState.LOADING


async def test_a_posted_event_is_taken_before_the_committed_state(world: World) -> None:
    world.runner.post(Started())
    world.runner.post(EngineDied("test"))
    world.local.set_facts(engine=None)
    world.replica.restore_state(loading(1))
    await world.until(lambda: RestartEngine("test") in world.done)

    assert world.local.node.state is NodeState.JOINING
    assert not any(isinstance(effect, HoldLayers) for effect in world.done)
