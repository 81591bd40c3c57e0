from dataclasses import replace

import pytest

from butterfly.config import load_config
from butterfly.node.planning import demand_of, even_speeds, make_plan, resident
from butterfly_cluster.state import AssignedStage
from butterfly_core.errors import DoesNotFit
from butterfly_core.layers import LayerRange
from butterfly_partition.planned import Demand, Machine
from tests.support.clusters import CAPACITY, committed, engine, joined, node, spec

DEMAND = Demand(kv_tokens=64, workspace_bytes=1 << 10)


def test_twins_get_the_best_speed_that_was_measured_on_any_of_them() -> None:
    slow = Machine(node(1), replace(CAPACITY, memory_bytes_per_second=1.0, flops_per_second=9.0))
    fast = Machine(node(2), replace(CAPACITY, memory_bytes_per_second=5.0, flops_per_second=2.0))
    other = Machine(node(3), replace(CAPACITY, device_name="another", flops_per_second=1.0))

    first, second, third = even_speeds([slow, fast, other])

    for twin in (first, second):
        assert twin.capacity.memory_bytes_per_second == 5.0
        assert twin.capacity.flops_per_second == 9.0
    assert third == other


def test_members_keep_their_place_in_the_pipeline() -> None:
    members = committed(joined(2)).live
    before = (
        AssignedStage(node(2), engine(2), LayerRange(0, 2)),
        AssignedStage(node(1), engine(1), LayerRange(2, 4)),
    )

    made = make_plan(spec(), members, DEMAND, before)

    assert [stage.node_id for stage in made.stages] == [stage.node_id for stage in before]


def test_members_without_an_engine_get_nothing() -> None:
    members = committed(joined(2)).live
    made = make_plan(spec(), [members[0], replace(members[1], capacity=None)], DEMAND)

    assert [stage.node_id for stage in made.stages] == [members[0].node_id]


def test_a_wider_type_than_the_checkpoints_takes_more_memory() -> None:
    stored = spec()

    assert resident(stored, "auto") == resident(stored, "float32") == stored
    narrow = resident(stored, "bfloat16")
    assert (narrow.total_bytes, narrow.kv_bytes_per_token) == (stored.total_bytes // 2, 32)


def test_what_does_not_fit_says_so() -> None:
    tight = replace(CAPACITY, memory_free_bytes=10)
    members = [replace(member, capacity=tight) for member in committed(joined(2)).live]

    with pytest.raises(DoesNotFit):
        make_plan(spec(), members, DEMAND)


def test_the_configuration_says_what_is_demanded() -> None:
    flags = {
        "cluster.cluster_name": "t",
        "cluster.objective": "latency",
        "model.source_type": "embedded",
        "model.source_path": "toy-llama",
        "node.role": "coordinator",
        "engine.kv_cache_tokens": 128,
    }
    demand = demand_of(load_config(None, environ={}, flags=flags))

    assert (demand.kv_tokens, demand.objective) == (128, "latency")
