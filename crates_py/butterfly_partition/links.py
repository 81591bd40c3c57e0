"""Orders the middle of a pipeline so that its hops are short; the two ends stay."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

EXACT_NODES_MAX = 12
_PASSES_MAX = 8

Seconds = Callable[[int, int], float]
"""Measured seconds of a hop from one node to another."""

Paths = dict[tuple[int, int], tuple[float, tuple[int, ...]]]
"""(set of inner nodes, the last of them): (seconds, the inner nodes in order)."""


def shortest_path(order: Sequence[int], hop: Seconds) -> tuple[int, ...]:
    """The same nodes, first and last in place, with the least sum of hops.

    Exact (Held and Karp's table over subsets) up to 12 nodes between the ends, 2-opt above.
    """
    if len(order) < 4:
        return tuple(order)
    if len(order) - 2 <= EXACT_NODES_MAX:
        return _held_karp(order, hop)
    return _two_opt(tuple(order), hop)


def path_seconds(order: Sequence[int], hop: Seconds) -> float:
    return sum(hop(a, b) for a, b in pairwise(order))


def _held_karp(order: Sequence[int], hop: Seconds) -> tuple[int, ...]:
    first, inner, last = order[0], order[1:-1], order[-1]
    paths: Paths = {(1 << i, i): (hop(first, node), (node,)) for i, node in enumerate(inner)}
    for _ in inner[1:]:
        longer: Paths = {}
        for (visited, end), (seconds, path) in paths.items():
            for i, node in enumerate(inner):
                if not visited >> i & 1:
                    key = (visited | 1 << i, i)
                    candidate = (seconds + hop(inner[end], node), (*path, node))
                    longer[key] = min(longer.get(key, candidate), candidate, key=_cost)
        paths = longer
    ends = ((seconds + hop(inner[end], last), path) for (_, end), (seconds, path) in paths.items())
    return (first, *min(ends, key=_cost)[1], last)


def _cost(candidate: tuple[float, tuple[int, ...]]) -> float:
    return candidate[0]


def _two_opt(order: tuple[int, ...], hop: Seconds) -> tuple[int, ...]:
    best, seconds = order, path_seconds(order, hop)
    for _ in range(_PASSES_MAX):
        better = min(_reversals(best), key=partial(path_seconds, hop=hop))
        if path_seconds(better, hop) >= seconds:
            return best
        best, seconds = better, path_seconds(better, hop)
    return best


def _reversals(order: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every order that comes of turning round one run of inner nodes."""
    inner = range(1, len(order) - 1)
    return [
        (*order[:i], *reversed(order[i : j + 1]), *order[j + 1 :])
        for i in inner
        for j in inner
        if i < j
    ]
