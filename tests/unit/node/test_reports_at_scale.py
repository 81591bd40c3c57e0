"""What the coordinator takes in and gives out stays flat however many members there are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from butterfly.channel import Progressed
from butterfly.node.local import Local
from butterfly.node.news import NEWS_MAX, News
from butterfly.node.reports import Reports, report_period
from butterfly_cluster.lifecycle import Node, NodeState, Phase
from butterfly_cluster.node_duties import Facts
from butterfly_core.address import Address
from butterfly_core.ids import NodeId
from tests.support.clusters import committed, joined, node, registered


@dataclass
class Cluster:
    """Node 1 leads; every call of the others goes to it and is weighed."""

    count: int
    loading: bool
    nbytes: int = 0
    calls: int = 0
    members: list[Reports] = field(default_factory=list)
    locals: list[Local] = field(default_factory=list)

    def __post_init__(self) -> None:
        state = committed(joined(self.count))
        for number in range(1, self.count + 1):
            local = Local(Facts(registered(number)))
            pool: Any = _Pool(self, node(number))
            self.locals.append(local)
            self.members.append(
                Reports(
                    node(number),
                    local,
                    pool=pool,
                    addresses=pool,
                    leader=lambda: node(1),
                    active_requests=lambda: 0,
                    state=lambda: state,
                    clock=lambda: 0.0,
                )
            )

    async def round(self, step: int) -> None:
        """Everybody reports once."""
        for local, reports in zip(self.locals, self.members, strict=True):
            if self.loading:
                local.node = Node(NodeState.LOADING, epoch=1)
                phase = Phase.LOADING_WEIGHTS.value
                local.take_progress(Progressed(1, phase, step, 1000, step, 0))
            await reports.report_once()

    async def bytes_per_second(self, rounds: int) -> float:
        self.nbytes = self.calls = 0
        for step in range(rounds):
            await self.round(step)
        return self.nbytes / (rounds * report_period(self.count))


@dataclass
class _Pool:
    cluster: Cluster
    me: NodeId

    async def call(
        self, _: Address, __: str, body: Mapping[str, Any], **___: object
    ) -> Mapping[str, Any]:
        reply = await self.cluster.members[0].handle(self.me, body)
        self.cluster.nbytes += len(json.dumps(body)) + len(json.dumps(reply))
        self.cluster.calls += 1
        return reply

    def of(self, _: NodeId) -> Address:
        return Address("127.0.0.1", 7000)


@pytest.mark.parametrize("loading", [False, True], ids=["idle", "all loading"])
async def test_two_hundred_members_cost_the_coordinator_no_more_than_a_hundred(
    loading: bool,
) -> None:
    cost = {}
    for count in (100, 200):
        cluster = Cluster(count, loading)
        for step in range(6):
            await cluster.round(step)
        cost[count] = await cluster.bytes_per_second(rounds=2)
        assert cluster.calls / (2 * report_period(count)) < 70

    assert cost[200] <= 1.2 * cost[100]
    assert cost[200] < (1 << 16 if not loading else 3 << 20)


async def test_every_member_comes_to_show_every_other() -> None:
    cluster = Cluster(120, loading=False)
    for step in range(4):
        await cluster.round(step)

    assert all(len(reports.newest) == 120 for reports in cluster.members)


def test_reports_come_every_third_of_a_second_from_few_and_never_more_than_five_apart() -> None:
    assert report_period(3) == report_period(20) == 0.3
    assert 1.4 < report_period(100) < 1.6
    assert report_period(1000) == 5.0


def test_an_answer_holds_what_changed_since_the_last_one_up_to_a_limit() -> None:
    news = News("run")
    for number in range(NEWS_MAX + 10):
        news.note(node(number), {"n": number})
    first = news.answer("", 0)
    second = news.answer("run", first["version"])
    news.note(node(3), {"n": "changed"})
    news.note(node(4), {"n": 4})
    third = news.answer("run", second["version"])

    assert (len(first["reports"]), len(second["reports"])) == (NEWS_MAX, 10)
    assert set(first["reports"]) | set(second["reports"]) == set(news.reports)
    assert third["reports"] == {node(3): {"n": "changed"}}
    assert len(news.answer("another run", third["version"])["reports"]) == NEWS_MAX


def test_what_a_caller_says_of_its_version_is_not_trusted() -> None:
    news = News("run")
    news.note(node(1), {})
    news.keep([])

    for version in (None, "x", -5, 1 << 70, 2.5):
        assert news.answer("run", version)["reports"] == {}
