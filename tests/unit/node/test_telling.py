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
from butterfly_cluster.raft_timing import LAN, Timing
from butterfly_core.errors import ButterflyError, NotServing, Refused
from butterfly_core.ids import NodeId
from tests.sim.virtual_loop import run_virtually
from tests.support.clusters import CAPACITY, committed, engine, joined, node, registered

ME, VOTERS = node(1), frozenset(map(node, (1, 2, 3)))


@dataclass
class World:
    """A log of one; ``deaf`` commits commands without effect."""

    deaf: bool = False
    error: ButterflyError | None = None
    hand_over_error: ButterflyError | None = None
    joined: bool = True
    proposed: list[tuple[float, Command]] = field(default_factory=list)
    leader: NodeId = ME
    voters: frozenset[NodeId] = VOTERS
    silent: frozenset[NodeId] = frozenset()
    lost_peers: frozenset[NodeId] = frozenset()
    deaf_to_hand_over: int = 0
    """So many times the one that is asked to lead does not."""
    told: list[str] = field(default_factory=list)
    """In which order a node that leaves does what."""
    term: int = 1
    timing: Timing = LAN

    def __post_init__(self) -> None:
        self.local = Local(Facts(registered(1), engine=engine(1), capacity=CAPACITY))
        self.replica = Replica(self.local.changed)

    async def propose(self, command: Command, *, timeout_seconds: float) -> int:
        self.proposed.append((asyncio.get_running_loop().time(), command))
        self.told.append(f"{command.kind} while {int(self.leader, 16)} leads")
        await asyncio.sleep(0.001)
        if self.error is not None:
            raise self.error
        if self.deaf:
            self.local.changed.notify()
        else:
            self.replica.apply(self.replica.state.index + 1, encode_command(command))
        return self.replica.state.index

    async def hand_over(self) -> None:
        self.told.append("hand over")
        if self.hand_over_error is not None:
            raise self.hand_over_error
        if self.deaf_to_hand_over:
            self.deaf_to_hand_over -= 1
        else:
            asyncio.get_running_loop().call_later(0.03, self.is_led_by, 2)

    def is_led_by(self, number: int) -> None:
        self.leader, self.term = node(number), self.term + 1

    def seconds_since_heard(self, node_id: NodeId) -> float:
        return float("inf") if node_id in self.silent else 0.1

    def leave(self, *, members: int = 3) -> None:
        self.replica.restore_state(committed(joined(members)))
        run_virtually(leave_cluster(self, self.replica, node(1)))  # type: ignore[arg-type]

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


def test_a_coordinator_that_leaves_lets_another_lead_first() -> None:
    world = World()

    world.leave()

    assert world.told == ["hand over", "remove_member while 2 leads"]
    assert node(1) not in world.replica.state.members


def test_it_asks_again_when_the_one_that_was_asked_does_not_take_over() -> None:
    world = World(deaf_to_hand_over=1)

    world.leave()

    assert world.told == ["hand over", "hand over", "remove_member while 2 leads"]


@pytest.mark.parametrize("refused", [None, Refused("nobody is caught up")])
def test_a_node_that_leaves_is_removed_also_when_nobody_takes_over(refused: Refused | None) -> None:
    world = World(hand_over_error=refused, deaf_to_hand_over=1000)

    world.leave()

    assert world.told[-1] == "remove_member while 1 leads"
    assert world.told.count("hand over") > 1
    assert node(1) not in world.replica.state.members


@pytest.mark.parametrize(("leader", "voters"), [(2, {1, 2, 3}), (2, {2, 3, 4}), (1, {1})], ids=str)
def test_who_does_not_lead_or_votes_alone_hands_nothing_over(leader: int, voters: set[int]) -> None:
    world = World(leader=node(leader), voters=frozenset(map(node, voters)))

    world.leave()

    assert world.told == [f"remove_member while {leader} leads"]


@pytest.mark.parametrize(
    ("silent", "lost"), [({3}, set()), (set(), {3})], ids=["silent", "its channel broke"]
)
def test_who_takes_the_majority_along_says_which_voters_are_missing(
    caplog: pytest.LogCaptureFixture, silent: set[int], lost: set[int]
) -> None:
    world = World(silent=frozenset(map(node, silent)), lost_peers=frozenset(map(node, lost)))

    world.leave()

    (told,) = [record.message for record in caplog.records if "majority" in record.message]
    assert f"of 3 voters, 1 are silent ({node(3)[:8]})" in told


def test_the_only_voter_of_two_members_says_that_the_rest_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    World(voters=frozenset({node(1)})).leave(members=2)

    assert "of 1 voters, 0 are silent (no other)" in caplog.text


@pytest.mark.parametrize(
    ("voters", "silent", "members"),
    [({1, 2, 3}, set(), 3), ({1, 2, 3, 4, 5}, {5}, 5), ({2, 3, 4}, {3, 4}, 4), ({1}, set(), 1)],
    ids=str,
)
def test_who_leaves_a_majority_behind_or_nobody_warns_of_nothing(
    caplog: pytest.LogCaptureFixture, voters: set[int], silent: set[int], members: int
) -> None:
    World(voters=frozenset(map(node, voters)), silent=frozenset(map(node, silent))).leave(
        members=members
    )

    assert "majority" not in caplog.text


async def test_a_cluster_that_cannot_agree_just_loses_the_node() -> None:
    world = World(error=NotServing("no leader", phase="election"), leader=node(2))
    world.replica.restore_state(committed(joined(2)))

    await leave_cluster(world, world.replica, node(1))  # type: ignore[arg-type]

    assert node(1) in world.replica.state.members
