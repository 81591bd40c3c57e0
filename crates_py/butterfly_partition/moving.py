"""Prices a new plan by the bytes that nodes would have to load for it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from butterfly_core.layers import LayerRange
from butterfly_partition.budget import LayerTable, Limit, Stages
from butterfly_partition.ordering import Order

INSERTIONS_MAX = 24
"""Places tried for the newcomers of a re-plan, evenly spread in a longer pipeline."""


def moved_bytes(table: LayerTable, stages: Stages, held: Mapping[int, LayerRange]) -> int:
    """Weight bytes of layers that their new holders do not hold yet (the ends not counted)."""
    return sum(_missing_bytes(table, layers, held.get(index)) for index, layers in stages)


def _missing_bytes(table: LayerTable, wanted: LayerRange, held: LayerRange | None) -> int:
    whole = table.weights[wanted.stop] - table.weights[wanted.start]
    if held is None:
        return whole
    start, stop = max(wanted.start, held.start), min(wanted.stop, held.stop)
    return whole - (table.weights[stop] - table.weights[start] if start < stop else 0)


def as_held(
    table: LayerTable, limits: Sequence[Limit], held: Mapping[int, LayerRange]
) -> Stages | None:
    """The plan that moves nothing: what nodes hold, when that is still a whole plan that fits."""
    stages = tuple(sorted(held.items(), key=lambda item: item[1]))
    if not stages or stages[0][1].start != 0 or stages[-1][1].stop != table.layer_count:
        return None
    if any(before.stop != after.start for (_, before), (_, after) in pairwise(stages)):
        return None
    fits = all(table.fits(limits[index], part.start, part.stop) for index, part in stages)
    return stages if fits else None


def insertions(order: Order, held: Mapping[int, LayerRange]) -> Iterator[Order]:
    """Orders that keep the holders as they stand, with the newcomers together at each place."""
    holders = tuple(sorted((i for i in order if i in held), key=lambda i: held[i]))
    newcomers = tuple(i for i in order if i not in held)
    if not newcomers:
        yield holders
        return
    stride = len(holders) // INSERTIONS_MAX + 1
    for place in range(0, len(holders) + 1, stride):
        yield (*holders[:place], *newcomers, *holders[place:])
