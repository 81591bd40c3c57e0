"""Watches every source for as long as the node lives, and keeps what they said last.

A source that cannot answer is asked again after a rest that grows, with jitter, so that a
thousand nodes do not fall upon a server that just came back. It is a problem to show, never
an end: what it said before stands.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from butterfly_core.errors import ButterflyError
from butterfly_discovery.book import Book, merge
from butterfly_discovery.source import Source

REST_SECONDS_MIN: Final = 0.5
REST_SECONDS_MAX: Final = 30.0
ANSWERS_APART_SECONDS: Final = 0.2
"""A source that answers without ever waiting is not asked more often than this."""


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """Why a source does not answer, and since when (seconds of the watcher's clock)."""

    message: str
    since: float
    failures: int = 1


class Discovery:
    """All sources of one node. ``run`` goes on for ever; the rest may be read at any time."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """``clock`` in seconds, ``rng`` for the jitter; both are for tests and simulations."""
        self._sources = tuple(sources)
        self._clock, self._rng = clock, rng or random.Random()
        self._book = Book()
        self._problems: dict[str, SourceProblem] = {}
        self._answered_at: dict[str, float] = {}
        self._news = asyncio.Event()

    @property
    def book(self) -> Book:
        """The last answer of each source."""
        return self._book

    @property
    def problems(self) -> Mapping[str, SourceProblem]:
        """By source: why it does not answer now."""
        return MappingProxyType(dict(self._problems))

    @property
    def now(self) -> float:
        """Of the clock that ``SourceProblem.since`` is told in."""
        return self._clock()

    @property
    def answered_seconds_ago(self) -> float | None:
        """Since the newest answer of any source; None before the first."""
        if not self._answered_at:
            return None
        return self._clock() - max(self._answered_at.values())

    async def changed(self, timeout_seconds: float) -> None:
        """Return at the next change of the book or of a problem, at the latest then."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._news.wait()
        except TimeoutError:
            return

    async def first(self, timeout_seconds: float) -> Book:
        """The book once every source has answered or failed, at the latest then."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while any(not self._was_heard(source.name) for source in self._sources):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await self.changed(left)
        return self._book

    def _was_heard(self, name: str) -> bool:
        return name in self._answered_at or name in self._problems

    async def run(self) -> None:
        """Until cancelled. Raises what a source must not raise: a defect, not a source down."""
        async with asyncio.TaskGroup() as tasks:
            for source in self._sources:
                tasks.create_task(source.run())
                tasks.create_task(self._watch(source))

    async def _watch(self, source: Source) -> None:
        while True:
            try:
                answer = await source.next()
            except (ButterflyError, OSError) as error:
                failures = self._note_failure(source.name, str(error) or type(error).__name__)
                await asyncio.sleep(self._rest_seconds(failures))
                continue
            self._note_answer(source.name, merge(self._book, source.name, answer))
            await asyncio.sleep(ANSWERS_APART_SECONDS)

    def _note_failure(self, name: str, message: str) -> int:
        before = self._problems.get(name)
        if before is None:
            now = SourceProblem(message, self._clock())
        else:
            now = SourceProblem(message, before.since, before.failures + 1)
        self._problems[name] = now
        if before is None or before.message != message:
            self._wake()
        return now.failures

    def _note_answer(self, name: str, book: Book) -> None:
        first = name not in self._answered_at
        news = first or name in self._problems or book.answers != self._book.answers
        self._answered_at[name] = self._clock()
        self._problems.pop(name, None)
        self._book = book
        if news:
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _rest_seconds(self, failures: int) -> float:
        """Doubles up to a limit; half of it is chance."""
        longest = min(REST_SECONDS_MAX, REST_SECONDS_MIN * 2.0 ** min(failures - 1, 16))
        return longest * (0.5 + 0.5 * self._rng.random())
