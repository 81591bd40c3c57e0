"""A network in memory, for tests: the same connections, calls and channels over no socket.

Only the transport differs: a pipe between two protocols, driven by the event loop (so it runs
on virtual time too). ``cut`` holds bytes back as a partition does: both sides notice by silence;
``heal`` delivers what waited, as TCP would. ``reset`` breaks connections at once.
"""

import asyncio
import itertools
import socket

from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError, ConfigError, NotAuthenticated, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.acceptor import Acceptor
from butterfly_wire.channel import Channel
from butterfly_wire.connection import SECRET_ADVICE, Connection
from butterfly_wire.dialing import GreetingDialer, open_channel
from butterfly_wire.limits import DEFAULT_LIMITS, WireLimits
from butterfly_wire.pipe import Pipe, join
from butterfly_wire.pool import Pool
from butterfly_wire.secret import ClusterSecret, insecure_secret
from butterfly_wire.tasks import Tasks
from butterfly_wire.tickets import DataTicket, Mode, OnConnected, TicketOffice

_FIRST_PORT = 7000


class MemoryNetwork:
    """Where listeners, pools and channels of one test meet."""

    def __init__(self, *, limits: WireLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._listeners: dict[Address, MemoryListener] = {}
        self._ports = itertools.count(_FIRST_PORT)
        self._cuts: set[tuple[NodeId, NodeId]] = set()
        self._pipes: set[Pipe] = set()
        self._healed = asyncio.Event()

    def listener(
        self,
        bind: Address,
        *,
        cluster_name: str,
        node_id: NodeId,
        secret: ClusterSecret | None = None,
    ) -> "MemoryListener":
        """As ``PeerListener``."""
        return MemoryListener(self, bind, cluster_name, node_id, secret)

    def pool(
        self, *, cluster_name: str, node_id: NodeId, secret: ClusterSecret | None = None
    ) -> Pool:
        """As ``PeerPool``."""
        return Pool(MemoryDialer(self, cluster_name, node_id, secret))

    async def dial_channel(
        self,
        address: Address,
        purpose: str,
        *,
        cluster_name: str,
        node_id: NodeId,
        expect: NodeId | None,
        timeout_seconds: float,
        secret: ClusterSecret | None = None,
    ) -> Channel:
        """As ``dial_channel``."""
        dialer = MemoryDialer(self, cluster_name, node_id, secret)
        return await open_channel(
            dialer, address, purpose, expect=expect, timeout_seconds=timeout_seconds
        )

    async def dial_data(
        self, address: Address, ticket: DataTicket, *, timeout_seconds: float
    ) -> socket.socket:
        """As ``dial_data``; a pair of local sockets, because a data link needs descriptors."""
        await asyncio.sleep(0)
        listener = self._listeners.get(address)
        if listener is None:
            raise Unreachable(f"no data connection to {address}: nothing listens there")
        mine, theirs = socket.socketpair()
        on_connected = listener.tickets.redeem(ticket.ticket)
        if on_connected is None:
            theirs.close()
        else:
            on_connected(theirs)
        return mine

    def cut(self, first: NodeId, second: NodeId) -> None:
        """Nothing passes between these two any more, in either direction."""
        self._cuts |= {(first, second), (second, first)}

    def heal(self, first: NodeId, second: NodeId) -> None:
        """Everything passes again, what waited first."""
        self._cuts -= {(first, second), (second, first)}
        self._healed.set()
        self._healed = asyncio.Event()
        for pipe in list(self._pipes):
            pipe.flush_soon()

    def reset(self, node_id: NodeId) -> None:
        """Break all connections of a node, as its death does."""
        for pipe in list(self._pipes):
            if node_id in (pipe.sender, pipe.receiver):
                pipe.abort()

    def passes(self, sender: NodeId, receiver: NodeId) -> bool:
        """True unless the way is cut."""
        return (sender, receiver) not in self._cuts

    async def connect(self, dialer: "MemoryDialer", client: Connection, to: Address) -> NodeId:
        """Join a connection with one at the listener. Raises NotAuthenticated, OSError."""
        await asyncio.sleep(0)
        listener = self._listeners.get(to)
        if listener is None:
            raise ConnectionRefusedError("nothing listens there")
        here, there = dialer.node_id, listener.node_id
        while not (self.passes(here, there) and self.passes(there, here)):
            await self._healed.wait()
        if not dialer.trusts(listener.secret) or not listener.trusts(dialer.secret):
            raise NotAuthenticated(f"{to}: other secret; {SECRET_ADVICE}")
        near, far = join(here, there, self.passes, self._pipes.discard)
        self._pipes |= {near, far}
        near.attach(client)
        listener.accept(far, here)
        return there

    def add_listener(self, bind: Address, listener: "MemoryListener") -> Address:
        """Raises ConfigError for an address in use."""
        where = Address(bind.host, bind.port or next(self._ports))
        if where in self._listeners:
            raise ConfigError(f"cannot listen on {where}: another program listens there")
        self._listeners[where] = listener
        return where

    def remove_listener(self, where: Address) -> None:
        self._listeners.pop(where, None)


class MemoryDialer(GreetingDialer):
    """Dials over the network in memory."""

    def __init__(
        self,
        network: MemoryNetwork,
        cluster_name: str,
        node_id: NodeId,
        secret: ClusterSecret | None,
    ) -> None:
        super().__init__(cluster_name, node_id, network.limits)
        self._network = network
        self.secret = secret or insecure_secret(cluster_name)

    def trusts(self, other: ClusterSecret) -> bool:
        return other.current in self.secret.accepted

    async def _connect(self, connection: Connection, address: Address) -> NodeId:
        return await self._network.connect(self, connection, address)


class MemoryListener(Acceptor):
    """Listens in memory."""

    def __init__(
        self,
        network: MemoryNetwork,
        bind: Address,
        cluster_name: str,
        node_id: NodeId,
        secret: ClusterSecret | None,
    ) -> None:
        super().__init__(cluster_name, node_id, network.limits)
        self.secret = secret or insecure_secret(cluster_name)
        self.tickets = TicketOffice(network.limits.tickets_max)
        self._network = network
        self._bind = bind
        self._where: Address | None = None
        self._tasks = Tasks(f"listener {bind}")

    def trusts(self, other: ClusterSecret) -> bool:
        return other.current in self.secret.accepted

    async def start(self) -> Address:
        """Raises ConfigError for an address in use."""
        self._where = self._network.add_listener(self._bind, self)
        return self._where

    async def close(self) -> None:
        """As ``PeerListener.close``."""
        self.tickets.close()
        if self._where is not None:
            self._network.remove_listener(self._where)
            self._where = None
        await self._let_go(self._tasks)

    def issue_ticket(
        self, on_connected: OnConnected, *, mode: Mode = "aead", timeout_seconds: float = 10.0
    ) -> DataTicket:
        """As ``PeerListener.issue_ticket``."""
        return self.tickets.issue(on_connected, mode, timeout_seconds)

    def accept(self, pipe: Pipe, caller: NodeId) -> None:
        """Called by the network."""
        connection = Connection("memory", self.limits)
        pipe.attach(connection)
        self._tasks.start(self._receive(connection, caller))

    async def _receive(self, connection: Connection, caller: NodeId) -> None:
        try:
            async with asyncio.timeout(self.limits.handshake_timeout_seconds):
                _, purpose = await self._welcome(connection, caller)
        except (ButterflyError, TimeoutError):
            return
        finally:
            if not connection.begun:
                connection.close(Unreachable("not welcomed"))
        await self._serve(connection, caller, purpose)
