"""Data links over real sockets: what passes, what is noticed, and how they end."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly_core.errors import InvalidValue, ProtocolViolation, Unreachable
from butterfly_wire.datalink import META_BYTES_MAX, DataLink
from butterfly_wire.sealing import SEGMENT_BYTES
from butterfly_wire.tickets import MODES, Mode

KEY, OTHER_KEY = b"1" * 32, b"2" * 32
HEADER_BYTES = 24
SIZES = [0, 1, 15, 4096, 65536, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3_000_001]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tcp_pair() if request.param == "tcp" else socket.socketpair()
    yield near, far
    near.close()
    far.close()


def links(
    pair: tuple[socket.socket, socket.socket], mode: Mode = "aead", **options: Any
) -> tuple[DataLink, DataLink]:
    near, far = pair
    return (
        DataLink(near, KEY, OTHER_KEY, mode=mode, **options),
        DataLink(far, OTHER_KEY, KEY, mode=mode, **options),
    )


def in_thread(work: Callable[[], object]) -> Callable[[], object]:
    """Start it; the returned function waits and gives its result or its exception."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 - handed to the test
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> object:
        thread.join(20)
        assert not thread.is_alive(), "the thread still waits"
        return result[0]

    return wait


def recorded(mode: Mode, *frames: tuple[bytes, bytes]) -> list[bytes]:
    """What a link writes for each of these frames."""
    near, far = socket.socketpair()
    link = DataLink(near, KEY, KEY, mode=mode)
    written = []
    for meta, payload in frames:
        link.send(meta, payload)
        written.append(far.recv(1 << 20))
    link.close()
    far.close()
    return written


def receive_all(mode: Mode, data: bytes, count: int, **options: Any) -> list[tuple[bytes, bytes]]:
    """What a link makes of these bytes."""
    near, far = socket.socketpair()
    link = DataLink(near, KEY, KEY, mode=mode, **options)
    far.sendall(data)
    far.shutdown(socket.SHUT_WR)
    try:
        found = []
        for _ in range(count):
            meta, payload = link.receive()
            found.append((meta, bytes(payload)))
        return found
    finally:
        link.close()
        far.close()


@pytest.mark.parametrize("mode", MODES)
def test_frames_pass_in_both_directions_at_once(
    pair: tuple[socket.socket, socket.socket], mode: Mode
) -> None:
    near, far = links(pair, mode, frames_per_key=4)
    payloads = [bytes([n]) * size for n, size in enumerate(SIZES)]

    def send(link: DataLink) -> None:
        for n, payload in enumerate(payloads):
            link.send(b"meta %d" % n, payload)

    def receive(link: DataLink) -> list[tuple[bytes, bytes]]:
        return [(m, bytes(p)) for m, p in (link.receive() for _ in payloads)]

    waits = [in_thread(partial(send, end)) for end in (near, far)]
    waits += [in_thread(partial(receive, end)) for end in (near, far)]

    expected = [(b"meta %d" % n, payload) for n, payload in enumerate(payloads)]
    assert [wait() for wait in waits] == [None, None, expected, expected]
    near.close()
    far.close()


@given(
    st.sampled_from(MODES),
    st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=3000)), max_size=8),
    st.lists(st.integers(1, 5000), max_size=6),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_frames_come_out_as_they_went_in_however_the_stream_is_split(
    mode: Mode, frames: list[tuple[bytes, bytes]], lengths: list[int]
) -> None:
    data = b"".join(recorded(mode, *frames))
    near, far = socket.socketpair()
    link = DataLink(near, KEY, KEY, mode=mode)

    def drip() -> None:
        start = 0
        for length in lengths:
            far.sendall(data[start : start + length])
            start += length
        far.sendall(data[start:])

    wait = in_thread(drip)
    found = [(meta, bytes(payload)) for meta, payload in (link.receive() for _ in frames)]
    wait()
    link.close()
    far.close()

    assert found == frames


