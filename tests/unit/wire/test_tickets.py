"""Tickets: each works once and for a while, and its keys never show."""

import socket
from typing import Any

import pytest

from butterfly_core.errors import ProtocolViolation, Refused
from butterfly_wire.frames import pack_map, unpack_map
from butterfly_wire.tickets import MODES, DataTicket, TicketOffice, new_ticket


@pytest.mark.parametrize("mode", MODES)
def test_a_ticket_comes_back_from_its_map(mode: Any) -> None:
    ticket = new_ticket(mode)

    assert DataTicket.from_map(unpack_map(pack_map(ticket.to_map()))) == ticket


@pytest.mark.parametrize("key", ["ticket", "dialer_key", "acceptor_key", "mode"])
@pytest.mark.parametrize("value", [None, b"", b"x" * 31, "x" * 32, 7])
def test_a_map_with_a_wrong_field_is_a_violation(key: str, value: object) -> None:
    with pytest.raises(ProtocolViolation):
        DataTicket.from_map({**new_ticket("aead").to_map(), key: value})


def test_every_ticket_has_its_own_keys() -> None:
    tickets = [new_ticket("aead") for _ in range(10)]

    secrets = {s for t in tickets for s in (t.ticket, t.dialer_key, t.acceptor_key)}
    assert len(secrets) == 30


def test_what_one_side_sends_with_the_other_receives_with() -> None:
    ticket = new_ticket("mac")

    assert ticket.dialer_keys == tuple(reversed(ticket.acceptor_keys))


def test_keys_are_never_shown() -> None:
    ticket = DataTicket(b"t" * 32, b"d" * 32, b"a" * 32, "aead")

    assert repr(ticket) == "DataTicket(mode='aead')"


async def test_a_ticket_works_once() -> None:
    office = TicketOffice(10)
    got: list[socket.socket] = []
    ticket = office.issue(got.append, "aead", timeout_seconds=60)

    assert office.redeem(ticket.ticket) == got.append
    assert office.redeem(ticket.ticket) is None
    assert office.redeem(b"?" * 32) is None
    office.close()


async def test_too_many_open_tickets_are_refused() -> None:
    office = TicketOffice(1)
    office.issue(print, "aead", timeout_seconds=60)

    with pytest.raises(Refused, match="1 data tickets are open"):
        office.issue(print, "aead", timeout_seconds=60)
    office.close()
    assert len(office) == 0


async def test_a_closed_office_knows_no_ticket() -> None:
    office = TicketOffice(1)
    ticket = office.issue(print, "aead", timeout_seconds=60)
    office.close()

    assert office.redeem(ticket.ticket) is None
