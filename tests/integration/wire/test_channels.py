"""Channels and data tickets, over sockets and in memory alike; cuts, in memory."""

import asyncio
import socket
from dataclasses import replace

import pytest

from butterfly_core.errors import InvalidValue, NotAuthenticated, Refused, Unreachable
from butterfly_wire.channel import Channel
from butterfly_wire.memory import MemoryNetwork
from butterfly_wire.tickets import DataTicket
from tests.support.wire_world import ANNA, BERT, World, until


class Accepted:
    """Keeps channels open until told to let go."""

    def __init__(self) -> None:
        self.channels: asyncio.Queue[Channel] = asyncio.Queue()
        self.let_go = asyncio.Event()

    async def __call__(self, channel: Channel) -> None:
        self.channels.put_nowait(channel)
        await self.let_go.wait()


async def open_pair(world: World, purpose: str = "raft") -> tuple[Channel, Channel, Accepted]:
    """A dialed channel, its accepted end, and the handler that keeps that."""
    accepted = Accepted()
    listener = world.listener()
    listener.on_channel(purpose, accepted)
    near = await world.channel(await listener.start(), purpose)
    return near, await accepted.channels.get(), accepted


async def test_messages_pass_whole_and_in_order_both_ways(world: World) -> None:
    near, far, _ = await open_pair(world)
    sent = [bytes([n % 256]) * (n * 37 % 5000) for n in range(300)]
    for message in sent:
        assert near.send(message)
        assert far.send(message)

    assert [await far.receive() for _ in sent] == sent
    assert [await near.receive() for _ in sent] == sent
    assert (near.peer_id, far.peer_id) == (ANNA, BERT)


async def test_a_closed_channel_delivers_what_was_sent_and_then_ends(world: World) -> None:
    near, far, _ = await open_pair(world)
    near.send(b"last words")
    near.close()

    assert near.closed
    assert not near.send(b"more")
    assert await far.receive() == b"last words"
    with pytest.raises(Unreachable, match="closed the connection"):
        await far.receive()
    with pytest.raises(Unreachable, match="closed by this node"):
        await near.receive()


async def test_when_the_handler_returns_its_channel_closes(world: World) -> None:
    near, _, accepted = await open_pair(world)
    accepted.let_go.set()

    with pytest.raises(Unreachable):
        await near.receive()


async def test_a_handler_that_gives_up_closes_its_channel(world: World) -> None:
    async def refuse(channel: Channel) -> None:
        raise Refused("not a member")

    listener = world.listener()
    listener.on_channel("raft", refuse)
    near = await world.channel(await listener.start(), "raft")

    with pytest.raises(Unreachable):
        await near.receive()


async def test_an_unknown_purpose_is_refused(world: World) -> None:
    address = await world.listener().start()

    with pytest.raises(Refused, match="no channel for 'raft'"):
        await world.channel(address, "raft")


async def test_a_channel_to_another_node_than_expected_is_not_authenticated(
    world: World,
) -> None:
    address = await world.listener().start()

    with pytest.raises(NotAuthenticated, match="expected"):
        await world.channel(address, "raft", expect=BERT)


async def test_calls_and_channels_are_kept_apart(world: World) -> None:
    async def never(channel: Channel) -> None:
        raise AssertionError

    with pytest.raises(InvalidValue, match="that of calls"):
        world.listener().on_channel("control", never)


async def test_a_message_over_the_limit_is_an_invalid_value(world: World) -> None:
    world.limits = replace(world.limits, frame_bytes_max=1000)
    near, far, _ = await open_pair(world)
    with pytest.raises(InvalidValue, match="limit of 1000 bytes"):
        near.send(bytes(1001))

    assert near.send(bytes(1000))
    assert await far.receive() == bytes(1000)


async def test_a_receiver_that_stalls_bounds_what_the_sender_can_send(world: World) -> None:
    megabyte = 1 << 20
    world.limits = replace(
        world.limits,
        frame_bytes_max=megabyte,
        channel_bytes_max=megabyte,
        write_buffer_bytes_max=2 * megabyte,
    )
    near, far, _ = await open_pair(world)
    sent = 0
    while sent < 1000 and near.send(bytes(100_000)):
        sent += 1
        await asyncio.sleep(0.001)

    assert 10 < sent < 500, "the kernel's buffers take some, but there is an end"
    assert not near.closed
    for _ in range(sent):
        assert await far.receive() == bytes(100_000)
    await until(lambda: near.send(b"again"))
    assert await far.receive() == b"again"


