"""The answering side of a control connection: runs handlers, one task for each exchange."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from butterfly_core.errors import ButterflyError, ProtocolViolation, Refused
from butterfly_core.ids import NodeId
from butterfly_wire.channel import Channel
from butterfly_wire.connection import Connection
from butterfly_wire.frames import Frame, FrameKind
from butterfly_wire.protocol import ITEM_COST_BYTES, body_of, count_of, error_to_map, text_of

UnaryHandler = Callable[[NodeId, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
StreamHandler = Callable[[NodeId, Mapping[str, Any]], AsyncIterator[Mapping[str, Any]]]
ChannelHandler = Callable[[Channel], Awaitable[None]]

_H = TypeVar("_H")
_log = logging.getLogger(__name__)


@dataclass
class Handlers:
    """Who answers what, by method and by purpose."""

    calls: dict[str, UnaryHandler] = field(default_factory=dict)
    streams: dict[str, StreamHandler] = field(default_factory=dict)
    channels: dict[str, ChannelHandler] = field(default_factory=dict)


class Session:
    """Exchanges that the peer of one connection began."""

    def __init__(self, connection: Connection, peer_id: NodeId, handlers: Handlers) -> None:
        self._connection = connection
        self._peer_id = peer_id
        self._handlers = handlers
        self._running: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, _Credit] = {}

    async def run(self) -> None:
        """Answer until the connection ends; then no handler runs any more."""
        try:
            self._connection.consume(self._take)
            await self._connection.wait_ended()
        finally:
            self._connection.pause()  # a call that arrives now would begin and never be ended
            await self._cancel_all()

    async def _cancel_all(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            timeout = self._connection.limits.close_timeout_seconds
            _, stuck = await asyncio.wait(running, timeout=timeout)
            for task in stuck:
                _log.error("a handler does not end when cancelled: %r", task)

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case FrameKind.CALL:
                self._begin(frame, self._handlers.calls, self._answer)
            case FrameKind.OPEN:
                self._begin(frame, self._handlers.streams, self._produce)
            case FrameKind.CANCEL:
                if (task := self._running.get(frame.exchange)) is not None:
                    task.cancel()
            case FrameKind.CREDIT:
                limit = self._connection.limits.stream_window_bytes
                limit += self._connection.limits.frame_bytes_max + ITEM_COST_BYTES
                if (credit := self._credits.get(frame.exchange)) is not None:
                    credit.add(count_of(frame.meta, "bytes", limit))
            case _:
                raise ProtocolViolation(f"a {frame.kind.name} frame at the answering side")

    def _begin(
        self,
        frame: Frame,
        handlers: Mapping[str, _H],
        run: Callable[[int, _H, Mapping[str, Any]], Coroutine[Any, Any, None]],
    ) -> None:
        method, body = text_of(frame.meta, "method"), body_of(frame.meta)
        exchange = frame.exchange
        if exchange in self._running:
            raise ProtocolViolation(f"exchange {exchange} is under way already")
        handler = handlers.get(method)
        if handler is None:
            self._refuse(exchange, Refused(f"this node knows no method {method!r} of this kind"))
        elif len(self._running) >= self._connection.limits.exchanges_max:
            self._refuse(exchange, Refused(f"{len(self._running)} calls are under way already"))
        else:
            task = asyncio.get_running_loop().create_task(run(exchange, handler, body))
            self._running[exchange] = task
            task.add_done_callback(lambda done: self._ended(exchange, method, done))

    async def _answer(self, exchange: int, handler: UnaryHandler, body: Mapping[str, Any]) -> None:
        reply = await handler(self._peer_id, body)
        await self._send(FrameKind.REPLY, exchange, {"body": dict(reply)})

    async def _produce(
        self, exchange: int, handler: StreamHandler, body: Mapping[str, Any]
    ) -> None:
        credit = self._credits[exchange] = _Credit(self._connection.limits.stream_window_bytes)
        try:
            async with AsyncExitStack() as stack:
                items = handler(self._peer_id, body)
                if (close := getattr(items, "aclose", None)) is not None:
                    stack.push_async_callback(close)
                async for item in items:
                    await credit.available()
                    sent = await self._send(FrameKind.ITEM, exchange, {"body": dict(item)})
                    credit.use(sent + ITEM_COST_BYTES)
            await self._send(FrameKind.END, exchange, {})
        finally:
            del self._credits[exchange]

    async def _send(self, kind: FrameKind, exchange: int, meta: Mapping[str, Any]) -> int:
        await self._connection.drained()
        return self._send_now(kind, exchange, meta)

    def _send_now(self, kind: FrameKind, exchange: int, meta: Mapping[str, Any]) -> int:
        sent = self._connection.send(kind, exchange, meta)
        if not sent and self._connection.error is None:
            # Leaving an answer out would let the asker wait for ever.
            where = self._connection.where
            self._connection.abort(ProtocolViolation(f"{where} does not read its answers"))
        return sent

    def _refuse(self, exchange: int, error: ButterflyError) -> None:
        self._send_now(FrameKind.ERROR, exchange, error_to_map(error))

    def _ended(self, exchange: int, method: str, task: asyncio.Task[None]) -> None:
        del self._running[exchange]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, ButterflyError):
            self._refuse(exchange, error)
        elif error is not None:
            _log.error("the handler of %r failed", method, exc_info=error)
            kind = type(error).__name__
            self._refuse(exchange, Refused(f"{method!r} failed there with {kind}; see its log"))


class _Credit:
    """How many bytes a stream may still send before its consumer must take some."""

    def __init__(self, window_bytes: int) -> None:
        self._left_bytes = window_bytes
        self._window_bytes = window_bytes
        self._some = asyncio.Event()
        self._some.set()

    async def available(self) -> None:
        """Wait until something may be sent."""
        await self._some.wait()

    def use(self, count_bytes: int) -> None:
        self._left_bytes -= count_bytes
        if self._left_bytes <= 0:
            self._some.clear()

    def add(self, count_bytes: int) -> None:
        self._left_bytes = min(self._left_bytes + count_bytes, self._window_bytes)
        if self._left_bytes > 0:
            self._some.set()
