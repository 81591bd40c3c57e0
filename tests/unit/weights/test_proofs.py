"""Proofs: golden ones, an independent implementation, and that nothing changed in one verifies."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import ModelError
from butterfly_core.layers import all_parts
from butterfly_weights import merkle
from butterfly_weights.manifest import Manifest, TensorEntry, entry_of, make_manifest
from butterfly_weights.merkle import LEAF_BYTES, Kind, leaf_digest
from butterfly_weights.proofs import (
    PROOF_BYTES_MAX,
    Proof,
    audit_path,
    climb,
    encode_proof,
    parse_proof,
    prove_leaf,
    sides_of,
)
from butterfly_weights.tensors import TensorInfo
from tests.unit.weights import reference_tree as reference
from tests.unit.weights.test_merkle import pattern

GOLDEN = json.loads((Path(__file__).parent / "golden_proofs.json").read_text())
LAYERS = 3
SIZES = {
    "model.embed_tokens.weight": 2 * LEAF_BYTES + 5,
    "model.layers.0.a.weight": 7,
    "model.layers.0.b.weight": 2 * LEAF_BYTES,
    "model.layers.0.c.weight": 1,
    "model.layers.1.a.weight": 4096,
    "model.layers.2.a.weight": 4097,
    "model.layers.2.b.weight": 12,
    "model.norm.weight": 3,
}
FILES = {"config.json": b"{}", "tokenizer.json": b"[]"}

digests = st.binary(min_size=32, max_size=32)
trees = st.lists(digests, min_size=1, max_size=40, unique=True)


@cache
def model() -> Manifest:
    return make_manifest(LAYERS, FILES, [entry(name) for name in SIZES])


@cache
def chunks(name: str) -> list[bytes]:
    content = name.encode() + pattern(SIZES[name])[len(name) :]
    data = content[: SIZES[name]]
    return [data[i : i + LEAF_BYTES] for i in range(0, len(data), LEAF_BYTES)]


def entry(name: str) -> TensorEntry:
    size = SIZES[name]
    info = TensorInfo(name, "U8", (size,), size, "model.safetensors", 0)
    return entry_of(info, [leaf_digest(chunk) for chunk in chunks(name)])


def proves(proof: Proof, chunk: bytes) -> bool:
    return proof.proves(chunk, model().root, LAYERS)


LEAVES = [(name, index) for name in SIZES for index in range(merkle.leaf_count(SIZES[name]))]
leaves = st.sampled_from(LEAVES)


@pytest.mark.parametrize(("name", "index"), LEAVES)
def test_every_leaf_of_a_model_is_proven_by_some_hundred_bytes(name: str, index: int) -> None:
    proof = prove_leaf(model(), name, index)

    assert proves(proof, chunks(name)[index])
    assert parse_proof(encode_proof(proof)) == proof
    assert len(encode_proof(proof)) < 1200


def test_proofs_are_the_golden_ones() -> None:
    made = {f"{n} {i}": json.loads(encode_proof(prove_leaf(model(), n, i))) for n, i in LEAVES}

    assert made == GOLDEN["proofs"]
    assert model().root == GOLDEN["root"]


def test_golden_proofs_verify_by_the_independent_implementation() -> None:
    for told, raw in GOLDEN["proofs"].items():
        name, index = told.split(" ")
        data = chunks(name)[int(index)]

        assert reference_root(raw, data) == bytes.fromhex(GOLDEN["root"])


def reference_root(raw: Mapping[str, object], chunk: bytes) -> bytes:
    """The whole climb again, from the specification's words."""

    def siblings(key: str) -> list[bytes]:
        listed = raw[key]
        assert isinstance(listed, list)
        return [bytes.fromhex(text) for text in listed]

    leaf = reference.h("leaf of a tensor", b"\0" + chunk)
    size, index, name = raw["bytes"], raw["leaf"], raw["tensor"]
    assert isinstance(size, int)
    assert isinstance(index, int)
    assert isinstance(name, str)
    count = -(-size // LEAF_BYTES)
    top = reference.root_from_path("leaf of a tensor", leaf, index, count, siblings("leaf_path"))
    assert top is not None
    tensor = reference.tensor_of_root(name, "U8", [size], size, top)
    same_part = sorted(n for n in SIZES if n.split(".")[1:3] == name.split(".")[1:3])
    place = same_part.index(name)
    part = reference.root_from_path(
        "layer",
        reference.h("layer", b"\0" + tensor),
        place,
        len(same_part),
        siblings("tensor_path"),
    )
    assert part is not None
    order = ["embed_tokens", "0", "1", "2", "norm", "head"]
    kind = name.split(".")[2] if ".layers." in name else name.split(".")[1]
    layers = reference.root_from_path(
        "model",
        reference.h("model", b"\0" + part),
        order.index(kind),
        len(order),
        siblings("part_path"),
    )
    assert layers is not None
    assert isinstance(raw["files"], str)
    return reference.h("model", b"\1\0\0\0" + bytes.fromhex(raw["files"]) + layers)


@given(trees, st.data(), st.sampled_from(list(Kind)))
@settings(max_examples=100, deadline=None)
def test_any_path_equals_the_independent_one(
    leaves: list[bytes], data: st.DataObject, kind: Kind
) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    name = kind.value.removeprefix(reference.CONTEXT)

    path = audit_path(kind, leaves, index)

    assert list(path) == reference.path(name, leaves, index)
    root = climb(kind, leaves[index], sides_of(index, len(leaves)), path)
    assert root == merkle.tree_root(kind, leaves)
    assert root == reference.root_from_path(name, leaves[index], index, len(leaves), path)


@given(trees, st.data())
@settings(max_examples=100, deadline=None)
def test_no_two_leaves_of_a_tree_have_the_same_way_up(
    leaves: list[bytes], data: st.DataObject
) -> None:
    numbers = range(len(leaves))

    assert len({sides_of(number, len(leaves)) for number in numbers}) == len(leaves)


@given(leaves, st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_never_verifies(leaf: tuple[str, int], data: st.DataObject) -> None:
    name, index = leaf
    chunk = bytearray(chunks(name)[index])
    chunk[data.draw(st.integers(0, len(chunk) - 1))] ^= data.draw(st.integers(1, 255))

    assert not proves(prove_leaf(model(), name, index), bytes(chunk))


@given(leaves)
@settings(max_examples=30, deadline=None)
def test_a_changed_length_never_verifies(leaf: tuple[str, int]) -> None:
    name, index = leaf
    chunk, proof = chunks(name)[index], prove_leaf(model(), name, index)

    assert not proves(proof, chunk[:-1])
    assert not proves(proof, chunk + b"\0")
    assert not proof.proves(chunk, model().root, LAYERS + 5)


@given(leaves, st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_proof_never_verifies(leaf: tuple[str, int], data: st.DataObject) -> None:
    name, index = leaf
    chunk, whole = chunks(name)[index], encode_proof(prove_leaf(model(), name, index))
    place = data.draw(st.integers(0, len(whole) - 1))
    forged = bytearray(whole)
    forged[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))

    try:
        proof = parse_proof(bytes(forged))
    except ModelError:
        return
    assert not proves(proof, chunk)


@given(leaves, st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_index_sibling_or_path_length_never_verifies(
    leaf: tuple[str, int], data: st.DataObject
) -> None:
    name, index = leaf
    proof, chunk = prove_leaf(model(), name, index), chunks(name)[index]
    step = data.draw(st.sampled_from(["leaf", "tensor", "part"]))
    path: tuple[bytes, ...] = getattr(proof, step).path
    foreign = data.draw(digests)
    other = data.draw(st.integers(-2, 9).filter(lambda number: number != index))
    longer = replace(getattr(proof, step), path=(*path, foreign))
    forged = [
        replace(proof, leaf=replace(proof.leaf, index=other)),
        replace(proof, **{step: longer}),
    ]
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        swapped = (*path[:at], foreign, *path[at + 1 :])
        forged.append(replace(proof, **{step: replace(getattr(proof, step), path=swapped)}))
        shorter = replace(getattr(proof, step), path=path[1:])
        forged.append(replace(proof, **{step: shorter}))
    if proof.tensor.sides:
        sides = list(proof.tensor.sides)
        sides[0] = not sides[0]
        forged.append(replace(proof, tensor=replace(proof.tensor, sides=tuple(sides))))

    assert not any(proves(one, chunk) for one in forged)


def test_a_proof_is_for_its_own_tensor_leaf_and_root() -> None:
    proof = prove_leaf(model(), "model.layers.0.b.weight", 1)
    chunk = chunks("model.layers.0.b.weight")[1]

    assert proves(proof, chunk)
    assert not proof.proves(chunk, "0" * 64, LAYERS)
    for name in set(SIZES) - {"model.layers.0.b.weight"}:
        assert not proves(replace(proof, leaf=replace(proof.leaf, name=name)), chunk)
    for part in all_parts(LAYERS):
        assert part == "layers.0" or not proves(
            replace(proof, leaf=replace(proof.leaf, name=f"model.{part}.b.weight")), chunk
        )


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"shape": [-1]},
        {"shape": [True]},
        {"shape": [1] * 65},
        {"bytes": 8},
        {"leaf": "0"},
        {"leaf": 1 << 62},
        {"dtype": "U9"},
        {"tensor": 5},
        {"tensor_sides": "LX"},
        {"tensor_sides": ["L"]},
        {"tensor_sides": "L" * 65},
        {"leaf_path": ["00"]},
        {"leaf_path": ["zz" * 32]},
        {"leaf_path": ["AB" * 32]},
        {"part_path": ["00" * 32] * 65},
        {"part_path": "0"},
        {"files": None},
    ],
)
def test_a_malformed_proof_is_refused(change: dict[str, object]) -> None:
    raw = json.loads(encode_proof(prove_leaf(model(), "model.layers.0.a.weight", 0)))

    with pytest.raises(ModelError):
        parse_proof(json.dumps({**raw, **change}).encode())


def test_a_proof_has_a_limit_and_needs_a_leaf() -> None:
    with pytest.raises(ModelError, match="at most"):
        parse_proof(b" " * (PROOF_BYTES_MAX + 1))
    with pytest.raises(ModelError, match="no leaf 1"):
        prove_leaf(model(), "model.norm.weight", 1)
    with pytest.raises(ModelError, match="no leaf 0"):
        prove_leaf(model(), "nobody", 0)
