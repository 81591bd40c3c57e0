"""The engine's end of the channel to its node: blocking, with descriptors."""

import socket
from collections import deque

from butterfly.channel import FromEngine, Link, Splitter, ToEngine, pack, parse_to_engine
from butterfly.peer_messages import PeerLink
from butterfly_core.errors import EngineLost

_RECEIVE_BYTES = 1 << 18
_DESCRIPTORS_MAX = 16


class BlockingChannel:
    """The engine's end: one thread receives, any thread sends (under the caller's lock)."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._splitter = Splitter()
        self._bodies: deque[bytes] = deque()
        self._descriptors: deque[int] = deque()

    def send(self, message: FromEngine) -> None:
        self._socket.sendall(pack(message))

    def receive(self) -> tuple[ToEngine, socket.socket | None]:
        """The next message, and the socket that came with it. Raises EngineLost at the end."""
        while not self._bodies:
            data, descriptors, _, _ = socket.recv_fds(
                self._socket, _RECEIVE_BYTES, _DESCRIPTORS_MAX
            )
            if not data:
                raise EngineLost("the node process closed the channel")
            self._descriptors.extend(descriptors)
            self._bodies.extend(self._splitter.feed(data))
        message = parse_to_engine(self._bodies.popleft())
        if not isinstance(message, Link | PeerLink):
            return message, None
        return message, socket.socket(fileno=self._descriptors.popleft())
