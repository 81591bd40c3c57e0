"""A second cluster under the same name is told of, and forgotten when it is gone."""

import random

from butterfly.node.local import Local
from butterfly.node.strangers import TWO_CLUSTERS, Strangers
from butterfly_cluster.claims import Claims
from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.node_duties import Facts
from butterfly_core.errors import Unreachable
from butterfly_core.ids import ClusterId
from tests.support.clusters import node, registered

MINE, OTHER = ClusterId("a" * 32), ClusterId("b" * 32)
HERE, THERE = "10.0.0.1:7000", "10.0.0.2:7000"


class World:
    """Who answers where, and what the registry says; plays peers, directory and registry."""

    claims: Claims | None = None

    def __init__(self) -> None:
        self.named = [HERE, THERE]
        self.clusters: dict[str, ClusterId | None] = {HERE: MINE, THERE: MINE}
        self.claimed: ClusterId | None = None
        self.registry_is_up = True
        self.local = Local(Facts(registered(1)))
        self.strangers = Strangers(
            "ours",
            cluster_id=lambda: MINE,
            peers=self,
            directory=self,
            local=self.local,
            keep_claim=self.keep_claim,
            rng=random.Random(1),
        )

    async def seeds(self) -> tuple[str, ...]:
        if not self.named:
            raise Unreachable("the source is down")
        return tuple(self.named)

    async def whoami(self, address: str, /) -> WhoAmI:
        if address not in self.clusters:
            raise Unreachable("nobody is there")
        return WhoAmI(node(2), "ours", address, cluster_id=self.clusters[address])

    async def promise(self, address: str, proposal: Proposal, /) -> Verdict:
        raise AssertionError("a member asks for no promises")

    async def keep_claim(self) -> ClusterId | None:
        if not self.registry_is_up:
            raise Unreachable("Consul is down")
        return self.claimed

    async def told(self) -> str:
        await self.strangers.look()
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
    world.named = []

    assert await world.told() == known


async def test_a_claim_of_another_cluster_is_told_until_it_is_gone() -> None:
    world = World()
    world.claimed = OTHER
    assert "the claim in Consul" in await world.told()
    world.registry_is_up = False
    assert "the claim in Consul" in await world.told()
    world.registry_is_up, world.claimed = True, None

    assert await world.told() == ""
