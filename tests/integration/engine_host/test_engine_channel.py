"""The node's writer to its engine: handed-over sockets and orders over a real socket pair."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from butterfly.node.engine_channel import Outgoing, receive
from butterfly_core.errors import EngineLost

Ends = tuple[Outgoing, socket.socket, socket.socket]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield Outgoing(ours), ours, theirs
    ours.close()
    theirs.close()


def fill(ours: socket.socket) -> int:
    filled = 0
    try:
        while True:
            filled += ours.send(bytes(1 << 16))
    except BlockingIOError:
        return filled


async def test_a_socket_is_handed_over_when_there_is_room_again(ends: Ends) -> None:
    outgoing, ours, theirs = ends
    one, other = socket.socketpair()
    filled = fill(ours)
    writing = asyncio.create_task(outgoing.run())
    await outgoing.put(b"link", one)
    await asyncio.sleep(0.05)
    assert not writing.done()

    theirs.setblocking(True)
    read, descriptors = b"", []
    while len(read) < filled + 4:
        data, new, _, _ = await asyncio.to_thread(socket.recv_fds, theirs, 1 << 20, 4)
        read += data
        descriptors += new
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)

    assert read.endswith(b"link")
    assert one.fileno() == -1
    assert len(descriptors) == 1
    socket.socket(fileno=descriptors[0]).close()
    other.close()


async def test_what_was_not_sent_is_closed_and_who_waits_is_told(ends: Ends) -> None:
    outgoing, ours, theirs = ends
    one, other = socket.socketpair()
    fill(ours)
    writing = asyncio.create_task(outgoing.run())
    await outgoing.put(bytes(1 << 20), None)
    await outgoing.put(b"link", one)
    big = asyncio.create_task(outgoing.put(bytes(64 << 20), None))
    await asyncio.sleep(0.05)
    assert not big.done()

    theirs.close()
    await writing

    with pytest.raises(EngineLost):
        await big
    with pytest.raises(EngineLost):
        await outgoing.put(b"late", None)
    assert one.fileno() == -1
    other.close()


async def test_silence_has_a_limit(ends: Ends) -> None:
    _, ours, theirs = ends
    theirs.send(b"a")

    assert await receive(ours, 0.05) == b"a"
    with pytest.raises(TimeoutError):
        await receive(ours, 0.05)
