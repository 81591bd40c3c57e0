"""A scripted HTTP server for answers that no sound server gives; it is not a fake of anything.

async with odd_http(reply(b"[]", index="7"), HANGS) as server:
    ... server.url, server.asked
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stall:
    """These bytes, and then nothing more; the connection stays."""

    first: bytes = b""


HANGS = Stall()
_PIECE_BYTES = 1 << 16


@dataclass
class OddHttp:
    """``asked`` holds each request's head. The last answer is given again and again."""

    answers: list[bytes | Stall]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    bytes_sent: int = 0

    open: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.decode())
                await self._answer(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self.open.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        sent = answer.first if isinstance(answer, Stall) else answer
        for start in range(0, len(sent), _PIECE_BYTES):
            writer.write(sent[start : start + _PIECE_BYTES])
            await writer.drain()
            self.bytes_sent = start
        if isinstance(answer, Stall):
            await reader.read()  # until the client gives up


def reply(
    body: bytes,
    *,
    status: int = 200,
    index: str | None = "7",
    length: int | None = None,
    **more: str,
) -> bytes:
    """A whole answer; with ``length`` it promises more or fewer bytes than it sends."""
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body) if length is None else length),
        "Connection": "close",
        **({} if index is None else {"X-Consul-Index": index}),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    head = f"HTTP/1.1 {status} Scripted\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    return head.encode() + b"\r\n" + body


@asynccontextmanager
async def odd_http(*answers: bytes | Stall) -> AsyncIterator[OddHttp]:
    """Listens on a free port of this machine."""
    odd = OddHttp(list(answers))
    server = await asyncio.start_server(odd.serve, "127.0.0.1", 0)
    odd.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield odd
    finally:
        server.close()
        await server.wait_closed()
        if odd.open:
            await asyncio.wait(odd.open)
