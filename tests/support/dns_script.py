"""A DNS server in this process that answers what a script says: the faults no real one shows."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import dns.message
import dns.rcode

from butterfly_core.address import Address

Script = Callable[[bytes], Sequence[bytes]]
"""From the bytes of a question to the datagrams that answer it."""


class _Server(asyncio.DatagramProtocol):
    def __init__(self, script: Script) -> None:
        self.script = script
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: tuple[str | Any, int]) -> None:
        for answer in self.script(data):
            self.transport.sendto(answer, source)


@asynccontextmanager
async def dns_script(script: Script) -> AsyncIterator[Address]:
    """Serve the script on a free UDP port of 127.0.0.1."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Server(script), local_addr=("127.0.0.1", 0)
    )
    try:
        yield Address(*transport.get_extra_info("sockname"))
    finally:
        transport.close()


def answered(question: bytes, code: str = "NOERROR", *, authority: str = "") -> bytes:
    """A well-formed answer without records: a response code, and perhaps an NS or SOA record."""
    response = dns.message.make_response(dns.message.from_wire(question))
    response.set_rcode(dns.rcode.from_text(code))
    if authority:
        name, ttl, kind, data = authority.split(" ", 3)
        response.authority.append(dns.rrset.from_text(name, int(ttl), "IN", kind, data))
    return response.to_wire()
