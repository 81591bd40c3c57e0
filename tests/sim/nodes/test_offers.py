"""Another revision takes over in whole clusters on virtual time, and what goes wrong stops it."""

import asyncio

import pytest

from butterfly_cluster.state import ModelOffer, ModelPlace
from butterfly_core.errors import RequestError
from tests.sim.nodes.engines import HOME
from tests.sim.nodes.story import Scene, is_well, play_when_well
from tests.sim.nodes.world import Plot, World

SECOND = ModelPlace("filesystem", f"{HOME}-2")


def play(scene: Scene, plot: Plot | None = None) -> None:
    """It is to end well, too."""

    async def to_the_end(world: World) -> None:
        await scene(world)
        assert await world.until(lambda: is_well(world), 60.0)

    play_when_well(plot or Plot(founders=3), to_the_end, seed=5)


def newest(world: World) -> ModelOffer | None:
    leader = world.leader()
    return leader.replica.state.offer if leader else None


def ended(world: World) -> bool:
    offer = newest(world)
    return offer is not None and not offer.is_open


async def until_it_ends(world: World) -> ModelOffer:
    assert await world.until(lambda: ended(world), 60.0)
    offer = newest(world)
    assert offer is not None
    return offer


def places(world: World) -> set[ModelPlace | None]:
    return {node.replica.state.source for node in world.running}


@pytest.mark.parametrize("with_manifest", [True, False])
def test_every_node_serves_the_offered_revision_and_one_that_starts_again_too(
    with_manifest: bool,
) -> None:
    async def story(world: World) -> None:
        epoch = world.running[0].replica.state.epoch
        await world.running[1].offer(SECOND)
        offer = await until_it_ends(world)
        assert (offer.withdrawn, offer.switched_epoch) == (None, epoch + 1)
        assert await world.until(lambda: is_well(world), 60.0)
        await world.crash(world.machines[2])
        world.start(world.machines[2])
        assert await world.until(lambda: is_well(world), 60.0)
        assert places(world) == {SECOND}

    play(story, Plot(founders=3, with_manifest=with_manifest))


def test_a_second_offer_is_refused_while_the_first_one_is_open() -> None:
    async def story(world: World) -> None:
        await world.running[0].offer(SECOND)
        with pytest.raises(RequestError, match="is offered already"):
            await world.running[0].offer(SECOND)
        await until_it_ends(world)

    play(story)


@pytest.mark.parametrize("mischief", ["fail_share", "corrupt_share"])
def test_a_node_that_cannot_load_it_right_ends_the_offer_and_the_old_model_goes_on(
    mischief: str,
) -> None:
    async def story(world: World) -> None:
        before = world.running[0].replica.state
        setattr(world.machines[1].mischief, mischief, 1.0)
        await world.running[0].offer(SECOND)
        offer = await until_it_ends(world)
        setattr(world.machines[1].mischief, mischief, 0.0)
        node = world.machines[1].node_id
        assert f"node {str(node)[:8]}" in str(offer.withdrawn)
        after = world.running[0].replica.state
        assert (after.epoch, after.model, after.source) == (before.epoch, before.model, None)
        assert after.is_active

    play(story)


def test_a_node_that_dies_meanwhile_ends_the_offer() -> None:
    async def story(world: World) -> None:
        for machine in world.machines:
            machine.mischief.slow_seconds = 20.0
        await world.running[0].offer(SECOND)
        await asyncio.sleep(2.0)
        worker = next(m for m in world.machines if m.node is not world.leader())
        await world.crash(worker)
        for machine in world.machines:
            machine.mischief.slow_seconds = 0.0
        offer = await until_it_ends(world)
        assert "the pipeline of epoch" in str(offer.withdrawn)
        world.start(worker)
        assert places(world) == {None}

    play(story)


def test_a_coordinator_that_is_deposed_meanwhile_leaves_the_offer_to_the_next_one() -> None:
    async def story(world: World) -> None:
        for machine in world.machines:
            machine.mischief.slow_seconds = 5.0
        first = world.leader()
        assert first is not None
        await first.offer(SECOND)
        await asyncio.sleep(2.0)
        await first.consensus.hand_over()
        assert await world.until(lambda: world.leader() not in (None, first), 30.0)
        offer = await until_it_ends(world)
        for machine in world.machines:
            machine.mischief.slow_seconds = 0.0
        assert (offer.withdrawn, bool(offer.switched_epoch)) == (None, True)

    play(story)
