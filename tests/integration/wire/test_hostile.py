"""Peers that do harm: slow, silent, lying, garbled or killed ones."""

import asyncio
import errno
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from butterfly_core.address import Address
from butterfly_core.errors import ConfigError, NotAuthenticated, Refused, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.dialing import dial_channel
from butterfly_wire.frames import FrameDecoder, FrameKind, encode_frame
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.protocol import CONTROL, PROTOCOL_VERSION, error_from_map
from tests.support.wire_world import BERT, SECRET, World, until

CARL = NodeId("c" * 32)
HELLO: dict[str, Any] = {
    "version": PROTOCOL_VERSION,
    "cluster_name": "test",
    "node_id": BERT,
    "purpose": CONTROL,
}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"caller": caller}


async def listening(tcp: World) -> tuple[PeerListener, Address]:
    listener = tcp.listener()
    assert isinstance(listener, PeerListener)
    listener.on_call("echo", echo)
    return listener, await listener.start()


@asynccontextmanager
async def raw(address: Address, context: ssl.SSLContext | None = None) -> AsyncIterator[Streams]:
    """A connection that says only what the test lets it say."""
    reader, writer = await asyncio.open_connection(
        address.host,
        address.port,
        ssl=context,
        server_hostname="butterfly" if context else None,
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0.01)


def tls(node_id: NodeId = BERT) -> ssl.SSLContext:
    return TlsIdentity(SECRET, node_id).client_context()


def frame(kind: FrameKind, exchange: int = 0, **meta: Any) -> bytes:
    return encode_frame(kind, exchange, meta, bytes_max=1 << 30)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still came before the peer closed; fails when it does not within ten seconds."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01", b"B", b"BFLY" + bytes(20)])
async def test_who_does_not_finish_its_handshake_is_closed(tcp: World, said: bytes) -> None:
    tcp.limits = replace(tcp.limits, handshake_timeout_seconds=0.2)
    listener, address = await listening(tcp)
    async with raw(address) as (reader, writer):
        writer.write(said)

        assert await ended(reader) == b""
    await until(lambda: listener.statistics()["unauthenticated"] == 0)
    assert listener.statistics()["handshakes_failed"] == 1


async def test_who_does_not_say_hello_is_closed(tcp: World) -> None:
    tcp.limits = replace(tcp.limits, handshake_timeout_seconds=0.3)
    listener, address = await listening(tcp)
    async with raw(address, tls()) as (reader, _):
        assert await ended(reader) == b""
    assert listener.connection_count == 0


async def test_idle_newcomers_do_not_keep_an_honest_one_out(tcp: World) -> None:
    tcp.limits = replace(tcp.limits, unauthenticated_max=5, handshake_timeout_seconds=3.0)
    listener, address = await listening(tcp)
    idle = [await asyncio.open_connection(address.host, address.port) for _ in range(20)]
    await until(lambda: listener.statistics()["accepted"] == 20)

    assert await tcp.pool().call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}
    counts = listener.statistics()
    assert counts["evicted"] >= 15
    assert counts["unauthenticated"] <= 5
    for _, writer in idle:
        writer.transport.abort()


async def test_more_honest_dialers_at_once_than_there_are_places_all_get_in(tcp: World) -> None:
    tcp.limits = replace(tcp.limits, handshake_timeout_seconds=60.0)
    listener, address = await listening(tcp)
    pools = [tcp.pool() for _ in range(200)]

    answers = await asyncio.gather(
        *(pool.call(address, "echo", {}, timeout_seconds=60) for pool in pools)
    )

    assert answers == [{"caller": BERT}] * 200
    counts = listener.statistics()
    assert counts["accepted"] == counts["connections"] == 200
    assert counts["evicted"] == 0


