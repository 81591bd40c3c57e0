"""Chooses how much each node takes: the slowest stage fast, or one stream fast."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from butterfly_partition.budget import LayerTable, Limit, Stages, bytes_in, fill
from butterfly_partition.ordering import SWAPS_MAX, Order, covering_order
from butterfly_partition.spreading import in_order, with_everybody

HOP_SECONDS = 0.0005
"""What one more stage costs a single stream when nothing was measured."""

KEEPING_ORDER_MAY_COST = 0.05
"""How much slower the slowest stage may be for nodes to stay where they were."""

NOTHING = Limit(memory_bytes=-1, step_bytes=0)
"""The limit of a node that is to get no layers."""

_SQUEEZED_MAX = 16
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

    Candidates: one node alone, the fastest that suffice, the largest that suffice, and the plan
    for throughput, on few nodes and on all, so that none is worse than that. None when the
    layers do not fit at all. A heuristic: with up to five nodes it is optimal in about 98 of
    100 random questions.
    """
    by_pace = tuple(sorted(preferred, key=lambda i: (paces[i], -limits[i].memory_bytes)))
    by_memory = tuple(sorted(preferred, key=lambda i: (-limits[i].memory_bytes, paces[i])))
    alone = [(i,) for i in by_pace if fill(table, limits, (i,)) is not None]
    choices = [
        _just_enough(table, limits, paces, nodes, preferred)
        for nodes in (*alone[:1], by_pace, by_memory)
    ]
    balanced = fastest_slowest_stage(table, limits, paces, preferred)
    if balanced is not None:
        wide = with_everybody(table, limits, paces, balanced, preferred)
        choices += [balanced, wide, in_order(table, limits, paces, wide, preferred)]
    found = [stages for stages in choices if stages is not None]
    return min(found, key=lambda stages: _stream_seconds(table, paces, stages), default=None)


def _just_enough(
    table: LayerTable,
    limits: Sequence[Limit],
    paces: Sequence[float],
    nodes: Order,
    preferred: Order,
) -> Stages | None:
    """The shortest beginning of ``nodes`` that covers all layers, slow nodes used the least.

    From the slowest on, each node's share is made as small as the rest can make up for.
    """

    def covered_by(some: Sequence[Limit]) -> Order | None:
        used = sorted(preferred, key=lambda i: some[i].step_bytes == 0)
        return covering_order(table, some, tuple(used))

    def only(count: int) -> list[Limit]:
        chosen = nodes[:count]
        return [limits[i] if i in chosen else NOTHING for i in range(len(limits))]

    count = _least(1, len(nodes), lambda n: covered_by(only(n)) is not None)
    if count is None:
        return None
    tight, most = only(count), table.read_bytes(0, table.layer_count)
    slowest_first = sorted(nodes[:count], key=lambda i: (-paces[i], limits[i].memory_bytes))
    for index in slowest_first[:_SQUEEZED_MAX]:
        share = partial(_with_share, tight, index)
        least = _least(0, most, partial(_is_enough, share, covered_by))
        tight = tight if least is None else share(least)
    order = covered_by(tight)
    return None if order is None else fill(table, tight, order)


def _is_enough(
    share: Callable[[int], list[Limit]],
    covered_by: Callable[[Sequence[Limit]], Order | None],
    step_bytes: int,
) -> bool:
    return covered_by(share(step_bytes)) is not None


def _with_share(limits: Sequence[Limit], index: int, step_bytes: int) -> list[Limit]:
    """The limits with one node reading at most so much; nothing at all when that is 0."""
    share = replace(limits[index], step_bytes=step_bytes) if step_bytes else NOTHING
    return [share if i == index else limit for i, limit in enumerate(limits)]


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
