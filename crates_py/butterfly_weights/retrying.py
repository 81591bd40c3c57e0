"""How often, and how soon, a failed request is made again."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from butterfly_core.errors import SourceError
from butterfly_weights.errors import LoadCancelled, TransientFailure
from butterfly_weights.source import SourceOptions

_RETRY_AFTER_SECONDS_MAX = 30.0


def backoff_ceiling(failures: int, options: SourceOptions) -> float:
    """Longest wait after that many failures; the wait itself is uniform below it.

    Exponential with full jitter (M. Brooker, "Exponential backoff and jitter", AWS 2015).
    """
    grown = options.backoff_first_seconds * 2.0 ** min(failures - 1, 30)
    return float(min(options.backoff_max_seconds, grown))


class Tries:
    """The tries of one request."""

    def __init__(
        self,
        options: SourceOptions,
        wait: Callable[[float], bool],
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._options, self._wait, self._chance = options, wait, chance
        self.failures = 0

    def failed(self, failure: TransientFailure, progress: str) -> None:
        """Wait before the next try. Raises SourceError when there is none left, LoadCancelled."""
        self.failures += 1
        if self.failures >= self._options.tries_max:
            raise SourceError(
                f"{failure} ({progress}; gave up after {self.failures} tries)"
            ) from failure
        seconds = self._chance(0.0, backoff_ceiling(self.failures, self._options))
        asked = min(failure.retry_after_seconds, _RETRY_AFTER_SECONDS_MAX)
        if self._wait(max(seconds, asked)):
            raise LoadCancelled("the read was cancelled")


class Pace:
    """How many requests may be under way at once: halved when the source says slow down,
    regained by one for each round of requests that went well (additive increase,
    multiplicative decrease)."""

    def __init__(self, at_once_max: int) -> None:
        self._max = at_once_max
        self._allowed = float(at_once_max)
        self._under_way = 0
        self._changed = threading.Condition()

    @property
    def allowed(self) -> int:
        return int(self._allowed)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the requests that may be under way."""
        with self._changed:
            while self._under_way >= self.allowed:
                self._changed.wait()
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify()

    def slow_down(self) -> None:
        with self._changed:
            self._allowed = max(1.0, self._allowed / 2)

    def went_well(self) -> None:
        with self._changed:
            self._allowed = min(float(self._max), self._allowed + 1 / self._allowed)
            self._changed.notify()
