import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from butterfly.node.data_tickets import check_mode, issue_ticket
from butterfly_core.errors import Refused
from butterfly_wire.tickets import DataTicket, Mode, OnConnected, TicketOffice
from tests.support.clusters import node

Arrived = asyncio.Queue[tuple[bytes, socket.socket]]


class Listener:
    """Stands for ``PeerListener``: only its tickets."""

    def __init__(self) -> None:
        self.office = TicketOffice(8)

    def issue_ticket(self, on_connected: OnConnected, *, mode: Mode) -> DataTicket:
        return self.office.issue(on_connected, mode, 10.0)

    def arrive(self, ticket: DataTicket, connected: socket.socket) -> None:
        """As if somebody had shown the ticket."""
        on_connected = self.office.redeem(ticket.ticket)
        assert on_connected is not None
        on_connected(connected)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for one in pair:
        one.close()


def issued(listener: Listener, arrived: Arrived) -> DataTicket:
    fake: Any = listener
    return issue_ticket(fake, "mac", arrived, lambda ticket: ticket.ticket)


async def test_each_connection_arrives_with_the_link_of_its_own_ticket(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    listener, arrived = Listener(), Arrived(2)
    tickets = [issued(listener, arrived) for _ in sockets]

    for ticket, connected in zip(tickets, sockets, strict=True):
        assert ticket.mode == "mac"
        listener.arrive(ticket, connected)

    for ticket, connected in zip(tickets, sockets, strict=True):
        assert arrived.get_nowait() == (ticket.ticket, connected)
    listener.office.close()


async def test_a_connection_that_arrives_where_too_many_wait_is_closed(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    listener, arrived = Listener(), Arrived(1)
    for connected in sockets:
        listener.arrive(issued(listener, arrived), connected)

    first, second = sockets
    assert arrived.get_nowait()[1] is first
    assert second.fileno() == -1


def test_who_protects_data_in_another_way_or_tells_none_is_refused() -> None:
    check_mode("aead", {"mode": "aead"}, node(1))
    for asked in ({"mode": "plain"}, {}):
        with pytest.raises(Refused, match="data_plane is 'aead' here"):
            check_mode("aead", asked, node(1))
