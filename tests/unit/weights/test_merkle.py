"""The tree: golden vectors, an independent implementation, and what it must tell apart."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.layers import all_parts
from butterfly_weights import merkle
from butterfly_weights.merkle import LEAF_BYTES, Kind, leaf_digest, model_root, tensor_digest
from tests.unit.weights import reference_tree as reference

GOLDEN = json.loads((Path(__file__).parent / "golden_digests.json").read_text())


def pattern(count: int) -> bytes:
    """Bytes that anyone can make again: SHAKE-128 of b"butterfly"."""
    return hashlib.shake_128(b"butterfly").digest(count)


def digest_of(name: str, data: bytes) -> bytes:
    leaves = [leaf_digest(data[i : i + LEAF_BYTES]) for i in range(0, len(data), LEAF_BYTES)]
    return tensor_digest(name, "U8", [len(data)], len(data), leaves)


@pytest.mark.parametrize("size", [0, 1, 4096, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES - 7])
def test_a_tensor_has_the_golden_digest(size: int) -> None:
    data = pattern(size)

    assert digest_of("t", data).hex() == GOLDEN["tensor"][str(size)]
    assert reference.tensor("t", "U8", [size], data) == digest_of("t", data)


def test_a_model_has_the_golden_root() -> None:
    names = ("model.embed_tokens.weight", "model.layers.0.b", "model.layers.0.a", "lm_head.weight")
    tensors = {name: digest_of(name, name.encode()) for name in names}
    layer = merkle.part_digest({n: d for n, d in tensors.items() if ".layers." in n})
    parts = {
        "embed": merkle.part_digest({names[0]: tensors[names[0]]}).hex(),
        "layers.0": layer.hex(),
        "head": merkle.part_digest({names[3]: tensors[names[3]]}).hex(),
    }
    files = {"config.json": b"{}", "tokenizer.json": b"[]"}

    root = model_root(files, parts, 1)

    assert root == GOLDEN["model"]
    by_hand = [
        reference.layer({n: reference.tensor(n, "U8", [len(n)], n.encode()) for n in own})
        for own in (names[:1], names[1:3], (), names[3:])
    ]
    assert root == reference.model(files, by_hand).hex()


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=40), st.sampled_from(list(Kind)))
@settings(max_examples=50, deadline=None)
def test_any_tree_equals_the_independent_one(leaves: list[bytes], kind: Kind) -> None:
    name = kind.value.removeprefix(reference.CONTEXT)

    assert merkle.tree_root(kind, leaves) == reference.mth(name, leaves)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=9, unique=True))
@settings(max_examples=50, deadline=None)
def test_order_and_number_of_leaves_change_a_root(leaves: list[bytes]) -> None:
    root = merkle.tree_root(Kind.LAYER, leaves)

    assert root != merkle.tree_root(Kind.LAYER, leaves[::-1])
    assert root != merkle.tree_root(Kind.LAYER, leaves[:-1])
    assert root != merkle.tree_root(Kind.LAYER, [*leaves, leaves[-1]])
    assert root != merkle.tree_root(Kind.MODEL, leaves)


def test_a_digest_binds_name_type_shape_and_size() -> None:
    leaf = [leaf_digest(b"abcd")]
    base = tensor_digest("t", "U8", [4], 4, leaf)
    others = [
        tensor_digest("u", "U8", [4], 4, leaf),
        tensor_digest("t", "I8", [4], 4, leaf),
        tensor_digest("t", "U8", [2, 2], 4, leaf),
        tensor_digest("t", "U8", [4], 5, leaf),
        tensor_digest("tU", "8", [4], 4, leaf),
    ]

    assert len({base, *others}) == 6


def test_bytes_in_portions_hash_as_a_whole() -> None:
    hasher = merkle.LeafHasher()
    for portion in (b"ab", b"", b"cde"):
        hasher.update(portion)

    assert hasher.digest() == leaf_digest(b"abcde")


def test_a_root_covers_names_and_contents_of_small_files() -> None:
    parts = {part: leaf_digest(part.encode()).hex() for part in all_parts(2)}
    roots = {
        model_root(files, parts, 2)
        for files in ({}, {"a": b"1"}, {"b": b"1"}, {"a": b"2"}, {"a": b"1", "b": b""})
    }

    assert len(roots) == 5
