"""From members and configuration to what the planner takes. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from butterfly.config import NodeConfig
from butterfly_cluster.state import AssignedStage, Member
from butterfly_core.hardware import Capacity
from butterfly_core.model import ModelSpec
from butterfly_partition.planned import Demand, Machine, Plan
from butterfly_partition.planner import plan

_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}


def make_plan(
    model: ModelSpec,
    members: Sequence[Member],
    demand: Demand,
    before: Sequence[AssignedStage] = (),
) -> Plan:
    """Place the model on these members, moving little of what they hold. Raises DoesNotFit."""
    machines = [
        Machine(member.node_id, member.capacity)
        for member in members
        if member.capacity is not None
    ]
    held = {stage.node_id: stage.layers for stage in before}
    return plan(model, even_speeds(machines), demand, order_hint=tuple(held), held=held)


def resident(model: ModelSpec, dtype: str) -> ModelSpec:
    """The model as it lies in memory when ``[model] dtype`` is not the checkpoint's."""
    wanted, stored = _BYTES.get(dtype), _BYTES.get(model.dtype)
    if wanted is None or stored is None or wanted == stored:
        return model
    parts = {part: size * wanted // stored for part, size in model.part_bytes.items()}
    return replace(
        model, part_bytes=parts, kv_bytes_per_token=model.kv_bytes_per_token * wanted // stored
    )


def even_speeds(machines: Sequence[Machine]) -> list[Machine]:
    """Give devices of one name the best speed measured on any of them.

    What else runs on a machine while it is measured only lowers what is seen, and a plan should
    not follow that noise.
    """

    def evened(machine: Machine) -> Machine:
        own = machine.capacity
        twins = [m.capacity for m in machines if _kind(m.capacity) == _kind(own)]
        best = replace(
            own,
            memory_bytes_per_second=max(twin.memory_bytes_per_second for twin in twins),
            flops_per_second=max(twin.flops_per_second for twin in twins),
        )
        return replace(machine, capacity=best)

    return [evened(machine) for machine in machines]


def _kind(capacity: Capacity) -> tuple[str, str, int]:
    return capacity.device.partition(":")[0], capacity.device_name, capacity.memory_total_bytes


def demand_of(config: NodeConfig) -> Demand:
    """What the configuration asks of every stage."""
    return Demand(
        kv_tokens=config.engine.kv_cache_tokens,
        workspace_bytes=config.engine.workspace_bytes,
        objective=config.cluster.objective,
    )
