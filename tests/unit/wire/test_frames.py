"""Frames: what goes in comes out, and no bytes of a peer do anything but that or a violation."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterfly_core.errors import InvalidValue, ProtocolViolation
from butterfly_wire.frames import (
    HEADER_BYTES,
    Frame,
    FrameDecoder,
    FrameKind,
    encode_frame,
    pack_map,
    unpack_map,
)

LIMIT = 4096

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
values = st.recursive(
    scalars | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
maps = st.dictionaries(st.text(max_size=10), values, max_size=4)
kinds = st.sampled_from(FrameKind)
frames = st.builds(
    lambda kind, exchange, meta, payload: (kind, exchange, meta, payload),
    kinds,
    st.integers(0, 2**32 - 1),
    maps,
    st.binary(max_size=200),
)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The data in pieces, split at these places (modulo its length)."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


def decode(pieces: Sequence[bytes]) -> tuple[list[Frame], str | None]:
    """All frames, and what was wrong after them."""
    decoder = FrameDecoder(LIMIT)
    taken: list[Frame] = []
    for piece in pieces:
        decoder.receive(piece)
        try:
            while (frame := decoder.next_frame()) is not None:
                taken.append(frame)
        except ProtocolViolation as violation:
            return taken, str(violation)
    return taken, None


@settings(deadline=None)
@given(st.lists(frames, max_size=4), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_frames_come_out_as_they_went_in_whatever_the_split(
    sent: list[tuple[FrameKind, int, dict[str, object], bytes]], places: list[int]
) -> None:
    data = b"".join(encode_frame(*frame, bytes_max=1 << 20) for frame in sent)
    decoder = FrameDecoder(1 << 20)
    taken = []
    for piece in cut(data, places):
        decoder.receive(piece)
        while (frame := decoder.next_frame()) is not None:
            taken.append(frame)

    assert [(f.kind, f.exchange, f.meta, f.payload) for f in taken] == sent
    assert sum(frame.wire_bytes for frame in taken) == len(data)
    assert decoder.buffered_bytes == 0


@settings(deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
@example(b"BF\x02\x00" + bytes(4) + b"\x01\x00\x00\x00" + bytes(4) + b"\xc1", [])
@example(
    b"BF\x02\x00" + bytes(4) + b"\x06\x00\x00\x00" + bytes(4) + b"\xd6\xff\x00\x00\x00\x01", []
)
def test_any_bytes_are_frames_or_a_violation_whatever_the_split(
    data: bytes, places: list[int]
) -> None:
    assert decode(cut(data, places)) == decode([data])


@settings(deadline=None)
@given(frames, st.integers(0, 1 << 16), st.integers(1, 255), st.lists(st.integers(0, 400)))
def test_a_changed_byte_never_raises_anything_but_a_violation(
    sent: tuple[FrameKind, int, dict[str, object], bytes],
    place: int,
    change: int,
    places: list[int],
) -> None:
    data = bytearray(encode_frame(*sent, bytes_max=1 << 20))
    data[place % len(data)] ^= change

    assert decode(cut(bytes(data), places)) == decode([bytes(data)])


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_metadata_is_a_map_with_text_keys_or_a_violation(packed: bytes) -> None:
    try:
        found = unpack_map(packed)
    except ProtocolViolation:
        return
    assert all(isinstance(key, str) for key in found)


def test_deeply_nested_metadata_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        unpack_map(b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0")


@pytest.mark.parametrize("packed", [b"\x90", b"\x81\x01\x02", b"\xc0", b"\x81\xa1a", b"\x80\x80"])
def test_metadata_that_is_no_text_keyed_map_is_a_violation(packed: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        unpack_map(packed)


@pytest.mark.parametrize("value", [{"a": object()}, {"a": 2**70}, {"a": {1, 2}}])
def test_what_msgpack_cannot_hold_is_an_invalid_value(value: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match="cannot be encoded"):
        pack_map(value)


def test_a_frame_over_the_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidValue, match="over the limit of 10 bytes"):
        encode_frame(FrameKind.MESSAGE, payload=bytes(11), bytes_max=10)


def test_an_announced_length_over_the_limit_is_refused_at_its_header() -> None:
    data = encode_frame(FrameKind.MESSAGE, payload=bytes(LIMIT + 1), bytes_max=1 << 20)

    taken, wrong = decode([data[:HEADER_BYTES]])

    assert taken == []
    assert wrong == f"a MESSAGE frame announces {LIMIT + 1} bytes; the limit is {LIMIT}"


def test_the_limit_may_be_raised_between_frames() -> None:
    data = encode_frame(FrameKind.MESSAGE, payload=bytes(LIMIT), bytes_max=1 << 20)
    decoder = FrameDecoder(10)
    decoder.bytes_max = LIMIT
    decoder.receive(data)

    frame = decoder.next_frame()

    assert frame is not None
    assert frame.payload == bytes(LIMIT)


def test_after_a_violation_every_call_raises_it_again() -> None:
    decoder = FrameDecoder(LIMIT)
    decoder.receive(bytes(HEADER_BYTES))
    with pytest.raises(ProtocolViolation):
        decoder.next_frame()
    decoder.receive(encode_frame(FrameKind.PING, bytes_max=LIMIT))

    with pytest.raises(ProtocolViolation, match="not a frame header"):
        decoder.next_frame()
