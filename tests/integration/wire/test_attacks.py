"""Peers that repeat what they heard, drip, vanish, flood, or take all descriptors."""

import asyncio
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from butterfly_cluster import raft_transport
from butterfly_cluster.raft_timing import LAN
from butterfly_cluster.raft_transport import RaftTransport
from butterfly_core.address import Address
from butterfly_core.errors import NotAuthenticated, Refused, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.channel import Channel
from butterfly_wire.datalink import DataLink
from butterfly_wire.frames import FrameKind
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.protocol import Versions
from butterfly_wire.secret import ClusterSecret
from butterfly_wire.tickets import TICKET_MAGIC, dial_data
from tests.integration.wire.test_hostile import HELLO, ended, frame, listening, raw, tls
from tests.support.tcp_proxy import proxy_to
from tests.support.wire_world import ANNA, BERT, SECRET, World, until


async def test_a_recorded_handshake_sent_again_gets_nowhere(tcp: World) -> None:
    calls: list[NodeId] = []

    async def act(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        calls.append(caller)
        return {}

    listener = tcp.listener()
    assert isinstance(listener, PeerListener)
    listener.on_call("act", act)
    address = await listener.start()
    async with proxy_to(address) as proxy:
        await tcp.pool().call(proxy.address, "act", {}, timeout_seconds=10)
        (recorded,) = proxy.said
        assert len(recorded) > 500

        async with raw(address) as (reader, writer):
            writer.write(bytes(recorded))
            await ended(reader)
    await until(lambda: listener.statistics()["handshakes_failed"] == 1)
    assert calls == [BERT]


async def test_a_recorded_data_connection_sent_again_gets_nowhere(tcp: World) -> None:
    listener, address = await listening(tcp)
    accepted: list[socket.socket] = []
    ticket = listener.issue_ticket(accepted.append)
    async with proxy_to(address) as proxy:
        near = DataLink(
            await dial_data(proxy.address, ticket, timeout_seconds=10), *ticket.dialer_keys
        )
        await until(lambda: bool(accepted))
        far = DataLink(accepted[0], *ticket.acceptor_keys)
        near.send(b"", b"move the money")
        await asyncio.to_thread(far.receive)
        recorded = bytes(proxy.said[0])
        assert recorded.startswith(TICKET_MAGIC + ticket.ticket)

        async with raw(address) as (reader, writer):
            writer.write(recorded)
            await ended(reader)
        near.close()
        far.close()
    await until(lambda: listener.statistics()["tickets_refused"] == 1)
    assert len(accepted) == 1


@pytest.mark.parametrize("after_tls", [False, True])
async def test_who_drips_its_first_bytes_is_closed_in_time(tcp: World, after_tls: bool) -> None:
    tcp.limits = replace(tcp.limits, handshake_timeout_seconds=0.6)
    listener, address = await listening(tcp)
    said = frame(FrameKind.HELLO, **HELLO) if after_tls else b"\x16\x03\x01\x02\x00\x01\x00\x01"
    async with raw(address, tls() if after_tls else None) as (reader, writer):

        async def drip() -> None:
            for byte in said * 50:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        await ended(reader)
        dripping.cancel()
        await asyncio.wait([dripping])
    await until(lambda: listener.statistics()["handshakes_failed"] == 1)
    assert listener.connection_count == 0


async def test_who_drips_a_frame_is_cut_off_though_it_is_never_silent(tcp: World) -> None:
    tcp.limits = replace(
        tcp.limits, ping_seconds=0.05, silent_seconds=5.0, frame_timeout_seconds=0.5
    )
    listener, address = await listening(tcp)
    async with raw(address, tls()) as (reader, writer):
        writer.write(frame(FrameKind.HELLO, **HELLO))
        await reader.readexactly(16)
        async with asyncio.timeout(20):
            for byte in frame(FrameKind.CALL, 1, method="echo", body={"x": bytes(100_000)}):
                if not listener.connection_count:
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
    assert listener.connection_count == 0


async def test_who_never_reads_a_channel_is_cut_off_though_it_talks(tcp: World) -> None:
    tcp.limits = replace(
        tcp.limits, ping_seconds=0.05, silent_seconds=5.0, frame_timeout_seconds=0.5
    )
    listener = tcp.listener()
    refused = asyncio.Event()

    async def talk(channel: Channel) -> None:
        while channel.send(bytes(1 << 20)):
            await asyncio.sleep(0)
        refused.set()  # what waits is bounded: no more was taken
        await channel.wait_closed()

    listener.on_channel("raft", talk)
    tcp.limits = replace(tcp.limits, write_buffer_bytes_max=64 << 20)
    address = await listener.start()
    async with raw(address, tls()) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # no public way
        writer.write(frame(FrameKind.HELLO, **{**HELLO, "purpose": "raft"}))
        async with asyncio.timeout(20):
            await refused.wait()
            while listener.connection_count:
                writer.write(frame(FrameKind.PING))
                await asyncio.sleep(0.05)


async def test_a_peer_that_vanishes_without_a_word_is_noticed_on_both_sides(tcp: World) -> None:
    tcp.limits = replace(tcp.limits, ping_seconds=0.1, silent_seconds=0.6)
    listener, address = await listening(tcp)
    began = asyncio.Event()

    async def hang(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        began.set()
        await asyncio.Event().wait()
        return {}

    listener.on_call("hang", hang)
    async with proxy_to(address) as proxy:
        pool = tcp.pool()
        call = asyncio.create_task(pool.call(proxy.address, "hang", {}, timeout_seconds=60))
        await began.wait()

        proxy.freeze()

        async with asyncio.timeout(20):
            with pytest.raises(Unreachable, match="silent"):
                await call
        await until(lambda: listener.connection_count == 0)


async def test_honest_calls_pass_while_strangers_flood(tcp: World) -> None:
    tcp.limits = replace(tcp.limits, unauthenticated_max=16, handshake_timeout_seconds=2.0)
    listener, address = await listening(tcp)
    going = True

    async def flood(said: bytes) -> None:
        while going:
            try:
                _, writer = await asyncio.open_connection(address.host, address.port)
            except OSError:
                continue
            writer.write(said)
            await asyncio.sleep(0.005)
            writer.transport.abort()

    words = [b"", b"\x16\x03\x01", b"BFLY" + bytes(32), b"GET /\r\n\r\n"]
    floods = [asyncio.create_task(flood(said)) for said in words * 2]
    for _ in range(10):
        pool = PeerPool(TlsIdentity(SECRET, BERT), cluster_name="test", node_id=BERT)
        assert await pool.call(address, "echo", {}, timeout_seconds=20) == {"caller": BERT}
        await pool.close()
    going = False
    await asyncio.wait(floods)

    counts = listener.statistics()
    assert counts["accepted"] > 40
    assert counts["unauthenticated"] <= 16


FEW_DESCRIPTORS = """
import asyncio, resource, socket, sys
from butterfly_core.address import Address
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.secret import insecure_secret

ANNA, BERT = "a" * 32, "b" * 32

async def echo(caller, body):
    return {}

async def main():
    secret = insecure_secret("test")
    listener = PeerListener(Address("127.0.0.1", 0), TlsIdentity(secret, ANNA),
                            cluster_name="test", node_id=ANNA)
    listener.on_call("echo", echo)
    where = await listener.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(socket.create_connection((where.host, where.port)))
            await asyncio.sleep(0)
    except OSError as error:
        print("out of descriptors:", error.errno, flush=True)
    await asyncio.sleep(1)  # accepting fails all the time
    for sock in taken:
        sock.close()
    pool = PeerPool(TlsIdentity(secret, BERT), cluster_name="test", node_id=BERT)
    for _ in range(50):
        try:
            await pool.call(where, "echo", {}, timeout_seconds=5)
            print("answers again", flush=True)
            break
        except Exception as error:
            await asyncio.sleep(0.1)
    await pool.close()
    await listener.close()

asyncio.run(main())
"""


async def test_a_listener_without_descriptors_comes_back_when_there_are_some() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        FEW_DESCRIPTORS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert out.decode().splitlines() == ["out of descriptors: 24", "answers again"], err.decode()
    assert b"cannot accept" in err


class Nobody:
    """A receiver that must hear nothing."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"Raft heard {name}")


async def test_no_byte_of_a_stranger_reaches_raft(
    tcp: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def spy(data: bytes) -> Any:
        decoded.append(data)
        raise AssertionError("a stranger's bytes were decoded")

    monkeypatch.setattr(raft_transport, "decode_message", spy)
    monkeypatch.setattr("pickle.loads", spy)

    async def dial(peer: NodeId) -> Any:
        raise Unreachable("nobody is dialed here")

    transport = RaftTransport(
        ANNA,
        cluster_id="c",
        dial=dial,
        timing=LAN,
        receiver=Nobody(),
        clock=lambda: 0.0,
        chance=lambda: 0.5,
    )
    tcp.limits = replace(tcp.limits, handshake_timeout_seconds=0.5)
    listener = tcp.listener()
    assert isinstance(listener, PeerListener)
    listener.on_channel("raft", transport.serve)
    address = await listener.start()
    hello = frame(FrameKind.HELLO, **{**HELLO, "purpose": "raft"})
    message = frame(FrameKind.MESSAGE) + b"\x80"
    wrong_secret = TlsIdentity(ClusterSecret(b"another secret of the tests"), BERT)
    other_cluster = frame(FrameKind.HELLO, **{**HELLO, "purpose": "raft", "cluster_name": "x"})
    strangers = [
        (None, hello + message),
        (None, b"BFLY" + bytes(32) + message),
        (None, b"\x16\x03\x01" + hello),
        (wrong_secret.client_context(), hello + message),
        (tls(), message),
        (tls(), other_cluster + message),
        (tls(NodeId("c" * 32)), hello + message),  # the hello of another than the certificate's
    ]
    for context, said in strangers:
        try:
            async with raw(address, context) as (reader, writer):
                writer.write(said)
                await ended(reader)
        except OSError:
            continue
    await until(lambda: listener.statistics()["unauthenticated"] == 0)

    assert decoded == []
    assert transport.peers == frozenset()
    assert listener.statistics()["handshakes_failed"] == len(strangers)


async def test_releases_without_a_common_version_refuse_each_other_with_both_ranges(
    world: World,
) -> None:
    listener = world.listener()
    listener.versions = Versions(3, 4)
    address = await listener.start()

    with pytest.raises(Refused, match=r"speaks wire versions 1, .* speaks 3 to 4: none in common"):
        await world.pool().call(address, "echo", {}, timeout_seconds=10)


async def test_a_newer_release_speaks_the_older_one_s_version(world: World) -> None:
    async def echo(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"caller": caller}

    listener = world.listener()
    listener.versions = Versions(1, 9)
    listener.on_call("echo", echo)
    address = await listener.start()

    answer = await world.pool().call(address, "echo", {}, timeout_seconds=10)
    assert answer == {"caller": BERT}
    assert {connection.version for connection in listener._connections} == {1}


async def test_a_wrong_secret_is_refused_before_any_hello(tcp: World) -> None:
    listener, address = await listening(tcp)
    assert isinstance(address, Address)
    with pytest.raises(NotAuthenticated):
        await tcp.pool(secret=ClusterSecret(b"another secret of the tests")).call(
            address, "echo", {}, timeout_seconds=10
        )
    await until(lambda: listener.statistics()["handshakes_failed"] == 1)
