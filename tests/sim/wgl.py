"""Is a history of reads, writes and compare-and-sets of one register linearizable?

The search of Wing and Gong (1993) with Lowe's memory of visited states (2017): take any
operation that nobody had to come before, apply it, go on; a set of done operations together
with the register's value is never tried twice. Operations whose outcome is unknown may take
effect at any time after their call, or never.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

STATES_MAX = 200_000
Value = int | None


class Verdict(Enum):
    """``UNDECIDED``: more than ``STATES_MAX`` states were seen."""

    LINEARIZABLE = "linearizable"
    BROKEN = "broken"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client did. ``returned`` is infinite when the outcome is unknown.

    A read has its ``result``, a write its ``value``; a compare-and-set replaces ``expected`` by
    ``value`` and tells in ``swapped`` whether it did (None: unknown).
    """

    called: float
    returned: float
    kind: Literal["read", "write", "swap"]
    value: Value = None
    expected: Value = None
    swapped: bool | None = None


def after(operation: Operation, state: Value) -> tuple[bool, Value]:
    """Whether the operation may happen in this state, and the state it leaves."""
    if operation.kind == "read":
        return operation.value == state, state
    if operation.kind == "write":
        return True, operation.value
    fits = state == operation.expected
    if operation.swapped is None:
        return fits, operation.value  # one that did not fit might as well not have happened
    return fits == operation.swapped, operation.value if fits else state


def without_the_unseen(history: Sequence[Operation]) -> list[Operation]:
    """Drop what nobody can tell from nothing, so that the search stays small.

    That is reads without an answer, and writes of unknown outcome whose value nobody read or
    compared, as long as no comparison failed (it could have failed because of them).
    """
    kept = [o for o in history if not (o.kind == "read" and o.returned == math.inf)]
    if any(o.kind == "swap" and o.swapped is False for o in kept):
        return kept
    seen = {o.value for o in kept if o.kind == "read"}
    seen |= {o.expected for o in kept if o.kind == "swap"}
    return [o for o in kept if o.returned < math.inf or o.value in seen]


def check(history: Sequence[Operation], initial: Value = None) -> Verdict:
    """Search for an order that explains every answer."""
    operations = sorted(without_the_unseen(history), key=lambda o: (o.called, o.returned))
    must = sum(1 << at for at, o in enumerate(operations) if o.returned < math.inf)
    seen: set[tuple[int, Value]] = set()
    stack: list[tuple[int, Value]] = [(0, initial)]
    while stack:
        place = stack.pop()
        if place in seen:
            continue
        seen.add(place)
        if place[0] & must == must:
            return Verdict.LINEARIZABLE
        if len(seen) > STATES_MAX:
            return Verdict.UNDECIDED
        stack += _next(operations, *place)
    return Verdict.BROKEN


def _next(operations: list[Operation], done: int, state: Value) -> list[tuple[int, Value]]:
    """Everything that may come next: called before the first return among the rest."""
    found: list[tuple[int, Value]] = []
    first_return = math.inf
    at = (~done & (done + 1)).bit_length() - 1  # everything before is done
    for number in range(at, len(operations)):
        operation = operations[number]
        if done >> number & 1:
            continue
        if operation.called > first_return:
            break
        first_return = min(first_return, operation.returned)
        fits, state_after = after(operation, state)
        if fits and state_after == state and operation.returned < math.inf:
            return [(done | 1 << number, state)]  # it changes nothing: never worse than later
        if fits:
            found.append((done | 1 << number, state_after))
    return found
