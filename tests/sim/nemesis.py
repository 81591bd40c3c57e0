"""What goes wrong in a simulated cluster: single faults by the dice, and aimed rounds.

An aimed round steers at one hazard of Raft that dice alone meet too seldom; when and how hard
it strikes is still theirs.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from butterfly_core.errors import NotServing, Refused, StorageError, Unreachable
from butterfly_core.ids import NodeId
from tests.sim.cluster import Cluster, number_of
from tests.sim.virtual_loop import the_loop

Act = Callable[[], Awaitable[None]]


class Nemesis:
    """Does one bad thing at a time to a cluster, by the cluster's dice."""

    def __init__(self, cluster: Cluster, *, changes: bool = False) -> None:
        self._cluster, self._dice, self._network = cluster, cluster.dice, cluster.network
        self._busy: set[asyncio.Task[Any]] = set()
        self._acts: list[Act] = [
            self._kill,
            self._kill_all,
            self._isolate_the_leader,
            self._split,
            self._cut_one_way,
            self._flap,
            self._slow_down,
            self._break_connections,
            self._half_close,
            self._pause,
            self._bend_a_clock,
            self._compact,
            self._hand_over,
            self._heal,
            self._heal,
        ]
        if cluster.disks is not None:
            self._acts += [self._lose_power, self._lose_all_power, self._fail_disk_soon]
        if changes:
            self._acts += [self._change_voters] * 3

    async def strike(self) -> None:
        """One fault; and half of those who are down come up."""
        act = self._dice.choice(self._acts)
        self._cluster.tell(act.__name__.strip("_"))
        await act()
        for me in self._cluster.everyone:
            if self._dice.random() < 0.5:
                self._restart(me)

    async def end(self) -> None:
        """Repair everything."""
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        self._network.heal()
        for me in self._cluster.everyone:
            the_loop().resume(me)
            if me in self._cluster.clocks:
                self._cluster.clocks[me].change()
        for me in self._cluster.everyone:
            await self._repair_disk(me)
            self._restart(me)

    def beside(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let something go on while other things happen, at most until the end."""
        task = the_loop().create_task(_shrug(work))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    # Processes and machines.

    def _restart(self, me: NodeId) -> None:
        if me not in self._cluster.nodes:
            self._cluster.start(me)

    def _anybody(self) -> list[NodeId]:
        up = sorted(self._cluster.nodes)
        return [self._dice.choice(up)] if up else []

    async def _kill(self) -> None:
        for me in self._anybody():
            await self._cluster.stop(me)

    async def _kill_all(self) -> None:
        await self._cluster.stop_all()

    async def _lose_power(self) -> None:
        for me in self._anybody():
            await self._cluster.lose_power(me)

    async def _lose_all_power(self) -> None:
        for me in sorted(self._cluster.nodes):
            if me in self._cluster.nodes:
                await self._cluster.lose_power(me)

    async def _fail_disk_soon(self) -> None:
        assert self._cluster.disks is not None
        for me in self._anybody():
            disk = self._cluster.disks[me]
            if self._dice.random() < 0.7:
                disk.operations_until_cut = self._dice.randint(1, 30)
            else:
                disk.full = True
                self.beside(self._make_space(me, self._dice.uniform(0.1, 2.0)))

    async def _make_space(self, me: NodeId, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._repair_disk(me)

    async def _repair_disk(self, me: NodeId) -> None:
        """A node whose disk failed is started again, as its operator would."""
        if self._cluster.disks is None or me not in self._cluster.disks:
            return
        disk = self._cluster.disks[me]
        disk.operations_until_cut = None
        if disk.full:
            disk.full = False
            if me in self._cluster.nodes:
                await self._cluster.stop(me)
            self._restart(me)

    async def _pause(self) -> None:
        for me in self._anybody():
            the_loop().pause(me)
            seconds = self._dice.choice([0.1, 0.5, 1.0, 2.5]) * self._cluster.pace
            the_loop().call_later(seconds, the_loop().resume, me)

    async def _bend_a_clock(self) -> None:
        for me in self._anybody():
            if self._dice.random() < 0.5:
                self._cluster.clocks[me].change(rate=self._dice.choice([0.3, 0.8, 1.3, 3.0]))
            else:
                self._cluster.clocks[me].change(jump_seconds=self._dice.choice([0.1, 1.0, 60.0]))

    # The network.

    async def _isolate_the_leader(self) -> None:
        cluster = self._cluster
        self._network.isolate(cluster.leader() or self._dice.choice(cluster.everyone))

    async def _split(self) -> None:
        nodes = self._dice.sample(self._cluster.everyone, len(self._cluster.everyone))
        at = self._dice.randrange(1, len(nodes))
        self._network.split(nodes[:at], nodes[at:])

    async def _cut_one_way(self) -> None:
        self._network.cut(*self._dice.sample(self._cluster.everyone, 2))

    async def _flap(self) -> None:
        one, other = self._dice.sample(self._cluster.everyone, 2)
        period = self._dice.choice([0.05, 0.2, 0.5]) * self._cluster.pace

        async def flap() -> None:
            for _ in range(8):
                self._network.split([one], [other])
                await asyncio.sleep(period)
                self._network.heal((one, other), (other, one))
                await asyncio.sleep(period)

        self.beside(flap())

    async def _slow_down(self) -> None:
        source, target = self._dice.sample(self._cluster.everyone, 2)
        self._network.slow_down(source, target, self._dice.choice([0.05, 0.2, 0.5]))

    async def _break_connections(self) -> None:
        for channel in self._network.connections():
            if self._dice.random() < 0.3:
                channel.lose()

    async def _half_close(self) -> None:
        """One end gives up, its farewell waits behind a cut: the other end does not know."""
        connections = self._network.connections()
        if connections:
            near = self._dice.choice(connections)
            end = self._dice.choice([near, near.other])
            self._network.cut(end.owner, end.peer_id)
            end.close()

    async def _heal(self) -> None:
        self._network.heal()

    # The log.

    async def _compact(self) -> None:
        for node in self._cluster.nodes.values():
            if self._dice.random() < 0.5:
                node.compact_soon()

    async def _hand_over(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            self.beside(self._cluster.nodes[leader].transfer_leadership())

    async def _change_voters(self) -> None:
        """Often several at once: only one may be on its way."""
        leader = self._cluster.leader()
        if leader is not None:
            for target in self._dice.sample(self._cluster.everyone, self._dice.randint(1, 2)):
                self.change(leader, target)

    def change(self, leader: NodeId, target: NodeId) -> None:
        """Promote a learner, or demote a voter, beside everything else."""
        node = self._cluster.nodes[leader]
        adding = target not in node.voters
        if adding or (len(node.voters) > 2 and target != leader):
            verb = "add" if adding else "remove"
            self._cluster.tell(f"{number_of(leader)} wants to {verb} {number_of(target)}")
            act = node.add_voter if adding else node.remove_voter
            self.beside(act(target, timeout_seconds=self._cluster.pace))


async def _shrug(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(NotServing, Unreachable, Refused, StorageError):
        await work
