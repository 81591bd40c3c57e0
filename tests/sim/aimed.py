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
            leader = await self._cluster.until_led(4.0 * self._cluster.pace)
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

        The leader must be elected again meanwhile, so it is the voter with the greatest id,
        whom a hand-over finds first; and the channel must live on, so it all takes less than
        the silent seconds.
        """
        greatest = max(self._cluster.nodes[leader].voters)
        if leader != greatest:
            self._nemesis.beside(self._cluster.nodes[leader].transfer_leadership())
            await self._until_led_by([greatest], 1.0)
        first = self._cluster.leader()
        others = sorted(self._cluster.nodes[first].voters - {first}) if first else []
        if first is None or len(others) < 4:
            return
        follower, witness, *rest = self._dice.sample(others, len(others))
        self._network.split([first, follower], [witness, *rest])
        self._network.cut(follower, first)
        self._write_to([first], self._dice.randint(12, 20))
        await self._until_led_by([witness, *rest], 1.2)
        ways = [(one, other) for one in (first, follower) for other in (witness, *rest)]
        self._network.heal(*ways, *((other, one) for one, other in ways))
        await self._wait(0.1, 0.2)
        second = self._cluster.leader()
        if second in (witness, *rest) and second is not None:
            self._nemesis.beside(self._cluster.nodes[second].transfer_leadership())
        await self._until_led_by([first], 0.3)
        self._network.split([first, witness], [follower, *rest])
        self._write_to([first], 25)
        await self._wait(0.03, 0.1)
        self._network.heal((follower, first))
        await self._wait(0.3, 0.6)

    def _write_to(self, targets: list[NodeId], count: int) -> None:
        for _ in range(count):
            self._nemesis.beside(self._cluster.write(self._dice.choice(targets)))

    async def _until_led_by(self, nodes: list[NodeId], seconds: float) -> None:
        for _ in range(int(seconds * self._cluster.pace / 0.02)):
            if self._cluster.leader() in nodes:
                return
            await asyncio.sleep(0.02)

    async def _wait(self, at_least: float, at_most: float) -> None:
        await asyncio.sleep(self._dice.uniform(at_least, at_most) * self._cluster.pace)


ROUNDS = {
    "changes": Aimed.changes_on_a_cut_off_leader,
    "conflict": Aimed.a_long_log_that_conflicts,
    "late": Aimed.late_acknowledgements,
}
