"""``butterfly.manifest.json``: the digests that a model's bytes must have. Pure."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from butterfly_core.errors import ModelError
from butterfly_core.layers import all_parts
from butterfly_weights import merkle
from butterfly_weights.errors import shown
from butterfly_weights.safetensors_header import parse_json_object
from butterfly_weights.tensors import TensorInfo, bytes_of

MANIFEST_NAME = "butterfly.manifest.json"
MANIFEST_BYTES_MAX = 256 << 20
_FORMAT = "butterfly.manifest"
_HEX = re.compile(r"(?:[0-9a-f]{64})*")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor's digest and those of its leaves; where it lay when the manifest was made."""

    info: TensorInfo
    leaves: tuple[bytes, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """``root`` (hex) covers everything else but shard names and offsets."""

    root: str
    layer_count: int
    files: Mapping[str, bytes]
    tensors: Mapping[str, TensorEntry]

    @property
    def total_bytes(self) -> int:
        return sum(entry.info.nbytes for entry in self.tensors.values())

    def part_digests(self) -> dict[str, str]:
        """Digest (hex) of every part of the model."""
        digests = {name: entry.digest for name, entry in self.tensors.items()}
        return part_digests(digests, all_parts(self.layer_count))


def entry_of(info: TensorInfo, leaves: Iterable[bytes]) -> TensorEntry:
    """A tensor's entry from the digests of its leaves."""
    known = tuple(leaves)
    digest = merkle.tensor_digest(info.name, info.dtype, info.shape, info.nbytes, known)
    return TensorEntry(info, known, digest)


def part_digests(tensor_digests: Mapping[str, bytes], parts: Iterable[str]) -> dict[str, str]:
    """Digest (hex) of each of the parts from the digests of (at least) their tensors."""
    by_part: dict[str, dict[str, bytes]] = {part: {} for part in parts}
    for name, digest in tensor_digests.items():
        part = TensorInfo(name, "", (), 0, "", 0).part
        if part in by_part:
            by_part[part][name] = digest
    return {part: merkle.part_digest(own).hex() for part, own in by_part.items()}


def make_manifest(
    layer_count: int, small_files: Mapping[str, bytes], entries: Iterable[TensorEntry]
) -> Manifest:
    """The manifest of a model; small files by content."""
    files = {name: merkle.file_digest(name, content) for name, content in small_files.items()}
    tensors = {entry.info.name: entry for entry in entries}
    return Manifest(_root(layer_count, files, tensors), layer_count, files, tensors)


def _root(layer_count: int, files: Mapping[str, bytes], tensors: Mapping[str, TensorEntry]) -> str:
    digests = part_digests(
        {name: entry.digest for name, entry in tensors.items()}, all_parts(layer_count)
    )
    parts = {part: bytes.fromhex(digest) for part, digest in digests.items()}
    return merkle.root_of(files, parts, layer_count).hex()


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON; the same manifest always gives the same bytes."""
    tensors = [
        {
            "name": entry.info.name,
            "dtype": entry.info.dtype,
            "shape": list(entry.info.shape),
            "bytes": entry.info.nbytes,
            "shard": entry.info.shard,
            "offset": entry.info.offset,
            "digest": entry.digest.hex(),
            "leaves": b"".join(entry.leaves).hex(),
        }
        for _, entry in sorted(manifest.tensors.items())
    ]
    whole = {
        "format": _FORMAT,
        "version": merkle.FORMAT_VERSION,
        "leaf_bytes": merkle.LEAF_BYTES,
        "root": manifest.root,
        "layer_count": manifest.layer_count,
        "total_bytes": manifest.total_bytes,
        "files": {name: digest.hex() for name, digest in sorted(manifest.files.items())},
        "tensors": tensors,
    }
    return json.dumps(whole, indent=0, ensure_ascii=False).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest and prove that its digests give its root. Raises ModelError."""
    raw = parse_json_object(data, MANIFEST_NAME)
    expected = (_FORMAT, merkle.FORMAT_VERSION, merkle.LEAF_BYTES)
    if (raw.get("format"), raw.get("version"), raw.get("leaf_bytes")) != expected:
        raise ModelError(
            f"{MANIFEST_NAME}: format, version and leaf_bytes must be {expected}; make it again "
            "with this version: butterfly-admin manifest create"
        )
    try:
        layer_count = raw["layer_count"]
        files = {str(name): _digests(digest, 1)[0] for name, digest in raw["files"].items()}
        entries = [_parse_entry(item) for item in raw["tensors"]]
        root = str(raw["root"])
        if type(layer_count) is not int or not 0 < layer_count <= 100_000:
            raise ValueError(f"layer_count {layer_count!r}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"{MANIFEST_NAME} is malformed: {shown(error)}") from None
    tensors = {entry.info.name: entry for entry in entries}
    if len(tensors) != len(entries):
        raise ModelError(f"{MANIFEST_NAME} names a tensor twice")
    seen = _root(layer_count, files, tensors)
    if seen != root:
        raise ModelError(
            f"{MANIFEST_NAME} is damaged: its digests give the root {seen}, but it says "
            f"{shown(root)}"
        )
    return Manifest(root, layer_count, files, tensors)


def _parse_entry(item: Mapping[str, Any]) -> TensorEntry:
    shape = tuple(item["shape"])
    nbytes, offset = item["bytes"], item["offset"]
    if not all(
        type(number) is int and 0 <= number < 1 << 62 for number in (*shape, nbytes, offset)
    ):
        raise ValueError("a shape, size or offset is no count")
    info = TensorInfo(
        str(item["name"]), str(item["dtype"]), shape, nbytes, str(item["shard"]), offset
    )
    if bytes_of(info.dtype, shape) != nbytes:
        raise ValueError(f"{info.name} has {nbytes} bytes")
    entry = entry_of(info, _digests(item["leaves"], merkle.leaf_count(nbytes)))
    if entry.digest.hex() != item["digest"]:
        raise ValueError(f"the digest of {info.name} is not that of its leaves")
    return entry


def _digests(text: str, count: int) -> tuple[bytes, ...]:
    if len(text) != 64 * count or not _HEX.fullmatch(text):
        raise ValueError(f"{count} digests of 64 hexadecimal digits are expected")
    joined = bytes.fromhex(text)
    return tuple(joined[start : start + 32] for start in range(0, len(joined), 32))
