"""Many nodes at once, counted: what the coordinator hears grows with the members, and no faster."""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.sim.nodes.story import is_well
from tests.sim.nodes.world import Plot, World
from tests.sim.virtual_loop import run_virtually

MEMBER_MESSAGES_A_SECOND = 30.0
"""Of one member, at its coordinator: 20 heartbeats answered, 3 reports, pings and entries."""


def play(plot: Plot, story: Callable[[World], Awaitable[None]]) -> None:
    with tempfile.TemporaryDirectory() as directory:

        async def run() -> World:
            world = World(1, Path(directory), plot)
            async with world.watched():
                await story(world)
            return world

        assert not run_virtually(run()).watch.violations


async def messages_a_second(world: World, seconds: float) -> float:
    """That arrive at the coordinator."""
    leader = world.leader()
    assert leader is not None
    before = world.wire.arrived[leader.machine]
    await world.until(lambda: False, seconds)
    return (world.wire.arrived[leader.machine] - before) / seconds


async def founded(world: World) -> None:
    for machine in world.machines[: world.plot.founders]:
        world.start(machine)
    await world.until(lambda: all(node.admits for node in world.running), 20.0)


def everybody_is_a_member(world: World) -> bool:
    ids = {node.node_id for node in world.running}
    return len(ids) == len(world.machines) and all(
        ids == {member.node_id for member in node.replica.state.live} for node in world.running
    )


def test_fifty_nodes_that_join_at_once_are_members_soon_and_change_no_leader() -> None:
    async def story(world: World) -> None:
        await founded(world)
        leader = world.leader()
        for machine in world.machines[5:]:
            world.start(machine)
        assert await world.until(lambda: everybody_is_a_member(world), 10.0)
        assert world.leader() is leader
        assert await world.until(lambda: is_well(world), 60.0)
        assert all(len(node.consensus.voters) == 5 for node in world.running)

    play(Plot(founders=5, late=50), story)


@pytest.mark.slow
def test_two_hundred_members_talk_to_their_coordinator_at_a_flat_rate() -> None:
    rates = {}

    async def story(world: World) -> None:
        await founded(world)
        for machine in world.machines[5:]:
            world.start(machine)
        assert await world.until(lambda: everybody_is_a_member(world), 60.0)
        await world.until(lambda: False, 2.0)
        rates[len(world.machines)] = await messages_a_second(world, 2.0) / len(world.machines)

    for late in (45, 195):
        play(Plot(founders=5, late=late), story)

    assert rates[200] < MEMBER_MESSAGES_A_SECOND
    assert rates[200] < 1.2 * rates[50]
