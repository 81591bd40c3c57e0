"""A cluster of real RaftNodes in one virtual-time loop, its faults, and what must hold.

Everything that a node runs is production code: guard, journal on files, transport, codec. Only
the clock, the dice, the network and ``fdatasync`` are simulated. A crash forgets what was not
synced, because the journal hands over to the file only then.
"""

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from butterfly_cluster.raft import LAN, RaftNode
from butterfly_core.errors import NotServing, Refused, Unreachable
from butterfly_core.ids import NodeId
from tests.sim.network import Network


def node_id(number: int) -> NodeId:
    """An id that sorts by its number."""
    return NodeId(f"{number:032x}")


class Violation(AssertionError):
    """An invariant does not hold."""


class Register:
    """The state machine: every applied command in order."""

    def __init__(self, cluster: "Cluster", me: NodeId) -> None:
        self._cluster, self._me = cluster, me
        self.items: list[tuple[int, str]] = []

    def apply(self, index: int, body: bytes) -> None:
        command = body.decode()
        if self.items and index <= self.items[-1][0]:
            raise Violation(f"{self._me} applied {index} after {self.items[-1][0]}")
        self._cluster.applied_everywhere(self._me, index, command)
        self.items.append((index, command))

    def snapshot(self) -> bytes:
        return json.dumps(self.items).encode()

    def restore(self, state: bytes) -> None:
        self.items = [(index, command) for index, command in json.loads(state)]


