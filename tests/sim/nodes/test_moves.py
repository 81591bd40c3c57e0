"""Nodes that come back at another address are found, whoever has to look for whom."""

from dataclasses import replace

import pytest

from tests.sim.nodes.story import is_well, play_when_well, plot_of, run_seed
from tests.sim.nodes.world import Plot, World


async def move(world: World, *numbers: int) -> None:
    """Some machines go down and come back elsewhere; the others go on as they were told."""
    for number in numbers:
        await world.crash(world.machines[number])
        world.move(world.machines[number])
    for number in numbers:
        world.start(world.machines[number])


def test_the_only_voter_is_found_by_workers_that_list_its_old_address() -> None:
    async def story(world: World) -> None:
        await move(world, 0)
        assert await world.until(lambda: is_well(world), 30.0)

    play_when_well(Plot(founders=2, lone_coordinator=True), story)


def test_voters_that_moved_find_each_other_through_the_one_that_stayed() -> None:
    async def story(world: World) -> None:
        await move(world, 0, 1)
        assert await world.until(lambda: is_well(world), 30.0)

    play_when_well(Plot(founders=3), story)


def test_a_node_that_was_away_finds_a_leader_that_moved_meanwhile() -> None:
    async def story(world: World) -> None:
        await world.crash(world.machines[2])
        await move(world, 0)
        await world.until(lambda: world.leader() is not None, 10.0)
        world.start(world.machines[2])
        assert await world.until(lambda: is_well(world), 30.0)

    play_when_well(Plot(founders=3, source="dns", quorum_size=2), story)


def test_who_left_for_good_is_forgotten_and_dialled_by_nobody() -> None:
    async def story(world: World) -> None:
        leader = world.leader()
        assert leader is not None
        gone = next(node for node in world.running if node is not leader)
        gone.drain()
        assert await world.until(lambda: gone not in world.running, 60.0)
        await world.until(lambda: False, 5.0)
        for node in world.running:
            assert gone.node_id not in node.addresses.known()

    play_when_well(Plot(founders=4), story)


@pytest.mark.parametrize("seed", [118, 184, 200, 228, 506, 718])
def test_stories_in_which_nodes_moved_and_were_never_found_again(seed: int) -> None:
    as_found = replace(plot_of(seed), depose_share=0.0)
    assert not run_seed(seed, as_found).watch.violations
