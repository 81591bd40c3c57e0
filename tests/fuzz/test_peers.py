"""Peers that say anything, in any order, to a real listener with a real Raft transport."""

import asyncio
import contextlib
import pickle
import ssl
from typing import Any
from unittest.mock import patch

import msgpack
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from butterfly_cluster.raft_codec import MESSAGE_TYPES, Message, encode_message
from butterfly_cluster.raft_timing import LAN
from butterfly_cluster.raft_transport import RaftTransport
from butterfly_core.errors import ProtocolViolation, Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.frames import FrameKind, encode_frame
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.limits import WireLimits
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from tests.support.wire_world import ANNA, BERT, HERE, SECRET
from tools.fuzz.targets import TARGETS

CARL = NodeId("c" * 32)
LIMITS = WireLimits(frame_bytes_max=1 << 16, channel_bytes_max=1 << 16, stream_window_bytes=1 << 16)
HELLO = {"version": 1, "cluster_name": "test", "node_id": BERT, "purpose": "raft"}
RAFT_HELLO = encode_message({"type": "hello", "cluster_id": "c", "sender_term": 0})

words = st.sampled_from(sorted(MESSAGE_TYPES)) | st.text(max_size=5)
numbers = st.integers(-1, 1 << 54)
messages = st.dictionaries(
    st.sampled_from(["type", "sender_term", "term", "entries", "leader", "commit_index", "round"]),
    words | numbers | st.binary(max_size=9) | st.lists(numbers, max_size=3),
).map(msgpack.packb)
hellos = st.fixed_dictionaries(
    {},
    optional={
        "version": st.integers(-1, 3),
        "versions": st.lists(st.integers(0, 4), max_size=3),
        "cluster_name": st.sampled_from(["test", "other"]),
        "node_id": st.sampled_from([BERT, CARL, "x"]),
        "purpose": st.sampled_from(["raft", "control", "none"]),
    },
).map(lambda changes: {**HELLO, **changes})


class Receiver:
    """Stands where pysyncobj stands."""

    def __init__(self) -> None:
        self.connected_peers: set[NodeId] = set()

    def connected(self, peer: NodeId) -> None:
        self.connected_peers.add(peer)

    def disconnected(self, peer: NodeId) -> None:
        self.connected_peers.discard(peer)

    def received(self, peer: NodeId, message: Message) -> None:
        assert peer in self.connected_peers, "a message of nobody"
        assert message["type"] in MESSAGE_TYPES - {"hello", "ping"}
        if message["type"] == "stale":
            raise ProtocolViolation("as the guard may say")

    def heard_of_leader(self, leader: NodeId) -> None:
        assert len(leader) == 32


def no_pickle(*_: Any, **__: Any) -> Any:
    raise AssertionError("something tried to unpickle")


