"""Rounds of faults that steer at one hazard each (audit of pysyncobj: specs/decisions)."""

import asyncio

from butterfly_core.ids import NodeId
from tests.sim.cluster import Cluster
from tests.sim.nemesis import Nemesis


class Aimed:
    """Plays rounds on a cluster; each begins healed and ends healed."""

    def __init__(self, cluster: Cluster, nemesis: Nemesis) -> None:
        self._cluster, self._nemesis = cluster, nemesis
        self._dice, self._network = cluster.dice, cluster.network

    async def round(self, name: str) -> None:
        """One of ``ROUNDS``. Whoever is down is started first."""
        await self._nemesis.end()
        try:
            leader = await self._cluster.until_led(4.0)
        except TimeoutError:
            return
        self._cluster.tell(f"aimed at {name}, {leader} leads")
        await ROUNDS[name](self, leader)
        self._network.heal()
        await self._wait(0.2, 0.6)

    async def changes_on_a_cut_off_leader(self, leader: NodeId) -> None:
        """Two changes of voters at once make two majorities, one on each side of a cut."""
        voters = self._cluster.nodes[leader].voters
        rest = sorted(voters - {leader})
        learners = [me for me in self._cluster.everyone if me not in voters]
        self._network.split([leader, *learners], rest)
        targets = [*learners, *rest]
        for target in self._dice.sample(targets, self._dice.randint(2, len(targets))):
            self._nemesis.change(leader, target)
        self._write_to(self._cluster.everyone, 10)
        await self._wait(1.0, 2.0)
        self._write_to(self._cluster.everyone, 10)
        await self._wait(0.3, 0.6)

    async def a_long_log_that_conflicts(self, leader: NodeId) -> None:
        """A cut-off leader holds many entries that nobody else will ever have."""
        self._network.isolate(leader)
        self._write_to([leader], self._dice.randint(5, 40))
        await self._wait(0.7, 1.2)
        others = [me for me in self._cluster.nodes if me != leader]
        self._write_to(others, self._dice.randint(20, 80))
        await self._wait(0.3, 0.6)
        if self._dice.random() < 0.6:
            for me in others:
                if me in self._cluster.nodes:
                    self._cluster.nodes[me].compact_soon()
        self._write_to(others, self._dice.randint(0, 10))
        await self._wait(0.1, 0.4)

    async def late_acknowledgements(self, leader: NodeId) -> None:
        """What a follower acknowledged is replaced; then its old word reaches the old leader.

        The channel must live all the time, so everything happens within its silent seconds.
        """
        voters = sorted(self._cluster.nodes[leader].voters - {leader})
        follower = self._dice.choice(voters)
        rest = [me for me in voters if me != follower]
        self._network.split([leader, follower], rest)
        self._network.cut(follower, leader)
        self._write_to([leader], self._dice.randint(3, 12))
        await self._until_led_by(rest, 1.3)
        self._network.heal(*((a, b) for a in rest for b in (leader, follower)))
        self._network.heal(*((b, a) for a in rest for b in (leader, follower)))
        await self._wait(0.06, 0.15)
        second = self._cluster.leader()
        if second in rest:
            self._nemesis.beside(self._take_over(second, leader))
        await self._until_led_by([leader], 0.3)
        self._network.split([leader, *rest[:1]], rest[1:])
        self._write_to([leader], self._dice.randint(3, 12))
        self._network.heal((follower, leader))
        await self._wait(0.2, 0.5)
        self._network.isolate(leader)
        self._network.heal(*((a, b) for a in [follower, *rest] for b in [follower, *rest]))
        self._write_to([follower, *rest], 6)
        await self._wait(0.8, 1.2)

    async def _take_over(self, second: NodeId, first: NodeId) -> None:
        """The second leader hands over, to whom it finds first; the dice decide."""
        await self._cluster.nodes[second].transfer_leadership()

    def _write_to(self, targets: list[NodeId], count: int) -> None:
        for _ in range(count):
            self._nemesis.beside(self._cluster.write(self._dice.choice(targets)))

    async def _until_led_by(self, nodes: list[NodeId], seconds: float) -> None:
        for _ in range(int(seconds / 0.02)):
            if self._cluster.leader() in nodes:
                return
            await asyncio.sleep(0.02)

    async def _wait(self, at_least: float, at_most: float) -> None:
        await asyncio.sleep(self._dice.uniform(at_least, at_most))


ROUNDS = {
    "changes": Aimed.changes_on_a_cut_off_leader,
    "conflict": Aimed.a_long_log_that_conflicts,
    "late": Aimed.late_acknowledgements,
}