async def test_an_idle_channel_stays_open(world: World) -> None:
    world.limits = replace(world.limits, ping_seconds=0.05, silent_seconds=1.0)
    near, far, _ = await open_pair(world)

    await asyncio.sleep(1.5)

    assert near.send(b"still here")
    assert await far.receive() == b"still here"


async def test_receiving_may_be_cancelled_without_loss(world: World) -> None:
    near, far, _ = await open_pair(world)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(far.receive(), 0.01)
    near.send(b"one")

    assert await far.receive() == b"one"


class Collected:
    """Sockets that a ticket brought."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __call__(self, sock: socket.socket) -> None:
        self.sockets.append(sock)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


async def at_end(sock: socket.socket) -> bool:
    """True when the peer closed this connection."""
    try:
        return await asyncio.to_thread(sock.recv, 1) == b""
    except ConnectionResetError:
        return True
    finally:
        sock.close()


async def test_a_ticket_brings_one_raw_connection(world: World) -> None:
    listener, collected = world.listener(), Collected()
    address = await listener.start()
    ticket = DataTicket.from_map(listener.issue_ticket(collected, mode="mac").to_map())
    mine = await world.data(address, ticket)
    mine.sendall(b"first frame")
    await until(lambda: bool(collected.sockets))
    theirs = collected.sockets[0]

    assert ticket.mode == "mac"
    assert mine.getblocking()
    assert theirs.getblocking()
    assert theirs.recv(100) == b"first frame"
    theirs.sendall(b"answer")
    assert mine.recv(100) == b"answer"

    again = await world.data(address, ticket)
    assert await at_end(again), "a used ticket"
    mine.close()
    collected.close()


async def test_an_unknown_ticket_is_closed(world: World) -> None:
    listener = world.listener()
    address = await listener.start()
    unknown = DataTicket(b"?" * 32, b"k" * 32, b"k" * 32, "aead")

    assert await at_end(await world.data(address, unknown))


async def test_a_late_ticket_is_closed(world: World) -> None:
    listener, collected = world.listener(), Collected()
    address = await listener.start()
    ticket = listener.issue_ticket(collected, timeout_seconds=0.05)
    await asyncio.sleep(0.2)

    assert await at_end(await world.data(address, ticket))
    assert not collected.sockets


async def test_a_data_connection_to_nobody_is_unreachable(world: World) -> None:
    listener = world.listener()
    address = await listener.start()
    ticket = listener.issue_ticket(Collected())
    await listener.close()

    with pytest.raises(Unreachable, match=f"no data connection to {address}"):
        await world.data(address, ticket)


@pytest.fixture
async def memory(nothing_left: None) -> World:
    """A world in memory whose nodes give each other up quickly."""
    world = World(MemoryNetwork())
    world.limits = replace(world.limits, ping_seconds=0.05, silent_seconds=0.4)
    return world


def network_of(world: World) -> MemoryNetwork:
    assert world.network is not None
    return world.network


async def test_both_sides_of_a_cut_notice_by_silence(memory: World) -> None:
    near, far, _ = await open_pair(memory)
    network_of(memory).cut(ANNA, BERT)

    for end in (near, far):
        with pytest.raises(Unreachable, match="has been silent"):
            await end.receive()
    await memory.close()


async def test_a_short_cut_only_delays(memory: World) -> None:
    near, far, _ = await open_pair(memory)
    network = network_of(memory)
    network.cut(ANNA, BERT)
    near.send(b"late")
    await asyncio.sleep(0.1)
    network.heal(ANNA, BERT)

    assert await far.receive() == b"late"
    await memory.close()


async def test_a_node_behind_a_cut_cannot_be_dialed_until_it_is_healed(memory: World) -> None:
    async def echo(caller: str, body: object) -> dict[str, str]:
        return {"caller": caller}

    listener = memory.listener()
    listener.on_call("echo", echo)
    address = await listener.start()
    pool, network = memory.pool(), network_of(memory)
    network.cut(ANNA, BERT)
    with pytest.raises(Unreachable):
        await pool.call(address, "echo", {}, timeout_seconds=0.1)
    call = asyncio.ensure_future(pool.call(address, "echo", {}, timeout_seconds=5))
    await asyncio.sleep(0.05)
    network.heal(ANNA, BERT)

    assert await call == {"caller": BERT}
    await memory.close()


async def test_a_reset_breaks_all_connections_of_a_node_at_once(memory: World) -> None:
    near, far, _ = await open_pair(memory)
    network_of(memory).reset(ANNA)

    for end in (near, far):
        with pytest.raises(Unreachable):
            await end.receive()
    await memory.close()
