from collections.abc import Mapping
from typing import Any

import pytest

from butterfly.node.local import Local, Problem
from butterfly.node.reports import Reports, parse_report, parse_reports
from butterfly_cluster.commands import MarkDown, RemoveMember
from butterfly_cluster.node_duties import Facts
from butterfly_cluster.state import ClusterState
from butterfly_core.address import Address
from butterfly_core.errors import ProtocolViolation
from butterfly_core.ids import NodeId
from tests.support.clusters import committed, joined, node, registered

REPORT = {"state": "OPERATIONAL", "phase": "serving", "active_requests": 3, "epoch": 2}


class World:
    """Node 1's reports; what the leader would answer is in ``reply``."""

    def __init__(self, members: int = 3) -> None:
        self.state: ClusterState = committed(joined(members))
        self.leader: NodeId | None = node(1)
        self.reply: Mapping[str, Any] = {"reports": {}}
        self.now = 1000.0
        self.local = Local(Facts(registered(1)))
        self.reports = Reports(
            node(1),
            self.local,
            pool=self,  # type: ignore[arg-type] # the one method that is used
            addresses=self,  # type: ignore[arg-type] # the one method that is used
            leader=lambda: self.leader,
            active_requests=lambda: 1,
            state=lambda: self.state,
            clock=lambda: self.now,
        )

    async def call(self, *_: object, **__: object) -> Mapping[str, Any]:
        return self.reply

    def of(self, _: NodeId) -> Address:
        return Address("127.0.0.1", 7000)


async def test_requests_of_a_member_that_died_are_counted_no_more() -> None:
    world = World()
    for number in (2, 3):
        await world.reports.handle(node(number), REPORT)
    assert world.reports.active_requests == 7

    world.state = committed([MarkDown(node(3), "silent")], world.state)

    assert world.reports.active_requests == 4
    await world.reports.report_once()
    assert set(world.reports.newest) == {node(1), node(2)}


async def test_a_report_of_a_dead_member_is_a_sign_of_life_and_nothing_else() -> None:
    world = World()
    world.state = committed([MarkDown(node(3), "silent")], world.state)

    answer = await world.reports.handle(node(3), REPORT)

    assert node(3) not in answer["reports"]
    assert world.reports.silent_seconds(0.0)[node(3)] == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"active_requests": None},
        {"active_requests": -1},
        {"active_requests": 1.5},
        {"active_requests": True},
        {"active_requests": 1 << 64},
        {"progress_percent": float("nan")},
        {"progress_percent": 101.0},
        {"state": "x" * 201},
        {"state": None},
        {"problems": ["p"] * 9},
        {"problems": ["p" * 201]},
        {"problems": 7},
    ],
)
async def test_an_odd_report_is_refused_and_changes_nothing(odd: Mapping[str, Any]) -> None:
    world = World()
    await world.reports.handle(node(2), REPORT)

    with pytest.raises(ProtocolViolation, match=next(iter(odd))):
        await world.reports.handle(node(2), {**REPORT, **odd})

    assert world.reports.active_requests == 4


async def test_an_odd_report_is_a_sign_of_life_too() -> None:
    world = World()
    with pytest.raises(ProtocolViolation):
        await world.reports.handle(node(2), {"active_requests": None})

    silent = world.reports.silent_seconds(0.0)
    assert (silent[node(2)], silent[node(3)]) == (0, 1000)


def test_what_another_version_says_beside_the_known_is_left_out() -> None:
    assert parse_report({**REPORT, "mood": {"good": []}}) == parse_report(REPORT)


@pytest.mark.parametrize("reply", [{}, {"reports": None}, {"reports": [REPORT]}, {"reports": 3}])
async def test_a_reply_without_reports_is_passed_over(reply: Mapping[str, Any]) -> None:
    world = World()
    world.leader, world.reply = node(2), reply
    with pytest.raises(ProtocolViolation):
        parse_reports(reply)

    await world.reports.report_once()

    assert set(world.reports.newest) == {node(1)}


async def test_odd_entries_of_a_reply_hide_no_other() -> None:
    world = World()
    odd = {node(3): {**REPORT, "active_requests": None}, "me": REPORT, 7: REPORT}
    world.leader, world.reply = node(2), {"reports": {**odd, node(2): REPORT}}

    await world.reports.report_once()

    assert set(world.reports.newest) == {node(1), node(2)}
    assert world.reports.active_requests == 4


def test_of_an_endless_reply_the_beginning_is_read() -> None:
    assert len(parse_reports({"reports": {node(i): REPORT for i in range(2000)}})) == 1000


async def test_a_member_that_left_is_forgotten() -> None:
    world = World()
    await world.reports.handle(node(3), REPORT)
    world.state = committed([RemoveMember(node(3), "left")], world.state)

    await world.reports.report_once()

    assert set(world.reports.newest) == {node(1)}
    assert node(3) not in world.reports.silent_seconds(0.0)


async def test_strangers_are_remembered_for_a_while_and_up_to_a_limit() -> None:
    world = World(members=1)
    for number in range(2, 1200):
        await world.reports.handle(node(number), REPORT)
    world.now += 61
    await world.reports.handle(node(1200), REPORT)
    await world.reports.report_once()
    await world.reports.handle(node(1201), REPORT)

    world.state = committed(joined(1201))
    silent = world.reports.silent_seconds(0.0)

    assert [number for number in range(1202) if silent.get(node(number)) == 0] == [1201]


def test_what_a_node_says_of_itself_is_always_a_report() -> None:
    world = World()
    for number in range(20):
        world.local.report(Problem(f"code{number}", "long " * 100))

    own = world.reports.own()

    assert parse_report(own).to_map() == own
    assert len(own["problems"]) == 8


async def test_a_member_that_says_it_cannot_vote_is_mute() -> None:
    world = World()
    await world.reports.handle(node(2), {**REPORT, "can_vote": False})
    await world.reports.handle(node(3), REPORT)
    assert world.reports.mute == {node(2)}

    await world.reports.handle(node(2), REPORT)
    assert world.reports.mute == frozenset()