class Cluster:
    """Starts, stops and watches nodes 1..n; ``founders`` of them are the first voters."""

    def __init__(self, seed: int, directory: Path, founders: int, learners: int = 0) -> None:
        self.dice = random.Random(seed)
        self.network = Network(seed)
        self.directory = directory
        self.founders = frozenset(node_id(number) for number in range(1, founders + 1))
        self.everyone = [node_id(number) for number in range(1, founders + learners + 1)]
        self.nodes: dict[NodeId, RaftNode] = {}
        self.registers: dict[NodeId, Register] = {}
        self.acknowledged: dict[str, int] = {}
        self.proposed = 0
        self.elections: dict[int, NodeId] = {}
        self.violations: list[str] = []
        self._commands: dict[int, str] = {}
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._starts = 0
        self.compact_after_entries = 60

    def start(self, me: NodeId) -> RaftNode:
        directory = self.directory / str(int(me, 16))
        directory.mkdir(exist_ok=True)
        self._starts += 1
        register = Register(self, me)
        loop = asyncio.get_running_loop()
        node = RaftNode(
            me=me,
            voters=self.founders,
            data_dir=directory,
            timing=LAN,
            dial=lambda peer: self.network.dial(me, peer),
            apply=self._watched(register),
            snapshot=register.snapshot,
            restore=register.restore,
            cluster_id="c" * 32,
            clock=loop.time,
            rng=random.Random(f"{me} {self._starts}"),
            compact_after_entries=self.compact_after_entries,
            sync_file=lambda _: None,
        )
        self.nodes[me], self.registers[me] = node, register
        self.network.listen(me, node.accept)
        self._tasks[me] = loop.create_task(node.run())
        return node

    def _watched(self, register: Register) -> Callable[[int, bytes], None]:
        def apply(index: int, body: bytes) -> None:
            try:
                register.apply(index, body)
            except Violation as violation:
                self.violations.append(str(violation))

        return apply

    async def stop(self, me: NodeId) -> None:
        """As ``kill -9``: nothing is written on the way out."""
        node, task = self.nodes.pop(me), self._tasks.pop(me)
        self.network.drop_node(me)
        node.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def stop_all(self) -> None:
        for me in list(self.nodes):
            await self.stop(me)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Cluster"]:
        for me in self.everyone:
            self.start(me)
        watch = asyncio.get_running_loop().create_task(self._watch_elections())
        try:
            yield self
        finally:
            watch.cancel()
            await self.stop_all()

    # What must hold.

    def applied_everywhere(self, me: NodeId, index: int, command: str) -> None:
        known = self._commands.setdefault(index, command)
        if known != command:
            raise Violation(f"{me} applied {command} at {index}, another node {known}")

    async def _watch_elections(self) -> None:
        while True:
            for me, node in self.nodes.items():
                if node.is_leader and self.elections.setdefault(node.term, me) != me:
                    self.violations.append(f"two leaders in term {node.term}")
            await asyncio.sleep(0.004)

    # What clients do.

    async def write(self, me: NodeId, timeout_seconds: float = 2.0) -> bool:
        self.proposed += 1
        name = f'"write {self.proposed}"'
        node = self.nodes.get(me)
        if node is None:
            return False
        try:
            index = await node.propose(name.encode(), timeout_seconds=timeout_seconds)
        except (Unreachable, NotServing):
            return False
        self.acknowledged[name] = index
        if me in self.nodes and self.nodes[me] is node:
            mine = dict(self.registers[me].items)
            if mine.get(index) != name:
                self.violations.append(f"{name} was acknowledged before it was applied")
        return True

    def leader(self) -> NodeId | None:
        leading = [me for me, node in self.nodes.items() if node.is_leader]
        return max(leading, key=lambda me: self.nodes[me].term, default=None)

    async def until_led(self, seconds: float = 10.0) -> NodeId:
        """Return a leader that committed something just now."""
        async with asyncio.timeout(seconds):
            while True:
                leader = self.leader()
                if leader is not None and await self.write(leader, 0.5):
                    return leader
                await asyncio.sleep(0.02)

    async def until_equal(self, seconds: float = 20.0) -> None:
        """Wait until all nodes run and hold the same; then check what was acknowledged."""
        async with asyncio.timeout(seconds):
            await self.until(lambda: len({tuple(r.items) for r in self._live_registers()}) == 1)
        items = dict(self._live_registers()[0].items)
        kept = set(items.values())
        lost = [name for name in self.acknowledged if name not in kept]
        if lost:
            self.violations.append(f"{len(lost)} acknowledged writes are lost, as {lost[:3]}")
        if len(kept) != len(items):
            self.violations.append("a command was applied twice")

    async def until(self, holds: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until something holds. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                if holds():
                    return
                await asyncio.sleep(0.02)

    def _live_registers(self) -> list[Register]:
        return [self.registers[me] for me in self.nodes]

    def fingerprint(self) -> str:
        """Equal for equal runs."""
        story = json.dumps([self.network.fingerprint(), sorted(self.elections), self.acknowledged])
        return hashlib.sha256(story.encode()).hexdigest()


# What goes wrong.


class Nemesis:
    """Does one bad thing at a time to a cluster, by the cluster's dice."""

    def __init__(self, cluster: Cluster, *, changes: bool = False) -> None:
        self._cluster, self._dice = cluster, cluster.dice
        self._acts = [
            self._crash,
            self._isolate_the_leader,
            self._split,
            self._cut_one_way,
            self._slow_down,
            self._compact,
            self._heal,
            self._heal,
            self._crash_all,
        ]
        if changes:
            self._acts += [self._change_voters, self._change_voters]
        self._changing: set[asyncio.Task[None]] = set()

    async def strike(self) -> None:
        await self._dice.choice(self._acts)()
        for me in self._cluster.everyone:
            if me not in self._cluster.nodes and self._dice.random() < 0.5:
                self._cluster.start(me)

    async def end(self) -> None:
        self._cluster.network.heal()
        for task in self._changing:
            task.cancel()
        await asyncio.gather(*self._changing, return_exceptions=True)
        for me in self._cluster.everyone:
            if me not in self._cluster.nodes:
                self._cluster.start(me)

    async def _crash(self) -> None:
        if self._cluster.nodes:
            await self._cluster.stop(self._dice.choice(sorted(self._cluster.nodes)))

    async def _crash_all(self) -> None:
        await self._cluster.stop_all()

    async def _isolate_the_leader(self) -> None:
        self._cluster.network.isolate(
            self._cluster.leader() or self._dice.choice(self._cluster.everyone)
        )

    async def _split(self) -> None:
        nodes = self._dice.sample(self._cluster.everyone, len(self._cluster.everyone))
        at = self._dice.randrange(1, len(nodes))
        for one in nodes[:at]:
            for other in nodes[at:]:
                self._cluster.network.cut(one, other)
                self._cluster.network.cut(other, one)

    async def _cut_one_way(self) -> None:
        self._cluster.network.cut(*self._dice.sample(self._cluster.everyone, 2))

    async def _slow_down(self) -> None:
        source, target = self._dice.sample(self._cluster.everyone, 2)
        self._cluster.network.slow_down(source, target, self._dice.choice([0.05, 0.2, 0.5]))

    async def _compact(self) -> None:
        for node in self._cluster.nodes.values():
            if self._dice.random() < 0.5:
                node.compact_soon()

    async def _heal(self) -> None:
        self._cluster.network.heal()

    async def _change_voters(self) -> None:
        leader = self._cluster.leader()
        if leader is None:
            return
        target, node = self._dice.choice(self._cluster.everyone), self._cluster.nodes[leader]
        change = node.remove_voter if target in node.voters else node.add_voter
        if target in node.voters and len(node.voters) <= 2:
            return

        async def attempt() -> None:
            with contextlib.suppress(NotServing, Unreachable, Refused):
                await change(target, timeout_seconds=1.0)

        task = asyncio.get_running_loop().create_task(attempt())
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
