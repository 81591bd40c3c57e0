import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly.node.telling import leave_cluster, tell_the_cluster
from butterfly_cluster.commands import Command, ReportEngine, encode_command
from butterfly_cluster.node_duties import Facts
from butterfly_core.errors import ButterflyError, NotServing, Refused
from tests.sim.virtual_loop import run_virtually
from tests.support.clusters import CAPACITY, committed, engine, joined, node, registered


@dataclass
class World:
    """A log of one; ``deaf`` commits commands without effect."""

    deaf: bool = False
    error: ButterflyError | None = None
    hand_over_error: ButterflyError | None = None
    joined: bool = True
    proposed: list[tuple[float, Command]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.local = Local(Facts(registered(1), engine=engine(1), capacity=CAPACITY))
        self.replica = Replica(self.local.changed)

    async def propose(self, command: Command, *, timeout_seconds: float) -> int:
        self.proposed.append((asyncio.get_running_loop().time(), command))
        await asyncio.sleep(0.001)
        if self.error is not None:
            raise self.error
        if self.deaf:
            self.local.changed.notify()
        else:
            self.replica.apply(self.replica.state.index + 1, encode_command(command))
        return self.replica.state.index

    async def hand_over(self) -> None:
        if self.hand_over_error is not None:
            raise self.hand_over_error

    def tell(self, seconds: float, then: Callable[[], None] = lambda: None) -> None:
        """Let it run for so long; ``then`` happens in the middle."""

        async def run() -> None:
            telling = tell_the_cluster(self, self.replica, self.local)  # type: ignore[arg-type]
            asyncio.get_running_loop().call_later(seconds / 2, then)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(telling, seconds)

        run_virtually(run())

    @property
    def kinds(self) -> list[str]:
        return [command.kind for _, command in self.proposed]


def test_every_duty_is_told_once() -> None:
    world = World()

    world.tell(60)

    assert [command for _, command in world.proposed] == [
        registered(1),
        ReportEngine(node(1), engine(1), CAPACITY),
    ]


def test_a_command_that_changes_nothing_is_proposed_less_and_less_often() -> None:
    world = World(deaf=True)

    world.tell(60)

    times = [at for at, _ in world.proposed]
    pauses = [round(b - a, 1) for a, b in pairwise(times)]
    assert pauses[:5] == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert set(pauses[5:]) == {5.0}


def test_another_duty_does_not_wait_for_the_one_that_changed_nothing() -> None:
    world = World(deaf=True)

    def hear() -> None:
        world.deaf = False
        world.replica.restore_state(committed([registered(1)]))

    world.tell(60, hear)

    assert [at for at, command in world.proposed if command.kind == "report_engine"] == [30.0]


def test_a_lost_proposal_is_made_again_soon() -> None:
    world = World(error=NotServing("no leader", phase="election"))

    world.tell(10)

    assert len(world.proposed) > 40


def test_nothing_is_told_before_joining_or_while_leaving() -> None:
    for world in (World(joined=False), World()):
        world.local.set_facts(draining=world.joined)
        world.tell(5)
        assert world.proposed == []


@pytest.mark.parametrize("refused", [None, Refused("nobody is caught up")])
async def test_a_node_that_leaves_is_removed_also_when_nobody_takes_over(
    refused: ButterflyError | None,
) -> None:
    world = World(hand_over_error=refused)
    world.replica.restore_state(committed(joined(2)))

    await leave_cluster(world, world.replica, node(1))  # type: ignore[arg-type]

    assert world.kinds == ["remove_member"]
    assert node(1) not in world.replica.state.members


async def test_a_cluster_that_cannot_agree_just_loses_the_node() -> None:
    world = World(error=NotServing("no leader", phase="election"))
    world.replica.restore_state(committed(joined(2)))

    await leave_cluster(world, world.replica, node(1))  # type: ignore[arg-type]

    assert node(1) in world.replica.state.members
