"""Reading the header of a safetensors file as if its writer were an enemy. Pure.

A file is: 8 bytes little-endian N, N bytes of JSON, then the tensors' bytes without gaps.
Everything is checked before anyone allocates anything by it.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from butterfly_core.errors import ModelError
from butterfly_weights.errors import shown
from butterfly_weights.tensors import TensorInfo, bytes_of

HEADER_BYTES_MAX = 32 << 20
LENGTH_BYTES = 8
NAME_CHARACTERS_MAX = 1024
JSON_VALUES_MAX = 2_000_000
"""Python needs up to 100 bytes for an empty list that is written with three."""


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` that refuses a key given twice (two readers could differ)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = sorted(name for name, count in counted.items() if count > 1)[:3]
        raise ModelError(f"JSON has duplicate keys: {', '.join(map(shown, twice))}")
    return found


def parse_json_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object from outside. Raises ModelError that names ``what``."""
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > JSON_VALUES_MAX:
        raise ModelError(f"{what} has {values} values; at most {JSON_VALUES_MAX} are read")
    try:
        # As text: from bytes, json would guess UTF-16 and UTF-32, which other readers refuse.
        value = json.loads(data.decode(), object_pairs_hook=unique_object)
    except ModelError as error:
        raise ModelError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not JSON: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{what} holds a JSON {type(value).__name__}, not an object")
    return value


def header_length(first_bytes: bytes, shard: str, shard_bytes: int) -> int:
    """N from the first 8 bytes. Raises ModelError when it cannot be."""
    length = int.from_bytes(first_bytes[:LENGTH_BYTES], "little")
    if not 2 <= length <= HEADER_BYTES_MAX:
        raise ModelError(
            f"{shard}: header length {length} is not between 2 and {HEADER_BYTES_MAX}; "
            "this is no safetensors file, or it is damaged"
        )
    if LENGTH_BYTES + length > shard_bytes:
        raise ModelError(
            f"{shard}: its header needs {LENGTH_BYTES + length} bytes but the object has "
            f"{shard_bytes}; it was cut off: upload it again"
        )
    return length


def parse_header(data: bytes, shard: str, shard_bytes: int) -> tuple[TensorInfo, ...]:
    """The tensors of one shard, in the order of their bytes. Raises ModelError."""
    entries = parse_json_object(data, f"header of {shard}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError(f"{shard}: __metadata__ is not a map of strings")
    start = LENGTH_BYTES + len(data)
    tensors = sorted(
        (_parse_entry(name, entry, shard, start) for name, entry in entries.items()),
        key=lambda tensor: (tensor.offset, tensor.nbytes, tensor.name),
    )
    _refuse_gaps(tensors, shard, start, shard_bytes)
    return tuple(tensors)


def _parse_entry(name: str, entry: object, shard: str, data_start: int) -> TensorInfo:
    where = f"{shard}: tensor {shown(name)}"
    if len(name) > NAME_CHARACTERS_MAX:
        raise ModelError(f"{where} has a name of {len(name)} characters")
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(offsets):
        raise ModelError(f"{where}: dtype, shape or data_offsets has a wrong type")
    if len(shape) > 16 or len(offsets) != 2:
        raise ModelError(f"{where}: {len(shape)} dimensions, {len(offsets)} offsets")
    try:
        nbytes = bytes_of(dtype, tuple(shape))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    begin, end = offsets
    if end - begin != nbytes:
        raise ModelError(
            f"{where}: offsets {begin}-{end} hold {end - begin} bytes, but {dtype} "
            f"{shape} needs {nbytes}"
        )
    return TensorInfo(name, dtype, tuple(shape), nbytes, shard, data_start + begin)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 62 for value in values
    )


def _refuse_gaps(tensors: list[TensorInfo], shard: str, start: int, shard_bytes: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the one before" if tensor.offset < position else "leaves a gap"
            raise ModelError(
                f"{shard}: tensor {shown(tensor.name)} at byte {tensor.offset} {what} (expected "
                f"byte {position})"
            )
        position += tensor.nbytes
    if position != shard_bytes:
        raise ModelError(
            f"{shard}: its header describes {position} bytes but the object has {shard_bytes}; "
            "it was cut off or replaced: upload it again"
        )
