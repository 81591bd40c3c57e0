from dataclasses import replace

import pytest

from butterfly.node.planning_offers import alike_parts, plan_beside
from butterfly_cluster.state import Assignment, Member
from butterfly_core.errors import DoesNotFit
from butterfly_partition.planned import Demand
from tests.support.clusters import CAPACITY, active, spec

DEMAND = Demand(kv_tokens=64, workspace_bytes=100)
STATE = active(2)
HELD_BYTES = 2 * 100 + 100 + 64 * 2 * 64
"""Of the first stage: two layers, the embedding, and the cache."""


def members(free_bytes: int) -> list[Member]:
    return [
        replace(member, capacity=replace(CAPACITY, memory_free_bytes=free_bytes))
        for member in STATE.live
    ]


def present() -> Assignment:
    assert STATE.assignment is not None
    return STATE.assignment


def test_a_revision_takes_the_place_of_what_it_revises() -> None:
    stages = plan_beside(
        spec(), present(), spec("r2"), frozenset(), members(CAPACITY.memory_free_bytes), DEMAND
    )

    assert stages == present().stages


def test_only_parts_that_differ_need_memory_of_their_own() -> None:
    tight = members(HELD_BYTES + 100 + 100 + 150)
    alike = alike_parts(
        {"embed": "e", "layers.0": "a", "layers.1": "b", "layers.2": "c", "layers.3": "d"},
        {"embed": "e", "layers.0": "a", "layers.1": "x", "layers.2": "c", "layers.3": "d"},
    )
    assert alike == {"embed", "layers.0", "layers.2", "layers.3"}

    everything = frozenset({*alike, "norm", "head"})
    stages = plan_beside(spec(), present(), spec("r2"), everything, tight, DEMAND)

    assert stages == present().stages
    with pytest.raises(DoesNotFit):
        plan_beside(spec(), present(), spec("r2"), frozenset(), tight, DEMAND)


def test_a_model_of_another_shape_is_planned_into_what_is_left() -> None:
    longer = replace(
        spec("r2"), layer_count=6, part_bytes={f"layers.{layer}": 100 for layer in range(6)}
    )

    stages = plan_beside(
        spec(), present(), longer, frozenset(), members(CAPACITY.memory_free_bytes), DEMAND
    )

    assert stages[-1].layers.stop == 6
    assert {stage.engine for stage in stages} == {stage.engine for stage in present().stages}


def test_what_does_not_fit_beside_the_other_is_told_with_what_would_help() -> None:
    big = replace(spec("r2"), layer_count=6, part_bytes={f"layers.{i}": 10**9 for i in range(6)})

    with pytest.raises(DoesNotFit, match=r"beside the model that is served(.|\n)*kv_cache_tokens"):
        plan_beside(
            spec(), present(), big, frozenset(), members(CAPACITY.memory_free_bytes), DEMAND
        )
