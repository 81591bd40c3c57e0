"""A tiny model whose tensors are large against its headers, where its bytes lie, what a cluster
must answer from it, and what its nodes tell of the bytes they read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from butterfly_core.layers import LayerRange, part_of_tensor, stage_parts
from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.tiny_models import (
    TinyModel,
    make_tiny_model,
    reference_greedy,
    reference_model,
)

PLACE = "models/tiny"
PROMPT = [256, *b"The quick brown fox"]
TOKENS = 12


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its shard; ``start`` counts from the shard's first byte."""

    name: str
    shard: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class World:
    """A tiny model whose tensors are large against its headers, and what it must answer."""

    tiny: TinyModel
    tensors: Sequence[Tensor]
    headers_bytes: int
    answer: str

    def own_bytes(self, layers: str) -> int:
        """Bytes of the tensors of a stage, by what ``/status`` calls its layers."""
        parts = stage_parts(layer_range(layers), self.tiny.layer_count, tied=self.tiny.tied)
        return sum(tensor.nbytes for tensor in self.tensors if part_of_tensor(tensor.name) in parts)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)


def make_world(folder: Path) -> World:
    """15 MB in 8 shards, 6 layers."""
    tiny = make_tiny_model(
        folder,
        layers=6,
        tokenizer=True,
        shard_bytes_max=2_000_000,
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
    )
    tensors, headers_bytes = _read_layout(tiny.folder)
    ids = reference_greedy(reference_model(tiny), PROMPT, TOKENS)
    text = Tokenizer.from_file(str(tiny.folder / "tokenizer.json")).decode(ids)
    return World(tiny, tensors, headers_bytes, text)


def s3_model(url: str) -> dict[str, Any]:
    """The ``[model]`` section for this model at ``PLACE`` of an S3 server."""
    return {
        "source_type": "s3",
        "source_path": f"s3://{PLACE}",
        "endpoint_url": url,
        "name": "tiny",
    }


def layer_range(layers: str) -> LayerRange:
    """What ``/status`` calls ``2-3``."""
    first, _, last = layers.partition("-")
    return LayerRange(int(first), int(last or first) + 1)


def _own_member(status: dict[str, Any]) -> dict[str, Any]:
    return next(m for m in status["members"] if m["node_id"] == status["node_id"])


def bytes_from_source(status: dict[str, Any]) -> int:
    """Weight bytes that the node of this status fetched since it started."""
    return int(_own_member(status)["bytes_from_source"])


def bytes_from_cache(status: dict[str, Any]) -> int:
    """Weight bytes that it read from its disk."""
    return int(_own_member(status)["bytes_from_cache"])


def bytes_from_peers(status: dict[str, Any]) -> int:
    """Weight bytes that other nodes gave it."""
    return int(_own_member(status)["bytes_from_peers"])


def greedy_answer(node: LocalNode) -> str:
    """What a node answers to ``PROMPT``; compare with ``World.answer``."""
    body = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    code, answer = node.post("/v1/completions", body)
    assert code == 200, answer
    return str(answer["choices"][0]["text"])


def cached_files(node: LocalNode) -> list[Path]:
    """The tensors in a node's cache, each a file of its bytes."""
    return [path for path in node.data_dir.glob("cache/tensors/??/*") if not path.suffix]


def wait_until_cached(cluster: LocalCluster, node: LocalNode, nbytes: int) -> None:
    """The cache is written behind; and a pin is written after its tensor."""

    def cached() -> bool:
        files = cached_files(node)
        pins = [p.read_text().count("\n") for p in node.data_dir.glob("cache/revisions/*")]
        return sum(path.stat().st_size for path in files) >= nbytes and sum(pins) >= len(files)

    cluster.wait(cached, f"{nbytes} bytes in the cache of {node.name}")


def _read_layout(folder: Path) -> tuple[list[Tensor], int]:
    """All tensors of a checkpoint, and the bytes of all headers."""
    tensors, headers_bytes = [], 0
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        first = 8 + int.from_bytes(content[:8], "little")
        headers_bytes += first
        for name, entry in json.loads(content[8:first]).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                tensors.append(Tensor(name, path.name, first + start, stop - start))
    return tensors, headers_bytes


def bytes_of(folder: Path, tensor: Tensor) -> bytes:
    """A tensor's bytes in the checkpoint."""
    path = folder / tensor.shard
    return path.read_bytes()[tensor.start : tensor.start + tensor.nbytes]