def test_the_payload_is_writable_and_starts_at_a_page(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = links(pair)
    near.send(b"", b"abc")
    _, payload = far.receive()

    payload[0] = 0
    assert bytes(payload) == b"\0bc"
    assert not payload.readonly
    near.close()
    far.close()


def test_any_contiguous_buffer_may_be_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = links(pair)
    numbers = memoryview(bytearray(32)).cast("d")
    numbers[1] = 0.5
    near.send(b"", numbers)

    _, payload = far.receive()
    assert payload.cast("d").tolist() == [0.0, 0.5, 0.0, 0.0]
    near.close()
    far.close()


@pytest.mark.parametrize("mode", ["aead", "mac"])
@pytest.mark.parametrize(
    "region", [*range(HEADER_BYTES), 24, 27, 28, 30, 43, 44, 60, 1043, 1044, 1059, -1]
)
def test_a_changed_byte_in_any_region_ends_the_link(mode: Mode, region: int) -> None:
    data = bytearray(recorded(mode, (b"meta", bytes(1000)))[0])
    data[min(region, len(data) - 1)] ^= 0x10

    with pytest.raises((ProtocolViolation, Unreachable)):  # a greater length waits for its end
        receive_all(mode, bytes(data), 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_repeated_lost_or_moved_frame_is_a_violation(mode: Mode) -> None:
    first, second, third = recorded(mode, (b"1", b"a"), (b"2", b"b"), (b"3", b"c"))
    assert len(receive_all(mode, first + second + third, 3)) == 3

    for wrong in (first + first, first + third, second + first):
        with pytest.raises(ProtocolViolation, match="repeated, lost or moved"):
            receive_all(mode, wrong, 2)


def test_a_frame_of_another_connection_is_a_violation() -> None:
    near, far = socket.socketpair()
    link = DataLink(near, OTHER_KEY, OTHER_KEY)
    link.send(b"meta", b"payload")
    data = far.recv(1 << 16)
    link.close()
    far.close()

    with pytest.raises(ProtocolViolation, match="different keys"):
        receive_all("aead", data, 1)


def test_another_mode_is_named() -> None:
    with pytest.raises(ProtocolViolation, match="same \\[security\\] data_plane"):
        receive_all("aead", recorded("plain", (b"", b""))[0], 1)
    near, far = socket.socketpair()
    with near, far, pytest.raises(InvalidValue, match="aead, mac, plain"):
        DataLink(near, KEY, KEY, mode="none")  # type: ignore[arg-type]  # what a config may say


def test_an_announced_size_over_the_limit_is_refused_before_it_is_read() -> None:
    data = recorded("plain", (b"m", bytes(2000)))[0][:HEADER_BYTES]

    with pytest.raises(ProtocolViolation, match="over the limit of 1000"):
        receive_all("plain", data, 1, frame_bytes_max=1000)


def test_a_frame_over_the_limit_is_not_sent_and_the_link_goes_on(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = links(pair, frame_bytes_max=1000)
    with pytest.raises(InvalidValue, match="the limits are"):
        near.send(b"", bytes(1001))
    with pytest.raises(InvalidValue):
        near.send(bytes(META_BYTES_MAX + 1))

    near.send(b"m", bytes(999))
    assert far.receive()[0] == b"m"
    near.close()
    far.close()


@pytest.mark.parametrize("length", [0, 1, 23, 24, 30, 50, 100])
def test_the_end_of_the_stream_is_unreachable_wherever_it_comes(length: int) -> None:
    data = recorded("aead", (b"meta", bytes(100)))[0]

    with pytest.raises(Unreachable, match="the peer is gone"):
        receive_all("aead", data[:length], 1)


def test_after_a_violation_neither_side_goes_on(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    link = DataLink(far, KEY, KEY)
    near.sendall(bytes(100))
    with pytest.raises(ProtocolViolation):
        link.receive()

    for use in (link.receive, lambda: link.send(b"")):
        with pytest.raises(Unreachable, match="not a data frame"):
            use()
    assert near.recv(1) == b""
    link.close()


def test_closing_wakes_a_thread_that_receives(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = links(pair)
    wait = in_thread(near.receive)
    near.close()

    woken = wait()
    assert isinstance(woken, Unreachable)
    assert "closed by this node" in str(woken)
    far.close()


def test_closing_wakes_a_thread_that_sends(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = links(pair)
    sending = threading.Event()

    def send() -> None:
        while True:
            sending.set()
            near.send(b"", bytes(1 << 20))

    wait = in_thread(send)
    sending.wait(10)
    near.close()

    woken = wait()
    assert isinstance(woken, Unreachable)
    assert "closed by this node" in str(woken)
    far.close()


def test_closing_twice_and_using_after_it_is_harmless(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = links(pair)
    near.close()
    near.close()

    with pytest.raises(Unreachable, match="closed by this node"):
        near.send(b"")
    with pytest.raises(Unreachable, match="the peer is gone"):
        far.receive()
    assert pair[0].fileno() == -1
    far.close()


PEER = """
import socket, sys
from butterfly_wire.datalink import DataLink
link = DataLink(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), b"2" * 32, b"1" * 32)
while True:
    link.send(*link.receive())
"""


def test_a_killed_peer_ends_both_directions() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        process = subprocess.Popen(
            [sys.executable, "-c", PEER, port],
            env={"PYTHONPATH": ":".join(sys.path)},
            stderr=subprocess.DEVNULL,
        )
        server.settimeout(30)
        sock, _ = server.accept()
    link = DataLink(sock, KEY, OTHER_KEY)
    link.send(b"m", b"hello")
    assert link.receive()[0] == b"m"
    wait = in_thread(link.receive)

    process.kill()
    process.wait()

    assert isinstance(wait(), Unreachable)
    with pytest.raises(Unreachable):
        link.send(b"m", b"hello")
    link.close()


def test_keys_never_show(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = links(pair)

    assert "1111" not in f"{near!r} {near!s} {vars(near)}"
    near.close()
    far.close()


@given(st.sampled_from(MODES), st.binary(max_size=200), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_frame_or_a_named_end(mode: Mode, data: bytes, framed: bool) -> None:
    code = MODES.index(mode) + 1
    start = b"BFD1" + bytes([code, 0, 0, 0]) if framed else b""

    with pytest.raises((ProtocolViolation, Unreachable)):
        receive_all(mode, start + data, 20)
