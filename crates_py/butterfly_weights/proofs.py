"""Short proofs that a leaf belongs to a model: RFC 6962 audit paths through three trees. Pure.

Who knows a model's root and its number of layers can check any leaf with some hundred bytes of
proof, without the manifest. Nothing in a proof is believed: whatever is changed in it gives
another root.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from butterfly_core.errors import ModelError
from butterfly_core.layers import all_parts, part_of_tensor
from butterfly_weights import merkle
from butterfly_weights.manifest import Manifest, part_digests
from butterfly_weights.merkle import LEAF_BYTES, Kind
from butterfly_weights.safetensors_header import parse_json_object
from butterfly_weights.tensors import bytes_of

PROOF_BYTES_MAX = 64 << 10
_FORMAT = "butterfly.proof"
_DEPTH_MAX = 64
_DIMENSIONS_MAX = 64
_DIGEST_BYTES = 32


def audit_path(kind: Kind, leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """PATH(index, leaves) of RFC 6962 §2.1.1 over digests that are already leaves; the sibling
    next to the leaf first."""
    if len(leaves) == 1:
        return ()
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < half:
        return (
            *audit_path(kind, leaves[:half], index),
            merkle.tree_root(kind, leaves[half:]),
        )
    return (
        *audit_path(kind, leaves[half:], index - half),
        merkle.tree_root(kind, leaves[:half]),
    )


def sides_of(index: int, count: int) -> tuple[bool, ...]:
    """For each step of the path of a leaf: True when the sibling is to the left."""
    if count == 1:
        return ()
    half = 1 << ((count - 1).bit_length() - 1)
    if index < half:
        return (*sides_of(index, half), False)
    return (*sides_of(index - half, count - half), True)


def climb(kind: Kind, leaf: bytes, sides: Sequence[bool], path: Sequence[bytes]) -> bytes:
    """The root that a leaf and its path make."""
    digest = leaf
    for is_left, sibling in zip(sides, path, strict=True):
        pair = sibling + digest if is_left else digest + sibling
        digest = merkle.hash_of(kind, b"\x01" + pair)
    return digest


@dataclass(frozen=True, slots=True)
class LeafProof:
    """Leaf ``index`` of a tensor. The tensor's digest covers all of it, so also how many leaves
    there are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    index: int
    path: tuple[bytes, ...]

    @property
    def start(self) -> int:
        """Where the leaf begins in the tensor, in bytes."""
        return self.index * LEAF_BYTES

    @property
    def leaf_bytes(self) -> int:
        return min(LEAF_BYTES, self.nbytes - self.start)

    def tensor_digest(self, leaf: bytes) -> bytes | None:
        """The digest of the tensor that has this leaf there; None when none can have it."""
        count = merkle.leaf_count(self.nbytes)
        if not 0 <= self.index < count:
            return None
        sides = sides_of(self.index, count)
        if len(sides) != len(self.path):
            return None
        root = climb(Kind.LEAF, leaf, sides, self.path)
        return merkle.tensor_digest_of_root(self.name, self.dtype, self.shape, self.nbytes, root)


@dataclass(frozen=True, slots=True)
class TensorProof:
    """A tensor of a part. ``sides`` and not a number: a part's root does not say how many
    tensors it has, so a number could be changed without a trace."""

    sides: tuple[bool, ...]
    path: tuple[bytes, ...]

    def part_digest(self, tensor: bytes) -> bytes | None:
        """The digest of the part that has this tensor there."""
        if len(self.sides) != len(self.path):
            return None
        entry = merkle.hash_of(Kind.LAYER, b"\x00" + tensor)
        return climb(Kind.LAYER, entry, self.sides, self.path)


@dataclass(frozen=True, slots=True)
class PartProof:
    """A part of a model; ``files`` is the root over its small files."""

    files: bytes
    path: tuple[bytes, ...]

    def model_root(self, part: str, digest: bytes, layer_count: int) -> bytes | None:
        """The root of the model that has this part; None when it has no part of that name."""
        parts = all_parts(layer_count)
        if part not in parts:
            return None
        sides = sides_of(parts.index(part), len(parts))
        if len(sides) != len(self.path):
            return None
        entry = merkle.hash_of(Kind.MODEL, b"\x00" + digest)
        return merkle.root_of_trees(self.files, climb(Kind.MODEL, entry, sides, self.path))


@dataclass(frozen=True, slots=True)
class Proof:
    """From one leaf up to the model's root."""

    leaf: LeafProof
    tensor: TensorProof
    part: PartProof

    def proves(self, chunk: bytes | memoryview, root: str, layer_count: int) -> bool:
        """True when these bytes are that leaf of the model with this root (hex)."""
        view = memoryview(chunk)
        if view.nbytes != self.leaf.leaf_bytes:
            return False
        return self.proves_digest(merkle.leaf_digest(view), root, layer_count)

    def proves_digest(self, digest: bytes, root: str, layer_count: int) -> bool:
        """The same for who has the leaf's digest only."""
        tensor = self.leaf.tensor_digest(digest)
        part = self.tensor.part_digest(tensor) if tensor else None
        if part is None:
            return False
        name = part_of_tensor(self.leaf.name)
        seen = self.part.model_root(name, part, layer_count)
        return seen is not None and seen.hex() == root


