"""Write one answer as server-sent events.

Until the first piece (or the first keep-alive) nothing is sent, so what fails early still gets
its own HTTP status. What fails later is an error event; the stream then ends without ``[DONE]``.
"""

import asyncio
import json

from aiohttp import web

from butterfly.api import sse
from butterfly.api.answer import Answer, Piece
from butterfly.api.errors import failure_of
from butterfly.api.limits import ApiLimits
from butterfly.api.replies import Dialect, usage_of
from butterfly_core.errors import ButterflyError


class _Writer:
    """A response that gives up on a client who does not read."""

    def __init__(self, request: web.Request, limits: ApiLimits) -> None:
        self._request = request
        self._timeout_seconds = limits.write_timeout_seconds
        self.response = web.StreamResponse(headers=sse.HEADERS)

    async def write(self, data: bytes) -> None:
        """Raises ConnectionError when the client is gone or does not read."""
        if not self.response.prepared:
            await self.response.prepare(self._request)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self.response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client does not read its stream") from None


async def stream_answer(
    request: web.Request, answer: Answer, dialect: Dialect, limits: ApiLimits, *, with_usage: bool
) -> web.StreamResponse:
    """Send the answer to its end, an error event, or until the client is gone.

    Raises ButterflyError only before the first byte.
    """
    writer = _Writer(request, limits)
    try:
        await _send_pieces(writer, answer, dialect, limits)
        if with_usage:
            usage = usage_of(answer.prompt_tokens, answer.generated_tokens)
            await writer.write(sse.event(dialect.usage(usage)))
        await writer.write(sse.DONE)
    except ConnectionError:
        return writer.response
    except ButterflyError as error:
        if not writer.response.prepared:
            raise
        await _send_error(writer, error)
    return writer.response


async def _send_pieces(
    writer: _Writer, answer: Answer, dialect: Dialect, limits: ApiLimits
) -> None:
    opened: set[int] = set()
    while answer.unfinished:
        try:
            pieces = await answer.next_pieces(limits.keep_alive_seconds)
        except TimeoutError:
            await writer.write(sse.KEEP_ALIVE)
            continue
        chunks = [chunk for piece in pieces for chunk in _chunks(piece, dialect, opened)]
        await writer.write(b"".join(sse.event(chunk) for chunk in chunks))


def _chunks(piece: Piece, dialect: Dialect, opened: set[int]) -> list[bytes]:
    if piece.index in opened:
        return dialect.chunks(piece)
    opened.add(piece.index)
    return [*dialect.opening(piece.index), *dialect.chunks(piece)]


async def _send_error(writer: _Writer, error: ButterflyError) -> None:
    body = json.dumps(failure_of(error).body()).encode()
    try:
        await writer.write(sse.event(body))
    except ConnectionError:
        return


async def collect_answer(answer: Answer, choices: int, *, wait_seconds: float) -> list[Piece]:
    """Wait for all of it: one piece per choice. Raises what ended the answer."""
    texts: list[list[str]] = [[] for _ in range(choices)]
    finishes: list[str | None] = [None] * choices
    while answer.unfinished:
        try:
            pieces = await answer.next_pieces(wait_seconds)
        except TimeoutError:
            continue
        for piece in pieces:
            texts[piece.index].append(piece.text)
            finishes[piece.index] = piece.finish
    return [Piece(i, "".join(text), finishes[i]) for i, text in enumerate(texts)]
