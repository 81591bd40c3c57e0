"""A second cluster under the same name is told of, and forgotten when it is gone."""

import asyncio
import random
from typing import Any

import pytest

from butterfly.node.local import Local
from butterfly.node.strangers import (
    CALLER_KEPT_SECONDS,
    CLUSTER_KEY,
    TWO_CLUSTERS,
    Strangers,
)
from butterfly.node.whereabouts import WHERE_KEY
from butterfly_cluster.claims import Claims
from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.node_duties import Facts
from butterfly_core.errors import Unreachable
from butterfly_core.ids import ClusterId, NodeId
from tests.sim.virtual_loop import run_virtually
from tests.support.clusters import node, registered

MINE, OTHER = ClusterId("a" * 32), ClusterId("b" * 32)
HERE, THERE, FAR = "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.9:7000"


class World:
    """Who answers where, and what the registry says; plays peers, directory and registry."""

    claims: Claims | None = None

    def __init__(self) -> None:
        self.named = [HERE, THERE]
        self.clusters: dict[str, ClusterId | None] = {HERE: MINE, THERE: MINE}
        self.claimed: ClusterId | None = None
        self.registry_is_up = True
        self.source_is_up = True
        self.refused: dict[NodeId, ClusterId] = {}
        self.mine: ClusterId | None = MINE
        self.local = Local(Facts(registered(1)))
        self.strangers = Strangers(
            "ours",
            cluster_id=lambda: self.mine,
            peers=self,
            directory=self,
            local=self.local,
            keep_claim=self.keep_claim,
            refused=lambda: self.refused,
            rng=random.Random(1),
        )

    async def seeds(self) -> tuple[str, ...]:
        if not self.source_is_up:
            raise Unreachable("the source is down")
        return tuple(self.named)

    async def whoami(self, address: str, /) -> WhoAmI:
        if address not in self.clusters:
            raise Unreachable("nobody is there")
        return WhoAmI(node(2), "ours", address, cluster_id=self.clusters[address])

    async def promise(self, address: str, proposal: Proposal, /, *, expect: NodeId) -> Verdict:
        raise AssertionError("a member asks for no promises")

    async def keep_claim(self) -> ClusterId | None:
        if not self.registry_is_up:
            raise Unreachable("Consul is down")
        return self.claimed

    def is_asked_by(self, cluster_id: object, where: object = FAR) -> str:
        self.strangers.note_caller({CLUSTER_KEY: cluster_id, WHERE_KEY: where})
        return self.shown

    async def told(self) -> str:
        await self.strangers.look()
        return self.shown

    @property
    def shown(self) -> str:
        problem = self.local.problems.get(TWO_CLUSTERS)
        return problem.message if problem else ""


async def test_one_cluster_is_no_problem() -> None:
    assert await World().told() == ""


async def test_both_clusters_and_where_the_other_is_are_named() -> None:
    world = World()
    world.clusters[THERE] = OTHER

    told = await world.told()

    assert MINE in told
    assert f"{OTHER} (at {THERE})" in told
    assert "--forget" in told


async def test_it_is_solved_when_the_node_there_has_joined_this_cluster() -> None:
    world = World()
    world.clusters[THERE] = OTHER
    await world.told()
    world.clusters[THERE] = MINE

    assert await world.told() == ""


async def test_an_address_that_is_named_no_longer_is_forgotten() -> None:
    world = World()
    world.clusters[THERE] = OTHER
    await world.told()
    world.named = [HERE]

    assert await world.told() == ""


async def test_silence_and_a_source_that_is_down_are_no_news() -> None:
    world = World()
    world.clusters[THERE] = OTHER
    known = await world.told()
    del world.clusters[THERE]
    assert await world.told() == known
    world.source_is_up = False

    assert await world.told() == known


async def test_a_claim_of_another_cluster_is_told_until_it_is_gone() -> None:
    world = World()
    world.claimed = OTHER
    assert "the claim in Consul" in await world.told()
    world.registry_is_up = False
    assert "the claim in Consul" in await world.told()
    world.registry_is_up, world.claimed = True, None

    assert await world.told() == ""


async def test_a_node_that_names_nobody_learns_of_the_other_cluster_by_being_asked() -> None:
    world = World()
    world.named = []
    assert await world.told() == ""

    assert f"{OTHER} (at {FAR})" in world.is_asked_by(OTHER)

    world.clusters[FAR] = OTHER
    assert f"{OTHER} (at {FAR})" in await world.told()


async def test_a_caller_that_has_joined_this_cluster_is_no_stranger_any_more() -> None:
    world = World()
    world.is_asked_by(OTHER)
    assert world.is_asked_by(MINE) == ""
    world.is_asked_by(OTHER)
    world.clusters[FAR] = MINE

    assert await world.told() == ""


def test_a_caller_that_is_gone_is_forgotten_also_while_the_source_is_down() -> None:
    world = World()
    world.source_is_up = False

    async def story() -> None:
        world.is_asked_by(OTHER)
        await asyncio.sleep(CALLER_KEPT_SECONDS / 2)
        assert OTHER in await world.told()
        await asyncio.sleep(CALLER_KEPT_SECONDS)
        assert await world.told() == ""

    run_virtually(story())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {CLUSTER_KEY: None, WHERE_KEY: FAR},
        {CLUSTER_KEY: MINE, WHERE_KEY: FAR},
        {CLUSTER_KEY: OTHER},
        {CLUSTER_KEY: "what", WHERE_KEY: FAR},
        {CLUSTER_KEY: 7, WHERE_KEY: [FAR]},
    ],
    ids=str,
)
async def test_a_caller_without_a_cluster_of_its_own_or_an_address_is_no_news(
    body: dict[str, Any],
) -> None:
    world = World()
    world.strangers.note_caller(body)

    assert world.shown == ""


async def test_a_node_that_has_not_joined_takes_no_caller_for_a_stranger() -> None:
    world = World()
    world.mine = None

    assert world.is_asked_by(OTHER) == ""


async def test_callers_beyond_the_limit_are_not_remembered() -> None:
    world = World()
    for number in range(100):
        world.is_asked_by(OTHER, f"10.0.1.{number}:7000")

    assert world.shown.count("10.0.1.") == 16


async def test_who_was_refused_in_the_logs_channel_is_told_of_until_it_is_long_ago() -> None:
    world = World()
    world.refused = {node(3): OTHER}
    assert f"{OTHER} (at node {node(3)[:8]})" in await world.told()
    world.refused = {}

    assert await world.told() == ""
