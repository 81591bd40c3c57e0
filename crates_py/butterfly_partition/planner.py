"""Plans which node holds which layers, and checks any plan against what must be true of one.

The same question always has the same answer: ties go to the order the nodes had before
(``order_hint``), then to the lesser node id.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from butterfly_core.errors import DoesNotFit, InvalidValue
from butterfly_core.ids import NodeId, short
from butterfly_core.model import ModelSpec
from butterfly_partition import balance
from butterfly_partition.balance import Stages
from butterfly_partition.budget import LayerTable, Limit, layer_table, seconds_per_byte, stage_of
from butterfly_partition.explain import explain
from butterfly_partition.links import shortest_path
from butterfly_partition.ordering import Order
from butterfly_partition.planned import Demand, Machine, Plan

Links = Mapping[tuple[NodeId, NodeId], float]
"""Measured seconds of one hop, by (from, to)."""


def plan(
    spec: ModelSpec,
    machines: Sequence[Machine],
    demand: Demand,
    *,
    order_hint: Sequence[NodeId] = (),
    links: Links | None = None,
) -> Plan:
    """Give every layer to a node. Raises DoesNotFit, whose message explains per node why.

    ``order_hint`` is the pipeline as it was: nodes keep their order in it where that costs the
    slowest stage 5 % at most, so that few bytes move. ``links`` are measured hop times; without
    a hint the middle of the pipeline is ordered by them (an unmeasured hop counts as the slowest).
    A machine may get no layers. Deterministic in all arguments, whatever the order of machines.
    """
    _check_question(spec, machines)
    machines = sorted(machines, key=lambda machine: machine.node_id)
    table = layer_table(spec, demand)
    limits = [Limit(machine.capacity.memory_free_bytes) for machine in machines]
    paces = [seconds_per_byte(spec, machine, demand) for machine in machines]
    preferred = _preferred(machines, order_hint)
    if demand.objective == "latency":
        stages = balance.fastest_single_stream(table, limits, paces, preferred)
    else:
        stages = balance.fastest_slowest_stage(table, limits, paces, preferred)
    if stages is None:
        raise DoesNotFit(explain(spec, machines, demand, None))
    if demand.objective == "throughput":
        stages = _settled(
            table, limits, paces, stages, _wanted(machines, order_hint, links, stages)
        )
    return Plan(
        tuple(stage_of(spec, machines[index], layers, demand) for index, layers in stages),
        demand.kv_tokens,
    )


def _settled(
    table: LayerTable,
    limits: Sequence[Limit],
    paces: Sequence[float],
    best: Stages,
    wanted: Order,
) -> Stages:
    """The wanted order when it is hardly slower than the best; else the best."""
    if not wanted or wanted == tuple(index for index, _ in best):
        return best
    stages = balance.in_this_order(table, limits, paces, wanted)
    allowed = balance.slowest_seconds(table, paces, best) * (1 + balance.KEEPING_ORDER_MAY_COST)
    if stages is None or balance.slowest_seconds(table, paces, stages) > allowed:
        return best
    return stages


def _wanted(
    machines: Sequence[Machine], hint: Sequence[NodeId], links: Links | None, best: Stages
) -> Order:
    if hint:
        return _preferred(machines, hint)
    if links:
        slowest = max(links.values())
        ids = [machine.node_id for machine in machines]
        order = tuple(index for index, _ in best)
        return shortest_path(order, lambda a, b: links.get((ids[a], ids[b]), slowest))
    return ()


def _preferred(machines: Sequence[Machine], hint: Sequence[NodeId]) -> Order:
    """Indexes of the machines: those of the hint in its order, then the others by id."""
    place = {node: position for position, node in enumerate(hint)}
    known = range(len(machines))
    return tuple(sorted(known, key=lambda i: (place.get(machines[i].node_id, len(place)), i)))


def _check_question(spec: ModelSpec, machines: Sequence[Machine]) -> None:
    if spec.layer_count < 1:
        raise InvalidValue(f"{spec.name} has {spec.layer_count} layers; there is nothing to place")
    if len({machine.node_id for machine in machines}) < len(machines):
        raise InvalidValue("the same node is listed twice among the machines")


def check(
    spec: ModelSpec, machines: Sequence[Machine], demand: Demand, made: Plan
) -> tuple[str, ...]:
    """Everything that is wrong with a plan, in words; empty for a plan that may be used."""
    faults = list(_shape_faults(spec, made))
    known = {machine.node_id: machine for machine in machines}
    if made.kv_tokens != demand.kv_tokens:
        faults.append(f"made for {made.kv_tokens} KV tokens, {demand.kv_tokens} are asked")
    for stage in made.stages:
        name = f"node {short(stage.node_id)}"
        machine = known.get(stage.node_id)
        if machine is None:
            faults.append(f"{name} is none of the machines")
        elif stage.layers.stop > spec.layer_count:
            faults.append(f"{name} holds layers {stage.layers} of {spec.layer_count}")
        elif stage != (right := stage_of(spec, machine, stage.layers, demand)):
            faults.append(f"{name}: planned {stage}, but it is {right}")
        elif stage.used_bytes > machine.capacity.memory_free_bytes:
            missing = stage.used_bytes - machine.capacity.memory_free_bytes
            faults.append(f"{name} needs {missing} bytes more than it has free")
    return tuple(faults)


def _shape_faults(spec: ModelSpec, made: Plan) -> tuple[str, ...]:
    """Stages must follow each other from layer 0 to the last, each on a node of its own."""
    faults = []
    if not made.stages:
        return ("no stages",)
    if made.stages[0].layers.start != 0:
        faults.append(f"starts at layer {made.stages[0].layers.start}, not 0")
    if made.stages[-1].layers.stop != spec.layer_count:
        faults.append(f"ends before layer {made.stages[-1].layers.stop}, not {spec.layer_count}")
    faults += [
        f"layers {before.layers} are followed by {after.layers}"
        for before, after in pairwise(made.stages)
        if before.layers.stop != after.layers.start
    ]
    if len(set(made.nodes)) < len(made.stages):
        faults.append("a node holds two stages")
    return tuple(faults)
