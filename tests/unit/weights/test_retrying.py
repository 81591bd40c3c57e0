"""When a failed request is made again, and how many may be under way."""

import pytest

from butterfly_core.errors import SourceError
from butterfly_weights.errors import LoadCancelled, TransientFailure
from butterfly_weights.retrying import Pace, Tries, backoff_ceiling
from butterfly_weights.source import SourceOptions

OPTIONS = SourceOptions(backoff_first_seconds=0.1, backoff_max_seconds=3.0, tries_max=8)
FAILURE = TransientFailure("m.safetensors: reset")


def test_waits_grow_twofold_up_to_the_ceiling() -> None:
    ceilings = [backoff_ceiling(n, OPTIONS) for n in (1, 2, 3, 6, 60)]

    assert ceilings == pytest.approx([0.1, 0.2, 0.4, 3.0, 3.0])


def test_a_request_is_tried_eight_times_and_the_error_tells_how_far_it_came() -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    tries = Tries(OPTIONS, wait, chance=lambda _, high: high)
    for _ in range(7):
        tries.failed(FAILURE, "5 of 9 bytes")
    with pytest.raises(SourceError, match="5 of 9 bytes; gave up after 8 tries"):
        tries.failed(FAILURE, "5 of 9 bytes")

    assert waited == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0])


def test_the_server_may_ask_for_a_longer_wait_but_not_for_any() -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    tries = Tries(OPTIONS, wait, chance=lambda _low, _high: 0.0)
    tries.failed(TransientFailure("busy", retry_after_seconds=2), "")
    tries.failed(TransientFailure("busy", retry_after_seconds=1e9), "")

    assert waited == [2, 30]


def test_a_wait_that_is_interrupted_ends_the_tries() -> None:
    with pytest.raises(LoadCancelled):
        Tries(OPTIONS, lambda _: True).failed(FAILURE, "")


def test_slow_down_halves_the_pace_and_success_regains_it_one_by_one() -> None:
    pace = Pace(16)
    pace.slow_down()
    pace.slow_down()
    assert pace.allowed == 4
    for _ in range(5):
        pace.went_well()
    assert pace.allowed == 5
    for _ in range(10):
        pace.slow_down()
    assert pace.allowed == 1
    for _ in range(1000):
        pace.went_well()
    assert pace.allowed == 16
