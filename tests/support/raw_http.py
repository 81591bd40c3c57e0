"""HTTP seen as bytes: whole answers, blocks of an event stream, raw sockets."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp


async def post(
    http: aiohttp.ClientSession, url: str, **kwargs: Any
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    async with http.post(url, **kwargs) as response:
        return response.status, await response.json(), response.headers


async def events(response: aiohttp.ClientResponse) -> list[str]:
    text = (await response.read()).decode()
    return [block for block in text.split("\n\n") if block]


async def raw(url: str, request: bytes) -> bytes:
    """Send these bytes and read until the server closes, or its answer's first piece."""
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read(65_536)
    finally:
        writer.transport.abort()


async def raw_until_reset(url: str, request: bytes) -> bytes:
    try:
        return await raw(url, request)
    except ConnectionResetError:
        return b""
