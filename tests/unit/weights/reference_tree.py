"""The manifest's tree written a second time, from the words of the specification alone: no code
is shared with butterfly_weights, so that an error there cannot prove itself right."""

import struct
from collections.abc import Mapping, Sequence

import blake3

LEAF = 4 * 1024 * 1024
CONTEXT = "butterfly weights 2026 v1: "


def h(kind: str, data: bytes) -> bytes:
    hasher = blake3.blake3(derive_key_context=CONTEXT + kind)
    hasher.update(data)
    return hasher.digest()


def mth(kind: str, hashed: Sequence[bytes]) -> bytes:
    """RFC 6962 bottom-up: pair neighbours, carry an odd one up."""
    if not hashed:
        return h(kind, b"")
    level = list(hashed)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [h(kind, b"\1" + b"".join(p)) if len(p) == 2 else p[0] for p in pairs]
    return level[0]


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def tensor(name: str, dtype: str, shape: Sequence[int], data: bytes) -> bytes:
    chunks = [data[i : i + LEAF] for i in range(0, len(data), LEAF)]
    root = mth("leaf of a tensor", [h("leaf of a tensor", b"\0" + chunk) for chunk in chunks])
    return tensor_of_root(name, dtype, shape, len(data), root)


def tensor_of_root(name: str, dtype: str, shape: Sequence[int], size: int, root: bytes) -> bytes:
    numbers = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    return h("tensor", text(name) + text(dtype) + numbers + struct.pack("<Q", size) + root)


def layer(tensors: Mapping[str, bytes]) -> bytes:
    return mth("layer", [h("layer", b"\0" + tensors[name]) for name in sorted(tensors)])


def model(files: Mapping[str, bytes], layers: Sequence[bytes]) -> bytes:
    """``layers``: embed, 0 … L-1, norm, head."""
    entries = [text(n) + h("small file", text(n) + files[n]) for n in sorted(files)]
    tops = [mth("model", [h("model", b"\0" + e) for e in group]) for group in (entries, layers)]
    return h("model", struct.pack("<I", 1) + b"".join(tops))


def path(kind: str, hashed: Sequence[bytes], index: int) -> list[bytes]:
    """RFC 6962's audit path, level by level: the neighbour, where there is one."""
    found, level = [], list(hashed)
    while len(level) > 1:
        if index ^ 1 < len(level):
            found.append(level[index ^ 1])
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [h(kind, b"\1" + b"".join(p)) if len(p) == 2 else p[0] for p in pairs]
        index //= 2
    return found


def root_from_path(
    kind: str, hashed: bytes, index: int, count: int, siblings: Sequence[bytes]
) -> bytes | None:
    """RFC 9162 §2.1.3.2, word for word."""
    if index >= count:
        return None
    node, last, seen = index, count - 1, hashed
    for sibling in siblings:
        if last == 0:
            return None
        if node & 1 or node == last:
            seen = h(kind, b"\1" + sibling + seen)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            seen = h(kind, b"\1" + seen + sibling)
        node, last = node >> 1, last >> 1
    return seen if last == 0 else None
