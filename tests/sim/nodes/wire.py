"""The network between machines: calls and channels that can be cut, slowed down and delivered late.

Ways are between machines, not addresses or node ids: a node keeps its cables when it moves or
starts over. A cut holds back what is under way, in the manner of TCP, until it is healed or an
end gives up. Each direction has dice of its own, so that the order of sending changes nothing.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from butterfly.node.observing import PROBE_SECONDS
from butterfly_cluster.raft import ChannelLike
from butterfly_core.address import Address
from butterfly_core.errors import NotAuthenticated, Unreachable
from butterfly_core.ids import NodeId, short

Body = Mapping[str, Any]
Handler = Callable[[NodeId, Body], Awaitable[Body]]
GIVEN_UP_SECONDS = 4.0
"""So long a call that waits behind a cut may still arrive."""


class Host(Protocol):
    """A running node as the network sees it."""

    machine: str
    node_id: NodeId
    handlers: Mapping[str, Handler]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run in the node's context until it ends or the node does."""

    async def accept(self, channel: ChannelLike) -> None: ...


class Ways:
    """What lies between the machines: delays, cuts, and who waits for a cut to heal."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dice: dict[tuple[str, str], random.Random] = {}
        self._cut: set[tuple[str, str]] = set()
        self._slow: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], list[Callable[[], None]]] = {}

    def delay_seconds(self, source: str, target: str) -> float:
        way = (source, target)
        dice = self._dice.get(way)
        if dice is None:
            dice = self._dice[way] = random.Random(f"{self._seed} {source} {target}")
        return 0.0005 + 0.0035 * dice.random() + self._slow.get(way, 0.0)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def cut(self, source: str, target: str) -> None:
        if source != target:
            self._cut.add((source, target))

    def mend(self, source: str, target: str) -> None:
        self._cut.discard((source, target))
        for go_on in self._waiting.pop((source, target), []):
            go_on()

    def slow_down(self, source: str, target: str, seconds: float) -> None:
        self._slow[source, target] = seconds

    def heal(self) -> None:
        self._slow.clear()
        for source, target in sorted(self._cut):
            self.mend(source, target)

    def when_mended(self, source: str, target: str, go_on: Callable[[], None]) -> None:
        self._waiting.setdefault((source, target), []).append(go_on)

    async def travel(self, source: str, target: str) -> None:
        """As long as one message takes; behind a cut, until it is mended."""
        await asyncio.sleep(self.delay_seconds(source, target))
        while self.is_cut(source, target):
            mended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_mended(source, target, lambda mended=mended: _finish(mended))  # type: ignore[misc]
            await mended


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Channel:
    """One end of a connection for the log."""

    def __init__(self, wire: "Wire", here: str, there: str, peer_id: NodeId) -> None:
        self._wire, self.here, self.there, self.peer_id = wire, here, there, peer_id
        self.other: Channel
        self.closed = False
        self._arrived: deque[bytes | None] = deque()
        self._under_way: deque[tuple[float, bytes | None]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._free_at = 0.0

    async def receive(self) -> bytes:
        while not self._arrived and not self.closed:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._arrived.popleft() if self._arrived and not self.closed else None
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
            self.vanish()
            self._post(None)

    def vanish(self) -> None:
        """As when the power fails: the other end is told nothing."""
        self.closed = True
        self._wire.forget(self)
        self._wake()

    def _post(self, message: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        delay = self._wire.ways.delay_seconds(self.here, self.there)
        self._free_at = max(self._free_at, loop.time() + delay)
        self._under_way.append((self._free_at, message))
        loop.call_at(self._free_at, self._deliver, context=self._wire.context)

    def _deliver(self) -> None:
        ways = self._wire.ways
        if not self._under_way:
            return
        if ways.is_cut(self.here, self.there):
            ways.when_mended(self.here, self.there, self._deliver)
            return
        now = asyncio.get_running_loop().time()
        while self._under_way and self._under_way[0][0] <= now:
            _, message = self._under_way.popleft()
            if not self.other.closed:
                self._wire.note(self.here, self.there, len(message or b""))
                self.other._arrived.append(message)
                self.other._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Wire:
    """Who listens where, and every message that arrives."""

    def __init__(self, seed: int, context: Any) -> None:
        self.ways = Ways(seed)
        self.context = context
        self.hosts: dict[Address, Host] = {}
        self.log: list[tuple[float, str, str, int]] = []
        self.arrived: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._ends: dict[str, dict[Channel, None]] = {}

    def note(self, source: str, target: str, size: int, kind: str = "raft") -> None:
        now = round(asyncio.get_running_loop().time(), 6)
        self.log.append((now, source, target, size))
        self.arrived[target] += 1
        self.kinds[kind] += 1

    def listen(self, address: Address, host: Host) -> None:
        self.hosts[address] = host

    def drop(self, host: Host, *, silently: bool) -> None:
        """A process is gone: nobody listens, its ends close; ``silently`` as a machine goes."""
        self.hosts = {where: who for where, who in self.hosts.items() if who is not host}
        for end in list(self._ends.get(host.machine, {})):
            if silently:
                end.vanish()
            else:
                end.close()

    def forget(self, end: Channel) -> None:
        self._ends.get(end.here, {}).pop(end, None)

    async def dial(self, source: Host, address: Address, expect: NodeId) -> Channel:
        """Raises Unreachable, NotAuthenticated; waits for ever where packets are lost."""
        target = await self._reach(source, address, expect)
        near = Channel(self, source.machine, target.machine, target.node_id)
        far = Channel(self, target.machine, source.machine, source.node_id)
        near.other, far.other = far, near
        for end in (near, far):
            self._ends.setdefault(end.here, {})[end] = None
        target.spawn(target.accept(far))
        return near

    async def _reach(self, source: Host, address: Address, expect: NodeId | None) -> Host:
        listening = self.hosts.get(address)
        machine = listening.machine if listening else source.machine
        await self.ways.travel(source.machine, machine)
        await self.ways.travel(machine, source.machine)
        target = self.hosts.get(address)
        if target is None or target.machine != machine:
            raise Unreachable(f"{address}: connection refused")
        if expect is not None and target.node_id != expect:
            raise NotAuthenticated(f"{address} is {short(target.node_id)}, not {short(expect)}")
        return target

    async def refuses(self, source: Host, address: Address) -> bool:
        """True when the machine there says that nobody listens."""
        self.kinds["probe"] += 1
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._reach(source, address, None)
        except Unreachable:
            return True
        except TimeoutError:
            return False
        return False

    async def call(
        self,
        source: Host,
        address: Address,
        method: str,
        body: Body,
        *,
        timeout_seconds: float,
        expect: NodeId | None = None,
    ) -> Body:
        """Ask and wait. Raises Unreachable, NotAuthenticated, what the handler raises."""
        reply: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        target = self.hosts.get(address)
        if target is None:
            await asyncio.sleep(self.ways.delay_seconds(source.machine, source.machine))
            raise Unreachable(f"{address}: connection refused")
        target.spawn(self._answer(source, target, address, method, body, expect, reply))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await reply
        except TimeoutError:
            raise Unreachable(f"{address}: no answer to {method!r} in time") from None

    async def _answer(
        self,
        source: Host,
        target: Host,
        address: Address,
        method: str,
        body: Body,
        expect: NodeId | None,
        reply: asyncio.Future[Body],
    ) -> None:
        """The question's way there, the handler, and the answer's way back."""
        try:
            async with asyncio.timeout(GIVEN_UP_SECONDS):
                await self.ways.travel(source.machine, target.machine)
                self.note(source.machine, target.machine, 0, method)
                if expect is not None and target.node_id != expect:
                    raise NotAuthenticated(f"{address} is {short(target.node_id)}")
                answer = await target.handlers[method](source.node_id, body)
                await self.ways.travel(target.machine, source.machine)
        except TimeoutError:
            return
        except asyncio.CancelledError:
            if not reply.done():
                reply.set_exception(Unreachable(f"{address}: the connection was lost"))
            raise
        except Exception as error:  # noqa: BLE001 - the caller gets what the handler raised
            if not reply.done():
                reply.set_exception(error)
        else:
            self.note(target.machine, source.machine, 0, f"{method} reply")
            if not reply.done():
                reply.set_result(answer)
