"""Clients of the simulated cluster: they read, write and swap registers, and keep a history.

Each has its own opinion of time (virtual seconds, the same for all), goes to any node, and
never tries again what may have happened.
"""

import asyncio
import json
import math
from collections import defaultdict

from butterfly_core.errors import NotServing, Unreachable
from butterfly_core.ids import NodeId
from tests.sim.cluster import Cluster
from tests.sim.virtual_loop import the_loop
from tests.sim.wgl import Operation, Value, Verdict, check

KEYS = ("a", "b", "c")
TIMEOUT_SECONDS = 1.5


class Clients:
    """Starts operations on a cluster; ``undecided`` counts histories too wild to check."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._dice = cluster, cluster.dice
        self._history: dict[str, list[Operation]] = defaultdict(list)
        self._last_read: dict[str, Value] = {}
        self._busy: set[asyncio.Task[None]] = set()
        self.undecided = 0

    @property
    def operations(self) -> int:
        """How many are in the history."""
        return sum(len(history) for history in self._history.values())

    def act(self) -> None:
        """Begin one operation, by the dice."""
        key, me = self._dice.choice(KEYS), self._dice.choice(self._cluster.everyone)
        what = self._dice.random()
        if what < 0.4:
            work = self._read(key, me)
        elif what < 0.8 or self._last_read.get(key) is None:
            work = self._write(key, me)
        else:
            work = self._swap(key, me)
        task = the_loop().create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def finish(self) -> None:
        """Wait for all answers."""
        await asyncio.gather(*self._busy)

    def judge(self) -> None:
        """Hold the history of every register against the checker."""
        for key, history in self._history.items():
            verdict = check(history)
            self.undecided += verdict == Verdict.UNDECIDED
            if verdict == Verdict.BROKEN:
                self._cluster.invariants.broken(f"the history of {key} is not linearizable")

    async def _read(self, key: str, me: NodeId) -> None:
        called = the_loop().time()
        node, register = self._cluster.nodes.get(me), self._cluster.registers.get(me)
        if node is None or register is None:
            return
        try:
            await node.barrier(timeout_seconds=TIMEOUT_SECONDS)
        except (NotServing, Unreachable):
            return
        value = self._last_read[key] = register.values.get(key)
        self._note(key, Operation(called, the_loop().time(), "read", value))

    async def _write(self, key: str, me: NodeId) -> None:
        self._cluster.proposed += 1
        number, called = self._cluster.proposed, the_loop().time()
        done = await self._propose(me, {"id": number, "key": key})
        if done is not False:
            returned = the_loop().time() if done else math.inf
            self._note(key, Operation(called, returned, "write", number))

    async def _swap(self, key: str, me: NodeId) -> None:
        self._cluster.proposed += 1
        number, called, expected = self._cluster.proposed, the_loop().time(), self._last_read[key]
        register = self._cluster.registers.get(me)
        done = await self._propose(me, {"id": number, "key": key, "expected": expected})
        if done is False or register is None:
            return
        swapped = register.swapped[number] if done else None
        returned = the_loop().time() if done else math.inf
        self._note(key, Operation(called, returned, "swap", number, expected, swapped))

    async def _propose(self, me: NodeId, command: dict[str, object]) -> bool | None:
        return await self._cluster.propose(me, json.dumps(command), TIMEOUT_SECONDS)

    def _note(self, key: str, operation: Operation) -> None:
        self._history[key].append(operation)
