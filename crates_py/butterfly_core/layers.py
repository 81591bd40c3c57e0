"""Layers and the parts of a model that move between machines.

A *part* is the unit of placement and of a digest: ``embed``, ``layers.0`` … ``layers.{L-1}``,
``norm`` and ``head``. A stage holds the contiguous layers [start, stop), the first stage also
``embed``, the last also ``norm`` and ``head`` (and ``embed`` when the two are tied).
"""

import re
from dataclasses import dataclass

from butterfly_core.errors import InvalidValue

EMBED = "embed"
NORM = "norm"
HEAD = "head"

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|decoder_layers|block)\.(\d+)\.")
_EMBED = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in|embed_positions)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.")


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """The layers start, start+1, … stop-1."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise InvalidValue(f"layers {self.start} to {self.stop} are no range")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"{self.start}-{self.stop - 1}"


def layer_part(layer: int) -> str:
    """The name of the part that holds one layer."""
    return f"layers.{layer}"


def part_of_tensor(tensor_name: str) -> str:
    """The part to which a checkpoint's tensor belongs, told from its name."""
    if found := _LAYER.search(tensor_name):
        return layer_part(int(found.group(1)))
    if _EMBED.search(tensor_name):
        return EMBED
    return HEAD if _HEAD.search(tensor_name) else NORM


def all_parts(layer_count: int) -> tuple[str, ...]:
    """Every part of a model, in the order of the manifest's tree."""
    return (EMBED, *(layer_part(i) for i in range(layer_count)), NORM, HEAD)


def stage_parts(layers: LayerRange, layer_count: int, *, tied: bool) -> tuple[str, ...]:
    """The parts that the holder of these layers needs, in the order of ``all_parts``."""
    if layers.stop > layer_count:
        raise InvalidValue(f"layers {layers} of a model with {layer_count}")
    last = layers.stop == layer_count
    first = (EMBED,) if layers.start == 0 or (last and tied) else ()
    ends = (NORM, HEAD) if last else ()
    return (*first, *(layer_part(i) for i in range(layers.start, layers.stop)), *ends)
