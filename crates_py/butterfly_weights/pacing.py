"""How many requests should be under way at once, judged by what came of it. Pure.

A few connections do not fill a long pipe, and many only cost: so the number starts small and
doubles while that pays, then it is tried now and then whether some more bring more, or fewer as
much (hill climbing, as in Heiss and Wagner, "Adaptive load control in transaction processing
systems", VLDB 1991). A server that says "slow down" halves it at once.
"""

import math
from dataclasses import dataclass, replace

GROWTH_AT_FIRST = 2.0
GROWTH = 1.25
SHRINKAGE = 0.75
WORTH = 0.2
"""A number that is larger by some share must bring more by so much of that share to be kept."""
LOSS_MAX = 0.02
"""A smaller number may bring so much less and is kept."""
WINDOWS_BETWEEN_PROBES = 8
_WEIGHT_OF_NEWEST = 0.3


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

    While another number is tried, ``before`` is the one that is gone back to when it does not
    pay, and ``rate`` what that one brought, in bytes per second (0: nothing is known yet). The
    next trial is of a smaller number when ``downwards``.
    """

    allowed: int
    most: int
    before: int = 0
    rate: float = 0.0
    resting: int = 0
    downwards: bool = False


def judged(course: Course, window: Window) -> Course:
    """The course after one more window at the present number."""
    if not window.saturated:
        return course
    if course.resting:
        known = course.rate or window.rate
        rate = known + (window.rate - known) * _WEIGHT_OF_NEWEST
        return replace(course, rate=rate, resting=course.resting - 1)
    if not course.before or not course.rate:
        return _tried(course, window.rate)
    share = course.allowed / course.before - 1
    gain = window.rate / course.rate - 1
    if gain >= (share * WORTH if share > 0 else -LOSS_MAX):
        return _tried(course, window.rate)
    # A doubling may be too much, and still bring more: about as many as that says.
    fitting = math.ceil(course.before * (1 + gain)) if share > GROWTH - 1 else 0
    return _resting(course, max(course.before, fitting), course.rate)


def _tried(course: Course, rate: float) -> Course:
    """One step further from a number that brings ``rate``."""
    here, most = course.allowed, course.most
    is_first = not course.rate or course.before * GROWTH_AT_FIRST == here
    if course.downwards:
        there = min(here - 1, int(here * SHRINKAGE))
    else:
        there = min(most, max(here + 1, int(here * (GROWTH_AT_FIRST if is_first else GROWTH))))
    if not 1 <= there <= most or there == here:
        return _resting(course, here, rate)
    return replace(course, allowed=there, before=here, rate=rate)


def _resting(course: Course, allowed: int, rate: float) -> Course:
    return Course(
        allowed,
        course.most,
        rate=rate,
        resting=WINDOWS_BETWEEN_PROBES,
        downwards=not course.downwards,
    )


def slowed(course: Course) -> Course:
    """The course after the server asked for less."""
    fewer = max(1, course.allowed // 2)
    return Course(fewer, course.most, resting=WINDOWS_BETWEEN_PROBES)