async def test_one_host_s_idle_newcomers_leave_places_for_other_hosts(
    tcp: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hosts are played: every connection comes from loopback."""
    tcp.limits = replace(
        tcp.limits,
        unauthenticated_max=4,
        unauthenticated_per_host_max=3,
        handshake_timeout_seconds=30.0,
    )
    loop = asyncio.get_running_loop()
    accept, hosts = loop.sock_accept, ["10.0.0.66"] * 8

    async def from_afar(sock: Any) -> Any:
        accepted, (_, port) = await accept(sock)
        return accepted, (hosts.pop() if hosts else "10.0.0.1", port)

    monkeypatch.setattr(loop, "sock_accept", from_afar)
    listener, address = await listening(tcp)
    idle = [await asyncio.open_connection(address.host, address.port) for _ in range(8)]
    await until(lambda: listener.statistics()["accepted"] == 8)
    counts = listener.statistics()
    assert counts["unauthenticated"] == 3
    assert counts["turned_away"] + counts["evicted"] == 5

    assert await tcp.pool().call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}
    for _, writer in idle:
        writer.transport.abort()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n" * 3, bytes(100), b"\x16" * 1000, b"BFLY" + b"?" * 32]
)
async def test_garbage_is_closed_and_nobody_else_notices(tcp: World, garbage: bytes) -> None:
    listener, address = await listening(tcp)
    async with raw(address) as (reader, writer):
        writer.write(garbage)

        await ended(reader)
    await until(lambda: listener.statistics()["handshakes_failed"] == 1)
    assert await tcp.pool().call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}


@pytest.mark.parametrize(
    "said",
    [
        b"no frame at all" * 10,
        frame(FrameKind.PING) + bytes(100),
        frame(FrameKind.CALL, 1, method="echo", body={}),
        frame(FrameKind.HELLO, filler="x" * 5000),
        frame(FrameKind.HELLO, **{**HELLO, "node_id": "x"}),
    ],
)
async def test_another_first_frame_than_a_hello_is_closed(tcp: World, said: bytes) -> None:
    listener, address = await listening(tcp)
    async with raw(address, tls()) as (reader, writer):
        writer.write(said)

        await ended(reader)
    await until(lambda: listener.statistics()["handshakes_failed"] == 1)
    assert listener.connection_count == 0


async def test_a_hello_with_another_id_than_the_certificate_s_is_refused(tcp: World) -> None:
    _, address = await listening(tcp)
    async with raw(address, tls(CARL)) as (reader, writer):
        writer.write(frame(FrameKind.HELLO, **HELLO))
        decoder = FrameDecoder(4096)
        decoder.receive(await ended(reader))

    answer = decoder.next_frame()
    assert answer is not None
    assert answer.kind is FrameKind.ERROR
    error = error_from_map(answer.meta)
    assert isinstance(error, NotAuthenticated)
    assert f"says it is node {BERT}, its certificate says {CARL}" in str(error)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff" * 100,
        frame(FrameKind.REPLY, 1, body={}),
        frame(FrameKind.MESSAGE),
        frame(FrameKind.CALL, 1, method="echo"),
        frame(FrameKind.CALL, 1, method=7, body={}),
        frame(FrameKind.CALL, 1, method="echo", body=[]),
        frame(FrameKind.CALL, 1, method="echo", body={"x": bytes(20_000)}),
    ],
)
async def test_what_breaks_the_protocol_after_the_hello_ends_the_connection(
    tcp: World, said: bytes
) -> None:
    tcp.limits = replace(tcp.limits, frame_bytes_max=10_000)
    listener, address = await listening(tcp)
    async with raw(address, tls()) as (reader, writer):
        writer.write(frame(FrameKind.HELLO, **HELLO))
        await reader.readexactly(16)
        writer.write(said)

        await ended(reader)
    await until(lambda: listener.connection_count == 0)
    assert await tcp.pool().call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}


async def test_a_peer_that_falls_silent_is_dropped(tcp: World) -> None:
    tcp.limits = replace(tcp.limits, ping_seconds=0.1, silent_seconds=0.4)
    listener, address = await listening(tcp)
    async with raw(address, tls()) as (reader, writer):
        writer.write(frame(FrameKind.HELLO, **HELLO))
        await reader.readexactly(16)
        assert listener.connection_count == 1

        await ended(reader)
    await until(lambda: listener.connection_count == 0)


async def test_a_peer_that_never_reads_its_answers_is_dropped(tcp: World) -> None:
    tcp.limits = replace(
        tcp.limits,
        frame_bytes_max=1 << 20,
        write_buffer_bytes_max=1 << 20,
        silent_seconds=60.0,
        exchanges_max=4,
    )
    listener = tcp.listener()

    async def big(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"blob": bytes(1_000_000)}

    listener.on_call("big", big)
    address = await listener.start()
    async with raw(address, tls()) as (reader, writer):
        writer.write(frame(FrameKind.HELLO, **HELLO))
        await reader.readexactly(16)
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # no public way
        exchange = 0
        async with asyncio.timeout(30):
            while listener.connection_count:
                exchange += 1
                writer.write(frame(FrameKind.CALL, exchange, method="big", body={}))
                await asyncio.sleep(0.001)


async def test_a_peer_with_an_expired_certificate_is_refused(tcp: World) -> None:
    _, address = await listening(tcp)
    then = datetime.now(UTC) - timedelta(days=31)
    stale = TlsIdentity(SECRET, BERT, clock=lambda: then)
    pool = PeerPool(stale, cluster_name="test", node_id=BERT)

    with pytest.raises(NotAuthenticated, match="clocks agree"):
        await pool.call(address, "echo", {}, timeout_seconds=5)
    await pool.close()


async def test_what_is_no_node_is_said_so(nothing_left: None) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(web, "127.0.0.1", 0)
    address = Address(*server.sockets[0].getsockname()[:2])
    with pytest.raises(NotAuthenticated, match="does not speak this protocol"):
        await dial_channel(
            address,
            "raft",
            TlsIdentity(SECRET, BERT),
            cluster_name="test",
            node_id=BERT,
            expect=None,
            timeout_seconds=5,
        )
    server.close()
    await server.wait_closed()


async def test_a_port_that_accepts_and_says_nothing_is_unreachable_in_time(
    nothing_left: None,
) -> None:
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    address = Address(*server.sockets[0].getsockname()[:2])
    pool = PeerPool(TlsIdentity(SECRET, BERT), cluster_name="test", node_id=BERT)

    with pytest.raises(Unreachable, match=r"no (answer|connection)"):
        await pool.call(address, "echo", {}, timeout_seconds=0.3)
    await pool.close()
    server.close()
    for writer in writers:
        writer.transport.abort()
    await server.wait_closed()


async def test_running_out_of_descriptors_does_not_end_the_listener(
    tcp: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [OSError(24, "Too many open files")] * 2

    async def failing(sock: Any) -> Any:
        if failures:
            raise failures.pop()
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    _, address = await listening(tcp)

    assert await tcp.pool().call(address, "echo", {}, timeout_seconds=5) == {"caller": BERT}
    assert not failures


async def test_a_link_local_address_is_bound_on_its_own_interface(
    tcp: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[Any] = []

    def create_server(address: Any, **_: Any) -> socket.socket:
        bound.append(address)
        raise OSError(errno.EADDRNOTAVAIL, "not here")

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%eth7", 7000, 0, 7))]

    monkeypatch.setattr(socket, "create_server", create_server)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(ConfigError, match="mend bind_address"):
        await tcp.listener(bind=Address("fe80::1%eth7", 7000)).start()

    assert bound == [("fe80::1%eth7", 7000, 0, 7)]


PEER = """
import asyncio, sys
from butterfly_core.address import Address
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.secret import ClusterSecret

async def ticks(caller, body):
    while True:
        yield {}
        await asyncio.sleep(0.01)

async def hang(caller, body):
    await asyncio.sleep(3600)

async def main():
    identity = TlsIdentity(ClusterSecret(sys.argv[1].encode()), "a" * 32)
    bind = Address("127.0.0.1", 0)
    listener = PeerListener(bind, identity, cluster_name="test", node_id="a" * 32)
    listener.on_stream("ticks", ticks)
    listener.on_call("hang", hang)
    print((await listener.start()).port, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_peer_that_is_killed_or_hangs_ends_calls_and_streams(
    tcp: World, how: signal.Signals
) -> None:
    tcp.limits = replace(tcp.limits, ping_seconds=0.1, silent_seconds=1.0)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PEER,
        SECRET.current.decode(),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout is not None
    try:
        address = Address("127.0.0.1", int(await asyncio.wait_for(process.stdout.readline(), 30)))
        pool = tcp.pool()
        items = pool.stream(address, "ticks", {})
        await anext(items)
        call = asyncio.ensure_future(pool.call(address, "hang", {}, timeout_seconds=60))
        await asyncio.sleep(0.1)

        process.send_signal(how)

        async with asyncio.timeout(20):
            with pytest.raises(Unreachable):
                await call
            with pytest.raises(Unreachable):
                async for _ in items:
                    pass
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_cancelling_a_dial_at_any_moment_leaves_nothing(tcp: World) -> None:
    _, address = await listening(tcp)
    for milliseconds in range(0, 24, 2):
        pool = tcp.pool()
        call = asyncio.ensure_future(pool.call(address, "echo", {}, timeout_seconds=5))
        await asyncio.sleep(milliseconds / 1000)
        call.cancel()
        await asyncio.wait([call])


async def test_a_refusal_during_the_hello_reaches_a_dialer_that_waits(tcp: World) -> None:
    _, address = await listening(tcp)
    for _ in range(20):
        with pytest.raises(Refused, match="no channel for 'none'"):
            await tcp.channel(address, "none")


async def test_a_ticket_s_taker_that_fails_leaves_no_socket(
    tcp: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sock: Any) -> None:
        raise KeyError("a bug")

    listener, address = await listening(tcp)
    sock = await tcp.data(address, listener.issue_ticket(fail))

    assert await asyncio.to_thread(sock.recv, 1) == b""
    assert "a bug" in caplog.text
    sock.close()


async def test_closing_is_bounded_though_a_handler_will_not_end(
    tcp: World, caplog: pytest.LogCaptureFixture
) -> None:
    tcp.limits = replace(tcp.limits, close_timeout_seconds=0.2)
    began, release = asyncio.Event(), asyncio.Event()

    async def stubborn(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        began.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return {}

    listener = tcp.listener()
    listener.on_call("stubborn", stubborn)
    address = await listener.start()
    call = asyncio.ensure_future(tcp.pool().call(address, "stubborn", {}, timeout_seconds=60))
    await began.wait()
    try:
        await asyncio.wait_for(listener.close(), 10)

        assert "does not end when cancelled" in caplog.text
        with pytest.raises(Unreachable):
            await call
    finally:
        release.set()
        await asyncio.sleep(0.05)


async def test_closing_does_not_wait_for_newcomers(tcp: World) -> None:
    listener, address = await listening(tcp)
    async with raw(address) as (reader, writer):
        writer.write(b"\x16\x03\x01")
        await until(lambda: listener.statistics()["unauthenticated"] == 1)

        await asyncio.wait_for(listener.close(), 10)

        assert await ended(reader) == b""
