"""How many requests should be under way at once, judged by what came of it. Pure.

A few connections do not fill a long pipe, and many only cost: so the number starts moderately,
grows while the measured rate grows with it, and goes back when it does not. A server that says
"slow down" halves it at once.
"""

from dataclasses import dataclass, replace

GAIN_MIN = 1.05
"""A larger number must bring at least so much more to be kept."""
GROWTH = 1.25
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
    if course.allowed == course.most:
        return replace(course, before=0, rate=window.rate, resting=WINDOWS_BETWEEN_PROBES)
    grown = min(course.most, max(course.allowed + 1, int(course.allowed * GROWTH)))
    return replace(course, allowed=grown, before=course.allowed, rate=window.rate)


def slowed(course: Course) -> Course:
    """The course after the server asked for less."""
    fewer = max(1, course.allowed // 2)
    return Course(fewer, course.most, resting=WINDOWS_BETWEEN_PROBES)
