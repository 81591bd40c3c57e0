"""One seed, one story: a plot, faults for a while, an end where everything must be well again.

Or one scene, which a test tells itself.
"""

import asyncio
import logging
import random
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from butterfly_cluster.founding_sight import SourceName
from tests.sim.nodes.nemesis import Nemesis
from tests.sim.nodes.world import Plot, World
from tests.sim.virtual_loop import run_virtually

TROUBLE_SECONDS = 8.0
CONVERGE_SECONDS = 120.0
_SHARED_MEMORY = Path("/dev/shm")

Scene = Callable[[World], Awaitable[None]]


def plot_of(seed: int) -> Plot:
    """What this seed's cluster is like."""
    dice = random.Random(f"plot {seed}")
    founders, late = dice.choice([1, 2, 3, 3, 3, 4, 5, 5, 7]), dice.choice([0, 0, 1, 2])
    source: SourceName = dice.choice(["static", "static", "dns", "multicast", "consul"])
    if source == "static":
        quorum_size = dice.choice([1, founders // 2 + 1])
    else:
        quorum_size = (founders + late) // 2 + 1
    return Plot(
        founders=founders,
        late=late,
        source=source,
        lone_coordinator=source == "static" and dice.random() < 0.4,
        quorum_size=quorum_size,
        with_manifest=dice.random() < 0.7,
        grace_seconds=dice.choice([0.5, 1.0, 5.0]),
        max_voters=dice.choice([3, 5]),
        promise_strike_share=dice.choice([0.0, 0.3]),
        depose_share=dice.choice([0.3, 0.0, 0.0]),
        offer_share=dice.choice([0.5, 0.0]),
    )


async def _whole_story(world: World) -> None:
    await _begin(world)
    nemesis = Nemesis(world)
    ends_at = world.now + TROUBLE_SECONDS
    while world.now < ends_at:
        await asyncio.sleep(world.dice.uniform(0.05, 1.5))
        await nemesis.strike()
    nemesis.end()
    if not await world.until(lambda: is_well(world), CONVERGE_SECONDS):
        world.watch.violate(f"no end after {CONVERGE_SECONDS:g} s: {_why(world)}")


async def _begin(world: World) -> None:
    """Machines start in any order, at any moment; some only when the nemesis starts them."""
    machines = world.dice.sample(world.machines, len(world.machines))
    for machine in machines:
        if world.dice.random() < 0.9:
            world.start(machine)
        await asyncio.sleep(world.dice.choice([0.0, 0.0, 0.1, 0.7]))
    if world.dice.random() < 0.6:  # else the trouble is with the founding
        await world.until(lambda: is_well(world), 10.0)


def is_well(world: World) -> bool:
    """Every machine runs a node, all admit, in one epoch that is active."""
    nodes = world.running
    if len(nodes) < len(world.machines):
        for machine in world.machines:
            world.start(machine)  # a node that drained is started again by its operator
        return False
    epochs = {node.replica.state.epoch for node in nodes}
    return len(epochs) == 1 and all(
        node.replica.state.is_active
        and node.replica.state.open_offer is None
        and node.admits
        and node.node_id in {member.node_id for member in node.replica.state.live}
        for node in nodes
    )


def _why(world: World) -> str:
    told = []
    for machine in world.machines:
        node = machine.node
        if node is None:
            told.append(f"{machine.name} is down")
            continue
        state = node.replica.state
        told.append(
            f"{machine.name} {node.local.node.state.value} epoch {state.epoch} "
            f"validated {state.validated_epoch} active {state.active_epoch} "
            f"term {node.consensus.term} leader {str(node.consensus.leader)[:6]} "
            f"voters {len(node.consensus.voters)} live {len(state.live)} "
            f"problem {node.admission_problem()} {sorted(node.local.problems)}"
        )
    return "; ".join(told)


def _run(seed: int, plot: Plot, scene: Scene) -> World:
    """Play the scene on disks of its own, and return the world as it ended, with its violations
    in ``watch``."""
    shared = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="butterfly-sim-", dir=shared) as directory:

        async def run() -> World:
            world = World(seed, Path(directory), plot)
            async with world.watched():
                await scene(world)
                world.watch.look()
            return world

        return run_virtually(run())


def run_seed(seed: int, plot: Plot | None = None) -> World:
    """Play a seed's story, and return the world as it ended."""
    logging.disable(logging.CRITICAL)
    try:
        return _run(seed, plot or plot_of(seed), _whole_story)
    finally:
        logging.disable(logging.NOTSET)


def check_seed(seed: int) -> None:
    """Raises AssertionError with what did not hold."""
    world = run_seed(seed)
    assert not world.watch.violations, (seed, world.plot, world.watch.violations[:3])


def play(plot: Plot, scene: Scene, *, seed: int = 1) -> None:
    """A scene that begins with machines that nobody has started yet."""
    assert not _run(seed, plot, scene).watch.violations


def play_when_well(plot: Plot, scene: Scene, *, seed: int = 1) -> None:
    """A scene that begins when all machines run and serve."""

    async def from_the_start(world: World) -> None:
        for machine in world.machines:
            world.start(machine)
        assert await world.until(lambda: is_well(world), 60.0)
        await scene(world)

    play(plot, from_the_start, seed=seed)