class Peers(RuleBasedStateMachine):
    """A listener, and up to four connections that misbehave."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.wrong: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.wrong.append(context))
        self.writers: list[asyncio.StreamWriter] = []
        self.made: list[asyncio.StreamWriter] = []
        self.patches = contextlib.ExitStack()
        for name in ("loads", "load"):
            self.patches.enter_context(patch.object(pickle, name, no_pickle))

    @initialize()
    def start(self) -> None:
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        async def dial(peer: NodeId) -> Any:
            raise Unreachable("nobody is dialed here")

        async def echo(caller: NodeId, body: Any) -> Any:
            return body

        self.receiver = Receiver()
        self.transport = RaftTransport(
            ANNA,
            cluster_id="c",
            dial=dial,
            timing=LAN,
            receiver=self.receiver,
            clock=self.loop.time,
            chance=lambda: 0.5,
        )
        identity = TlsIdentity(SECRET, ANNA)
        self.listener = PeerListener(
            HERE, identity, cluster_name="test", node_id=ANNA, limits=LIMITS
        )
        self.listener.on_channel("raft", self.transport.serve)
        self.listener.on_call("echo", echo)
        self.address = await self.listener.start()
        self.tls = TlsIdentity(SECRET, BERT).client_context()

    @precondition(lambda self: len(self.writers) < 4)
    @rule(secure=st.booleans(), greeted=st.booleans())
    def connect(self, secure: bool, greeted: bool) -> None:
        self.loop.run_until_complete(self._connect(self.tls if secure else None))
        if greeted and secure:
            self._say(encode_frame(FrameKind.HELLO, 0, HELLO, bytes_max=1 << 20))
            self._say(encode_frame(FrameKind.MESSAGE, payload=RAFT_HELLO, bytes_max=1 << 20))

    async def _connect(self, context: ssl.SSLContext | None) -> None:
        _, writer = await asyncio.open_connection(
            self.address.host,
            self.address.port,
            ssl=context,
            server_hostname="butterfly" if context else None,
        )
        self.writers.append(writer)
        self.made.append(writer)

    @precondition(lambda self: self.writers)
    @rule(data=st.binary(min_size=1, max_size=300))
    def say_bytes(self, data: bytes) -> None:
        self._say(data)

    @precondition(lambda self: self.writers)
    @rule(hello=hellos)
    def say_hello(self, hello: dict[str, Any]) -> None:
        self._say(encode_frame(FrameKind.HELLO, 0, hello, bytes_max=1 << 20))

    @precondition(lambda self: self.writers)
    @rule(payload=messages | st.sampled_from([RAFT_HELLO, *TARGETS["raft_codec"].seeds]))
    def say_message(self, payload: bytes) -> None:
        self._say(encode_frame(FrameKind.MESSAGE, payload=payload, bytes_max=1 << 20))

    @precondition(lambda self: self.writers)
    @rule(kind=st.sampled_from(FrameKind), exchange=st.integers(0, 3), body=messages)
    def say_frame(self, kind: FrameKind, exchange: int, body: bytes) -> None:
        meta = {"method": "echo", "body": {"x": body}, "bytes": 7}
        self._say(encode_frame(kind, exchange, meta, bytes_max=1 << 20))

    @precondition(lambda self: self.writers)
    @rule()
    def announce_too_much(self) -> None:
        self._say(b"BF\x0b\x00" + bytes(4) + b"\x00\x00\x00\x00\xff\xff\xff\x7f")

    @precondition(lambda self: self.writers)
    @rule()
    def vanish(self) -> None:
        self.writers.pop(0).transport.abort()

    def _say(self, data: bytes) -> None:
        self.writers[-1].write(data)
        self.loop.run_until_complete(asyncio.sleep(0.001))
        if self.writers[-1].is_closing():
            self.writers.pop()

    @invariant()
    def nothing_unexpected_was_raised_and_little_waits(self) -> None:
        assert not self.wrong, self.wrong
        if not hasattr(self, "listener"):
            return
        held = sum(each._decoder.buffered_bytes for each in self.listener._connections)
        assert held <= 4 * (LIMITS.frame_bytes_max + (1 << 19))
        assert set(self.transport.peers) == self.receiver.connected_peers

    def teardown(self) -> None:
        try:
            if hasattr(self, "listener"):
                self.loop.run_until_complete(self._end())
            assert not self.wrong, self.wrong
        finally:
            self.patches.close()
            self.loop.close()

    async def _end(self) -> None:
        """An honest peer is still served; then everything goes."""
        pool = PeerPool(TlsIdentity(SECRET, CARL), cluster_name="test", node_id=CARL)
        assert await pool.call(self.address, "echo", {"x": 1}, timeout_seconds=20) == {"x": 1}
        await pool.close()
        for writer in self.made:
            writer.transport.abort()
        self.transport.close()
        await self.listener.close()
        await asyncio.sleep(0.01)
        assert self.receiver.connected_peers == set()


TestPeers = Peers.TestCase
TestPeers.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
