"""A 70B-class checkpoint as files of the real sizes: real headers and index, holes for data."""

import json
from pathlib import Path
from typing import Any

from tests.support.checkpoints import Shape, config_of, tensor_shapes

LLAMA_70B = Shape(
    layer_count=80,
    hidden_size=8192,
    intermediate_size=28672,
    vocab_size=128256,
    heads=64,
    kv_heads=8,
    shards=30,
    dtype="BF16",
)
_ELEMENT_BYTES = 2


def write_sparse_checkpoint(folder: Path, shape: Shape = LLAMA_70B) -> int:
    """Write it; its data are zeros that take no room on the disk. Returns the tensors' bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: _bytes_of(dims) for name, dims in tensor_shapes(shape).items()}
    (folder / "config.json").write_text(json.dumps(config_of(shape)))
    weight_map: dict[str, str] = {}
    shard: list[str] = []
    number, room = 1, -(-sum(sizes.values()) // shape.shards)
    for name in sizes:
        shard.append(name)
        if sum(sizes[own] for own in shard) >= room or name == [*sizes][-1]:
            file_name = f"model-{number:05}.safetensors"
            _write_shard(folder / file_name, shard, shape)
            weight_map |= dict.fromkeys(shard, file_name)
            shard, number = [], number + 1
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes.values())


def _bytes_of(dims: tuple[int, ...]) -> int:
    count = _ELEMENT_BYTES
    for size in dims:
        count *= size
    return count


def _write_shard(path: Path, names: list[str], shape: Shape) -> None:
    shapes, entries, position = tensor_shapes(shape), dict[str, Any](), 0
    for name in names:
        stop = position + _bytes_of(shapes[name])
        entries[name] = {
            "dtype": shape.dtype,
            "shape": list(shapes[name]),
            "data_offsets": [position, stop],
        }
        position = stop
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + position)
