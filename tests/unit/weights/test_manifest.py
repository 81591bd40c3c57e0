"""The manifest file: what is written is read again, and nothing else is believed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import ModelError
from butterfly_weights.manifest import (
    Manifest,
    encode_manifest,
    entry_of,
    make_manifest,
    parse_manifest,
)
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest, model_root
from butterfly_weights.tensors import TensorInfo

FILES = {"config.json": b"{}", "tokenizer.json": b"[1]"}


def manifest() -> Manifest:
    big = LEAF_BYTES + 2
    infos = [
        TensorInfo("model.embed_tokens.weight", "BF16", (2, 3), 12, "a.safetensors", 100),
        TensorInfo("model.layers.0.w", "U8", (big,), big, "a.safetensors", 112),
        TensorInfo("model.layers.1.w", "F32", (), 4, "b.safetensors", 80),
        TensorInfo("model.layers.1.empty", "F32", (0, 4), 0, "b.safetensors", 84),
    ]
    leaves = [[b"x"], [b"y", b"z"], [b"q"], []]
    entries = [
        entry_of(info, [leaf_digest(leaf) for leaf in own])
        for info, own in zip(infos, leaves, strict=True)
    ]
    return make_manifest(2, FILES, entries)


def changed(**fields: Any) -> bytes:
    raw = json.loads(encode_manifest(manifest()))
    return json.dumps(raw | fields).encode()


def test_what_is_written_is_read_again() -> None:
    written = encode_manifest(manifest())

    assert parse_manifest(written) == manifest()
    assert encode_manifest(parse_manifest(written)) == written


def test_its_root_is_that_of_its_files_and_parts() -> None:
    known = manifest()

    assert known.root == model_root(FILES, known.part_digests(), 2)
    assert set(known.part_digests()) == {"embed", "layers.0", "layers.1", "norm", "head"}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    written = encode_manifest(manifest())
    spoiled = bytearray(written)
    spoiled[data.draw(st.integers(0, len(written) - 1))] ^= 1 << data.draw(st.integers(0, 6))

    try:
        read = parse_manifest(bytes(spoiled))
    except ModelError:
        return
    # Where a shard lay is only a hint, and white space is none of anyone's business.
    assert read.root == manifest().root
    assert read.part_digests() == manifest().part_digests()
    assert read.files == manifest().files


@pytest.mark.parametrize(
    "spoiled",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"format": "butterfly.manifest"}',
        b"[" * 100_000,
        changed(version=2),
        changed(leaf_bytes=1),
        changed(root="00" * 32),
        changed(layer_count=3),
        changed(layer_count=0),
        changed(layer_count=True),
        changed(layer_count="2"),
        changed(files={}),
        changed(files=[]),
        changed(files={"config.json": "xy"}),
        changed(tensors=[]),
        changed(tensors=[{"name": "x"}]),
        changed(tensors=json.loads(encode_manifest(manifest()))["tensors"] * 2),
    ],
)
def test_what_is_not_a_whole_manifest_is_refused(spoiled: bytes) -> None:
    with pytest.raises(ModelError):
        parse_manifest(spoiled)


@pytest.mark.parametrize(
    "fields", [{"bytes": 5}, {"shape": [-1]}, {"dtype": "X9"}, {"leaves": ""}, {"offset": "1"}]
)
def test_a_tensor_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    raw = json.loads(encode_manifest(manifest()))
    raw["tensors"][0] |= fields

    with pytest.raises(ModelError):
        parse_manifest(json.dumps(raw).encode())
