"""Data connections to other nodes' engines: the tickets for them, asked for and issued.

The one who dials asks for a one-time ticket over the authenticated control connection, and opens
the data connection with it.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from butterfly.node.addresses import AddressBook
from butterfly_core.errors import Refused
from butterfly_core.ids import NodeId, short
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.tickets import DataTicket, Mode, dial_data

L = TypeVar("L")


async def open_data(
    peer: NodeId,
    method: str,
    asked: Mapping[str, Any],
    *,
    pool: PeerPool,
    addresses: AddressBook,
    timeout_seconds: float,
) -> tuple[DataTicket, socket.socket]:
    """Ask the peer's ``method`` for a ticket and dial with it. Raises ButterflyError."""
    address = addresses.of(peer)
    reply = await pool.call(address, method, asked, timeout_seconds=timeout_seconds, expect=peer)
    ticket = DataTicket.from_map(reply)
    return ticket, await dial_data(address, ticket, timeout_seconds=timeout_seconds)


def check_mode(mode: Mode, asked: Mapping[str, Any], caller: NodeId) -> None:
    """Raises Refused for a caller that protects its data in another way than this node."""
    if asked.get("mode") != mode:
        raise Refused(
            f"[security] data_plane is {mode!r} here and {asked.get('mode')!r} at "
            f"node {short(caller)}; make them equal"
        )


def issue_ticket(
    listener: PeerListener,
    mode: Mode,
    arrived: "asyncio.Queue[tuple[L, socket.socket]]",
    link_of: Callable[[DataTicket], L],
) -> DataTicket:
    """A ticket whose connection joins the queue with its link; where that is full, it is closed.
    Raises Refused when too many tickets are open."""

    def on_connected(connected: socket.socket) -> None:
        try:
            arrived.put_nowait((link_of(ticket), connected))
        except asyncio.QueueFull:
            connected.close()

    ticket = listener.issue_ticket(on_connected, mode=mode)
    return ticket