def prove_leaf(manifest: Manifest, tensor: str, index: int) -> Proof:
    """The proof of one leaf. Raises ModelError when the manifest has no such leaf."""
    entry = manifest.tensors.get(tensor)
    if entry is None or not 0 <= index < len(entry.leaves):
        raise ModelError(f"the manifest has no leaf {index} of a tensor {tensor!r}")
    info = entry.info
    path = audit_path(Kind.LEAF, entry.leaves, index)
    leaf = LeafProof(info.name, info.dtype, info.shape, info.nbytes, index, path)
    return Proof(leaf, prove_tensor(manifest, tensor), prove_part(manifest, info.part))


def prove_tensor(manifest: Manifest, tensor: str) -> TensorProof:
    """The proof of a tensor in its part."""
    part = manifest.tensors[tensor].info.part
    names = sorted(name for name, entry in manifest.tensors.items() if entry.info.part == part)
    entries = [merkle.hash_of(Kind.LAYER, b"\x00" + manifest.tensors[n].digest) for n in names]
    index = names.index(tensor)
    return TensorProof(sides_of(index, len(names)), audit_path(Kind.LAYER, entries, index))


def prove_part(manifest: Manifest, part: str) -> PartProof:
    """The proof of a part in the model."""
    parts = all_parts(manifest.layer_count)
    tensors = {name: entry.digest for name, entry in manifest.tensors.items()}
    digests = part_digests(tensors, parts)
    entries = [merkle.hash_of(Kind.MODEL, b"\x00" + bytes.fromhex(digests[p])) for p in parts]
    path = audit_path(Kind.MODEL, entries, parts.index(part))
    return PartProof(merkle.files_root(manifest.files), path)


def encode_proof(proof: Proof) -> bytes:
    """JSON; the same proof always gives the same bytes."""
    leaf = proof.leaf
    whole = {
        "format": _FORMAT,
        "version": merkle.FORMAT_VERSION,
        "tensor": leaf.name,
        "dtype": leaf.dtype,
        "shape": list(leaf.shape),
        "bytes": leaf.nbytes,
        "leaf": leaf.index,
        "leaf_path": _hex(leaf.path),
        "tensor_sides": "".join("L" if is_left else "R" for is_left in proof.tensor.sides),
        "tensor_path": _hex(proof.tensor.path),
        "files": proof.part.files.hex(),
        "part_path": _hex(proof.part.path),
    }
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def parse_proof(data: bytes) -> Proof:
    """Read a proof; it still has to prove something. Raises ModelError."""
    if len(data) > PROOF_BYTES_MAX:
        raise ModelError(f"a proof of {len(data)} bytes; at most {PROOF_BYTES_MAX} are read")
    raw = parse_json_object(data, "the proof")
    if (raw.get("format"), raw.get("version")) != (_FORMAT, merkle.FORMAT_VERSION):
        raise ModelError(f"the proof is not of {_FORMAT} version {merkle.FORMAT_VERSION}")
    try:
        return _parsed(raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"the proof is malformed: {error!r}") from None


def _parsed(raw: Mapping[str, Any]) -> Proof:
    shape = tuple(raw["shape"])
    numbers = (*shape, raw["bytes"], raw["leaf"])
    if len(shape) > _DIMENSIONS_MAX or not all(
        type(number) is int and 0 <= number < 1 << 62 for number in numbers
    ):
        raise ValueError("a shape, size or index is no count")
    name, dtype, sides = raw["tensor"], raw["dtype"], raw["tensor_sides"]
    if not all(isinstance(text, str) for text in (name, dtype, sides)):
        raise ValueError("a name, type or side is no text")
    if len(sides) > _DEPTH_MAX or not set(sides) <= {"L", "R"}:
        raise ValueError(f"sides are at most {_DEPTH_MAX} letters L and R")
    if bytes_of(dtype, shape) != raw["bytes"]:
        raise ValueError(f"{name} has {raw['bytes']} bytes")
    leaf = LeafProof(name, dtype, shape, raw["bytes"], raw["leaf"], _digests(raw["leaf_path"]))
    tensor = TensorProof(tuple(side == "L" for side in sides), _digests(raw["tensor_path"]))
    (files,) = _digests([raw["files"]])
    return Proof(leaf, tensor, PartProof(files, _digests(raw["part_path"])))


def _hex(digests: Sequence[bytes]) -> list[str]:
    return [digest.hex() for digest in digests]


def _digests(listed: Any) -> tuple[bytes, ...]:
    if not isinstance(listed, list) or len(listed) > _DEPTH_MAX:
        raise ValueError(f"a path is a list of at most {_DEPTH_MAX} digests")
    found = tuple(bytes.fromhex(text) for text in listed)
    if any(
        len(digest) != _DIGEST_BYTES or digest.hex() != text
        for digest, text in zip(found, listed, strict=True)
    ):
        raise ValueError(f"a digest has {_DIGEST_BYTES} bytes in lower-case hexadecimal digits")
    return found
