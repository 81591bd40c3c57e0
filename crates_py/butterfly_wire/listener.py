"""The one TCP port of a node: TLS for control and channels, tickets for data connections.

The first byte tells which. It is peeked, not read, so TLS sees its own handshake whole; and a
ticket is read to its last byte and no further, so the raw descriptor that is handed out begins
with the peer's first data frame.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Mapping

from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError, ConfigError, Refused, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.acceptor import Acceptor
from butterfly_wire.connection import Connection, tls_reason
from butterfly_wire.dialing import peer_of
from butterfly_wire.identity import TlsIdentity, refusals
from butterfly_wire.limits import DEFAULT_LIMITS, WireLimits
from butterfly_wire.newcomers import Newcomer, Newcomers
from butterfly_wire.tasks import Tasks
from butterfly_wire.tickets import (
    PREAMBLE_BYTES,
    TICKET_MAGIC,
    DataTicket,
    Mode,
    OnConnected,
    TicketOffice,
    prepare_data_socket,
)
from butterfly_wire.traffic import Traffic

_TLS_HANDSHAKE = 0x16
_ACCEPT_AGAIN_SECONDS = 0.2
_BACKLOG = 512
"""Connections that the kernel holds while all places of newcomers are taken."""
_log = logging.getLogger(__name__)


class PeerListener(Acceptor):
    """Listens on one port and serves calls, streams, channels and data connections.

    Register handlers first, then ``start``.
    """

    def __init__(
        self,
        bind: Address,
        identity: TlsIdentity,
        *,
        cluster_name: str,
        node_id: NodeId,
        limits: WireLimits = DEFAULT_LIMITS,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(cluster_name, node_id, limits)
        self._traffic = traffic or Traffic()
        self._bind = bind
        self._identity = identity
        self._tasks = Tasks(f"listener {bind}")
        self._newcomers = Newcomers(limits)
        self._tickets = TicketOffice(limits.tickets_max)
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._counts: Counter[str] = Counter()

    async def start(self) -> Address:
        """Listen; the address with the real port. Raises ConfigError."""
        if self._accepting is not None:
            raise ConfigError(f"listener {self._bind} was started already")
        self._socket = await _listen(self._bind)
        self._accepting = self._tasks.start(self._accept_all(self._socket))
        host, port = self._socket.getsockname()[:2]
        return Address(host, port)

    async def close(self) -> None:
        """Stop listening and let go of every connection; takes a few seconds at most."""
        self._tickets.close()
        if self._socket is None or self._accepting is None:
            return
        self._accepting.cancel()
        self._newcomers.cancel_all()
        await asyncio.wait([self._accepting])
        self._socket.close()
        self._socket = None
        await self._let_go(self._tasks)

    def issue_ticket(
        self, on_connected: OnConnected, *, mode: Mode = "aead", timeout_seconds: float = 10.0
    ) -> DataTicket:
        """A ticket for one data connection to this port.

        ``on_connected`` gets the socket (blocking, TCP_NODELAY) and owns it. A ticket that is
        late, used or unknown closes the connection that shows it. Raises Refused when too many
        are open.
        """
        return self._tickets.issue(on_connected, mode, timeout_seconds)

    def statistics(self) -> Mapping[str, int]:
        """Counts since the start, and what is open now."""
        return {
            "accepted": self._counts["accepted"],
            "evicted": self._newcomers.evicted_count,
            "turned_away": self._counts["turned_away"],
            "handshakes_failed": self._counts["handshakes_failed"],
            "data_connections": self._counts["data_connections"],
            "tickets_refused": self._counts["tickets_refused"],
            "tickets_expired": self._tickets.expired_count,
            "tickets_open": len(self._tickets),
            "connections": self.connection_count,
            "unauthenticated": len(self._newcomers),
        }

    async def _accept_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._newcomers.room()
            try:
                sock, where = await loop.sock_accept(listening)
            except ConnectionError:
                continue
            except OSError as error:
                # Out of descriptors or memory: that passes, and must not end the listener.
                _log.warning("listener %s cannot accept: %s", self._bind, error)
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            self._counts["accepted"] += 1
            self._receive_newcomer(Newcomer(sock, Address(*where[:2]), loop.time()))
            await asyncio.sleep(0)  # accepting what waits already would let nobody else run

    def _receive_newcomer(self, newcomer: Newcomer) -> None:
        if not self._newcomers.may_come(newcomer.where):
            self._counts["turned_away"] += 1
            newcomer.close_unless_taken()
            return
        self._newcomers.add(self._tasks.start(self._welcome_newcomer(newcomer)), newcomer)

    async def _welcome_newcomer(self, newcomer: Newcomer) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(self.limits.handshake_timeout_seconds):
                first = await _first_byte(newcomer.sock)
                newcomer.spoke = True
                if first != _TLS_HANDSHAKE:
                    await self._redeem(newcomer)
                    return
                connection, peer_id, purpose = await self._handshake(newcomer)
        except (ButterflyError, OSError) as error:
            self._counts["handshakes_failed"] += 1
            reason = str(tls_reason(error, str(newcomer.where)) or error) or type(error).__name__
            # a probe that connects and leaves is no event
            level = logging.DEBUG if isinstance(error, Unreachable) else logging.INFO
            _log.log(level, "refused a connection from %s: %s", newcomer.where, reason)
            return
        self._newcomers.settle(task, newcomer)
        await self._serve(connection, peer_id, purpose)

    async def _handshake(self, newcomer: Newcomer) -> tuple[Connection, NodeId, str]:
        connection = Connection(str(newcomer.where), self.limits, self._traffic)
        refused: list[ssl.SSLError] = []
        refusals.set(refused)  # each newcomer has a task, and so a context, of its own
        newcomer.taken = True  # the transport closes it from here on
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                newcomer.sock,
                ssl=self._identity.server_context(),
                ssl_handshake_timeout=self.limits.handshake_timeout_seconds,
                ssl_shutdown_timeout=self.limits.close_timeout_seconds,
            )
            proved = peer_of(connection.transport, self._identity)
            return connection, *await self._welcome(connection, proved)
        except OSError as error:
            raise (refused[0] if refused else error) from error
        except ButterflyError as error:
            connection.close(error)  # gracefully: the reason is still on its way to the peer
            await connection.wait_ended()
            raise
        finally:
            if not connection.begun:
                connection.abort(Unreachable(f"{newcomer.where}: not welcomed"))

    async def _redeem(self, newcomer: Newcomer) -> None:
        """Hand the socket of a data connection to who waits for it. Raises Refused."""
        shown = await _read_exactly(newcomer.sock, PREAMBLE_BYTES)
        magic, ticket = shown[: len(TICKET_MAGIC)], shown[len(TICKET_MAGIC) :]
        on_connected = self._tickets.redeem(ticket) if magic == TICKET_MAGIC else None
        if on_connected is None:
            self._counts["tickets_refused"] += 1
            raise Refused("no TLS, and no ticket that is open")
        newcomer.sock.setblocking(True)
        prepare_data_socket(newcomer.sock)
        self._counts["data_connections"] += 1
        on_connected(newcomer.sock)
        newcomer.taken = True


async def _listen(bind: Address) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = found[0]
        sock = socket.create_server(where, family=family, backlog=_BACKLOG)
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "another program listens there; stop it or set another bind_address",
            errno.EADDRNOTAVAIL: "this machine does not have that address; mend bind_address",
            errno.EACCES: "ports below 1024 need a privilege; set another bind_address",
        }.get(error.errno or 0, "mend bind_address")
        raise ConfigError(
            f"cannot listen on {bind}: {error.strerror or error}; {advice}"
        ) from error
    sock.setblocking(False)
    return sock


async def _first_byte(sock: socket.socket) -> int:
    """Look at the first byte and leave it there. Raises Unreachable at the end of the stream."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _set, readable)
    try:
        await readable
        seen = sock.recv(1, socket.MSG_PEEK)
    finally:
        loop.remove_reader(sock)
    if not seen:
        raise Unreachable("closed without a word")
    return seen[0]


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _read_exactly(sock: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    read = b""
    while len(read) < count:
        more = await loop.sock_recv(sock, count - len(read))
        if not more:
            raise Unreachable("closed before its ticket was whole")
        read += more
    return read
