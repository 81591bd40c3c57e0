"""What a listening node does with a connection whose sender is proved: hello, then serve.

The same for real sockets (``listener.py``) and for the in-memory network (``memory.py``).
"""

import asyncio
import logging
from typing import TypeVar

from butterfly_core.errors import (
    ButterflyError,
    InvalidValue,
    NotAuthenticated,
    ProtocolViolation,
    Refused,
)
from butterfly_core.ids import NodeId, short
from butterfly_wire.channel import Channel
from butterfly_wire.connection import Connection
from butterfly_wire.frames import Frame, FrameKind
from butterfly_wire.limits import WireLimits
from butterfly_wire.protocol import (
    CONTROL,
    SPOKEN,
    Hello,
    Versions,
    agreed_version,
    check_expected,
    check_hello,
    error_from_map,
    error_to_map,
    parse_hello,
)
from butterfly_wire.session import (
    ChannelHandler,
    Handlers,
    Session,
    StreamHandler,
    UnaryHandler,
)
from butterfly_wire.tasks import Tasks

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Acceptor:
    """Handlers by name, and the life of each accepted connection."""

    def __init__(self, cluster_name: str, node_id: NodeId, limits: WireLimits) -> None:
        self.cluster_name = cluster_name
        self.node_id = node_id
        self.limits = limits
        self.versions: Versions = SPOKEN
        self._handlers = Handlers()
        self._connections: set[Connection] = set()

    @property
    def connection_count(self) -> int:
        """Connections past their hello."""
        return len(self._connections)

    def on_call(self, method: str, handler: UnaryHandler) -> None:
        """Answer this method with one reply. Raises InvalidValue for a second handler."""
        _register(self._handlers.calls, method, handler)

    def on_stream(self, method: str, handler: StreamHandler) -> None:
        """Answer this method with items."""
        _register(self._handlers.streams, method, handler)

    def on_channel(self, purpose: str, handler: ChannelHandler) -> None:
        """Give channels of this purpose to the handler; when it returns, they close."""
        if purpose == CONTROL:
            raise InvalidValue(f"the purpose {CONTROL!r} is that of calls")
        _register(self._handlers.channels, purpose, handler)

    async def _welcome(self, connection: Connection, proved: NodeId | None) -> tuple[NodeId, str]:
        """Do the hello: who it is, and for what. Raises what refused the peer, after telling it.

        A peer whose certificate names nobody (``proved`` is None) is who it says.
        """
        frame = await connection.first_frame()
        try:
            hello = parse_hello(_hello_meta(frame))
            mine = Hello(self.versions, self.cluster_name, self.node_id, hello.purpose)
            connection.version = check_hello(mine, hello, proved)
            if hello.purpose != CONTROL and hello.purpose not in self._handlers.channels:
                raise Refused(f"this node has no channel for {hello.purpose!r}")
            if self.connection_count >= self.limits.connections_max:
                raise Refused(f"this node has {self.connection_count} connections already")
        except ButterflyError as error:
            connection.send(FrameKind.ERROR, 0, error_to_map(error))
            connection.close(error)
            raise
        connection.where = f"node {short(hello.node_id)} ({connection.where})"
        connection.begin()
        connection.send(FrameKind.HELLO, 0, mine.to_map())
        return hello.node_id, hello.purpose

    async def _serve(self, connection: Connection, proved: NodeId, purpose: str) -> None:
        """Answer until the connection ends."""
        self._connections.add(connection)
        try:
            if purpose == CONTROL:
                await Session(connection, proved, self._handlers).run()
            else:
                await self._serve_channel(Channel(connection, proved), purpose)
        finally:
            connection.close()
            self._connections.discard(connection)

    async def _serve_channel(self, channel: Channel, purpose: str) -> None:
        try:
            await self._handlers.channels[purpose](channel)
        except ButterflyError as error:
            _log.info("channel %r of node %s ended: %s", purpose, short(channel.peer_id), error)

    async def _let_go(self, tasks: Tasks) -> None:
        """End all handlers, then all connections: what was answered is still flushed."""
        closing = list(self._connections)
        await tasks.close(2 * self.limits.close_timeout_seconds)  # a session may need one itself
        for connection in closing:
            connection.close()
        await asyncio.gather(*(connection.wait_ended() for connection in closing))


async def greet(
    connection: Connection, mine: Hello, proved: NodeId | None, expect: NodeId | None
) -> NodeId:
    """The dialer's half of the hello; who it is.

    A peer whose certificate names nobody (``proved`` is None) is who it says. Raises
    NotAuthenticated for another node than expected, and what the peer refused with.
    """
    if proved is not None:
        check_expected(expect, proved, connection.where)
    connection.send(FrameKind.HELLO, 0, mine.to_map())
    frame = await connection.first_frame()
    if frame.kind is FrameKind.ERROR:
        error = error_from_map(frame.meta)
        error.add_note(f"said by {connection.where}")
        raise error
    theirs = parse_hello(_hello_meta(frame))
    connection.version = agreed_version(mine, theirs)
    if proved not in (None, theirs.node_id):
        raise NotAuthenticated(f"{connection.where} says another node id than its certificate")
    check_expected(expect, theirs.node_id, connection.where)
    connection.where = f"node {short(theirs.node_id)} ({connection.where})"
    connection.begin()
    return theirs.node_id


def _hello_meta(frame: Frame) -> dict[str, object]:
    if frame.kind is not FrameKind.HELLO:
        raise ProtocolViolation(f"a {frame.kind.name} frame where a hello belongs")
    return dict(frame.meta)


def _register(handlers: dict[str, _T], name: str, handler: _T) -> None:
    if name in handlers:
        raise InvalidValue(f"{name!r} has a handler already")
    handlers[name] = handler
