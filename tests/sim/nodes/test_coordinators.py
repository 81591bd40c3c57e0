"""Coordinators that are paused or die, and voters that follow: whole nodes on virtual time."""

import asyncio

import pytest

from butterfly.config.schema import ADMISSION_LEASE_SECONDS
from butterfly_cluster.commands import Ordered, ReportPlanProblem
from butterfly_cluster.state import Acting
from butterfly_core.ids import NodeId
from tests.sim.nodes.nemesis import Nemesis
from tests.sim.nodes.node import SimNode
from tests.sim.nodes.story import is_well, play_when_well, run_seed
from tests.sim.nodes.world import Plot, World


def acting(world: World, node: SimNode) -> Acting:
    found = node.replica.state.acting
    assert found is not None
    return found


def test_a_coordinator_that_was_paused_gives_no_order_when_it_wakes_up() -> None:
    async def story(world: World) -> None:
        old = world.leader()
        assert old is not None
        before = acting(world, old)
        machine = world.machine_of(old)
        other = next(node for node in world.running if node is not old)
        world.pause(machine)
        assert await world.until(lambda: acting(world, other).node_id != old.node_id, 10.0)
        world.resume(machine)
        order = ReportPlanProblem("a late wish")
        await old.consensus.propose(Ordered(before, order), timeout_seconds=10.0)
        assert await world.until(lambda: is_well(world), 60.0)
        for node in world.running:
            assert node.replica.state.plan_problem != "a late wish"
            assert acting(world, node).term > before.term
        assert old.replica.rejected_total >= 1

    play_when_well(Plot(founders=3), story, seed=5)


def test_a_coordinator_that_is_deposed_while_it_probes_claims_no_term_of_another() -> None:
    async def story(world: World) -> None:
        nemesis = Nemesis(world)
        for _ in range(6):
            before = world.leader()
            await nemesis.depose_while_probing()
            assert await world.until(lambda: world.leader() is not before, 10.0)  # noqa: B023
            nemesis.end()
            assert await world.until(lambda: is_well(world), 60.0)

    play_when_well(Plot(founders=5), story, seed=5)


def test_a_node_whose_process_ended_is_judged_dead_at_once() -> None:
    async def story(world: World) -> None:
        leader = world.leader()
        assert leader is not None
        victim = next(node for node in world.running if node is not leader)
        gone, since = victim.node_id, world.now
        await world.crash(world.machine_of(victim))
        assert await world.until(lambda: not leader.replica.state.members[gone].alive, 10.0)
        assert world.now - since < 1.5

    play_when_well(Plot(founders=3), story, seed=5)


def test_a_dead_voter_is_replaced_by_a_learner_and_stays_one_when_it_returns() -> None:
    async def story(world: World) -> None:
        leader = world.leader()
        assert leader is not None
        assert await world.until(lambda: len(leader.consensus.voters) == 3, 20.0)
        voters = leader.consensus.voters
        gone: NodeId = min(voters - {leader.node_id})
        victim = world.node_of(gone)
        assert victim is not None
        machine = world.machine_of(victim)
        await world.crash(machine)
        assert await world.until(lambda: gone not in leader.consensus.voters, 60.0)
        assert await world.until(lambda: len(leader.consensus.voters) == 3, 20.0)
        world.start(machine)
        assert await world.until(lambda: is_well(world), 60.0)
        await asyncio.sleep(30.0)
        assert gone not in leader.consensus.voters
        assert len(leader.consensus.voters) == 3

    play_when_well(Plot(founders=4, max_voters=3), story, seed=5)


def test_a_coordinator_that_is_asked_to_leave_is_followed_without_an_election_timeout() -> None:
    async def story(world: World) -> None:
        old = world.leader()
        assert old is not None
        rest = [node for node in world.running if node is not old]
        term, timing = old.consensus.term, old.consensus.timing
        silences: list[float] = []

        def is_led_by_another() -> bool:
            silences.extend(node.consensus.leader_silent_seconds for node in rest)
            return world.leader() is not old

        old.drain()
        assert await world.until(is_led_by_another, 10.0)
        assert max(silences) < timing.election_min_seconds
        successor = world.leader()
        assert successor is not None
        assert successor.consensus.term == term + 1
        assert old in world.running, "the old one still answers while the new one leads"
        assert await world.until(lambda: old not in world.running, 10.0)
        assert old.node_id not in successor.replica.state.members
        assert world.leader() is successor
        assert successor.consensus.term == term + 1
        assert await world.until(lambda: is_well(world), 60.0)

    play_when_well(Plot(founders=3), story, seed=5)


@pytest.mark.parametrize("pause_seconds", [0.35, 1.0, 1.9])
def test_a_leader_that_wakes_up_cut_off_lets_no_follower_admit_for_another_lease(
    pause_seconds: float,
) -> None:
    """The acknowledgements that wait for it are from before the cut."""

    async def story(world: World) -> None:
        leader = world.leader()
        assert leader is not None
        machine = world.machine_of(leader)
        follower = next(other for other in world.machines if other is not machine)
        told = len(world.wire.log)
        while not any(source == machine.name for _, source, *_ in world.wire.log[told:]):
            await asyncio.sleep(0.0005)
        world.pause(machine)  # a heartbeat arrives; the answers to it will wait
        await asyncio.sleep(0.02)
        world.cut_off([machine, follower])
        await asyncio.sleep(pause_seconds)
        world.resume(machine)
        await asyncio.sleep(5.0)
        assert world.watch.longest_admission_seconds <= ADMISSION_LEASE_SECONDS["lan"]
        world.wire.ways.heal()
        assert await world.until(lambda: is_well(world), 60.0)

    play_when_well(Plot(founders=5), story, seed=5)


@pytest.mark.parametrize("seed", [1128])
def test_stories_in_which_a_paused_node_took_old_words_for_fresh_ones(seed: int) -> None:
    assert not run_seed(seed).watch.violations
