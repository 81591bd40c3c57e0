"""What is asked of the planner and what it answers: machines, demand, stages, plan."""

from dataclasses import dataclass
from typing import Literal

from butterfly_core.errors import InvalidValue
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import LayerRange

Objective = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A node and what it offers; ``capacity.memory_free_bytes`` is all that may be used."""

    node_id: NodeId
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Demand:
    """What every stage must hold beside weights, and what the plan is to be good at.

    ``kv_tokens`` are the tokens of all sequences together, kept by every stage for each of its
    layers. ``workspace_bytes`` is for activations and buffers, once per stage.
    ``tokens_per_step`` is the batch for which a step is timed.
    """

    kv_tokens: int
    workspace_bytes: int
    objective: Objective = "throughput"
    tokens_per_step: int = 1

    def __post_init__(self) -> None:
        if self.kv_tokens < 0 or self.workspace_bytes < 0 or self.tokens_per_step < 1:
            raise InvalidValue(f"{self} asks for a negative amount")


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One node's share. Bytes; ``free_bytes`` is what the node offered, before all of it."""

    node_id: NodeId
    layers: LayerRange
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    free_bytes: int
    seconds_per_step: float
    """Estimated from bytes over bandwidth and operations over speed."""

    @property
    def used_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in the order of the pipeline; together they hold every layer once."""

    stages: tuple[PlannedStage, ...]
    kv_tokens: int

    @property
    def slowest_seconds(self) -> float:
        """The time between two steps of a full pipeline."""
        return max(stage.seconds_per_step for stage in self.stages)

    @property
    def total_seconds(self) -> float:
        """The time one token needs through all stages, without the network."""
        return sum(stage.seconds_per_step for stage in self.stages)

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        return tuple(stage.node_id for stage in self.stages)
