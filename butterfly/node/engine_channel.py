"""The node's end of the channel to its engine: one writer, and reading that notices silence."""

import asyncio
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Final

from butterfly.node.pulse import Pulse
from butterfly_core.errors import EngineLost

_RECEIVE_BYTES: Final = 1 << 18
_LATE_SECONDS: Final = 1.0
_WAITING_MAX: Final = 64
_WAITING_BYTES_MAX: Final = 64 << 20
_LOOK_SECONDS: Final = 60.0


class Outgoing:
    """Messages on their way to one engine. Only ``run`` touches the socket, so a sender that is
    cancelled leaves either a whole message or nothing."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self._waiting_bytes = 0
        self._changed = Pulse()
        self._closed = False
        self.problem: str | None = None
        """Why this side gave up; None when it was the engine that went."""

    async def put(self, data: bytes, connected: socket.socket | None) -> None:
        """Wait for room. From then on ``connected`` is closed here. Raises EngineLost."""
        while not self._closed and not self._has_room(len(data)):
            await self._changed.wait(_LOOK_SECONDS)
        if self._closed:
            raise EngineLost("the engine process is gone")
        self._waiting.append((data, connected))
        self._waiting_bytes += len(data)
        self._changed.notify()

    def _has_room(self, size: int) -> bool:
        fits = self._waiting_bytes + size <= _WAITING_BYTES_MAX
        return not self._waiting or (fits and len(self._waiting) < _WAITING_MAX)

    async def run(self) -> None:
        """Write until cancelled or the channel breaks; the listener sees its end then."""
        try:
            while True:
                while not self._waiting:
                    await self._changed.wait(_LOOK_SECONDS)
                data, connected = self._waiting.popleft()
                self._waiting_bytes -= len(data)
                self._changed.notify()
                await self._write(data, connected)
        except OSError as error:
            if not isinstance(error, ConnectionError):
                self.problem = f"it cannot be told anything: {error}"
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        finally:
            self._close()

    async def _write(self, data: bytes, connected: socket.socket | None) -> None:
        try:
            if connected is not None:
                await self._send_descriptor(data[:1], connected)
                data = data[1:]
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        finally:
            if connected is not None:
                connected.close()

    async def _send_descriptor(self, byte: bytes, connected: socket.socket) -> None:
        while True:
            try:
                socket.send_fds(self._socket, [byte], [connected.fileno()])
            except BlockingIOError:
                await _until_writable(self._socket)
            else:
                return

    def _close(self) -> None:
        self._closed = True
        for _, connected in self._waiting:
            if connected is not None:
                connected.close()
        self._waiting.clear()
        self._changed.notify()


async def receive(ours: socket.socket, timeout_seconds: float) -> bytes:
    """What has arrived; empty at the end. Raises TimeoutError after that much silence."""
    while True:
        with suppress(BlockingIOError):
            return ours.recv(_RECEIVE_BYTES)
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout_seconds):
                await _until_readable(ours)
        except TimeoutError:
            # Late: this process was held up itself, and so the engine's silence says nothing.
            if time.monotonic() - started < timeout_seconds + _LATE_SECONDS:
                raise


async def _until_readable(ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(ours.fileno(), _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(ours.fileno())


async def _until_writable(ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(ours.fileno(), _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(ours.fileno())


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
