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
    numbers = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    return h("tensor", text(name) + text(dtype) + numbers + struct.pack("<Q", len(data)) + root)


def layer(tensors: Mapping[str, bytes]) -> bytes:
    return mth("layer", [h("layer", b"\0" + tensors[name]) for name in sorted(tensors)])


def model(files: Mapping[str, bytes], layers: Sequence[bytes]) -> bytes:
    """``layers``: embed, 0 … L-1, norm, head."""
    entries = [text(n) + h("small file", text(n) + files[n]) for n in sorted(files)]
    tops = [mth("model", [h("model", b"\0" + e) for e in group]) for group in (entries, layers)]
    return h("model", struct.pack("<I", 1) + b"".join(tops))
