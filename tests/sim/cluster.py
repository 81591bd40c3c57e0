"""A cluster of real RaftNodes in one virtual-time loop, and what must hold.

Everything that a node runs is production code: guard, journal on files, transport, codec. Only
the clock, the dice, the network and the disk's syncs are simulated.
"""

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from butterfly_cluster.raft import LAN, RaftNode, Timing
from butterfly_core.errors import NotServing, StorageError, Unreachable
from butterfly_core.ids import NodeId
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.machine import Invariants, Register
from tests.sim.network import Network
from tests.sim.virtual_loop import context_of, the_loop


def node_id(number: int) -> NodeId:
    """An id that sorts by its number."""
    return NodeId(f"{number:032x}")


def number_of(node: NodeId) -> int:
    """The number of an id that ``node_id`` made."""
    return int(node, 16)


class NodeClock:
    """One machine's monotonic clock; it may run at another rate and jump forward."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began, self._shown, self._rate = now(), now(), 1.0

    def __call__(self) -> float:
        return self._shown + (self._now() - self._began) * self._rate

    def change(self, *, rate: float = 1.0, jump_seconds: float = 0.0) -> None:
        """From now on it runs at this rate, ahead by so much more."""
        self._shown = self() + jump_seconds
        self._began, self._rate = self._now(), rate


class Cluster:
    """Starts, stops and watches nodes 1..n; ``founders`` of them are the first voters.

    ``disks`` (``disk.simulated_disks``) makes crashes lose what was not synced.
    """

    def __init__(
        self,
        seed: int,
        directory: Path,
        founders: int,
        learners: int = 0,
        *,
        disks: dict[str, SimDisk] | None = None,
        timing: Timing = LAN,
    ) -> None:
        self.dice = random.Random(seed)
        self.network = Network(seed)
        self.directory, self.disks, self.timing = directory, disks, timing
        self.founders = frozenset(node_id(number) for number in range(1, founders + 1))
        self.everyone = [node_id(number) for number in range(1, founders + learners + 1)]
        self.nodes: dict[NodeId, RaftNode] = {}
        self.registers: dict[NodeId, Register] = {}
        self.clocks: dict[NodeId, NodeClock] = {}
        self.acknowledged: dict[str, int] = {}
        self.not_handed_in: set[str] = set()
        self.proposed = 0
        self.compact_after_entries = 60
        self.tell: Callable[[str], None] = lambda _: None
        self.invariants = Invariants(lambda: asyncio.get_running_loop().time())
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._starts = 0
        self._last_words: set[asyncio.Task[None]] = set()

    @property
    def pace(self) -> float:
        """How much longer everything takes than in a LAN, by the election timeout."""
        return self.timing.election_max_seconds / LAN.election_max_seconds

    @property
    def violations(self) -> list[str]:
        return self.invariants.violations

    @property
    def elections(self) -> dict[int, NodeId]:
        """Who was elected, by term."""
        return self.invariants.elections

    # Nodes come and go.

    def start(self, me: NodeId) -> RaftNode:
        """Open the node's files and run it. Raises StorageError."""
        loop = the_loop()
        directory = self.directory / str(number_of(me))
        directory.mkdir(exist_ok=True)
        if self.disks is not None:
            if me not in self.disks:
                dice = random.Random(f"{self.dice.random()} {me}")
                self.disks[me] = SimDisk(directory, dice, lambda: self._power_failed(me))
            self.disks[me].restore_power()
        context = context_of(me)
        self._starts += 1
        register = Register()
        clock = self.clocks.setdefault(me, NodeClock(loop.time))
        node = context.run(self._open, me, directory, register, clock)
        self.invariants.watch(me, node)
        self.nodes[me], self.registers[me] = node, register
        self.network.listen(me, node.accept, context)
        self._tasks[me] = task = loop.create_task(node.run(), context=context)
        task.add_done_callback(lambda done: self._ended(me, node, done))
        self.tell(f"start {number_of(me)}")
        return node

    def _open(self, me: NodeId, directory: Path, register: Register, clock: NodeClock) -> RaftNode:
        return RaftNode(
            me=me,
            voters=self.founders,
            data_dir=directory,
            timing=self.timing,
            dial=lambda peer: self.network.dial(me, peer),
            apply=lambda index, body: register.apply(index, body),
            snapshot=register.snapshot,
            restore=register.restore,
            cluster_id="c" * 32,
            clock=clock,
            rng=random.Random(f"{me} {self._starts}"),
            compact_after_entries=self.compact_after_entries,
            sync_file=self.disks[me].sync if self.disks is not None else lambda _: None,
        )

    async def stop(self, me: NodeId) -> None:
        """As ``kill -9``: nothing is written on the way out, what was written stays."""
        node, task = self.nodes.pop(me), self._tasks.pop(me)
        self.network.drop_node(me)
        node.close()
        task.cancel()
        the_loop().resume(me)
        with contextlib.suppress(
            asyncio.CancelledError, StorageError, PowerCut, BaseExceptionGroup
        ):
            await task
        self.tell(f"stopped {number_of(me)}")

    async def lose_power(self, me: NodeId) -> None:
        """The machine goes off, and with it what was not synced."""
        await self.stop(me)
        if self.disks is not None:
            self.disks[me].lose_the_cache()
            self.tell(f"cache of {number_of(me)} lost")

    def _power_failed(self, me: NodeId) -> None:
        """The disk says so, in the middle of an operation."""
        self.network.drop_node(me)
        self.tell(f"power of {number_of(me)} fails")

        async def last_words() -> None:
            if me in self.nodes:
                await self.lose_power(me)

        task = the_loop().create_task(last_words(), context=context_of(""))
        self._last_words.add(task)
        task.add_done_callback(self._last_words.discard)

    def _ended(self, me: NodeId, node: RaftNode, task: asyncio.Task[None]) -> None:
        """A node gave up by itself: its disk failed."""
        error = None if task.cancelled() else task.exception()
        if self.nodes.get(me) is not node or self.disks is None:
            return
        self.tell(f"{number_of(me)} ended: {error!r}")
        if isinstance(error, StorageError):
            del self.nodes[me], self._tasks[me]
            self.network.drop_node(me)
        elif not isinstance(error, PowerCut | BaseExceptionGroup):
            self.invariants.broken(f"{me} ended with {error!r}")

    async def stop_all(self) -> None:
        for me in list(self.nodes):
            if me in self.nodes:
                await self.stop(me)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Cluster"]:
        for me in self.everyone:
            self.start(me)
        try:
            yield self
        finally:
            await asyncio.gather(*self._last_words)
            await self.stop_all()

    # What clients do.

    async def write(self, me: NodeId, timeout_seconds: float = 2.0) -> bool:
        """Append a command of its own kind; True when it was acknowledged."""
        self.proposed += 1
        return await self.propose(me, f'"write {self.proposed}"', timeout_seconds) is True

    async def propose(self, me: NodeId, command: str, timeout_seconds: float) -> bool | None:
        """True: committed. False: surely not. None: nobody knows."""
        node = self.nodes.get(me)
        if node is None:
            return False
        try:
            index = await node.propose(command.encode(), timeout_seconds=timeout_seconds)
        except NotServing:
            self.not_handed_in.add(command)
            return False
        except (Unreachable, StorageError):
            return None
        self.acknowledged[command] = index
        if self.nodes.get(me) is node:
            items = reversed(self.registers[me].items)
            if next((text for at, text in items if at == index), None) != command:
                self.invariants.broken(f"{command} was acknowledged before it was applied")
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
        await self.until(self._all_equal, seconds)
        items = self.registers[next(iter(self.nodes))].items
        kept = {command for _, command in items}
        lost = [command for command in self.acknowledged if command not in kept]
        if lost:
            self.invariants.broken(f"{len(lost)} acknowledged writes are lost, as {lost[:3]}")
        if len(kept) != len(items):
            self.invariants.broken("a command was applied twice")
        if kept & self.not_handed_in:
            self.invariants.broken("a command is in the log, its client was told that it is not")

    def _all_equal(self) -> bool:
        logs = [self.registers[me].items for me in self.nodes]
        return (
            len({len(log) for log in logs}) == 1
            and len({log[-1] if log else None for log in logs}) == 1
            and all(log == logs[0] for log in logs)
        )

    async def until(self, holds: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until something holds. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.02)

    def fingerprint(self) -> str:
        """Equal for equal runs."""
        parts = [self.network.fingerprint(), sorted(self.elections), sorted(self.acknowledged)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
