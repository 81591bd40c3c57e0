"""What would make a model fit: fewer KV tokens, more memory offered, another machine.

Each number is found by trying the planner's own sums, so following the advice works.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from butterfly_core.model import ModelSpec
from butterfly_partition.budget import Limit, fill, layer_table
from butterfly_partition.ordering import covering_order
from butterfly_partition.planned import Demand, Machine
from butterfly_partition.sizes import human_bytes

_MEBIBYTE = 1 << 20
_SHARE_STEPS = 1000
_STEPS_MAX = 3 * _SHARE_STEPS


def remedies(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> list[str]:
    """Sentences, each of them enough alone; for machines on which the model does not fit."""
    found = (_fewer_tokens, _less_workspace, _more_of_each, _another_machine)
    return [advice for remedy in found if (advice := remedy(spec, machines, demand)) is not None]


def covered_layers(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> int:
    """How many layers the machines hold at most, from the first on, in the best order found."""
    table, limits = layer_table(spec, demand), _limits(machines)

    def reach(count: int) -> bool:
        # A shorter model whose last stage holds nothing beside its layers: the end is open.
        beginning = replace(
            table,
            weights=table.weights[: count + 1],
            memory=table.memory[: count + 1],
            last_bytes=0,
            last_and_first_bytes=0,
            last_read_bytes=0,
        )
        return covering_order(beginning, limits, tuple(range(len(limits)))) is not None

    return _greatest(1, spec.layer_count, reach) or 0


def missing(
    spec: ModelSpec, machines: Sequence[Machine], demand: Demand
) -> tuple[int, float] | None:
    """(bytes in all, percent of every node's offer) by which the offers are too small.

    None when not even four times the offers were enough.
    """
    steps = _least(1, _STEPS_MAX, lambda n: _fits(spec, demand, _offered(machines, n)))
    if steps is None:
        return None
    before, after = _offered(machines, 0), _offered(machines, steps)
    more = sum(limit.memory_bytes for limit in after) - sum(limit.memory_bytes for limit in before)
    return more, steps * 100.0 / _SHARE_STEPS


def _offered(machines: Sequence[Machine], steps: int) -> list[Limit]:
    """The limits when every node offers so many thousandths more."""
    return [
        Limit(machine.capacity.memory_free_bytes * (_SHARE_STEPS + steps) // _SHARE_STEPS)
        for machine in machines
    ]


def _fits(spec: ModelSpec, demand: Demand, limits: Sequence[Limit]) -> bool:
    table = layer_table(spec, demand)
    order = covering_order(table, limits, tuple(range(len(limits))))
    return order is not None and fill(table, limits, order) is not None


def _limits(machines: Sequence[Machine]) -> list[Limit]:
    return [Limit(machine.capacity.memory_free_bytes) for machine in machines]


def _fewer_tokens(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> str | None:
    limits = _limits(machines)
    tokens = _greatest(
        0, demand.kv_tokens, lambda n: _fits(spec, replace(demand, kv_tokens=n), limits)
    )
    if not tokens:
        return None
    return f"set [engine] kv_cache_tokens to {tokens} or less (now {demand.kv_tokens})"


def _less_workspace(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> str | None:
    limits = _limits(machines)
    least = demand.workspace_bytes // 4
    workspace = _greatest(
        least,
        demand.workspace_bytes,
        lambda n: _fits(spec, replace(demand, workspace_bytes=n), limits),
    )
    if workspace is None:
        return None
    return f"set [engine] workspace_bytes to {workspace} or less (now {demand.workspace_bytes})"


def _more_of_each(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> str | None:
    """A greater share of each node's memory; only when that memory is there."""
    short = missing(spec, machines, demand)
    if short is None:
        return None
    steps = round(short[1] * _SHARE_STEPS / 100)
    for limit, machine in zip(_offered(machines, steps), machines, strict=True):
        if limit.memory_bytes > machine.capacity.memory_total_bytes:
            return None
    return f"raise [node] capacity, or free memory, so that every node offers {short[1]:.1f} % more"


def _another_machine(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> str | None:
    limits = _limits(machines)
    whole = layer_table(spec, demand).memory_bytes(0, spec.layer_count)
    mebibytes = _least(
        1,
        whole // _MEBIBYTE + 1,
        lambda n: _fits(spec, demand, [*limits, Limit(n * _MEBIBYTE)]),
    )
    if mebibytes is None:
        return None
    return f"add a machine with at least {human_bytes(mebibytes * _MEBIBYTE, at_least=True)} free"


def _least(low: int, high: int, is_enough: Callable[[int], bool]) -> int | None:
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def _greatest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The greatest number in [low, high] that still fits; None when not even ``low`` does."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
