"""From an address to a connection whose peer is proved and has said hello."""

import asyncio
import ssl
from abc import ABC, abstractmethod
from typing import Protocol

from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.acceptor import greet
from butterfly_wire.channel import Channel
from butterfly_wire.connection import Connection, tls_reason
from butterfly_wire.identity import SERVER_NAME, TlsIdentity
from butterfly_wire.limits import DEFAULT_LIMITS, WireLimits
from butterfly_wire.names import connect
from butterfly_wire.protocol import SPOKEN, Hello, Versions
from butterfly_wire.traffic import Traffic


class Dialer(Protocol):
    """Makes connections; over sockets, or in memory."""

    limits: WireLimits

    async def dial(
        self, address: Address, purpose: str, *, expect: NodeId | None, timeout_seconds: float
    ) -> tuple[Connection, NodeId]:
        """A connection that has begun, and who is at its other end."""
        ...


class GreetingDialer(ABC):
    """Connects in a way that a subclass knows, then says hello; all within one timeout."""

    def __init__(self, cluster_name: str, node_id: NodeId, limits: WireLimits) -> None:
        self.limits = limits
        self.node_id = node_id
        self.versions: Versions = SPOKEN
        self.traffic = Traffic()
        self._cluster_name = cluster_name

    async def dial(
        self, address: Address, purpose: str, *, expect: NodeId | None, timeout_seconds: float
    ) -> tuple[Connection, NodeId]:
        """Raises Unreachable, NotAuthenticated, Refused, ProtocolViolation."""
        connection = Connection(str(address), self.limits, self.traffic)
        hello = Hello(self.versions, self._cluster_name, self.node_id, purpose)
        try:
            async with asyncio.timeout(timeout_seconds):
                proved = await self._connect(connection, address)
                peer_id = await greet(connection, hello, proved, expect)
        except TimeoutError as error:
            raise Unreachable(
                f"no connection to {address} within {timeout_seconds} s; is a node listening "
                "there, and may this machine reach the port?"
            ) from error
        except OSError as error:
            raise tls_reason(error, str(address)) or Unreachable(
                f"no connection to {address}: {error}"
            ) from error
        except ValueError as error:  # a host's name that cannot be looked up
            raise Unreachable(f"no connection to {address}: {error}") from error
        finally:
            if not connection.begun:
                connection.abort(Unreachable(f"{address}: given up before the hello"))
        return connection, peer_id

    @abstractmethod
    async def _connect(self, connection: Connection, address: Address) -> NodeId | None:
        """Give the connection its transport; who is at the other end, when that is proved."""


class TlsDialer(GreetingDialer):
    """Dials over TCP and TLS."""

    def __init__(
        self, identity: TlsIdentity, cluster_name: str, node_id: NodeId, limits: WireLimits
    ) -> None:
        super().__init__(cluster_name, node_id, limits)
        self._identity = identity

    async def _connect(self, connection: Connection, address: Address) -> NodeId | None:
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            sock=await connect(address.host, address.port),
            ssl=self._identity.client_context(),
            server_hostname=SERVER_NAME,
            ssl_handshake_timeout=self.limits.handshake_timeout_seconds,
            ssl_shutdown_timeout=self.limits.close_timeout_seconds,
        )
        return peer_of(connection.transport, self._identity)


def peer_of(transport: asyncio.Transport, identity: TlsIdentity) -> NodeId | None:
    """Whom the certificate on a TLS transport names, if anybody. Raises NotAuthenticated."""
    tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
    return identity.peer_id(tls.getpeercert())


async def dial_channel(
    address: Address,
    purpose: str,
    identity: TlsIdentity,
    *,
    cluster_name: str,
    node_id: NodeId,
    expect: NodeId | None,
    timeout_seconds: float,
    limits: WireLimits = DEFAULT_LIMITS,
    traffic: Traffic | None = None,
) -> Channel:
    """Open a channel, counted in ``traffic``.

    Raises Unreachable, NotAuthenticated, Refused.
    """
    dialer = TlsDialer(identity, cluster_name, node_id, limits)
    dialer.traffic = traffic or dialer.traffic
    return await open_channel(
        dialer, address, purpose, expect=expect, timeout_seconds=timeout_seconds
    )


async def open_channel(
    dialer: Dialer,
    address: Address,
    purpose: str,
    *,
    expect: NodeId | None,
    timeout_seconds: float,
) -> Channel:
    """The same with any dialer."""
    connection, peer_id = await dialer.dial(
        address, purpose, expect=expect, timeout_seconds=timeout_seconds
    )
    return Channel(connection, peer_id)
