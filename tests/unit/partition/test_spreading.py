"""Which machines a plan uses when the slowest stage would be as fast without some of them."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import DoesNotFit
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import LayerRange
from butterfly_core.model import ModelSpec
from butterfly_partition.planned import Demand, Machine, Plan
from butterfly_partition.planner import check, plan

DEMAND = Demand(0, 0)


def model(count: int, *, size: int = 10, embed: int = 0, head: int = 0) -> ModelSpec:
    parts = {f"layers.{i}": size for i in range(count)}
    return ModelSpec(
        name="test",
        architecture="LlamaForCausalLM",
        layer_count=count,
        hidden_size=8,
        vocab_size=16,
        context_length=64,
        dtype="bfloat16",
        tied=False,
        kv_bytes_per_token=0,
        part_bytes={**parts, "embed": embed, "norm": 0, "head": head},
        revision="r",
    )


def machine(number: int, free: int = 10_000, *, bandwidth: float = 1e9) -> Machine:
    return Machine(
        NodeId(f"{number:032x}"), Capacity("cpu", "cpu", free, 2 * free, bandwidth, 1e15)
    )


def counts(made: Plan) -> list[int]:
    return [len(stage.layers) for stage in made.stages]


def held_by(made: Plan) -> dict[NodeId, LayerRange]:
    return {stage.node_id: stage.layers for stage in made.stages}


def test_six_layers_on_five_equal_machines_use_all_five_in_their_order() -> None:
    machines = [machine(i) for i in range(5)]

    made = plan(model(6), machines, DEMAND)

    assert counts(made) == [2, 1, 1, 1, 1]
    assert made.nodes == tuple(m.node_id for m in machines)


@pytest.mark.parametrize(
    ("layers", "machines", "wanted"), [(80, 3, [27, 27, 26]), (4, 4, [1] * 4), (3, 5, [1] * 3)]
)
def test_equal_machines_share_as_evenly_as_before(
    layers: int, machines: int, wanted: list[int]
) -> None:
    made = plan(model(layers), [machine(i) for i in range(machines)], DEMAND)

    assert counts(made) == wanted


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20))
def test_of_equal_machines_none_stands_idle_while_there_are_layers(
    layers: int, machines: int
) -> None:
    made = plan(model(layers), [machine(i) for i in range(machines)], DEMAND)

    assert len(made.stages) == min(layers, machines)
    assert max(counts(made)) == -(-layers // machines)


def test_a_machine_for_which_one_layer_is_too_much_stays_out() -> None:
    slow, full = machine(5, bandwidth=4e8), machine(6, 9)

    made = plan(model(6), [*(machine(i) for i in range(3)), slow, full], DEMAND)

    assert counts(made) == [2, 2, 2]


def test_a_machine_that_can_only_stand_inside_gets_its_place_there() -> None:
    """It has no room for the embedding or the head, nor have the ends time for more."""
    small = machine(0, 15)
    made = plan(model(5, embed=100, head=1), [small, *(machine(i) for i in range(1, 4))], DEMAND)

    assert len(made.stages) == 4
    assert small.node_id in made.nodes[1:-1]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_pipelines_order_is_kept_with_everybody_in_it(count: int) -> None:
    hint = [machine(i).node_id for i in reversed(range(count))]

    made = plan(model(6), [machine(i) for i in range(5)], DEMAND, order_hint=hint)

    assert made.nodes[:count] == tuple(hint)
    assert len(made.stages) == 5


def test_measured_links_order_everybody() -> None:
    ids = [machine(i).node_id for i in range(5)]
    road = [ids[i] for i in (0, 3, 1, 2, 4)]
    links = {(a, b): 0.5 for a in ids for b in ids if a != b}
    links |= dict.fromkeys(pairwise(road), 0.001)

    made = plan(model(6), [machine(i) for i in range(5)], DEMAND, links=links)

    assert made.nodes == tuple(road)


def test_a_newcomer_gets_one_layer_and_nothing_else_moves() -> None:
    machines = [machine(i) for i in range(4)]
    before = plan(model(6), machines, DEMAND)
    assert counts(before) == [2, 2, 1, 1]
    newcomer = machine(9)

    made = plan(model(6), [*machines, newcomer], DEMAND, held=held_by(before))

    after = held_by(made)
    assert len(after.pop(newcomer.node_id)) == 1
    assert all(
        part.start <= after[node].start and after[node].stop <= part.stop
        for node, part in held_by(before).items()
    )
    assert sorted(map(len, after.values())) == [1, 1, 1, 2]


def test_a_plan_that_uses_everybody_is_the_plan_again() -> None:
    machines = [machine(i) for i in range(5)]
    made = plan(model(6), machines, DEMAND)

    assert plan(model(6), machines, DEMAND, held=held_by(made), order_hint=made.nodes) == made


def test_one_stream_is_not_spread() -> None:
    made = plan(model(6), [machine(i) for i in range(5)], Demand(0, 0, "latency"))

    assert counts(made) == [6]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(
        st.tuples(st.integers(5, 120), st.sampled_from([1e9, 2e9, 7e9])), min_size=1, max_size=6
    ),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_who_stays_out_could_not_have_a_layer_in_time(
    layers: int, rows: list[tuple[int, float]], embed: int, chance: object
) -> None:
    machines = [machine(i, free, bandwidth=speed) for i, (free, speed) in enumerate(rows)]
    spec = model(layers, embed=embed)
    try:
        made = plan(spec, machines, DEMAND)
    except DoesNotFit:
        return
    shuffled = list(machines)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as object

    assert check(spec, machines, DEMAND, made) == ()
    assert plan(spec, shuffled, DEMAND) == made
    if len(made.stages) < 2 or max(counts(made)) == 1:
        return
    for left in machines:
        seconds = 10 / left.capacity.memory_bytes_per_second
        has_room = left.capacity.memory_free_bytes >= 10
        if left.node_id not in made.nodes and has_room:
            assert seconds > made.slowest_seconds * 1.0001


def test_a_hundred_machines_and_two_hundred_layers_are_all_used() -> None:
    machines = [machine(i, bandwidth=1e9 * (1 + i % 3)) for i in range(100)]
    spec = model(200, embed=70, head=30)

    made = plan(spec, machines, DEMAND)
    again = plan(spec, [*machines, machine(100)], DEMAND, held=held_by(made))

    assert len(made.stages) == 100
    assert len(again.stages) == 101
