"""The checker itself: histories known to be right and to be wrong."""

import itertools
import math
import random

import pytest

from tests.sim import wgl
from tests.sim.wgl import Operation, Value, Verdict, after, check


def read(called: float, returned: float, value: Value) -> Operation:
    return Operation(called, returned, "read", value)


def write(called: float, value: int, returned: float = math.inf) -> Operation:
    return Operation(called, returned, "write", value)


def swap(
    called: float, expected: Value, value: int, swapped: bool | None, returned: float = math.inf
) -> Operation:
    return Operation(called, returned, "swap", value, expected, swapped)


GOOD = {
    "nothing": [],
    "read what was written": [write(0, 1, 1), read(2, 3, 1)],
    "read the initial value": [read(0, 1, None)],
    "two at once, either order": [write(0, 1, 5), write(0, 2, 5), read(6, 7, 1)],
    "a read within a write sees old": [write(0, 1, 9), read(1, 2, None)],
    "a read within a write sees new": [write(0, 1, 9), read(1, 2, 1), read(3, 4, 1)],
    "an unknown write never happens": [write(0, 1), read(2, 3, None)],
    "an unknown write happens late": [write(0, 1), read(2, 3, None), read(4, 5, 1)],
    "a swap that fits": [write(0, 1, 1), swap(2, 1, 2, True, 3), read(4, 5, 2)],
    "a swap that fails": [write(0, 1, 1), swap(2, 7, 2, False, 3), read(4, 5, 1)],
    "a swap fails because of an unknown write": [
        write(0, 1, 1),
        write(2, 5),
        swap(3, 1, 2, False, 4),
    ],
    "an unknown swap happened": [write(0, 1, 1), swap(2, 1, 2, None), read(4, 5, 2)],
    "an unknown swap did not": [write(0, 1, 1), swap(2, 1, 2, None), read(4, 5, 1)],
}
BAD = {
    "a value from nowhere": [read(0, 1, 7)],
    "a stale read": [write(0, 1, 1), write(2, 2, 3), read(4, 5, 1)],
    "a lost write": [write(0, 1, 1), read(2, 3, None)],
    "back in time": [write(0, 1, 9), read(1, 2, 1), read(3, 4, None)],
    "an unknown write undone": [write(0, 1), read(2, 3, 1), read(4, 5, None)],
    "before it was called": [read(0, 1, 1), write(2, 1)],
    "a swap that could not fit": [write(0, 1, 1), swap(2, 9, 2, True, 3)],
    "a swap that had to fit": [write(0, 1, 1), swap(2, 1, 2, False, 3)],
    "two swaps of one value": [
        write(0, 1, 1),
        swap(2, 1, 2, True, 9),
        swap(2, 1, 3, True, 9),
    ],
    "an unknown swap that could not fit": [write(0, 1, 1), swap(2, 9, 2, None), read(4, 5, 2)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_is_linearizable(history: list[Operation]) -> None:
    assert check(history) == Verdict.LINEARIZABLE


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_a_bad_history_is_not(history: list[Operation]) -> None:
    assert check(history) == Verdict.BROKEN


def by_trying_every_order(history: list[Operation]) -> bool:
    """The definition, word for word: any part of the unknown, in any order that time allows."""
    known = [o for o in history if o.returned < math.inf]
    unknown = [o for o in history if o.returned == math.inf and o.kind != "read"]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            if any(explains(order) for order in itertools.permutations([*known, *some])):
                return True
    return False


def explains(order: tuple[Operation, ...]) -> bool:
    state: Value = None
    for at, operation in enumerate(order):
        if any(later.returned < operation.called for later in order[at + 1 :]):
            return False
        fits, state = after(operation, state)
        if not fits:
            return False
    return True


@pytest.mark.parametrize("seed", range(300))
def test_it_agrees_with_the_definition_on_small_histories(seed: int) -> None:
    dice = random.Random(seed)
    history = []
    for number in range(dice.randint(2, 6)):
        called = dice.uniform(0, 4)
        returned = called + dice.uniform(0.1, 3) if dice.random() < 0.75 else math.inf
        kind = dice.choice(["read", "write", "swap"])
        if kind == "read":
            history.append(read(called, returned, dice.choice([None, 1, 2, 3])))
        elif kind == "write":
            history.append(write(called, number + 1, returned))
        else:
            swapped = dice.choice([True, False]) if returned < math.inf else None
            expected = dice.choice([None, 1, 2, 3])
            history.append(swap(called, expected, number + 1, swapped, returned))

    assert (check(history) == Verdict.LINEARIZABLE) == by_trying_every_order(history)


def test_a_search_that_would_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wgl, "STATES_MAX", 50)
    at_once = [write(0, number, 100) for number in range(1, 12)]

    assert check([*at_once, read(101, 102, 99)]) == Verdict.UNDECIDED
