"""How fast bytes come, and when the last one will be here. Pure: time comes in as an argument."""

from collections import deque
from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 10.0
_SPAN_SECONDS_MIN: Final = 0.5
_SAMPLES_PER_WINDOW: Final = 50


@dataclass(frozen=True, slots=True)
class Estimate:
    """``percent`` is 100 exactly when all bytes are done. None is not known (yet)."""

    bytes_done: int
    bytes_total: int
    percent: float
    bytes_per_second: float | None
    eta_seconds: float | None


NOTHING: Final = Estimate(0, 0, 0.0, None, None)


def percent_of(done: int, total: int) -> float:
    """In tenths, rounded down: what is not whole never looks whole."""
    if done >= total:
        return 100.0
    return max(0, 1000 * done // total) / 10


class Estimator:
    """Follows one load. ``at`` are seconds of any clock that never goes back."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window = window_seconds
        self._samples: deque[tuple[float, int]] = deque()
        self._total = 0

    def note(self, at: float, done: int, total: int) -> None:
        """So many of so many bytes are done. Fewer than before: something is read again, and the
        rate is found anew."""
        samples = self._samples
        if total != self._total or (samples and done < samples[-1][1]):
            samples.clear()
        self._total = total
        if len(samples) > 1 and at - samples[-2][0] < self._window / _SAMPLES_PER_WINDOW:
            samples.pop()
        samples.append((at, done))
        while len(samples) > 2 and samples[1][0] <= at - self._window:
            samples.popleft()

    def now(self, at: float) -> Estimate:
        """The estimate at a moment; while nothing comes the rate falls and the end moves away."""
        if not self._samples:
            return NOTHING
        done = min(self._samples[-1][1], self._total)
        percent = percent_of(done, self._total)
        rate = self._rate(at)
        if percent == 100.0:
            return Estimate(done, self._total, percent, rate, 0.0)
        eta = (self._total - done) / rate if rate else None
        return Estimate(done, self._total, percent, rate, eta)

    def _rate(self, at: float) -> float | None:
        since = max(self._samples[0][0], at - self._window)
        if at - since < _SPAN_SECONDS_MIN:
            return None
        return max(0.0, (self._samples[-1][1] - self._done_at(since)) / (at - since))

    def _done_at(self, moment: float) -> float:
        """Bytes done at a moment between two samples: on the line between them."""
        before = self._samples[0]
        for sample in self._samples:
            if sample[0] > moment:
                share = (moment - before[0]) / (sample[0] - before[0])
                return before[1] + share * (sample[1] - before[1])
            before = sample
        return before[1]
