"""How many requests at once: grown while it pays, taken back when it does not."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_weights.pacing import WINDOWS_BETWEEN_PROBES, Course, Window, judged, slowed

MB = 1_000_000


def settled(rate_of: Callable[[int], float], *, first: int = 8, windows: int = 60) -> list[int]:
    """The numbers allowed, window by window, on a path whose rate depends on the number."""
    course, seen = Course(first, 32), []
    for _ in range(windows):
        course = judged(course, Window(int(rate_of(course.allowed)), 1.0, saturated=True))
        seen.append(course.allowed)
    return seen


@pytest.mark.parametrize(
    ("rate_of", "low", "high"),
    [
        (lambda n: n * 90 * MB, 24, 32),  # each has its own limit: all, but when fewer are tried
        (lambda _: 1200 * MB, 1, 2),  # one fills the pipe, which is tried with two now and then
        (lambda n: min(n, 16) * 90 * MB, 12, 22),  # full at 16
        (lambda n: 90 * MB * min(n, 8) / max(n, 8), 6, 10),  # beyond 8 they are in each other's way
    ],
)
def test_the_number_settles_where_more_brings_nothing(
    rate_of: Callable[[int], float], low: int, high: int
) -> None:
    assert all(low <= allowed <= high for allowed in settled(rate_of)[20:])


def test_from_few_it_doubles_while_that_brings_nearly_as_much_more() -> None:
    assert settled(lambda n: n * 90 * MB, first=3, windows=4) == [6, 12, 24, 32]


def test_a_doubling_that_was_too_much_is_taken_back_to_what_it_brought() -> None:
    seen = settled(lambda n: min(n, 8) * 90 * MB, first=3, windows=60)

    assert seen[:4] == [6, 12, 24, 12]
    assert all(6 <= allowed <= 12 for allowed in seen[4:])


def test_noise_leads_it_nowhere() -> None:
    chance = random.Random(7)
    brought = settled(lambda n: min(n, 8) * 90 * MB * chance.gauss(1, 0.08), first=3, windows=400)

    ideal = 8 * len(brought)
    assert sum(min(allowed, 8) for allowed in brought) > 0.93 * ideal
    assert max(brought[100:]) <= 24


def test_a_window_without_a_byte_is_no_measure_for_the_next() -> None:
    nothing = judged(Course(3, 32), Window(0, 1.0, saturated=True))

    assert judged(nothing, Window(MB, 1.0, saturated=True)) == Course(
        12, 32, before=6, rate=float(MB)
    )


def test_a_full_pipe_is_probed_seldom() -> None:
    seen = settled(lambda n: min(n, 8) * 90 * MB, windows=100)

    assert seen.count(8) >= 100 * WINDOWS_BETWEEN_PROBES / (WINDOWS_BETWEEN_PROBES + 2) - 2


def test_a_slow_down_halves_and_is_not_tried_again_at_once() -> None:
    course = slowed(Course(16, 32, before=12, rate=5.0))
    assert course.allowed == 8
    for _ in range(WINDOWS_BETWEEN_PROBES):
        course = judged(course, Window(MB, 1.0, saturated=True))
        assert course.allowed == 8
    assert judged(course, Window(MB, 1.0, saturated=True)).allowed == 10
    assert slowed(Course(1, 32)).allowed == 1


def test_a_window_in_which_nobody_waited_says_nothing() -> None:
    course = Course(8, 32, before=6, rate=100.0)

    assert judged(course, Window(1, 1.0, saturated=False)) == course


@given(
    st.integers(1, 64),
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 1 << 40), st.floats(0, 100),
                                            st.booleans()))),
)  # fmt: skip
def test_the_number_never_leaves_its_bounds(
    most: int, heard: list[tuple[int, float, bool] | None]
) -> None:
    course = Course(min(8, most), most)
    for window in heard:
        course = slowed(course) if window is None else judged(course, Window(*window))
        assert 1 <= course.allowed <= most
