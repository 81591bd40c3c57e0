"""The planner against brute force and against what must be true of any plan."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import DoesNotFit, InvalidValue
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import LayerRange
from butterfly_core.model import ModelSpec
from butterfly_partition.balance import HOP_SECONDS
from butterfly_partition.budget import stage_of
from butterfly_partition.planned import Demand, Machine, Plan
from butterfly_partition.planner import check, plan

GIB = 1 << 30


def model(
    layers: Sequence[int], *, embed: int = 0, head: int = 0, tied: bool = False, kv: int = 0
) -> ModelSpec:
    parts = {f"layers.{i}": size for i, size in enumerate(layers)}
    return ModelSpec(
        name="test",
        architecture="LlamaForCausalLM",
        layer_count=len(layers),
        hidden_size=8,
        vocab_size=16,
        context_length=64,
        dtype="bfloat16",
        tied=tied,
        kv_bytes_per_token=kv,
        part_bytes={**parts, "embed": embed, "norm": 1, "head": 0 if tied else head},
        revision="r",
    )


def machine(number: int, free: int, *, bandwidth: float = 1e9, flops: float = 1e15) -> Machine:
    return Machine(
        NodeId(f"{number:032x}"), Capacity("cpu", "cpu", free, 2 * free, bandwidth, flops)
    )


def placements(count: int, nodes: int) -> Iterator[tuple[tuple[int, LayerRange], ...]]:
    """Every way to put layers on some nodes in some order."""
    for stages in range(1, min(count, nodes) + 1):
        for cuts in combinations(range(1, count), stages - 1):
            ranges = [LayerRange(a, b) for a, b in pairwise((0, *cuts, count))]
            for order in permutations(range(nodes), stages):
                yield tuple(zip(order, ranges, strict=True))


def brute_force(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> float | None:
    """The least time of a slowest stage, from the definition; None when nothing fits."""
    fitting = []
    for layers in placements(spec.layer_count, len(machines)):
        seconds = []
        for index, part in layers:
            capacity = machines[index].capacity
            kv = len(part) * spec.kv_bytes_per_token * demand.kv_tokens
            if spec.stage_bytes(part) + kv + demand.workspace_bytes > capacity.memory_free_bytes:
                break
            read = sum(spec.layer_bytes(layer) for layer in range(part.start, part.stop))
            if part.stop == spec.layer_count:
                tied = spec.part_bytes["embed"] if spec.tied else 0
                read += spec.part_bytes["norm"] + spec.part_bytes["head"] + tied
            seconds.append(
                read / capacity.memory_bytes_per_second + read / capacity.flops_per_second
            )
        else:
            fitting.append(max(seconds))
    return min(fitting, default=None)


sizes = st.integers(1, 40)
machines_lists = st.lists(
    st.tuples(st.integers(0, 160), st.sampled_from([1.0, 1.5, 2.0, 7.0])), min_size=1, max_size=5
).map(lambda rows: [machine(i, free, bandwidth=speed) for i, (free, speed) in enumerate(rows)])
layer_lists = st.one_of(
    st.builds(lambda size, count: [size] * count, sizes, st.integers(1, 6)),
    st.lists(sizes, min_size=1, max_size=6),
)
models = st.builds(
    model, layer_lists, embed=st.integers(0, 50), head=st.integers(0, 50), tied=st.booleans(),
    kv=st.integers(0, 2),
)  # fmt: skip
demands = st.builds(Demand, st.integers(0, 6), st.integers(0, 10))


@settings(max_examples=100, deadline=None)
@given(models, machines_lists, demands)
def test_it_never_rejects_what_fits_and_its_slowest_stage_is_the_fastest(
    spec: ModelSpec, machines: list[Machine], demand: Demand
) -> None:
    best = brute_force(spec, machines, demand)
    if best is None:
        with pytest.raises(DoesNotFit):
            plan(spec, machines, demand)
        return

    made = plan(spec, machines, demand)

    assert check(spec, machines, demand, made) == ()
    assert made.slowest_seconds == pytest.approx(best, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(5, 60), st.sampled_from([1.0, 2.0])), min_size=6, max_size=6),
    st.lists(sizes, min_size=6, max_size=6),
)
def test_six_machines_are_placed_as_well_as_by_brute_force(
    rows: list[tuple[int, float]], layers: list[int]
) -> None:
    machines = [machine(i, free, bandwidth=speed) for i, (free, speed) in enumerate(rows)]
    spec, demand = model(layers, embed=7, head=9), Demand(0, 0)
    best = brute_force(spec, machines, demand)

    if best is None:
        with pytest.raises(DoesNotFit):
            plan(spec, machines, demand)
    else:
        assert plan(spec, machines, demand).slowest_seconds == pytest.approx(best, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(models, machines_lists, demands)
def test_a_plan_for_one_stream_fits_whenever_any_plan_does(
    spec: ModelSpec, machines: list[Machine], demand: Demand
) -> None:
    latency = Demand(demand.kv_tokens, demand.workspace_bytes, "latency")
    try:
        for_throughput = plan(spec, machines, demand)
    except DoesNotFit:
        with pytest.raises(DoesNotFit):
            plan(spec, machines, latency)
        return

    made = plan(spec, machines, latency)

    assert check(spec, machines, latency, made) == ()
    hops = len(made.stages) - len(for_throughput.stages)
    slower = made.total_seconds - for_throughput.total_seconds
    assert slower + hops * HOP_SECONDS <= 1e-9


@settings(max_examples=50, deadline=None)
@given(models, machines_lists, demands, st.randoms(use_true_random=False))
def test_the_order_in_which_machines_are_listed_changes_nothing(
    spec: ModelSpec, machines: list[Machine], demand: Demand, chance: object
) -> None:
    shuffled = list(machines)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as object
    try:
        made = plan(spec, machines, demand)
    except DoesNotFit:
        return

    assert plan(spec, shuffled, demand) == made


def test_equal_machines_share_equally_in_the_order_of_their_ids() -> None:
    made = plan(model([GIB] * 80), [machine(i, 80 * GIB) for i in range(3)], Demand(16, 0))

    assert [str(stage.layers) for stage in made.stages] == ["0-26", "27-53", "54-79"]


def test_a_machine_twice_as_fast_gets_twice_the_layers() -> None:
    machines = [machine(0, GIB, bandwidth=1e9), machine(1, GIB, bandwidth=2e9)]

    made = plan(model([1000] * 30), machines, Demand(0, 0))

    assert [len(stage.layers) for stage in made.stages] == [10, 20]


def test_fewer_layers_than_machines_leave_machines_out() -> None:
    made = plan(model([5, 5]), [machine(i, 100) for i in range(5)], Demand(0, 0))

    assert [len(stage.layers) for stage in made.stages] == [1, 1]


def test_the_machine_with_room_for_the_embedding_stands_first() -> None:
    machines = [machine(0, 40), machine(1, 90)]

    made = plan(model([10] * 6, embed=50), machines, Demand(0, 0))

    assert made.nodes == (machines[1].node_id, machines[0].node_id)


def test_a_tied_embedding_is_charged_to_both_ends() -> None:
    spec = model([10] * 4, embed=50, tied=True)

    made = plan(spec, [machine(0, 80), machine(1, 80)], Demand(0, 0))

    assert [stage.weight_bytes for stage in made.stages] == [80, 61]


def test_nodes_keep_their_places_when_that_costs_little() -> None:
    machines = [machine(i, 1000) for i in range(4)]
    hint = [machines[i].node_id for i in (2, 0, 3)]

    made = plan(model([10] * 12), machines, Demand(0, 0), order_hint=hint)

    assert made.nodes == (*hint, machines[1].node_id)


def test_nodes_leave_their_places_when_they_would_not_fit_there() -> None:
    machines = [machine(0, 40), machine(1, 90)]
    hint = [m.node_id for m in machines]

    made = plan(model([10] * 6, embed=50), machines, Demand(0, 0), order_hint=hint)

    assert made.nodes == tuple(reversed(hint))


def test_a_newcomer_stands_where_the_fewest_bytes_move() -> None:
    machines = [machine(i, 1000) for i in range(3)]
    first, second, newcomer = (m.node_id for m in machines)
    held = {first: LayerRange(0, 6), second: LayerRange(6, 12)}

    made = plan(model([10] * 12), machines, Demand(0, 0), held=held)

    assert made.nodes == (first, newcomer, second)
    assert [str(stage.layers) for stage in made.stages] == ["0-3", "4-7", "8-11"]


def test_what_is_loaded_stays_while_it_is_hardly_slower() -> None:
    machines = [machine(0, 2000, bandwidth=1.04e9), machine(1, 2000)]
    ids = [m.node_id for m in machines]
    even = dict(zip(ids, (LayerRange(0, 50), LayerRange(50, 100)), strict=True))
    uneven = dict(zip(ids, (LayerRange(0, 30), LayerRange(30, 100)), strict=True))
    spec = model([10] * 100)

    kept = plan(spec, machines, Demand(0, 0), held=even)
    moved = plan(spec, machines, Demand(0, 0), held=uneven)

    assert [len(stage.layers) for stage in kept.stages] == [50, 50]
    assert [len(stage.layers) for stage in moved.stages] == [51, 49]


@settings(max_examples=50, deadline=None)
@given(models, machines_lists, demands, st.integers(0, 4))
def test_keeping_what_is_loaded_costs_the_slowest_stage_little(
    spec: ModelSpec, machines: list[Machine], demand: Demand, lost: int
) -> None:
    try:
        before = plan(spec, machines, demand)
        left = [m for i, m in enumerate(machines) if i != lost]
        best = plan(spec, left, demand)
    except DoesNotFit:
        return
    held = {stage.node_id: stage.layers for stage in before.stages}

    made = plan(spec, left, demand, held=held)

    assert check(spec, left, demand, made) == ()
    assert made.slowest_seconds <= best.slowest_seconds * 1.0501


def test_measured_links_order_the_middle_of_the_pipeline() -> None:
    machines = [machine(i, 1000) for i in range(5)]
    ids = [m.node_id for m in machines]
    road = [ids[i] for i in (0, 3, 1, 2, 4)]
    links = dict.fromkeys(pairwise(road), 0.001) | {(ids[0], ids[1]): 0.5}

    made = plan(model([10] * 10), machines, Demand(0, 0), links=links)

    assert made.nodes == tuple(road)


def test_one_stream_uses_one_machine_that_suffices() -> None:
    machines = [machine(i, 1000, bandwidth=1e9 * (i + 1)) for i in range(3)]

    made = plan(model([10] * 10), machines, Demand(0, 0, "latency"))

    assert made.nodes == (machines[2].node_id,)


def test_one_stream_leaves_the_slowest_machine_as_little_as_can_be() -> None:
    machines = [machine(0, 75, bandwidth=1.0), machine(1, 75, bandwidth=9.0)]

    made = plan(model([10] * 10), machines, Demand(0, 0, "latency"))

    assert {str(s.node_id)[-1]: len(s.layers) for s in made.stages} == {"0": 3, "1": 7}


def test_many_machines_with_unequal_layers_get_a_valid_plan() -> None:
    layers = [GIB // 4 + (i * 7919 % 97) * (1 << 20) for i in range(200)]
    machines = [machine(i, (2 + i % 5) * GIB, bandwidth=1e9 * (1 + i % 7)) for i in range(100)]
    spec, demand = model(layers, embed=GIB, head=GIB), Demand(4, 1 << 20)

    made = plan(spec, machines, demand)

    assert check(spec, machines, demand, made) == ()


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_an_unmeasured_machine_is_used_only_when_it_is_needed(objective: str) -> None:
    fast, unknown = machine(0, 50), machine(1, 1000, bandwidth=0.0, flops=0.0)
    demand = Demand(0, 0, "latency" if objective == "latency" else "throughput")

    assert plan(model([10] * 4), [fast, unknown], demand).nodes == (fast.node_id,)
    assert len(plan(model([10] * 8), [fast, unknown], demand).stages) == 2


def test_check_names_every_fault() -> None:
    spec, machines, demand = model([10] * 4), [machine(0, 100), machine(1, 5)], Demand(2, 0)
    good = plan(spec, machines, demand)
    elsewhere = plan(spec, [machine(7, 100)], demand)

    assert check(spec, machines, demand, good) == ()
    assert "no stages" in check(spec, machines, demand, Plan((), 2))[0]
    assert "none of the machines" in check(spec, machines, demand, elsewhere)[0]
    assert "made for 1 KV tokens" in check(spec, machines, demand, Plan(good.stages, 1))[0]
    assert "two stages" in " ".join(check(spec, machines, demand, Plan(good.stages * 2, 2)))
    assert "planned" in check(spec, [machine(0, 20)], demand, good)[0]


def test_check_finds_a_stage_that_needs_more_than_there_is() -> None:
    spec, machines, demand = model([10] * 4), [machine(0, 20)], Demand(0, 0)
    tight = Plan((stage_of(spec, machines[0], LayerRange(0, 4), demand),), 0)

    assert "21 bytes more" in check(spec, machines, demand, tight)[0]


def test_questions_without_sense_are_refused() -> None:
    with pytest.raises(InvalidValue, match="listed twice"):
        plan(model([1]), [machine(0, 10), machine(0, 10)], Demand(0, 0))
    with pytest.raises(InvalidValue, match="nothing to place"):
        plan(model([]), [machine(0, 10)], Demand(0, 0))
    with pytest.raises(InvalidValue, match="negative"):
        Demand(-1, 0)
