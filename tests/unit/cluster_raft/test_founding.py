"""Whole births on virtual time: nodes that ask each other until there is one cluster."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, repeat
from pathlib import Path
from typing import Literal

import pytest

from butterfly_cluster.founding import Formation, Founding
from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.founding_questions import ask_all
from butterfly_cluster.founding_sight import FoundingSettings
from butterfly_cluster.identity import DataDir, load_or_create
from butterfly_core.errors import ConfigError, NotAuthenticated, Unreachable
from butterfly_core.ids import ClusterId, NodeId
from tests.sim.virtual_loop import run_virtually
from tests.support.directories import Listed

THREE = ("a:1", "b:1", "c:1")


class Town:
    """Nodes at addresses, each way between two open or cut."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data_dirs: list[DataDir] = []
        self.nodes: dict[str, Founding] = {}
        self.cut: set[tuple[str, str]] = set()
        self.names: dict[str, Iterator[str]] = {}
        """Who answers to a name, time after time."""

    def node(
        self,
        address: str,
        seeds: tuple[str, ...] = THREE,
        *,
        coordinator: bool = False,
        quorum_size: int = 1,
        number: int | None = None,
        remembered: frozenset[str] = frozenset(),
    ) -> Founding:
        directory = self._directory / address.replace(":", "-")
        made = bytes([number if number is not None else ord(address[0])] * 16)
        data_dir = load_or_create(directory, random_bytes=lambda _: made)
        self._data_dirs.append(data_dir)
        role: Literal["worker", "coordinator"] = "coordinator" if coordinator else "worker"
        founding = Founding(
            data_dir,
            FoundingSettings("demo", address, role=role, quorum_size=quorum_size),
            Listed(*seeds),
            remembered=lambda: remembered,
        )
        self.nodes[address] = founding
        return founding

    def restart(self, address: str, seeds: tuple[str, ...] = THREE) -> Founding:
        self.stop_all()
        return self.node(address, seeds)

    def stop_all(self) -> None:
        for data_dir in self._data_dirs:
            data_dir.close()

    def asker(self, source: str) -> "Asker":
        return Asker(self, source)


class Asker:
    def __init__(self, town: Town, source: str) -> None:
        self._town, self._source = town, source

    async def whoami(self, address: str) -> WhoAmI:
        return (await self._reach(address)).answer_whoami()

    async def promise(self, address: str, proposal: Proposal, *, expect: NodeId) -> Verdict:
        peer = await self._reach(address)
        if peer.me != expect:
            raise NotAuthenticated(f"{address} is {peer.me}, not {expect}")
        return peer.answer_promise(self._town.nodes[self._source].me, proposal)

    async def _reach(self, address: str) -> Founding:
        await asyncio.sleep(0.01)
        behind = self._town.names.get(address)
        if behind is not None:
            address = next(behind)
        if address not in self._town.nodes or (self._source, address) in self._town.cut:
            raise Unreachable(f"{address} does not answer")
        return self._town.nodes[address]


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path)
    yield made
    made.stop_all()


async def all_form(town: Town, *addresses: str) -> list[Formation]:
    async with asyncio.timeout(60):
        return list(
            await asyncio.gather(
                *(town.nodes[one].form_or_join(town.asker(one)) for one in addresses)
            )
        )


async def look_around(town: Town, address: str) -> None:
    """Let a node that cannot form a cluster yet ask for a while."""
    asking = asyncio.ensure_future(all_form(town, address))
    await asyncio.sleep(1)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


def test_a_coordinator_founds_alone_and_workers_join_it(town: Town) -> None:
    lone = town.node("a:1", (), coordinator=True)
    for worker in ("b:1", "c:1"):
        town.node(worker, ("a:1",))
    formations = run_virtually(all_form(town, "a:1", "b:1", "c:1"))

    assert {formation.voters for formation in formations} == {frozenset({lone.me})}
    assert len({formation.cluster_id for formation in formations}) == 1
    assert [formation.learner for formation in formations] == [False, True, True]
    assert formations[1].members == {lone.me: "a:1"}


def test_a_lone_coordinator_that_lost_its_log_finds_its_cluster_by_who_it_remembers(
    town: Town,
) -> None:
    town.node("a:1", (), coordinator=True)
    town.node("b:1", ("a:1",))
    before, _ = run_virtually(all_form(town, "a:1", "b:1"))
    town.stop_all()
    (town.nodes["a:1"]._data_dir.path / "raft.journal").unlink()
    town.node("b:1", ("a:1",))
    again = town.node("a:1", (), coordinator=True, number=7, remembered=frozenset({"b:1"}))
    (after,) = run_virtually(all_form(town, "a:1"))

    assert after.cluster_id == before.cluster_id
    assert after.learner
    assert again.me not in after.voters


