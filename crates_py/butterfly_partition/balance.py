"""Chooses how much each node takes: the slowest stage fast, or one stream fast."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from butterfly_core.layers import LayerRange
from butterfly_partition.budget import LayerTable, Limit, bytes_in, fill
from butterfly_partition.ordering import SWAPS_MAX, Order, covering_order

Stages = tuple[tuple[int, LayerRange], ...]
"""(index of the node, its layers), in the order of the pipeline."""

HOP_SECONDS = 0.0005
"""What one more stage costs a single stream when nothing was measured."""

KEEPING_ORDER_MAY_COST = 0.05
"""How much slower the slowest stage may be for nodes to stay where they were."""

_BISECTIONS_MAX = 64
_PRECISION = 1e-9


def fastest_slowest_stage(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], preferred: Order
) -> Stages | None:
    """Stages whose slowest is as fast as can be; None when the layers do not fit at all.

    ``paces`` are seconds per byte read. Bisection on the time of the slowest stage: within it,
    each node takes as many layers as memory and time allow, and together they must reach the
    end. Every answer found tightens the bound to the time it really has.
    """
    start = covering_order(table, limits, preferred, swaps_max=SWAPS_MAX)
    if start is None:
        return None
    best = fill(table, limits, start)
    # An order found may leave nodes out that a shorter time needs.
    order = (*start, *(i for i in preferred if i not in start))
    return _bisect(table, limits, paces, best, lambda timed: covering_order(table, timed, order))


def in_this_order(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], order: Order
) -> Stages | None:
    """As ``fastest_slowest_stage``, for nodes that stand in a fixed order."""
    return _bisect(table, limits, paces, fill(table, limits, order), lambda _: order)


def _bisect(
    table: LayerTable,
    limits: Sequence[Limit],
    paces: Sequence[float],
    best: Stages | None,
    order_within: Callable[[Sequence[Limit]], Order | None],
) -> Stages | None:
    """Improve on stages that fit; ``order_within`` finds an order for tighter limits."""
    if best is None:
        return None
    high = slowest_seconds(table, paces, best)
    read = table.read_bytes(0, table.layer_count)
    low = read / sum(1.0 / pace for pace in paces) * (1.0 - _PRECISION)
    for _ in range(_BISECTIONS_MAX):
        if high - low <= _PRECISION * high:
            break
        middle = (low + high) / 2
        timed = _timed(limits, paces, middle)
        order = order_within(timed)
        found = None if order is None else fill(table, timed, order)
        if found is None:
            low = middle
        else:
            best, high = found, min(middle, slowest_seconds(table, paces, found))
    return best


def _timed(limits: Sequence[Limit], paces: Sequence[float], seconds: float) -> tuple[Limit, ...]:
    return tuple(
        replace(limit, step_bytes=bytes_in(seconds, pace))
        for limit, pace in zip(limits, paces, strict=True)
    )


def slowest_seconds(table: LayerTable, paces: Sequence[float], stages: Stages) -> float:
    return max(table.read_bytes(r.start, r.stop) * paces[index] for index, r in stages)


def fastest_single_stream(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], preferred: Order
) -> Stages | None:
    """Stages through which one token passes soonest: few nodes, the fastest ones full.

    Two candidates: the fastest nodes that suffice, and the fewest. In each the slowest node
    takes as little as it can. None when the layers do not fit at all.
    """
    by_pace = tuple(sorted(preferred, key=lambda i: (paces[i], -limits[i].memory_bytes)))
    by_memory = tuple(sorted(preferred, key=lambda i: (-limits[i].memory_bytes, paces[i])))
    alone = [(i,) for i in by_pace if fill(table, limits, (i,)) is not None]
    choices = [
        stages
        for nodes in (*alone[:1], by_pace, by_memory)
        if (stages := _just_enough(table, limits, paces, nodes, preferred)) is not None
    ]
    return min(choices, key=lambda stages: _stream_seconds(table, paces, stages), default=None)


def _just_enough(
    table: LayerTable,
    limits: Sequence[Limit],
    paces: Sequence[float],
    nodes: Order,
    preferred: Order,
) -> Stages | None:
    """The shortest beginning of ``nodes`` that covers all layers, its slowest node least used."""

    def reach(count: int, last_step_bytes: int | None) -> Stages | None:
        chosen = nodes[:count]
        slowest = max(chosen, key=lambda i: (paces[i], chosen.index(i)))
        some = [_unused(i, limits, chosen, slowest, last_step_bytes) for i in range(len(limits))]
        keep = tuple(i for i in preferred if i in chosen)
        order = covering_order(table, some, (*keep, *(i for i in preferred if i not in chosen)))
        return None if order is None else fill(table, some, order)

    count = _least(1, len(nodes), lambda n: reach(n, None) is not None)
    best = None if count is None else reach(count, None)
    if count is None or best is None:
        return None
    most = table.read_bytes(0, table.layer_count)
    step_bytes = _least(0, most, lambda n: reach(count, n) is not None)
    return (None if step_bytes is None else reach(count, step_bytes)) or best


def _unused(
    index: int, limits: Sequence[Limit], chosen: Order, slowest: int, step_bytes: int | None
) -> Limit:
    """A node's limit: nothing when it is not chosen, less time when it is the slowest."""
    if index not in chosen:
        return Limit(memory_bytes=-1, step_bytes=-1)
    if index == slowest and step_bytes is not None:
        return replace(limits[index], step_bytes=step_bytes)
    return limits[index]


def _least(low: int, high: int, is_enough: Callable[[int], bool]) -> int | None:
    """The least number in [low, high] that is enough; None when not even ``high`` is."""
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def _stream_seconds(table: LayerTable, paces: Sequence[float], stages: Stages) -> float:
    steps = sum(table.read_bytes(r.start, r.stop) * paces[index] for index, r in stages)
    return steps + HOP_SECONDS * (len(stages) - 1)
