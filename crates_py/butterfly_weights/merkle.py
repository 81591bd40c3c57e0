"""How bytes become one root: BLAKE3 in the shape of RFC 6962's trees. Pure.

``leaf = H(0x00 ‖ data)``, ``node = H(0x01 ‖ left ‖ right)``, split at the largest power of two
below the count, the empty tree is ``H("")``. H is BLAKE3-256 in derive-key mode with a context
of its own per kind, so a digest of one kind can never pass for one of another.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from blake3 import blake3

from butterfly_core.layers import all_parts

LEAF_BYTES = 4 << 20
FORMAT_VERSION = 1


class Kind(Enum):
    """What a digest is of; the value is the derive-key context."""

    LEAF = "butterfly weights 2026 v1: leaf of a tensor"
    TENSOR = "butterfly weights 2026 v1: tensor"
    LAYER = "butterfly weights 2026 v1: layer"
    FILE = "butterfly weights 2026 v1: small file"
    MODEL = "butterfly weights 2026 v1: model"


def hash_of(kind: Kind, data: bytes) -> bytes:
    """32 bytes."""
    return blake3(data, derive_key_context=kind.value).digest()


class LeafHasher:
    """Digest of one leaf whose bytes come in portions."""

    __slots__ = ("_hasher",)

    def __init__(self) -> None:
        self._hasher = blake3(b"\x00", derive_key_context=Kind.LEAF.value)

    def update(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)

    def digest(self) -> bytes:
        return self._hasher.digest()


def leaf_digest(chunk: bytes | memoryview) -> bytes:
    """Digest of at most LEAF_BYTES bytes of one tensor."""
    hasher = LeafHasher()
    hasher.update(chunk)
    return hasher.digest()


def tree_root(kind: Kind, leaves: Sequence[bytes]) -> bytes:
    """Root over digests that are already leaves (RFC 6962 §2.1 without its first hash)."""
    if not leaves:
        return hash_of(kind, b"")
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    left, right = tree_root(kind, leaves[:half]), tree_root(kind, leaves[half:])
    return hash_of(kind, b"\x01" + left + right)


def _tree_over(kind: Kind, entries: Iterable[bytes]) -> bytes:
    return tree_root(kind, [hash_of(kind, b"\x00" + entry) for entry in entries])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded


def tensor_digest(
    name: str, dtype: str, shape: Sequence[int], nbytes: int, leaves: Sequence[bytes]
) -> bytes:
    """Digest of a tensor: its name, type, shape and size bound to the tree over its leaves."""
    root = tree_root(Kind.LEAF, leaves)
    return tensor_digest_of_root(name, dtype, shape, nbytes, root)


def tensor_digest_of_root(
    name: str, dtype: str, shape: Sequence[int], nbytes: int, root: bytes
) -> bytes:
    """The same from the root of the tree over its leaves."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    size = struct.pack("<Q", nbytes)
    return hash_of(Kind.TENSOR, _text(name) + _text(dtype) + dimensions + size + root)


def part_digest(tensor_digests: Mapping[str, bytes]) -> bytes:
    """Digest of a part (a layer, embed, norm, head) from its tensors' names and digests."""
    return _tree_over(Kind.LAYER, (tensor_digests[name] for name in sorted(tensor_digests)))


def file_digest(name: str, content: bytes) -> bytes:
    """Digest of a small file, bound to its name."""
    return hash_of(Kind.FILE, _text(name) + content)


def root_of(
    file_digests: Mapping[str, bytes], part_digests: Mapping[str, bytes], layer_count: int
) -> bytes:
    """The model's root. Parts that are absent count as parts without tensors."""
    empty = part_digest({})
    layers = _tree_over(
        Kind.MODEL, (part_digests.get(part, empty) for part in all_parts(layer_count))
    )
    return root_of_trees(files_root(file_digests), layers)


def files_root(file_digests: Mapping[str, bytes]) -> bytes:
    """Root over a model's small files."""
    return _tree_over(
        Kind.MODEL, (_text(name) + file_digests[name] for name in sorted(file_digests))
    )


def root_of_trees(files: bytes, layers: bytes) -> bytes:
    """The model's root from the roots over its small files and over its parts."""
    return hash_of(Kind.MODEL, struct.pack("<I", FORMAT_VERSION) + files + layers)


def model_root(
    small_files: Mapping[str, bytes], part_digests: Mapping[str, str], layer_count: int
) -> str:
    """Root (hex) of a model from its small files' contents and its parts' digests (hex)."""
    files = {name: file_digest(name, content) for name, content in small_files.items()}
    parts = {part: bytes.fromhex(digest) for part, digest in part_digests.items()}
    return root_of(files, parts, layer_count).hex()


def leaf_count(nbytes: int) -> int:
    """How many leaves a tensor of this size has."""
    return -(-nbytes // LEAF_BYTES)