def test_a_lone_coordinator_that_lost_its_log_founds_nothing_when_nobody_answers(
    town: Town,
) -> None:
    town.node("a:1", (), coordinator=True)
    run_virtually(all_form(town, "a:1"))
    town.stop_all()
    (town.nodes["a:1"]._data_dir.path / "raft.journal").unlink()
    again = town.node("a:1", (), coordinator=True, number=7)
    run_virtually(look_around(town, "a:1"))

    assert again.formation() is None
    assert "--forget" in again.state.reason


def test_replicas_behind_one_name_found_no_cluster_each_and_are_told_of_dns(town: Town) -> None:
    town.names["service:1"] = cycle(THREE)
    for address in THREE:
        town.node(address, ("service:1",), quorum_size=3)
    with pytest.raises(TimeoutError):
        run_virtually(all_form(town, *THREE))

    for node in town.nodes.values():
        assert node.formation() is None
    assert any('"dns"' in node.state.reason for node in town.nodes.values())


def test_a_coordinator_behind_its_own_name_founds_alone_and_workers_join_it(town: Town) -> None:
    town.names["coord:1"] = repeat("a:1")
    town.node("a:1", ("coord:1",), coordinator=True, quorum_size=3)
    for worker in ("b:1", "c:1"):
        town.node(worker, ("coord:1",), quorum_size=3)
    formations = run_virtually(all_form(town, *THREE))

    assert len({formation.cluster_id for formation in formations}) == 1
    assert [formation.learner for formation in formations] == [False, True, True]


def test_a_promise_counts_for_nobody_but_the_node_that_was_heard(town: Town) -> None:
    """Behind the second name b answers who it is, and then another node promises."""
    town.names["many:1"] = cycle(("b:1", "b:1", "d:1"))
    town.node("a:1", ("a:1", "many:1"))
    for address in ("b:1", "d:1"):
        town.node(address, ("a:1", "many:1"))
        run_virtually(look_around(town, address))
    town.names["many:1"] = cycle(("b:1", "b:1", "d:1"))
    run_virtually(look_around(town, "a:1"))

    assert town.nodes["a:1"].formation() is None


def test_a_founder_that_lost_its_log_is_not_waited_for(town: Town) -> None:
    """Its new id is the smallest, and it can found nothing."""
    town.node("a:1")._data_dir.start_over(lambda _: bytes(16), because="the disk failed")
    damaged = town.nodes["a:1"]._data_dir
    damaged._write(replace(damaged.identity, former_cluster=ClusterId("e" * 32)))
    for address in ("b:1", "c:1"):
        town.node(address)
    formations = run_virtually(all_form(town, "b:1", "c:1"))

    assert len({formation.cluster_id for formation in formations}) == 1
    assert len(formations[0].voters) == 2
    assert town.nodes["a:1"].formation() is None


def test_three_equal_nodes_found_one_cluster_together(town: Town) -> None:
    for address in THREE:
        town.node(address)
    formations = run_virtually(all_form(town, *THREE))

    everyone = frozenset(node.me for node in town.nodes.values())
    assert {formation.voters for formation in formations} == {everyone}
    assert len({formation.cluster_id for formation in formations}) == 1
    assert not any(formation.learner for formation in formations)


def test_two_of_three_found_after_the_grace_and_the_third_joins(town: Town) -> None:
    async def story() -> list[Formation]:
        formed = await all_form(town, "a:1", "b:1")
        assert asyncio.get_running_loop().time() >= 5.0
        town.node("c:1")
        return formed + await all_form(town, "c:1")

    for address in ("a:1", "b:1"):
        town.node(address)
    formations = run_virtually(story())

    assert len({formation.cluster_id for formation in formations}) == 1
    assert [formation.learner for formation in formations] == [False, False, True]


def test_a_restart_resumes_without_asking_anybody(town: Town) -> None:
    for address in THREE:
        town.node(address)
    before = run_virtually(all_form(town, *THREE))
    me = town.nodes["b:1"].me
    town.nodes.clear()
    town.restart("b:1")
    (after,) = run_virtually(all_form(town, "b:1"))

    assert (after.cluster_id, after.voters) == (before[1].cluster_id, before[1].voters)
    assert town.nodes["b:1"].me == me
    assert not after.learner


