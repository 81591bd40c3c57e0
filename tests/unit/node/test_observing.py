"""What the coordinator sees: silence by two ways of hearing, witnesses, and who refuses."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from butterfly.node.observing import Observer
from butterfly_cluster.raft_timing import LAN
from butterfly_cluster.state import ClusterState
from butterfly_core.address import Address
from butterfly_core.ids import NodeId
from tests.sim.virtual_loop import run_virtually
from tests.support.clusters import committed, joined, node


@dataclass
class World:
    """Node 1 observes; the fields are what its consensus and its reports would say."""

    now: float = 100.0
    state: ClusterState = field(default_factory=lambda: committed(joined(3)))
    reported_seconds: float = 0.0
    heard_seconds: float = 0.0
    lost_peers: frozenset[NodeId] = frozenset()
    lost_by: dict[NodeId, frozenset[NodeId]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    dialled: list[int] = field(default_factory=list)
    voters: frozenset[NodeId] = frozenset({node(1), node(2), node(3)})
    term: int = 1
    commit_index: int = 5
    active_requests: int = 0
    mute: frozenset[NodeId] = frozenset()
    timing = LAN

    def seconds_since_heard(self, _: NodeId) -> float:
        return self.heard_seconds

    def matched_index(self, _: NodeId) -> int | None:
        return None

    def silent_seconds(self, since: float) -> dict[NodeId, float]:
        silent = min(self.reported_seconds, self.now - since)
        return dict.fromkeys(self.state.members, silent)

    async def refuses(self, address: Address) -> bool:
        self.dialled.append(address.port - 7000)
        return address.port - 7000 in self.ended

    def observer(self) -> Observer:
        parts: Any = self
        made = Observer(
            node(1), consensus=parts, reports=parts, clock=lambda: self.now, refuses=self.refuses
        )
        made.begin()
        return made


def test_a_member_is_silent_only_when_neither_reports_nor_the_logs_channel_are_heard() -> None:
    world = World()
    observer = world.observer()
    world.now += 10

    for reported, heard, silent in ((5.0, 0.1, 0.1), (0.2, 9.0, 0.2), (5.0, 4.0, 4.0)):
        world.reported_seconds, world.heard_seconds = reported, heard
        assert observer.look(world.state).silent_seconds[node(2)] == silent


def test_nobody_is_silent_for_longer_than_this_node_leads_or_was_awake() -> None:
    world = World(reported_seconds=99.0, heard_seconds=99.0)
    observer = world.observer()
    world.now += 2.0
    assert observer.look(world.state).silent_seconds[node(2)] == 2.0

    observer.notice_own_pause()

    assert observer.look(world.state).silent_seconds[node(2)] == 0.0


def test_what_the_coordinator_waits_for_is_no_pause_of_its_own() -> None:
    """A plan or a commit may take seconds; the others are as silent as they are."""

    async def story() -> None:
        world = World(reported_seconds=99.0, heard_seconds=99.0)
        observer = world.observer()
        began = asyncio.get_running_loop().time()
        watching = asyncio.ensure_future(observer.watch_for_own_pauses())
        for _ in range(30):  # the duty is under way, and the process runs
            await asyncio.sleep(0.1)
            world.now = 100.0 + asyncio.get_running_loop().time() - began
        observer.notice_own_pause()
        assert observer.look(world.state).silent_seconds[node(2)] > 2.5

        world.now += 5.0  # the process stood still
        observer.notice_own_pause()
        assert observer.look(world.state).silent_seconds[node(2)] == 0.0
        watching.cancel()
        await asyncio.wait({watching})

    run_virtually(story())


async def test_only_who_is_cut_off_and_lost_by_another_is_dialled_and_not_all_the_time() -> None:
    world = World(ended={3})
    observer = world.observer()
    for lost_peers, lost_by in (
        (frozenset({node(3)}), {}),
        (frozenset(), {node(2): frozenset({node(3)})}),
    ):
        world.lost_peers, world.lost_by = lost_peers, lost_by
        assert not await observer.probe(observer.look(world.state), world.state)
    assert world.dialled == []

    world.lost_peers = frozenset({node(3)})
    assert await observer.probe(observer.look(world.state), world.state)
    assert not await observer.probe(observer.look(world.state), world.state)
    assert world.dialled == [3]
    assert observer.look(world.state).refused == {node(3)}


async def test_a_refusal_is_forgotten_when_it_is_old_or_the_member_is_heard_again() -> None:
    world = World(ended={3}, lost_peers=frozenset({node(3)}))
    world.lost_by = {node(2): frozenset({node(3)})}
    observer = world.observer()
    await observer.probe(observer.look(world.state), world.state)
    world.now += 2.0
    assert observer.look(world.state).refused == frozenset()

    await observer.probe(observer.look(world.state), world.state)
    world.lost_peers = frozenset()
    await observer.probe(observer.look(world.state), world.state)

    assert observer.look(world.state).refused == frozenset()


def test_a_witness_that_is_silent_itself_does_not_count() -> None:
    world = World(reported_seconds=5.0, heard_seconds=5.0)
    world.lost_by = {node(2): frozenset({node(3)})}
    observer = world.observer()
    assert observer.look(world.state).witnesses == {node(3): {node(2)}}

    world.now += 4.0

    assert observer.look(world.state).witnesses == {}
