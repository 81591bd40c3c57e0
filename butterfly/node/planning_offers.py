"""Places an offered model on the same machines, beside what they hold. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from butterfly.node.planning import make_plan
from butterfly_cluster.state import AssignedStage, Assignment, Member
from butterfly_core.errors import DoesNotFit
from butterfly_core.ids import NodeId
from butterfly_core.layers import LayerRange
from butterfly_core.model import ModelSpec
from butterfly_partition.planned import Demand

HELP = (
    "both models must lie in memory until the switch: lower [engine] kv_cache_tokens, add a node, "
    "or start a new cluster for this model"
)


def plan_beside(
    held: ModelSpec,
    assignment: Assignment,
    offered: ModelSpec,
    alike: frozenset[str],
    members: Sequence[Member],
    demand: Demand,
) -> tuple[AssignedStage, ...]:
    """Stages for the offered model; ``alike`` are parts that are the same in both, bit by bit.

    The stages stay as they are where that fits, as the fewest bytes move then. Raises DoesNotFit.
    """
    by_node = {member.node_id: member for member in members}
    if _fits_in_place(held, assignment, offered, alike, by_node, demand):
        return assignment.stages
    left = [_with_what_is_left(member, held, assignment) for member in members]
    try:
        made = make_plan(offered, left, demand)
    except DoesNotFit as error:
        raise DoesNotFit(
            f"it does not fit beside the model that is served: {error}\n{HELP}"
        ) from None
    return tuple(
        AssignedStage(stage.node_id, by_node[stage.node_id].engine or "", stage.layers)
        for stage in made.stages
    )


def alike_parts(mine: Mapping[str, str], theirs: Mapping[str, str]) -> frozenset[str]:
    """Parts with the same digest in both."""
    return frozenset(part for part, digest in mine.items() if theirs.get(part) == digest)


def _fits_in_place(
    held: ModelSpec,
    assignment: Assignment,
    offered: ModelSpec,
    alike: frozenset[str],
    by_node: Mapping[NodeId, Member],
    demand: Demand,
) -> bool:
    if offered.layer_count != held.layer_count or offered.tied != held.tied:
        return False
    for stage in assignment.stages:
        member = by_node.get(stage.node_id)
        if member is None or member.capacity is None or member.engine != stage.engine:
            return False
        parts = offered.parts_of(stage.layers)
        new = sum(offered.part_bytes.get(part, 0) for part in parts if part not in alike)
        cache = max(
            _cache_bytes(held, stage.layers, assignment.kv_tokens),
            _cache_bytes(offered, stage.layers, demand.kv_tokens),
        )
        needed = held.stage_bytes(stage.layers) + new + cache + demand.workspace_bytes
        if needed > member.capacity.memory_free_bytes:
            return False
    return True


def _with_what_is_left(member: Member, held: ModelSpec, assignment: Assignment) -> Member:
    """The member with the memory that its present stage does not take."""
    stage = assignment.stage_of(member.node_id)
    if stage is None or member.capacity is None:
        return member
    taken = held.stage_bytes(stage.layers) + _cache_bytes(held, stage.layers, assignment.kv_tokens)
    left = max(0, member.capacity.memory_free_bytes - taken)
    return replace(member, capacity=replace(member.capacity, memory_free_bytes=left))


def _cache_bytes(spec: ModelSpec, layers: LayerRange, kv_tokens: int) -> int:
    return spec.kv_bytes_per_token * len(layers) * kv_tokens
