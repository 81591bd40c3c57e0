"""The answers under way at this node: how many, and how they end when the node does."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from butterfly.api.errors import TooManyRequests
from butterfly_core.errors import ButterflyError, NotServing


class Interruptible(Protocol):
    """An answer that can be broken off."""

    def interrupt(self, error: ButterflyError) -> None: ...


class OpenAnswers:
    """Admits requests up to a limit; closing refuses new ones and then breaks off the rest."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._requests = 0
        self._open: set[Interruptible] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing = False

    @property
    def requests(self) -> int:
        """Requests for an answer now under way."""
        return self._requests

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One request. Raises TooManyRequests at the limit, NotServing while closing."""
        if self._closing:
            raise _closing_error()
        if self._requests >= self._requests_max:
            raise TooManyRequests(
                f"This node already answers {self._requests} requests, which is its limit; "
                "try again, or ask another node."
            )
        self._requests += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._empty.set()

    @contextmanager
    def tracked(self, answer: Interruptible) -> Iterator[None]:
        """One answer under way."""
        self._open.add(answer)
        try:
            if self._closing:
                answer.interrupt(_closing_error())
            yield
        finally:
            self._open.discard(answer)

    def refuse_new(self) -> None:
        """From now on nothing new is admitted; what is under way goes on."""
        self._closing = True

    async def wait_until_done(self, timeout_seconds: float) -> bool:
        """True when the last request under way ended in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def interrupt_all(self) -> None:
        """End every answer under way with an error that says why."""
        self.refuse_new()
        for answer in tuple(self._open):
            answer.interrupt(_closing_error())


def _closing_error() -> NotServing:
    return NotServing("This node is shutting down; ask another node.", phase="draining")
