"""A network in memory, in the manner of TCP: ordered, with delays, cuts and late deliveries.

What is under way when a direction is cut is not lost but waits, and arrives after the cut is
healed if both ends are still open: old words at the worst moment. Each direction of each pair
draws its delays from dice of its own, so that the order of sending changes nothing.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable

from butterfly_cluster.raft import ChannelLike
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId

Accept = Callable[[ChannelLike], Awaitable[None]]


class SimChannel:
    """One end of a connection."""

    def __init__(self, network: "Network", owner: NodeId, peer_id: NodeId) -> None:
        self.network, self.owner, self.peer_id = network, owner, peer_id
        self.other: SimChannel
        self.closed = False
        self.arrived: deque[bytes | None] = deque()
        self.under_way: deque[tuple[float, bytes | None]] = deque()
        self._news = asyncio.Event()
        self._free_at = 0.0

    async def receive(self) -> bytes:
        while not self.arrived and not self.closed:
            self._news.clear()
            await self._news.wait()
        message = self.arrived.popleft() if self.arrived and not self.closed else None
        if message is None:
            self.close()
            raise Unreachable(f"the channel to {self.peer_id} ended")
        return message

    def send(self, message: bytes) -> bool:
        if self.closed:
            return False
        self._post(message)
        return True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._news.set()
            self._post(None)

    def _post(self, message: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        delay = self.network.delay_seconds(self.owner, self.peer_id)
        self._free_at = max(self._free_at, loop.time() + delay)
        self.under_way.append((self._free_at, message))
        loop.call_at(self._free_at, self.deliver)

    def deliver(self) -> None:
        """Move what is due to the other end, unless the way is cut."""
        now = asyncio.get_running_loop().time()
        if self.network.is_cut(self.owner, self.peer_id):
            return
        while self.under_way and self.under_way[0][0] <= now:
            _, message = self.under_way.popleft()
            if not self.other.closed:
                self.other.arrived.append(message)
                self.network.note(self.owner, self.peer_id, message)
                self.other._news.set()


class Network:
    """All nodes and the ways between them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dice: dict[tuple[NodeId, NodeId], random.Random] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._slow: dict[tuple[NodeId, NodeId], float] = {}
        self._accept: dict[NodeId, Accept] = {}
        self._ends: list[SimChannel] = []
        self._serving: set[asyncio.Task[None]] = set()
        self.log: list[tuple[float, str, str, int]] = []

    def note(self, source: NodeId, target: NodeId, message: bytes | None) -> None:
        when = round(asyncio.get_running_loop().time(), 6)
        self.log.append((when, source, target, len(message or b"")))

    def delay_seconds(self, source: NodeId, target: NodeId) -> float:
        way = (source, target)
        if way not in self._dice:
            self._dice[way] = random.Random(f"{self._seed} {source} {target}")
        return self._dice[way].uniform(0.0005, 0.004) + self._slow.get(way, 0.0)

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._cut

    def cut(self, source: NodeId, target: NodeId) -> None:
        self._cut.add((source, target))

    def isolate(self, node: NodeId) -> None:
        for other in self._accept:
            if other != node:
                self.cut(node, other)
                self.cut(other, node)

    def slow_down(self, source: NodeId, target: NodeId, seconds: float) -> None:
        self._slow[source, target] = seconds

    def heal(self) -> None:
        self._cut.clear()
        self._slow.clear()
        for end in self._ends:
            end.deliver()

    def listen(self, node: NodeId, accept: Accept) -> None:
        self._accept[node] = accept

    def drop_node(self, node: NodeId) -> None:
        """A process is gone: its ends close, nobody listens."""
        self._accept.pop(node, None)
        for end in self._ends:
            if end.owner == node:
                end.close()
        self._ends = [end for end in self._ends if not (end.closed and end.other.closed)]

    async def dial(self, source: NodeId, target: NodeId) -> SimChannel:
        await asyncio.sleep(self.delay_seconds(source, target))
        if target not in self._accept or self.is_cut(source, target) or self.is_cut(target, source):
            raise Unreachable(f"{target} does not answer")
        near, far = SimChannel(self, source, target), SimChannel(self, target, source)
        near.other, far.other = far, near
        self._ends += [near, far]
        task = asyncio.ensure_future(self._accept[target](far))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return near
