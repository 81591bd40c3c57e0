"""Plans which node holds which layers, and checks any plan against what must be true of one.

The same question always has the same answer: ties go to the order the nodes had before
(``order_hint``, ``held``), then to the lesser node id.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise

from butterfly_core.errors import DoesNotFit, InvalidValue
from butterfly_core.ids import NodeId, short
from butterfly_core.layers import LayerRange
from butterfly_core.model import ModelSpec
from butterfly_partition import balance
from butterfly_partition.budget import (
    LayerTable,
    Limit,
    Stages,
    layer_table,
    seconds_per_byte,
    stage_of,
)
from butterfly_partition.explain import explain
from butterfly_partition.links import shortest_path
from butterfly_partition.moving import as_held, insertions, moved_bytes
from butterfly_partition.ordering import Order
from butterfly_partition.planned import Demand, Machine, Plan
from butterfly_partition.spreading import in_order, with_everybody

Links = Mapping[tuple[NodeId, NodeId], float]
"""Measured seconds of one hop, by (from, to)."""


def plan(
    spec: ModelSpec,
    machines: Sequence[Machine],
    demand: Demand,
    *,
    order_hint: Sequence[NodeId] = (),
    held: Mapping[NodeId, LayerRange] | None = None,
    links: Links | None = None,
) -> Plan:
    """Give every layer to a node. Raises DoesNotFit, whose message explains per node why.

    ``order_hint`` is the pipeline as it was and ``held`` the layers that nodes have loaded. With
    either, nodes keep their places (with ``held`` also their layers, and newcomers stand where
    the fewest bytes move) while that costs the slowest stage 5 % at most. ``links`` are measured
    hop times; without the former two, the middle of the pipeline is ordered by them (an
    unmeasured hop counts as the slowest). Deterministic in all arguments, whatever the order of
    ``machines``.

    For throughput every machine gets layers, except where there are fewer layers than machines,
    none fits, or one alone would be the slowest stage. For latency few do.
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
        settle = _Settling(table, limits, paces, stages)
        ids = [machine.node_id for machine in machines]
        if held:
            loaded = {i: held[node] for i, node in enumerate(ids) if node in held}
            stages = settle.with_fewest_bytes_moved(loaded, preferred)
        elif order_hint:
            stages = settle.in_one_of([preferred])
        elif links:
            stages = settle.in_one_of([_by_links(ids, links, stages)])
        wide = with_everybody(table, limits, paces, stages, preferred)
        if wide != stages and not held:
            wide = in_order(table, limits, paces, wide, preferred) or wide
            if links and not order_hint:
                road = _by_links(ids, links, wide)
                wide = in_order(table, limits, paces, wide, road) or wide
        stages = wide
    return Plan(
        tuple(stage_of(spec, machines[index], layers, demand) for index, layers in stages),
        demand.kv_tokens,
    )


class _Settling:
    """Looks for stages with other merits that are hardly slower than the best ones."""

    def __init__(
        self, table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], best: Stages
    ) -> None:
        self._table, self._limits, self._paces, self._best = table, limits, paces, best
        slowest = balance.slowest_seconds(table, paces, best)
        self._allowed = slowest * (1 + balance.KEEPING_ORDER_MAY_COST)

    def in_one_of(
        self, orders: Iterable[Order], cost: Callable[[Stages], int] = lambda _: 0
    ) -> Stages:
        """The stages of least cost in any of these orders; the best ones when all are too slow."""
        found = [
            stages
            for order in orders
            if (stages := balance.in_this_order(self._table, self._limits, self._paces, order))
            and self._is_allowed(stages)
        ]
        return min(found, key=cost, default=self._best)

    def with_fewest_bytes_moved(self, held: Mapping[int, LayerRange], order: Order) -> Stages:
        unmoved = as_held(self._table, self._limits, held)
        if unmoved is not None and self._is_allowed(unmoved):
            return unmoved
        cost = partial(moved_bytes, self._table, held=held)
        return self.in_one_of(insertions(order, held), cost)

    def _is_allowed(self, stages: Stages) -> bool:
        return balance.slowest_seconds(self._table, self._paces, stages) <= self._allowed


def _by_links(ids: Sequence[NodeId], links: Links, best: Stages) -> Order:
    slowest = max(links.values())
    order = tuple(index for index, _ in best)
    return shortest_path(order, lambda a, b: links.get((ids[a], ids[b]), slowest))


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
