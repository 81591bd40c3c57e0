"""A machine whose process ended refuses the connection; one that is silent does not."""

import asyncio
import socket

from butterfly.node.observing import refuses
from butterfly_core.address import Address


async def test_a_port_where_nobody_listens_refuses_and_one_with_a_listener_does_not() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    here = Address("127.0.0.1", server.sockets[0].getsockname()[1])

    assert not await refuses(here)
    server.close()
    await server.wait_closed()
    assert await refuses(here)


async def test_a_listener_that_is_stuck_does_not_refuse() -> None:
    with socket.socket() as stuck:
        stuck.bind(("127.0.0.1", 0))
        stuck.listen(0)
        here = Address("127.0.0.1", stuck.getsockname()[1])
        assert [await refuses(here) for _ in range(3)] == [False] * 3


async def test_a_name_that_cannot_be_looked_up_does_not_refuse() -> None:
    for host in ("a..b", "x" * 64, "null\x00"):
        assert not await refuses(Address(host, 7000))
