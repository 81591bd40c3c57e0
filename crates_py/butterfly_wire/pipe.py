"""A transport in memory: two ends that hand bytes to each other on the event loop.

It behaves as a TCP transport does where the wire depends on it: order, back-pressure when the
other end pauses reading, flushing at ``close``, loss at ``abort``, and a way that may be cut,
where bytes wait until it is healed.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from butterfly_core.ids import NodeId

Passes = Callable[[NodeId, NodeId], bool]


class Pipe(asyncio.Transport):
    """One end; ``join`` makes both."""

    peer: "Pipe"

    def __init__(
        self,
        sender: NodeId,
        receiver: NodeId,
        passes: Passes,
        on_lost: Callable[["Pipe"], None],
    ) -> None:
        super().__init__()
        self.sender = sender
        self.receiver = receiver
        self.lost = False
        self._passes = passes
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol | None = None
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._high_bytes = 1 << 16
        self._reading = True
        self._closing = False
        self._full = False

    def attach(self, protocol: asyncio.Protocol) -> None:
        """Give received bytes to this protocol from now on."""
        self._protocol = protocol
        protocol.connection_made(self)
        self.peer.flush_soon()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        self._unsent.append(bytes(data))
        self._unsent_bytes += len(data)
        if self._unsent_bytes > self._high_bytes and not self._full and self._protocol:
            self._full = True
            self._protocol.pause_writing()
        self.flush_soon()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes = high or self._high_bytes

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.peer.flush_soon()

    def close(self) -> None:
        self._closing = True
        self.flush_soon()

    def abort(self) -> None:
        self._closing = True
        self._unsent.clear()
        self._unsent_bytes = 0
        self._lose()

    def flush_soon(self) -> None:
        """Deliver what the way and the other end take."""
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self.lost or not self._passes(self.sender, self.receiver):
            return
        while self._unsent and self.peer.take(self._unsent[0]):
            self._unsent_bytes -= len(self._unsent.popleft())
        if self._full and self._unsent_bytes <= self._high_bytes // 4 and self._protocol:
            self._full = False
            self._protocol.resume_writing()
        if self.peer.lost or (self._closing and not self._unsent):
            self._lose()

    def take(self, data: bytes) -> bool:
        """Called by the other end; False while this one does not read."""
        if self.lost or self._closing:
            return True  # nobody is interested any more
        if not self._reading or self._protocol is None:
            return False
        self._protocol.data_received(data)
        return True

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = self._closing = True
        self._on_lost(self)
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, None)
        self.peer.flush_soon()


def join(
    first: NodeId, second: NodeId, passes: Passes, on_lost: Callable[[Pipe], None]
) -> tuple[Pipe, Pipe]:
    """Both ends of a connection between two nodes."""
    near, far = Pipe(first, second, passes, on_lost), Pipe(second, first, passes, on_lost)
    near.peer, far.peer = far, near
    return near, far
