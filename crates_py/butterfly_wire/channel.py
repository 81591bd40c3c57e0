"""A channel: whole messages in order between two nodes, until one side closes."""

import asyncio
from collections import deque

from butterfly_core.errors import ProtocolViolation, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.connection import Connection
from butterfly_wire.frames import Frame, FrameKind


class Channel:
    """One end. Messages that wait to be received are bounded; then the sender has to wait."""

    def __init__(self, connection: Connection, peer_id: NodeId) -> None:
        self.peer_id = peer_id
        self._connection = connection
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        connection.on_end(self._arrived.set)
        connection.consume(self._take)

    @property
    def closed(self) -> bool:
        """True once no more can be sent."""
        return self._connection.error is not None

    async def receive(self) -> bytes:
        """The next message.

        Raises Unreachable when the peer closed, fell silent or broke the protocol, and all
        messages before that have been received. Cancelling loses no message.
        """
        while not self._waiting:
            if (error := self._connection.error) is not None:
                raise Unreachable(f"channel ended: {error}") from error
            self._arrived.clear()
            await self._arrived.wait()
        message = self._waiting.popleft()
        before = self._waiting_bytes
        self._waiting_bytes -= _cost(message)
        limit = self._connection.limits.channel_bytes_max
        if before > limit >= self._waiting_bytes:
            self._connection.resume()
        return message

    def send(self, message: bytes) -> bool:
        """Queue a message; False when the channel is closed or too much waits already.

        Never blocks. Raises InvalidValue for a message over ``frame_bytes_max``.
        """
        return self._connection.send(FrameKind.MESSAGE, payload=message) > 0

    def close(self) -> None:
        """Send what is queued, then close (bounded in time)."""
        self._connection.close()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await self._connection.wait_ended()

    def _take(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.MESSAGE:
            raise ProtocolViolation(f"a {frame.kind.name} frame on a channel")
        self._waiting.append(frame.payload)
        self._waiting_bytes += _cost(frame.payload)
        self._arrived.set()
        if self._waiting_bytes > self._connection.limits.channel_bytes_max:
            self._connection.pause()


def _cost(message: bytes) -> int:
    return len(message) + 64  # an empty message takes room too
