"""The asking side of a control connection: many calls and streams at once over one connection."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from butterfly_core.errors import ButterflyError, ProtocolViolation, Refused, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.connection import Connection
from butterfly_wire.frames import EXCHANGE_MAX, Frame, FrameKind
from butterfly_wire.protocol import ITEM_COST_BYTES, body_of, error_from_map


class Calls:
    """Exchanges that this side began on one connection."""

    def __init__(self, connection: Connection, peer_id: NodeId) -> None:
        self.connection = connection
        self.peer_id = peer_id
        self._last_exchange = 0
        self._replies: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._streams: dict[int, _Inbox] = {}
        self.used_at = asyncio.get_running_loop().time()
        self._idle_timer: asyncio.TimerHandle | None = None
        connection.on_end(self._fail_all)
        connection.consume(self._take)

    @property
    def busy_count(self) -> int:
        """Exchanges under way."""
        return len(self._replies) + len(self._streams)

    async def call(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask and wait for the reply. Cancelling it cancels the handler at the peer."""
        exchange = self._next_exchange()
        future: asyncio.Future[Mapping[str, Any]]
        future = self._replies[exchange] = asyncio.get_running_loop().create_future()
        try:
            await self._ask(FrameKind.CALL, exchange, method, body)
            return await future
        except asyncio.CancelledError:
            self.connection.send(FrameKind.CANCEL, exchange)
            raise
        finally:
            del self._replies[exchange]
            if future.done() and not future.cancelled():
                future.exception()  # seen: a lost connection may have failed it meanwhile

    async def stream(
        self, method: str, body: Mapping[str, Any], idle_timeout_seconds: float | None
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Ask and yield items. Closing it cancels the handler at the peer."""
        exchange = self._next_exchange()
        inbox = self._streams[exchange] = _Inbox(self.connection.limits.stream_window_bytes)
        try:
            await self._ask(FrameKind.OPEN, exchange, method, body)
            while (item := await self._next_item(inbox, method, idle_timeout_seconds)) is not None:
                if credit := inbox.credit_due():
                    self.connection.send(FrameKind.CREDIT, exchange, {"bytes": credit})
                yield item
        finally:
            del self._streams[exchange]
            if not inbox.ended:
                self.connection.send(FrameKind.CANCEL, exchange)

    async def _next_item(
        self, inbox: "_Inbox", method: str, timeout_seconds: float | None
    ) -> Mapping[str, Any] | None:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await inbox.next_item()
        except TimeoutError as error:
            raise Unreachable(
                f"{self.connection.where}: stream {method!r} brought nothing for "
                f"{timeout_seconds} s"
            ) from error

    async def _ask(
        self, kind: FrameKind, exchange: int, method: str, body: Mapping[str, Any]
    ) -> None:
        await self.connection.drained()
        if not self.connection.send(kind, exchange, {"method": method, "body": dict(body)}):
            raise self.connection.error or Unreachable(
                f"{self.connection.where} takes no more bytes: too much is unsent"
            )

    def _next_exchange(self) -> int:
        if self.connection.error is not None:
            raise self.connection.error
        limit = self.connection.limits.exchanges_max
        if self.busy_count >= limit:
            raise Refused(f"{limit} calls to {self.connection.where} are under way already")
        self.used_at = asyncio.get_running_loop().time()
        exchange = self._last_exchange
        while True:
            exchange = exchange % EXCHANGE_MAX + 1
            if exchange not in self._replies and exchange not in self._streams:
                break
        self._last_exchange = exchange
        return exchange

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.REPLY:
                self._settle(frame.exchange, body_of(frame.meta), None)
            case FrameKind.ITEM:
                self._add_item(frame)
            case FrameKind.END:
                if (inbox := self._streams.get(frame.exchange)) is not None:
                    inbox.end(None)
            case FrameKind.ERROR:
                error = error_from_map(frame.meta)
                error.add_note(f"said by {self.connection.where}")
                self._settle(frame.exchange, None, error)
            case _:
                raise ProtocolViolation(f"a {frame.kind.name} frame at the asking side")

    def _settle(
        self, exchange: int, body: Mapping[str, Any] | None, error: ButterflyError | None
    ) -> None:
        # An exchange that is not there any more was cancelled here: late news.
        if (inbox := self._streams.get(exchange)) is not None:
            if error is None:
                raise ProtocolViolation("a reply to a stream")
            inbox.end(error)
        elif (future := self._replies.get(exchange)) is not None and not future.done():
            if error is not None:
                future.set_exception(error)
            elif body is not None:
                future.set_result(body)

    def _add_item(self, frame: Frame) -> None:
        if (inbox := self._streams.get(frame.exchange)) is not None:
            inbox.add(body_of(frame.meta), frame.wire_bytes + ITEM_COST_BYTES)
        elif frame.exchange in self._replies:
            raise ProtocolViolation("an item in answer to a call")

    def replace_idle_timer(self, timer: asyncio.TimerHandle) -> None:
        """Keep a timer that must not outlive the connection."""
        self._idle_timer = timer

    def _fail_all(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        error = self.connection.error or Unreachable(f"{self.connection.where}: lost")
        for future in self._replies.values():
            if not future.done():
                future.set_exception(_again(error))
        for inbox in self._streams.values():
            inbox.end(_again(error))


def _again(error: ButterflyError) -> ButterflyError:
    """An own copy for each who waits: a traceback belongs to one of them."""
    copy = type(error)(*error.args) if type(error).__init__ is Exception.__init__ else error
    copy.__cause__ = error.__cause__
    return copy


class _Inbox:
    """Items of one stream that have arrived and were not yet taken."""

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._items: deque[tuple[Mapping[str, Any], int]] = deque()
        self._unreturned_bytes = 0
        self._taken_bytes = 0
        self._error: ButterflyError | None = None
        self._arrived = asyncio.Event()
        self.ended = False

    def add(self, body: Mapping[str, Any], cost_bytes: int) -> None:
        # The sender may go over its window by one item, and not by a second one.
        if self._unreturned_bytes >= self._window_bytes:
            raise ProtocolViolation("a stream that sends more than was asked for")
        self._unreturned_bytes += cost_bytes
        self._items.append((body, cost_bytes))
        self._arrived.set()

    def end(self, error: ButterflyError | None) -> None:
        if not self.ended:
            self.ended, self._error = True, error
            self._arrived.set()

    async def next_item(self) -> Mapping[str, Any] | None:
        """The next item, None at the end; raises the stream's error after its last item."""
        while not self._items:
            if self.ended:
                if self._error is not None:
                    raise self._error
                return None
            self._arrived.clear()
            await self._arrived.wait()
        body, cost_bytes = self._items.popleft()
        self._taken_bytes += cost_bytes
        return body

    def credit_due(self) -> int:
        """Bytes to give back to the sender now; 0 while it is not worth a frame."""
        if self._taken_bytes < self._window_bytes // 2:
            return 0
        credit, self._taken_bytes = self._taken_bytes, 0
        self._unreturned_bytes -= credit
        return credit
