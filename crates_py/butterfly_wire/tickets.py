"""One-time tickets that open a data connection at a peer's port.

A ticket is asked for over the control connection, which is encrypted and authenticated, and
brings its own keys; so the data connection itself starts with nothing but the ticket.
"""

import asyncio
import hashlib
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from butterfly_core.address import Address
from butterfly_core.errors import ProtocolViolation, Refused, Unreachable
from butterfly_wire.names import connect

Mode = Literal["aead", "mac", "plain"]
MODES: tuple[Mode, ...] = get_args(Mode)
TICKET_MAGIC = b"BFLY"
TICKET_BYTES = 32
KEY_BYTES = 32
PREAMBLE_BYTES = len(TICKET_MAGIC) + TICKET_BYTES

OnConnected = Callable[[socket.socket], None]


@dataclass(frozen=True, slots=True)
class DataTicket:
    """What the dialer needs: the ticket, and a key for each direction."""

    ticket: bytes = field(repr=False)
    dialer_key: bytes = field(repr=False)
    """Protects what the dialer sends."""
    acceptor_key: bytes = field(repr=False)
    """Protects what the acceptor sends."""
    mode: Mode

    def to_map(self) -> dict[str, Any]:
        return {
            "ticket": self.ticket,
            "dialer_key": self.dialer_key,
            "acceptor_key": self.acceptor_key,
            "mode": self.mode,
        }

    @classmethod
    def from_map(cls, value: Mapping[str, Any]) -> "DataTicket":
        """Raises ProtocolViolation."""
        mode = value.get("mode")
        if mode not in MODES:
            raise ProtocolViolation(f"a data ticket of mode {mode!r}; known are {MODES}")
        return cls(
            _bytes_of(value, "ticket", TICKET_BYTES),
            _bytes_of(value, "dialer_key", KEY_BYTES),
            _bytes_of(value, "acceptor_key", KEY_BYTES),
            mode,
        )

    @property
    def dialer_keys(self) -> tuple[bytes, bytes]:
        """Send key and receive key of the side that dials."""
        return self.dialer_key, self.acceptor_key

    @property
    def acceptor_keys(self) -> tuple[bytes, bytes]:
        """Send key and receive key of the side that issued the ticket."""
        return self.acceptor_key, self.dialer_key


def new_ticket(mode: Mode) -> DataTicket:
    """A ticket with fresh random keys."""
    draw = secrets.token_bytes
    return DataTicket(draw(TICKET_BYTES), draw(KEY_BYTES), draw(KEY_BYTES), mode)


def _bytes_of(value: Mapping[str, Any], key: str, length: int) -> bytes:
    found = value.get(key)
    if not isinstance(found, bytes) or len(found) != length:
        raise ProtocolViolation(f"a data ticket's {key} must be {length} bytes")
    return found


class TicketOffice:
    """Tickets issued here and not yet used; each works once, for a short time."""

    def __init__(self, tickets_max: int) -> None:
        self._tickets_max = tickets_max
        self._open: dict[bytes, tuple[OnConnected, asyncio.TimerHandle]] = {}
        self.expired_count = 0

    def __len__(self) -> int:
        return len(self._open)

    def issue(self, on_connected: OnConnected, mode: Mode, timeout_seconds: float) -> DataTicket:
        """A new ticket. Raises Refused when too many are open."""
        if len(self._open) >= self._tickets_max:
            raise Refused(f"{len(self._open)} data tickets are open already; try again later")
        ticket = new_ticket(mode)
        # Kept by digest: how long a look-up takes then says nothing about a ticket.
        digest = _digest(ticket.ticket)
        timer = asyncio.get_running_loop().call_later(timeout_seconds, self._expire, digest)
        self._open[digest] = (on_connected, timer)
        return ticket

    def redeem(self, ticket: bytes) -> OnConnected | None:
        """Who waits for this connection; None for a ticket that is unknown, used or late."""
        found = self._open.pop(_digest(ticket), None)
        if found is None:
            return None
        on_connected, timer = found
        timer.cancel()
        return on_connected

    def close(self) -> None:
        for _, timer in self._open.values():
            timer.cancel()
        self._open.clear()

    def _expire(self, digest: bytes) -> None:
        if self._open.pop(digest, None) is not None:
            self.expired_count += 1


def _digest(ticket: bytes) -> bytes:
    return hashlib.sha256(ticket).digest()


async def dial_data(
    address: Address, ticket: DataTicket, *, timeout_seconds: float
) -> socket.socket:
    """Connect and show the ticket; the socket is blocking, with TCP_NODELAY.

    A ticket that the peer does not accept shows as the end of the stream at the first read.
    Raises Unreachable.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            sock = await connect(address.host, address.port)
            return await _shown(sock, TICKET_MAGIC + ticket.ticket)
    except TimeoutError as error:
        raise Unreachable(f"no data connection to {address} within {timeout_seconds} s") from error
    except (OSError, ValueError) as error:
        raise Unreachable(f"no data connection to {address}: {error}") from error


async def _shown(sock: socket.socket, preamble: bytes) -> socket.socket:
    try:
        prepare_data_socket(sock)
        await asyncio.get_running_loop().sock_sendall(sock, preamble)
        sock.setblocking(True)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare_data_socket(sock: socket.socket) -> None:
    """No delay for small frames; a peer that is gone without a word is noticed by the kernel.

    Buffer sizes are left to the kernel: fixing them turns its tuning off.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        # Milliseconds. It also counts while a live peer does not read, so it is only the last
        # resort: the silence of the control connection tells earlier.
        ("TCP_USER_TIMEOUT", 120_000),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
