"""A TCP proxy that records, freezes or vanishes: what a network does to two peers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from butterfly_core.address import Address


class Proxy:
    """Passes bytes on and keeps what the dialers said."""

    def __init__(self) -> None:
        self.address = Address("127.0.0.1", 0)
        self.said: list[bytearray] = []
        """What each dialer sent, byte for byte."""
        self.writers: list[asyncio.StreamWriter] = []
        self.passing = asyncio.Event()
        self.passing.set()

    def freeze(self) -> None:
        """From here on nothing passes, and nobody is told: no FIN, no RST."""
        self.passing.clear()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        record: bytearray | None,
    ) -> None:
        while data := await source.read(1 << 16):
            await self.passing.wait()
            if record is not None:
                record += data
            target.write(data)
            await target.drain()
        target.close()


@asynccontextmanager
async def proxy_to(target: Address) -> AsyncIterator[Proxy]:
    """A proxy on loopback while the block runs."""
    proxy = Proxy()
    pumps: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record = bytearray()
        proxy.said.append(record)
        far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
        proxy.writers += [writer, far_writer]
        pumps.add(asyncio.create_task(proxy._pump(reader, far_writer, record)))
        pumps.add(asyncio.create_task(proxy._pump(far_reader, writer, None)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.address = Address(*server.sockets[0].getsockname()[:2])
    try:
        yield proxy
    finally:
        server.close()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for writer in proxy.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)
