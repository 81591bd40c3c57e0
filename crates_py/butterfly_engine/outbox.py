"""Events on their way to a callback: in order, and with no lock held while it runs.

Whoever finds nobody delivering delivers, also what others add meanwhile. So events of several
threads keep the order in which they were added, and a callback may take locks of its own.
"""

import threading
from collections.abc import Callable, Iterable

from butterfly_core.generation import TokensEmitted


class Outbox:
    """``leaves`` says which events go to ``on_tokens``; it sees each of them once."""

    def __init__(
        self,
        leaves: Callable[[TokensEmitted], bool],
        on_tokens: Callable[[list[TokensEmitted]], None],
    ) -> None:
        self._leaves = leaves
        self._on_tokens = on_tokens
        self._lock = threading.Lock()
        self._events: list[TokensEmitted] = []
        self._delivering = False

    def add(self, events: Iterable[TokensEmitted]) -> None:
        with self._lock:
            self._events.extend(events)

    def deliver(self) -> None:
        """Hand over all events added so far, unless another thread is at it."""
        if not self._begin():
            return
        try:
            while events := self._take():
                leaving = [event for event in events if self._leaves(event)]
                if leaving:
                    self._on_tokens(leaving)
        except BaseException:
            with self._lock:
                self._delivering = False
            raise

    def _begin(self) -> bool:
        with self._lock:
            if self._delivering:
                return False
            self._delivering = True
            return True

    def _take(self) -> list[TokensEmitted]:
        """All that waits; with nothing left the delivery ends under the same lock."""
        with self._lock:
            events, self._events = self._events, []
            self._delivering = bool(events)
            return events
