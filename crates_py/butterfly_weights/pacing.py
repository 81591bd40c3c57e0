"""How many requests should be under way at once, judged by what came of it. Pure.

A few connections do not fill a long pipe, and many only cost: so the number starts small, doubles
while that nearly doubles the measured rate, grows by less while the rate grows at all, and goes
back when it does not. A server that says "slow down" halves it at once.
"""

import math
from dataclasses import dataclass, replace

GAIN_MIN = 1.05
"""A larger number must bring at least so much more to be kept."""
GROWTH = 1.25
GROWTH_AT_FIRST = 2.0
GAIN_OF_MORE = 1.5
"""While nothing is known, and while each step brings so much more, steps are doublings."""
WINDOWS_BETWEEN_PROBES = 8


@dataclass(frozen=True, slots=True)
class Window:
    """What came in a stretch of time. ``saturated``: more wanted to be under way than might,
    so the rate says something about the number."""

    nbytes: int
    seconds: float
    saturated: bool

    @property
    def rate(self) -> float:
        return self.nbytes / max(self.seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Course:
    """Where the search stands: ``allowed`` at once now.

    ``before`` is the number that is gone back to when the present one brings nothing, and
    ``rate`` what that one brought, in bytes per second (0: nothing is known yet).
    """

    allowed: int
    most: int
    before: int = 0
    rate: float = 0.0
    resting: int = 0


def judged(course: Course, window: Window) -> Course:
    """The course after one more window at the present number."""
    if not window.saturated:
        return course
    if course.resting:
        return replace(course, rate=window.rate, resting=course.resting - 1)
    if course.before and window.rate < course.rate * GAIN_MIN:
        return replace(course, allowed=course.before, before=0, resting=WINDOWS_BETWEEN_PROBES)
    gain = window.rate / course.rate if course.rate else math.inf
    was_doubled = course.before and course.allowed > course.before * GROWTH + 1
    if was_doubled and gain < GAIN_OF_MORE:
        # The doubling was too much: about as many as the gain says.
        return _resting(course, math.ceil(course.before * gain), window)
    if course.allowed == course.most:
        return _resting(course, course.allowed, window)
    growth = GROWTH_AT_FIRST if gain >= GAIN_OF_MORE else GROWTH
    grown = min(course.most, max(course.allowed + 1, int(course.allowed * growth)))
    return replace(course, allowed=grown, before=course.allowed, rate=window.rate)


def _resting(course: Course, allowed: int, window: Window) -> Course:
    return Course(allowed, course.most, rate=window.rate, resting=WINDOWS_BETWEEN_PROBES)


def slowed(course: Course) -> Course:
    """The course after the server asked for less."""
    fewer = max(1, course.allowed // 2)
    return Course(fewer, course.most, resting=WINDOWS_BETWEEN_PROBES)
