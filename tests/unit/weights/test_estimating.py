"""Progress: never too much, never back, whole exactly at the end; and how fast it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_weights.estimating import NOTHING, WINDOW_SECONDS, Estimator, percent_of

GIB = 1 << 30


def test_nothing_is_known_before_the_first_byte() -> None:
    assert Estimator().now(5.0) == NOTHING


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_a_percentage_is_100_exactly_when_all_is_done(done: int, total: int) -> None:
    percent = percent_of(done, total)

    assert 0 <= percent <= 100
    assert (percent == 100) is (done >= total)


@given(
    st.lists(st.tuples(st.floats(0.001, 5), st.integers(0, GIB)), min_size=1, max_size=60),
    st.integers(1, 20 * GIB),
)
def test_what_only_grows_is_never_shown_to_go_back(
    steps: list[tuple[float, int]], total: int
) -> None:
    estimator, at, done, before = Estimator(), 0.0, 0, 0.0
    for seconds, nbytes in steps:
        at, done = at + seconds, min(done + nbytes, total)
        estimator.note(at, done, total)
        now = estimator.now(at)

        assert before <= now.percent <= 100
        assert (now.percent == 100) is (done == total)
        assert now.bytes_per_second is None or now.bytes_per_second >= 0
        assert now.eta_seconds is None or now.eta_seconds >= 0
        before = now.percent


@pytest.mark.parametrize("period", [0.05, 0.1, 0.3, 1.0, 3.0])
def test_a_steady_load_has_its_rate_and_its_end(period: float) -> None:
    estimator, rate = Estimator(), 100_000_000
    steps = int(30 / period)
    for step in range(steps + 1):
        estimator.note(step * period, int(step * period * rate), 60 * rate)

    now = estimator.now(steps * period)

    assert now.bytes_per_second == pytest.approx(rate, rel=0.02)
    assert now.eta_seconds == pytest.approx(60 - steps * period, rel=0.03)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    estimator = Estimator()
    for second in range(20):
        estimator.note(second, second * 100, 10_000)
    for second in range(1, 16):
        estimator.note(19 + second, 1900 + second * 10, 10_000)

    assert estimator.now(34).bytes_per_second == pytest.approx(10)


def test_while_nothing_comes_the_end_moves_away_and_is_unknown_at_last() -> None:
    estimator = Estimator()
    for second in range(6):
        estimator.note(second, second * 100, 1000)
    ends = [estimator.now(at).eta_seconds for at in (5.0, 8.0, 12.0)]

    assert ends == sorted(ends, key=lambda end: end or 0)
    assert len(set(ends)) == 3
    stalled = estimator.now(5.0 + WINDOW_SECONDS)
    assert (stalled.bytes_per_second, stalled.eta_seconds) == (0.0, None)
    assert stalled.percent == 50


def test_a_part_that_is_read_again_goes_back_and_begins_a_new_rate() -> None:
    estimator = Estimator()
    for second in range(6):
        estimator.note(second, second * 100, 1000)
    estimator.note(6.0, 100, 1000)

    again = estimator.now(6.0)

    assert (again.percent, again.bytes_per_second) == (10.0, None)
    estimator.note(8.0, 300, 1000)
    assert estimator.now(8.0).bytes_per_second == pytest.approx(100)


def test_another_load_begins_anew_and_an_empty_one_is_whole() -> None:
    estimator = Estimator()
    estimator.note(0.0, 50, 100)
    estimator.note(1.0, 60, 600)

    assert estimator.now(1.0).percent == 10.0
    estimator.note(2.0, 0, 0)
    assert (estimator.now(2.0).percent, estimator.now(2.0).eta_seconds) == (100.0, 0.0)


def test_a_long_load_is_remembered_in_few_samples() -> None:
    estimator = Estimator()
    for step in range(100_000):
        estimator.note(step / 1000, step, 100_000)

    assert len(estimator._samples) < 120
