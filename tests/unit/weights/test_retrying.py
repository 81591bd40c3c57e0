"""When a failed request is made again, and how many may be under way."""

import threading

import pytest

from butterfly_core.errors import SourceError
from butterfly_weights.errors import LoadCancelled, TransientFailure
from butterfly_weights.retrying import Pace, Tries, backoff_ceiling
from butterfly_weights.source import SourceOptions
from tests.unit.weights.fakes import Clock

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


def use(pace: Pace, *, wanted: int) -> None:
    """What ``slot`` does for ``wanted`` threads that make one request after the other."""
    pace._waiting = max(0, wanted - pace.allowed)
    while pace._under_way != min(wanted, pace.allowed):
        pace._count(1 if pace._under_way < pace.allowed else -1)
    pace._saturated = pace._saturated or pace._waiting > 0


def window_of_requests(pace: Pace, clock: Clock, rate: float, *, wanted: int) -> None:
    use(pace, wanted=wanted)
    count = 2 * pace.allowed
    for _ in range(count):
        clock.now += 1.0 / count
        pace.came(int(rate / count))


def test_the_pace_grows_while_more_connections_bring_more_bytes() -> None:
    clock = Clock()
    pace = Pace(32, at_once_first=3, clock=clock)
    for _ in range(40):
        window_of_requests(pace, clock, min(pace.allowed, 20) * 100e6, wanted=32)

    assert 18 <= pace.allowed <= 25


def test_bytes_say_nothing_of_a_new_number_before_so_many_are_under_way() -> None:
    clock = Clock()
    pace = Pace(32, at_once_first=4, clock=clock)
    window_of_requests(pace, clock, 400e6, wanted=32)
    assert pace.allowed == 8
    for _ in range(100):  # the four that were under way go on alone
        clock.now += 0.1
        pace.came(100)

    use(pace, wanted=32)
    window_of_requests(pace, clock, 800e6, wanted=32)

    assert pace.allowed == 16


def test_the_rate_of_as_many_as_there_may_be_says_something() -> None:
    pace = Pace(2)
    both, seen = threading.Barrier(2), list[bool]()

    def ask() -> None:
        with pace.slot():
            both.wait(10)
            seen.append(pace._saturated)
            both.wait(10)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == [True, True]


def test_the_pace_stays_when_nobody_waits_for_it() -> None:
    clock = Clock()
    pace = Pace(32, at_once_first=8, clock=clock)
    for _ in range(40):
        window_of_requests(pace, clock, pace.allowed * 100e6, wanted=4)

    assert pace.allowed == 8


def test_slow_down_halves_the_pace_to_no_less_than_one_and_it_is_regained() -> None:
    clock = Clock()
    pace = Pace(16, clock=clock)
    pace.slow_down()
    pace.slow_down()
    assert pace.allowed == 4
    for _ in range(10):
        pace.slow_down()
    assert pace.allowed == 1
    for _ in range(100):
        window_of_requests(pace, clock, pace.allowed * 100e6, wanted=32)
    assert pace.allowed == 16


def test_no_more_than_the_pace_allows_are_under_way() -> None:
    pace = Pace(3)
    lock, under_way, most = threading.Lock(), 0, 0

    def request() -> None:
        nonlocal under_way, most
        with pace.slot():
            with lock:
                under_way += 1
                most = max(most, under_way)
            with lock:
                under_way -= 1

    threads = [threading.Thread(target=request) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most <= 3
