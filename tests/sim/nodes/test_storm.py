"""Many nodes at once, counted: what the coordinator hears grows with the members, and no faster."""

import pytest

from butterfly.node.reports import report_period
from butterfly_cluster.heartbeats import LEARNER_HEARTBEATS
from butterfly_cluster.raft_timing import LAN
from tests.sim.nodes.story import is_well, play
from tests.sim.nodes.world import Plot, World

VOTERS = 5
SLACK = 1.25
"""Entries that still come, answers to questions, and heartbeats a tick early."""


def messages_a_second_at_most(members: int) -> float:
    """Of one member, on the average, at its coordinator: what the timing says, and some slack.

    A voter answers each heartbeat, a learner one of five; everybody pings and reports.
    """
    heartbeats = 1 / LAN.append_seconds
    answered = (VOTERS - 1) * heartbeats + (members - VOTERS) * heartbeats / LEARNER_HEARTBEATS
    return SLACK * (answered / members + 4 / LAN.silent_seconds + 1 / report_period(members))


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

    assert all(rate < messages_a_second_at_most(members) for members, rate in rates.items()), rates
    assert rates[200] < rates[50], "more of them are learners, and they report less often"
