"""What the cluster must know of a model to place it: sizes, not tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from butterfly_core.layers import EMBED, HEAD, NORM, LayerRange, layer_part, stage_parts


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model in numbers, from its config.json and the headers of its shards.

    ``part_bytes`` holds the bytes of each part's tensors as stored (0 for a part without
    tensors, as ``head`` when embeddings are tied). ``kv_bytes_per_token`` is for one layer.
    ``manifest_root`` is the Merkle root the weights must have (hex), or None when the source
    has no manifest; ``revision`` names this version of the source's files (a hash of their
    names, sizes and ETags).
    """

    name: str
    architecture: str
    layer_count: int
    hidden_size: int
    vocab_size: int
    context_length: int
    dtype: str
    tied: bool
    kv_bytes_per_token: int
    part_bytes: Mapping[str, int]
    revision: str
    manifest_root: str | None = None

    @property
    def identity(self) -> str:
        """What tells this model's weights from any other's: their root, else the revision."""
        return self.manifest_root or self.revision

    @property
    def total_bytes(self) -> int:
        return sum(self.part_bytes.values())

    def layer_bytes(self, layer: int) -> int:
        return self.part_bytes[layer_part(layer)]

    def parts_of(self, layers: LayerRange) -> tuple[str, ...]:
        """The parts that the holder of these layers needs."""
        return stage_parts(layers, self.layer_count, tied=self.tied)

    def stage_bytes(self, layers: LayerRange) -> int:
        """Weight bytes that the holder of these layers needs."""
        return sum(self.part_bytes.get(part, 0) for part in self.parts_of(layers))

    @property
    def first_extra_bytes(self) -> int:
        """What the first stage holds beside its layers."""
        return self.part_bytes.get(EMBED, 0)

    @property
    def last_extra_bytes(self) -> int:
        """What the last stage holds beside its layers (when it is not also the first)."""
        tied = self.part_bytes.get(EMBED, 0) if self.tied else 0
        return tied + self.part_bytes.get(NORM, 0) + self.part_bytes.get(HEAD, 0)
