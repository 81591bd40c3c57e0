"""How often, and how soon, a failed request is made again."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from butterfly_core.errors import SourceError
from butterfly_weights.errors import LoadCancelled, TransientFailure
from butterfly_weights.pacing import Course, Window, judged, slowed
from butterfly_weights.source import SourceOptions

_RETRY_AFTER_SECONDS_MAX = 30.0
_WINDOW_SECONDS_MIN = 0.2


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
    """How many requests may be under way at once: what ``pacing`` makes of the rates measured
    here. One per source; thread-safe."""

    def __init__(
        self,
        at_once_max: int,
        *,
        at_once_first: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        first = min(at_once_max, at_once_first or at_once_max)
        self._course = Course(first, at_once_max)
        self._clock = clock
        self._under_way = self._waiting = 0
        self._settling = False  # as many as are allowed now are not yet, or no more, under way
        self._changed = threading.Condition()
        self._begin_window()

    @classmethod
    def of(cls, options: SourceOptions) -> "Pace":
        return cls(options.requests_at_once_max, at_once_first=options.requests_at_once_first)

    @property
    def allowed(self) -> int:
        return self._course.allowed

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the requests that may be under way."""
        with self._changed:
            self._waiting += 1
            while self._under_way >= self.allowed:
                self._saturated = True
                self._changed.wait()
            self._waiting -= 1
            self._count(1)
        try:
            yield
        finally:
            with self._changed:
                self._count(-1)
                self._changed.notify()

    def slow_down(self) -> None:
        """The source asked for less."""
        with self._changed:
            self._turn_to(slowed(self._course))

    def came(self, nbytes: int) -> None:
        """One of the requests under way brought so many bytes."""
        with self._changed:
            if self._settling:
                return
            self._steps += 1
            self._nbytes += nbytes
            seconds = self._clock() - self._began
            # Each of the present number had its turn, and chance its time to even out.
            if self._steps < 2 * self.allowed or seconds < _WINDOW_SECONDS_MIN:
                return
            window = Window(self._nbytes, seconds, self._saturated)
            before = self.allowed
            self._turn_to(judged(self._course, window))
            self._changed.notify(max(0, self.allowed - before))

    def _turn_to(self, course: Course) -> None:
        self._settling = course.allowed != self.allowed and course.allowed != self._under_way
        self._course = course
        self._begin_window()

    def _count(self, change: int) -> None:
        self._under_way += change
        settled = self._settling and self._under_way == self.allowed
        if settled or self._under_way == 0:  # idle time says nothing
            self._settling = self._settling and not settled
            self._begin_window()
        self._saturated = self._saturated or self._is_full()

    def _begin_window(self) -> None:
        self._began, self._steps, self._nbytes = self._clock(), 0, 0
        self._saturated = self._waiting > 0 or self._is_full()

    def _is_full(self) -> bool:
        """Nobody waits for one more than there may ever be."""
        return self._under_way == self._course.most
