"""Finds an order of the nodes in which they reach from the first layer to the last.

Exact when all layers are of one size (only the ends matter then) and, by a table over subsets,
for up to 12 nodes with layers of any sizes; above that, likely orders and then swaps.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, islice

from butterfly_partition.budget import LayerTable, Limit, fill

SUBSET_NODES_MAX = 12
SWAPS_MAX = 1000
"""Swaps tried before a model is said not to fit."""

_UNBOUND = 1 << 62

Order = tuple[int, ...]
"""Indexes of nodes; some at its end may get nothing."""


def covering_order(
    table: LayerTable, limits: Sequence[Limit], preferred: Order, *, swaps_max: int = 0
) -> Order | None:
    """An order that covers all layers, the preferred one if it does; None when none is found.

    ``swaps_max`` bounds the search where it is not exact (unequal layers, more than 12 nodes).
    """
    if fill(table, limits, preferred) is not None:
        return preferred
    if table.is_uniform:
        return _uniform(table, limits, preferred)
    usable = tuple(i for i in preferred if limits[i].memory_bytes > 0 and limits[i].step_bytes > 0)
    if len(usable) <= SUBSET_NODES_MAX:
        order = _by_subsets(table, [limits[i] for i in usable])
        return None if order is None else tuple(usable[i] for i in order)
    return _by_swaps(table, limits, preferred, swaps_max)


def _uniform(table: LayerTable, limits: Sequence[Limit], preferred: Order) -> Order | None:
    """Choose who stands at the two ends; between them the order does not matter.

    A node's loss as first (or last) is the number of layers it can hold less there. The two
    smallest losses at each end contain a best pair of different nodes.
    """
    count = table.layer_count
    for index in preferred:
        if table.reach(limits[index], 0) == count:
            return (index,)
    if count < 2:
        return None
    inner = [_inner_layers(table, limit) for limit in limits]
    first = [min(table.reach(limit, 0), count - 1) for limit in limits]
    last = [_last_layers(table, limit) for limit in limits]
    firsts = sorted((i for i in preferred if first[i] > 0), key=lambda i: inner[i] - first[i])[:2]
    lasts = sorted((i for i in preferred if last[i] > 0), key=lambda i: inner[i] - last[i])[:2]
    pairs = [(i, j) for i in firsts for j in lasts if i != j]
    if not pairs:
        return None
    head, tail = min(pairs, key=lambda p: inner[p[0]] - first[p[0]] + inner[p[1]] - last[p[1]])
    order = (head, *(i for i in preferred if i not in (head, tail)), tail)
    return order if fill(table, limits, order) is not None else None


def _inner_layers(table: LayerTable, limit: Limit) -> int:
    """Layers that a node can hold between the ends, at most all of them."""
    memory, read = table.memory[1], table.weights[1]
    by_memory = (limit.memory_bytes - table.workspace_bytes) // memory if memory else _UNBOUND
    by_time = limit.step_bytes // read if read else _UNBOUND
    return max(0, min(by_memory, by_time, table.layer_count))


def _last_layers(table: LayerTable, limit: Limit) -> int:
    """Layers that a node can hold at the end of the pipeline, all but the first at most."""
    few, many = 0, table.layer_count - 1
    while few < many:
        middle = (few + many + 1) // 2
        if table.fits(limit, table.layer_count - middle, table.layer_count):
            few = middle
        else:
            many = middle - 1
    return few


def _by_subsets(table: LayerTable, limits: Sequence[Limit]) -> Order | None:
    """For each set of nodes the farthest layer they reach in any order (as Held and Karp)."""
    count = table.layer_count
    reaches = [[table.reach(limit, s) for s in range(count)] for limit in limits]
    farthest = [0] * (1 << len(limits))
    came_from = [0] * (1 << len(limits))
    for members in range(1, 1 << len(limits)):
        best, by = -1, 0
        for index, reach in enumerate(reaches):
            bit = 1 << index
            if members & bit and (stop := reach[farthest[members ^ bit]]) > best:
                best, by = stop, index
        if best == count:
            return (*_trace(members ^ (1 << by), came_from), by)
        farthest[members], came_from[members] = best, by
    return None


def _trace(members: int, came_from: Sequence[int]) -> Iterator[int]:
    """The nodes of a set in the order in which they reach farthest."""
    backwards = []
    while members:
        backwards.append(came_from[members])
        members ^= 1 << came_from[members]
    return reversed(backwards)


def _by_swaps(
    table: LayerTable, limits: Sequence[Limit], preferred: Order, swaps_max: int
) -> Order | None:
    """Likely orders first, then swaps of two nodes that reach farther; a heuristic."""
    likely = sorted(
        _likely_orders(table, limits, preferred), key=lambda o: -_covered(table, limits, o)
    )
    order = likely[0]
    covered = _covered(table, limits, order)
    for i, j in islice(combinations(range(len(order)), 2), swaps_max):
        if covered == table.layer_count:
            break
        swapped = (*order[:i], order[j], *order[i + 1 : j], order[i], *order[j + 1 :])
        if (reached := _covered(table, limits, swapped)) > covered:
            order, covered = swapped, reached
    return order if covered == table.layer_count else None


def _likely_orders(table: LayerTable, limits: Sequence[Limit], preferred: Order) -> Iterator[Order]:
    count = table.layer_count
    roomy = tuple(sorted(preferred, key=lambda i: -limits[i].memory_bytes))
    yield roomy
    yield tuple(reversed(roomy))
    lasts = sorted(preferred, key=lambda i: -_last_layers(table, limits[i]))[:3]
    firsts = sorted(preferred, key=lambda i: -table.reach(limits[i], 0))[:3]
    for head in firsts:
        for tail in lasts:
            if head != tail and count > 1:
                yield (head, *(i for i in roomy if i not in (head, tail)), tail)


def _covered(table: LayerTable, limits: Sequence[Limit], order: Order) -> int:
    start = 0
    for index in order:
        start = table.reach(limits[index], start)
        if start == table.layer_count:
            break
    return start
