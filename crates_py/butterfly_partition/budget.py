"""How far one node's memory and time reach along the layers of a model.

Everything is in whole bytes: a time budget becomes the bytes that the node reads in that time,
so no decision depends on how a sum of floats was rounded.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from butterfly_core.layers import EMBED, HEAD, NORM, LayerRange
from butterfly_core.model import ModelSpec
from butterfly_partition.planned import Demand, Machine, PlannedStage

UNLIMITED = 1 << 200
"""A time budget in bytes that no model needs."""

_ROUNDING = 1e-12

Stages = tuple[tuple[int, LayerRange], ...]
"""(index of the node, its layers), in the order of the pipeline."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What one node may take: bytes in memory, and bytes read in one step."""

    memory_bytes: int
    step_bytes: int = UNLIMITED


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Running sums over the layers, and what the ends of the pipeline hold beside them.

    ``weights[i]`` and ``memory[i]`` are the bytes of the layers before ``i``, without and with
    their KV cache. Read bytes of the last stage include the matrix that makes logits.
    """

    weights: tuple[int, ...]
    memory: tuple[int, ...]
    first_bytes: int
    last_bytes: int
    last_and_first_bytes: int
    last_read_bytes: int
    workspace_bytes: int

    @property
    def layer_count(self) -> int:
        return len(self.weights) - 1

    @property
    def is_uniform(self) -> bool:
        """True when all layers are of one size, so that only the ends depend on the order."""
        return len({after - before for before, after in pairwise(self.weights)}) == 1

    def end_bytes(self, start: int, stop: int) -> int:
        """Bytes held beside the layers by a stage because it is first, last or both."""
        first = self.first_bytes if start == 0 else 0
        if stop < self.layer_count:
            return first
        return first + (self.last_and_first_bytes if start == 0 else self.last_bytes)

    def memory_bytes(self, start: int, stop: int) -> int:
        """All that a stage with the layers [start, stop) needs in memory."""
        layers = self.memory[stop] - self.memory[start]
        return layers + self.end_bytes(start, stop) + self.workspace_bytes

    def read_bytes(self, start: int, stop: int) -> int:
        """Weight bytes that a stage reads in one step."""
        last = self.last_read_bytes if stop == self.layer_count else 0
        return self.weights[stop] - self.weights[start] + last

    def reach(self, limit: Limit, start: int) -> int:
        """The greatest ``stop`` such that [start, stop) is within the limit; ``start`` if none."""
        room = limit.memory_bytes - self.workspace_bytes - (0 if start else self.first_bytes)
        stop = min(
            bisect_right(self.memory, self.memory[start] + room),
            bisect_right(self.weights, self.weights[start] + limit.step_bytes),
        )
        stop -= 1
        if stop == self.layer_count and not self.fits(limit, start, stop):
            stop -= 1
        return max(stop, start)

    def fits(self, limit: Limit, start: int, stop: int) -> bool:
        in_memory = self.memory_bytes(start, stop) <= limit.memory_bytes
        return in_memory and self.read_bytes(start, stop) <= limit.step_bytes


def layer_table(spec: ModelSpec, demand: Demand) -> LayerTable:
    """The sums of one model under one demand."""
    layers = [spec.layer_bytes(layer) for layer in range(spec.layer_count)]
    kv_bytes = spec.kv_bytes_per_token * demand.kv_tokens
    embed = spec.part_bytes.get(EMBED, 0)
    ends = spec.part_bytes.get(NORM, 0) + spec.part_bytes.get(HEAD, 0)
    return LayerTable(
        weights=tuple(accumulate(layers, initial=0)),
        memory=tuple(accumulate((layer + kv_bytes for layer in layers), initial=0)),
        first_bytes=spec.first_extra_bytes,
        last_bytes=spec.last_extra_bytes,
        last_and_first_bytes=ends,
        last_read_bytes=ends + (embed if spec.tied else 0),
        workspace_bytes=demand.workspace_bytes,
    )


def seconds_per_byte(spec: ModelSpec, machine: Machine, demand: Demand) -> float:
    """A roofline: time to read a byte of weights, and to compute with it for every token.

    Two operations per weight and token. An unmeasured speed counts as hardly any.
    """
    weight_bytes = 4 if "32" in spec.dtype else 1 if "8" in spec.dtype else 2
    operations = 2.0 * demand.tokens_per_step / weight_bytes
    capacity = machine.capacity
    reading = 1.0 / max(capacity.memory_bytes_per_second, 1.0)
    return reading + operations / max(capacity.flops_per_second, 1.0)


def bytes_in(seconds: float, seconds_per_byte: float) -> int:
    """Bytes read in a time, generous by the rounding of floats."""
    return int(seconds / seconds_per_byte * (1.0 + _ROUNDING))


def fill(table: LayerTable, limits: Sequence[Limit], order: Sequence[int]) -> Stages | None:
    """Give each node in turn all it can take; None when layers are left over.

    For a fixed order this is exact: starting later never means reaching less far.
    """
    stages: list[tuple[int, LayerRange]] = []
    start = 0
    for index in order:
        stop = table.reach(limits[index], start)
        if stop > start:
            stages.append((index, LayerRange(start, stop)))
        start = stop
        if start == table.layer_count:
            return tuple(stages)
    return None


def stage_of(spec: ModelSpec, machine: Machine, layers: LayerRange, demand: Demand) -> PlannedStage:
    """The stage that a machine becomes when it takes these layers."""
    table = layer_table(spec, demand)
    return PlannedStage(
        node_id=machine.node_id,
        layers=layers,
        weight_bytes=spec.stage_bytes(layers),
        kv_bytes=spec.kv_bytes_per_token * demand.kv_tokens * len(layers),
        workspace_bytes=demand.workspace_bytes,
        free_bytes=machine.capacity.memory_free_bytes,
        seconds_per_step=table.read_bytes(layers.start, layers.stop)
        * seconds_per_byte(spec, machine, demand),
    )
