"""Listeners, pools and channels for tests of the wire, over sockets or in memory."""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from butterfly_core.address import Address
from butterfly_core.ids import NodeId
from butterfly_wire.channel import Channel
from butterfly_wire.dialing import dial_channel
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.limits import WireLimits
from butterfly_wire.listener import PeerListener
from butterfly_wire.memory import MemoryListener, MemoryNetwork
from butterfly_wire.pool import PeerPool, Pool
from butterfly_wire.secret import ClusterSecret
from butterfly_wire.tickets import DataTicket, dial_data

ANNA, BERT = NodeId("a" * 32), NodeId("b" * 32)
SECRET = ClusterSecret(b"the secret of these tests")
HERE = Address("127.0.0.1", 0)


@dataclass
class World:
    """Makes listeners, pools and channels, and closes them."""

    network: MemoryNetwork | None
    limits: WireLimits = field(default_factory=WireLimits)
    closing: list[Any] = field(default_factory=list)

    def listener(
        self,
        *,
        bind: Address = HERE,
        node_id: NodeId = ANNA,
        cluster_name: str = "test",
        secret: ClusterSecret = SECRET,
    ) -> PeerListener | MemoryListener:
        made: PeerListener | MemoryListener
        if self.network is not None:
            self.network.limits = self.limits
            made = self.network.listener(
                bind, cluster_name=cluster_name, node_id=node_id, secret=secret
            )
        else:
            made = PeerListener(
                bind,
                TlsIdentity(secret, node_id),
                cluster_name=cluster_name,
                node_id=node_id,
                limits=self.limits,
            )
        self.closing.append(made)
        return made

    def pool(
        self,
        *,
        node_id: NodeId = BERT,
        cluster_name: str = "test",
        secret: ClusterSecret = SECRET,
    ) -> Pool:
        made: Pool
        if self.network is not None:
            made = self.network.pool(cluster_name=cluster_name, node_id=node_id, secret=secret)
        else:
            made = PeerPool(
                TlsIdentity(secret, node_id),
                cluster_name=cluster_name,
                node_id=node_id,
                limits=self.limits,
            )
        self.closing.append(made)
        return made

    async def channel(
        self, address: Address, purpose: str, *, expect: NodeId | None = ANNA
    ) -> Channel:
        if self.network is not None:
            made = await self.network.dial_channel(
                address,
                purpose,
                cluster_name="test",
                node_id=BERT,
                expect=expect,
                timeout_seconds=5,
                secret=SECRET,
            )
        else:
            made = await dial_channel(
                address,
                purpose,
                TlsIdentity(SECRET, BERT),
                cluster_name="test",
                node_id=BERT,
                expect=expect,
                timeout_seconds=5,
                limits=self.limits,
            )
        self.closing.append(made)
        return made

    async def data(self, address: Address, ticket: DataTicket) -> socket.socket:
        if self.network is not None:
            return await self.network.dial_data(address, ticket, timeout_seconds=5)
        return await dial_data(address, ticket, timeout_seconds=5)

    async def close(self) -> None:
        for made in reversed(self.closing):
            if isinstance(made, Channel):
                made.close()
                await made.wait_closed()
            else:
                await made.close()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until this holds, and fail after ten seconds."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            continue
    return found
