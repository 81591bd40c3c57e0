import os
import socket
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.channel import (
    MESSAGE_BYTES_MAX,
    Cancel,
    Drop,
    Emitted,
    FromEngine,
    GiveUp,
    Hello,
    Link,
    LinkLost,
    Load,
    Loaded,
    LoadFailed,
    ModelSource,
    Prepare,
    Preparing,
    Progressed,
    Splitter,
    Statistics,
    Submit,
    ToEngine,
    WarmUp,
    pack,
    parse_from_engine,
    parse_to_engine,
)
from butterfly.engine_host.node_channel import BlockingChannel
from butterfly.peer_messages import PeerLink, PeersOpened, WantPeers
from butterfly_core.errors import EngineLost, ProtocolViolation
from butterfly_core.generation import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokensEmitted,
)
from butterfly_core.hardware import Capacity

SOURCE = ModelSource("s3", "s3://b/m", "http://127.0.0.1:9", None, "/cache", 0)
REQUEST = GenerationRequest("r", (1, 2), 8, SamplingParams(0.5, 0.9, 3, 7), (2,), True, (5,))
TO_ENGINE: list[ToEngine] = [
    Load(1, "root", SOURCE, b"\x00\xff", 0, 4, 8, True, 64, 2),
    Prepare(3, Load(0, "root", SOURCE, b"\x00", 0, 4, 8, True, 64, 2)),
    GiveUp(),
    Drop(),
    PeersOpened(3),
    WarmUp(1, 2.5),
    Submit(1, REQUEST),
    Cancel("r"),
]
FROM_ENGINE: list[FromEngine] = [
    Hello("e", Capacity("cpu", "test", 1, 2, 3.0, 4.0)),
    Progressed(1, "warmup", 1, 2, 3, 4),
    Loaded(1, {"layers.0": "d"}, 1, 2, ("leaf",), ("a cache file was damaged",)),
    LoadFailed(1, "no", "SourceError", "a.safetensors", "w"),
    Preparing(3, Progressed(0, "loading_weights", 1, 2, 3, 4)),
    Preparing(3, LoadFailed(0, "no", "SourceError")),
    Emitted(1, (TokensEmitted("r", (1, 2), FinishReason.STOP), TokensEmitted("s", (3,)))),
    LinkLost(1, "cut"),
    WantPeers(3),
    Statistics({"requests_running": 1}),
]


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda m: str(m.kind))
def test_a_message_to_the_engine_arrives_as_it_was(message: ToEngine) -> None:
    assert [parse_to_engine(body) for body in Splitter().feed(pack(message))] == [message]


@pytest.mark.parametrize("message", FROM_ENGINE, ids=lambda m: str(m.kind))
def test_a_message_from_the_engine_arrives_as_it_was(message: FromEngine) -> None:
    assert [parse_from_engine(body) for body in Splitter().feed(pack(message))] == [message]


@given(st.lists(st.integers(1, 40), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_messages(cuts: list[int]) -> None:
    stream = b"".join(pack(message) for message in FROM_ENGINE)
    splitter, bodies, at = Splitter(), [], 0
    for length in [*cuts, len(stream)]:
        bodies += splitter.feed(stream[at : at + length])
        at += length

    assert [parse_from_engine(body) for body in bodies] == FROM_ENGINE


@given(st.binary(max_size=64))
def test_nonsense_is_a_protocol_violation(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_to_engine(body)


def test_an_unknown_kind_and_a_missing_field_are_refused() -> None:
    for fields in ({"kind": "reboot"}, {"kind": "cancel"}, {"kind": "warm_up", "epoch": "x"}):
        with pytest.raises(ProtocolViolation):
            parse_to_engine(msgpack.packb(fields))


def test_a_length_above_the_limit_is_refused_before_anything_is_kept() -> None:
    with pytest.raises(ProtocolViolation, match=str(MESSAGE_BYTES_MAX + 1)):
        Splitter().feed((MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "make_link",
    [
        lambda send, receive: Link(1, "in", send, receive, "aead"),
        lambda send, receive: PeerLink("a" * 32, "out", send, receive, "aead", 3),
    ],
    ids=["pipeline", "peer"],
)
def test_descriptors_arrive_with_the_messages_that_own_them(
    make_link: Callable[[bytes, bytes], Link | PeerLink],
) -> None:
    ours, theirs = socket.socketpair()
    handed, kept = socket.socketpair()
    link: Link | PeerLink = make_link(b"a" * 32, b"b" * 32)
    data = pack(link)
    ours.sendall(pack(Drop()))
    socket.send_fds(ours, [data[:1]], [handed.fileno()])
    ours.sendall(data[1:] + pack(Cancel("r")))
    handed.close()
    channel = BlockingChannel(theirs)

    assert channel.receive() == (Drop(), None)
    message, connected = channel.receive()
    assert message == link
    assert connected is not None
    connected.sendall(b"through")
    assert kept.recv(16) == b"through"
    assert channel.receive() == (Cancel("r"), None)
    ours.close()
    with pytest.raises(EngineLost, match="closed"):
        channel.receive()
    for each in (connected, kept, theirs):
        each.close()


def test_an_engine_answers_over_the_same_socket() -> None:
    ours, theirs = socket.socketpair()
    BlockingChannel(theirs).send(FROM_ENGINE[0])

    bodies = Splitter().feed(os.read(ours.fileno(), 4096))

    assert [parse_from_engine(body) for body in bodies] == FROM_ENGINE[:1]
    ours.close()
    theirs.close()
