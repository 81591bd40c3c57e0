"""A network in memory, in the manner of TCP: ordered, with delays, cuts and late deliveries.

What is under way when a direction is cut is not lost but waits, and arrives after the cut is
healed if both ends are still open: old words at the worst moment. Each direction of each pair
draws its delays from dice of its own, so that the order of sending changes nothing.
"""

import asyncio
import contextvars
import hashlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable

from butterfly_cluster.raft import ChannelLike
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId

Accept = Callable[[ChannelLike], Awaitable[None]]


class SimChannel:
    """One end of a connection."""

    def __init__(self, network: "Network", owner: NodeId, peer_id: NodeId) -> None:
        self.network, self.owner, self.peer_id = network, owner, peer_id
        self.number = 0
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
        loop.call_at(self._free_at, self.deliver, context=self.network.context)

    def lose(self) -> None:
        """The connection breaks: what is under way is gone, both ends find out."""
        for end in (self, self.other):
            end.under_way.clear()
            end.closed = True
            end._news.set()

    def deliver(self) -> None:
        """Move what is due to the other end, unless the way is cut."""
        now = asyncio.get_running_loop().time()
        if self.network.is_cut(self.owner, self.peer_id):
            return
        while self.under_way and self.under_way[0][0] <= now:
            _, message = self.under_way.popleft()
            if not self.other.closed:
                self.other.arrived.append(message)
                self.network.note(self, message)
                self.other._news.set()


class Network:
    """All nodes and the ways between them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dice: dict[tuple[NodeId, NodeId], random.Random] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._slow: dict[tuple[NodeId, NodeId], float] = {}
        self.delays_seconds = (0.0005, 0.004)
        """The shortest and the longest that a word takes, one way."""
        self._accept: dict[NodeId, tuple[Accept, contextvars.Context | None]] = {}
        self._ends: list[SimChannel] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._story = hashlib.sha256()
        self._connections = 0
        self.context = contextvars.Context()
        self.sent: Counter[NodeId] = Counter()
        self.sent_bytes: Counter[NodeId] = Counter()
        self.received: Counter[NodeId] = Counter()
        self.watch: Callable[[SimChannel, bytes | None], None] | None = None

    @property
    def messages(self) -> int:
        """How many were delivered."""
        return self.received.total()

    def note(self, channel: SimChannel, message: bytes | None) -> None:
        """Something arrives: count it and add it to the story."""
        source, target, size = channel.owner, channel.peer_id, len(message or b"")
        when = asyncio.get_running_loop().time()
        self._story.update(f"{when:.6f} {source} {target} {size};".encode())
        self.sent[source] += 1
        self.sent_bytes[source] += size
        self.received[target] += 1
        if self.watch is not None:
            self.watch(channel, message)

    def fingerprint(self) -> str:
        """Equal when the same words arrived at the same times."""
        return self._story.hexdigest()

    def delay_seconds(self, source: NodeId, target: NodeId) -> float:
        way = (source, target)
        if way not in self._dice:
            self._dice[way] = random.Random(f"{self._seed} {source} {target}")
        return self._dice[way].uniform(*self.delays_seconds) + self._slow.get(way, 0.0)

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._cut

    def cut(self, source: NodeId, target: NodeId) -> None:
        """Hold everything that goes this way, until it is healed."""
        self._cut.add((source, target))

    def split(self, some: Iterable[NodeId], others: Iterable[NodeId]) -> None:
        """Cut both ways between two groups."""
        for one, other in itertools.product(some, list(others)):
            self.cut(one, other)
            self.cut(other, one)

    def isolate(self, node: NodeId) -> None:
        self.split([node], [other for other in self._accept if other != node])

    def slow_down(self, source: NodeId, target: NodeId, seconds: float) -> None:
        self._slow[source, target] = seconds

    def heal(self, *ways: tuple[NodeId, NodeId]) -> None:
        """Open these ways again, or all; what waited arrives, in its order."""
        if ways:
            self._cut.difference_update(ways)
        else:
            self._cut.clear()
            self._slow.clear()
        for end in self._ends:
            if not ways or (end.owner, end.peer_id) in ways:
                end.deliver()

    def listen(
        self, node: NodeId, accept: Accept, context: contextvars.Context | None = None
    ) -> None:
        """Whoever dials the node from now on gets a channel that ``accept`` serves."""
        self._accept[node] = (accept, context)

    def drop_node(self, node: NodeId) -> None:
        """A process is gone: its ends close, nobody listens."""
        self._accept.pop(node, None)
        for end in self._ends:
            if end.owner == node:
                end.close()
        self._forget_the_closed()

    def connections(self) -> list[SimChannel]:
        """The near ends of all connections that are open on both sides."""
        return [end for end in self._ends[::2] if not (end.closed or end.other.closed)]

    async def dial(self, source: NodeId, target: NodeId) -> SimChannel:
        await asyncio.sleep(self.delay_seconds(source, target))
        if target not in self._accept or self.is_cut(source, target) or self.is_cut(target, source):
            raise Unreachable(f"{target} does not answer")
        near, far = SimChannel(self, source, target), SimChannel(self, target, source)
        near.other, far.other = far, near
        self._connections += 1
        near.number = far.number = self._connections
        self._forget_the_closed()
        self._ends += [near, far]
        accept, context = self._accept[target]
        loop = asyncio.get_running_loop()
        task = loop.create_task(_serve(accept, far), context=context)
        self._serving.add(task)
        task.add_done_callback(self._served)
        return near

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled():
            task.exception()  # whoever serves has told the node already

    def _forget_the_closed(self) -> None:
        pairs = zip(self._ends[::2], self._ends[1::2], strict=True)
        self._ends = [end for pair in pairs if not all(e.closed for e in pair) for end in pair]


async def _serve(accept: Accept, channel: SimChannel) -> None:
    await accept(channel)
