"""Headers of shards: what the format allows is read, all else is refused by name."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.errors import ModelError
from butterfly_weights.safetensors_header import HEADER_BYTES_MAX, header_length, parse_header
from butterfly_weights.tensors import DTYPE_BITS, bytes_of
from tests.support.checkpoints import safetensors_bytes

SHARD = "model.safetensors"


def entry(start: int = 0, stop: int = 8, **other: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, stop]} | other


def parse(entries: Mapping[str, Any] | bytes, *, data_bytes: int = 8) -> None:
    data = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    parse_header(data, SHARD, 8 + len(data) + data_bytes)


def test_the_tensors_of_a_file_are_found_where_they_lie() -> None:
    file = safetensors_bytes({"b": ("U8", (3,), b"xyz"), "a": ("F32", (), b"1234")})
    length = header_length(file[:8], SHARD, len(file))

    found = parse_header(file[8 : 8 + length], SHARD, len(file))

    assert [(t.name, t.dtype, t.shape) for t in found] == [("b", "U8", (3,)), ("a", "F32", ())]
    assert [file[t.offset : t.offset + t.nbytes] for t in found] == [b"xyz", b"1234"]


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES_MAX + 1, 2**63, 2**64 - 1])
def test_an_absurd_length_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match=f"{SHARD}: header length {length}"):
        header_length(length.to_bytes(8, "little"), SHARD, 1 << 40)


def test_a_header_longer_than_its_file_is_refused_with_both_sizes() -> None:
    with pytest.raises(ModelError, match="needs 1008 bytes but the object has 500"):
        header_length((1000).to_bytes(8, "little"), SHARD, 500)


@pytest.mark.parametrize(
    ("spoiled", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 50_000, "not JSON"),
        (b'{"t": {"dtype": "U8", "dtype": "I8"}}', "duplicate keys: 'dtype'"),
        (b'{"t": {}, "t": {}}', "duplicate keys: 't'"),
        ({"__metadata__": {"a": 1}, "t": entry()}, "__metadata__"),
        ({"__metadata__": [], "t": entry()}, "__metadata__"),
        ({"t": 5}, "exactly dtype"),
        ({"t": {"dtype": "U8", "shape": []}}, "exactly dtype"),
        ({"t": entry(extra=1)}, "exactly dtype"),
        ({"t": entry(dtype=5)}, "wrong type"),
        ({"t": entry(dtype="F33")}, "unknown dtype 'F33'"),
        ({"t": entry(shape=[-2])}, "wrong type"),
        ({"t": entry(shape=[True])}, "wrong type"),
        ({"t": entry(shape=[2.0])}, "wrong type"),
        ({"t": entry(shape="2")}, "wrong type"),
        ({"t": entry(shape=[1] * 17)}, "17 dimensions"),
        ({"t": entry(data_offsets=[0, 4, 8])}, "3 offsets"),
        ({"t": entry(data_offsets=[8, 0])}, "hold -8 bytes"),
        ({"t": entry(0, 4)}, "hold 4 bytes, but F32 [2] needs 8"),
        ({"t": entry(shape=[2**61, 2**61])}, "needs"),
        ({"t": entry(dtype="F4", shape=[3], data_offsets=[0, 1])}, "whole bytes"),
        ({"t": entry(4, 12)}, "leaves a gap"),
        ({"t": entry(), "u": entry()}, "overlaps"),
        ({"t": entry(), "u": entry(4, 12)}, "overlaps"),
        ({"t": entry(), "u": entry(8, 16)}, "describes"),
        ({}, "describes"),
    ],
)
def test_a_header_that_lies_is_refused(spoiled: Mapping[str, Any] | bytes, says: str) -> None:
    with pytest.raises(ModelError) as refused:
        parse(spoiled)

    assert says in str(refused.value)
    assert SHARD in str(refused.value)


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_a_refusal(data: bytes) -> None:
    try:
        parse(data)
    except ModelError:
        return
    raise AssertionError("random bytes were taken for a header")


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_the_format_has_a_size(dtype: str) -> None:
    assert bytes_of(dtype, (8, 4)) == 4 * DTYPE_BITS[dtype]
