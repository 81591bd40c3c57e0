"""Gives a layer to machines that a plan left out, where no stage gets slower than its slowest.

With few layers the slowest stage may be as fast without some machines; they are used all the
same, so that every stage has more room and none stands idle.
"""

from collections.abc import Sequence
from dataclasses import replace

from butterfly_core.layers import LayerRange
from butterfly_partition.budget import LayerTable, Limit, Stages, bytes_in
from butterfly_partition.ordering import Order


def with_everybody(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], stages: Stages, among: Order
) -> Stages:
    """Each machine left out takes the first or last layer of the slowest stage that can spare it.

    No other layer moves. A machine stays out when no such layer fits it, or when one layer alone
    would take it longer than the slowest stage takes now.
    """
    timed = _no_slower(table, limits, paces, stages)
    used = {index for index, _ in stages}
    waiting = [index for index in among if index not in used]
    was_waiting = len(waiting) + 1
    while len(waiting) < was_waiting:  # who found no place may find one beside the others
        was_waiting = len(waiting)
        for index in tuple(waiting):
            split = _split(table, timed, paces, stages, index)
            if split is not None:
                stages = split
                waiting.remove(index)
    return stages


def in_order(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], stages: Stages, order: Order
) -> Stages | None:
    """The machines of these stages in another order, each with a layer at least, none slower.

    None when they do not fit so.
    """
    timed = _no_slower(table, limits, paces, stages)
    used = {index for index, _ in stages}
    filled: list[tuple[int, LayerRange]] = []
    start, last = 0, table.layer_count - len(used)
    for index in (index for index in order if index in used):
        last += 1
        stop = min(table.reach(timed[index], start), last)
        if stop == start:
            return None
        filled.append((index, LayerRange(start, stop)))
        start = stop
    return tuple(filled) if start == table.layer_count else None


def _no_slower(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], stages: Stages
) -> list[Limit]:
    """The limits within which every machine is as fast as the slowest of these stages."""
    seconds = max(table.read_bytes(part.start, part.stop) * paces[i] for i, part in stages)
    return [
        replace(limit, step_bytes=min(limit.step_bytes, bytes_in(seconds, pace)))
        for limit, pace in zip(limits, paces, strict=True)
    ]


def _split(
    table: LayerTable, limits: Sequence[Limit], paces: Sequence[float], stages: Stages, index: int
) -> Stages | None:
    """The stages with one more, of one layer; None when no stage has one that fits."""

    def seconds(place: int) -> float:
        donor, part = stages[place]
        return table.read_bytes(part.start, part.stop) * paces[donor]

    for place in sorted(range(len(stages)), key=lambda place: (-seconds(place), place)):
        donor, part = stages[place]
        if len(part) < 2:
            continue
        front = (donor, LayerRange(part.start, part.stop - 1))
        back = (donor, LayerRange(part.start + 1, part.stop))
        for pair in (
            (front, (index, LayerRange(part.stop - 1, part.stop))),
            ((index, LayerRange(part.start, part.start + 1)), back),
        ):
            if all(table.fits(limits[i], layers.start, layers.stop) for i, layers in pair):
                return (*stages[:place], *pair, *stages[place + 1 :])
    return None