def test_a_worker_waits_for_its_seed_and_says_why(town: Town) -> None:
    async def story() -> Formation:
        joining = asyncio.ensure_future(worker.form_or_join(town.asker("b:1")))
        await asyncio.sleep(30)
        assert not joining.done()
        assert "a:1 does not answer" in worker.state.reason
        town.node("a:1", (), coordinator=True)
        await all_form(town, "a:1")
        return await joining

    worker = town.node("b:1", ("a:1",))
    formation = run_virtually(story())

    assert formation.learner


def test_founders_with_different_lists_found_nothing_and_say_so(town: Town) -> None:
    town.node("a:1")
    town.node("b:1", ("a:1", "b:1"))
    with pytest.raises(TimeoutError):
        run_virtually(all_form(town, "a:1", "b:1"))

    for node in town.nodes.values():
        assert "[a:1, b:1, c:1]" in node.state.reason
        assert "[a:1, b:1]" in node.state.reason
        assert node.formation() is None


def test_two_candidates_end_in_one_cluster(town: Town) -> None:
    """b sees c only and collects its promise, a sees b only: one of them gives way."""
    for address in THREE:
        town.node(address)
    town.cut = {("a:1", "c:1"), ("b:1", "a:1")}

    async def story() -> list[Formation]:
        forming = asyncio.ensure_future(all_form(town, *THREE))
        await asyncio.sleep(20)
        town.cut.clear()
        return await forming

    assert len({formation.cluster_id for formation in run_virtually(story())}) == 1


@pytest.mark.parametrize("killed_after", [0.005, 0.015, 0.025, 0.035, 0.045, 0.055, 0.3])
def test_a_candidate_killed_while_it_founds_makes_no_second_cluster(
    town: Town, killed_after: float
) -> None:
    async def story() -> list[Formation]:
        candidate = asyncio.ensure_future(all_form(town, "a:1"))
        others = asyncio.ensure_future(all_form(town, "b:1", "c:1"))
        await asyncio.sleep(killed_after)
        candidate.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await candidate
        gone = town.nodes.pop("a:1")
        await asyncio.sleep(12)
        town.nodes["a:1"] = gone
        again = await all_form(town, "a:1")
        return again + await others

    for address in THREE:
        town.node(address)
    formations = run_virtually(story())

    assert len({formation.cluster_id for formation in formations}) == 1


def test_a_thousand_addresses_are_asked_some_at_a_time(town: Town) -> None:
    asking: set[str] = set()
    most = 0

    class Busy(Asker):
        async def whoami(self, address: str) -> WhoAmI:
            nonlocal most
            asking.add(address)
            most = max(most, len(asking))
            try:
                return await super().whoami(address)
            finally:
                asking.remove(address)

    places = [f"10.0.{number // 250}.{number % 250}:1" for number in range(1000)]
    answers = run_virtually(ask_all(Busy(town, "a:1"), places))

    assert set(answers) == set(places)
    assert most == 32


def test_a_node_asks_for_promises_for_itself_only(town: Town) -> None:
    node = town.node("a:1")
    stolen = Proposal("demo", THREE, (node.me,), NodeId("f" * 32), "1")

    assert not node.answer_promise(NodeId("e" * 32), stolen).granted


def test_a_promise_is_on_the_disk_before_it_is_spoken(town: Town) -> None:
    node = town.node("c:1")
    run_virtually(look_around(town, "c:1"))
    asked = Proposal("demo", THREE, (NodeId("0" * 32),), NodeId("0" * 32), "1")
    assert node.answer_promise(asked.candidate, asked).granted
    town.nodes.clear()
    again = town.restart("c:1")
    run_virtually(look_around(town, "c:1"))

    other = Proposal("demo", THREE, (NodeId("1" * 32),), NodeId("1" * 32), "2")
    refused = again.answer_promise(other.candidate, other)
    assert "promised to 00000000 already" in refused.reason


def test_a_directory_of_another_cluster_name_is_refused(town: Town, tmp_path: Path) -> None:
    town.node("a:1", (), coordinator=True)
    run_virtually(all_form(town, "a:1"))
    town.stop_all()

    with pytest.raises(ConfigError, match="'demo'"):
        Founding(load_or_create(tmp_path / "a-1"), FoundingSettings("other", "a:1"), Listed())
