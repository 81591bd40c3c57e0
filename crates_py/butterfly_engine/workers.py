"""Threads of a pipeline: one that reports how it ended, and a bounded hand-over between two."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

JOIN_SECONDS = 5.0


class Worker:
    """A daemon thread; whatever ends it with an error is handed to ``on_failed``, in it."""

    def __init__(
        self, name: str, body: Callable[[], None], on_failed: Callable[[Exception], None]
    ) -> None:
        self._body = body
        self._on_failed = on_failed
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the end; False when it did not come in time. Never waits for itself."""
        if self._thread is threading.current_thread() or not self._thread.ident:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._body()
        except Exception as error:  # noqa: BLE001 - a silent end would leave requests waiting
            self._on_failed(error)


def join_all(workers: Iterable[Worker], timeout_seconds: float) -> bool:
    """True when all ended, each waited for that long at most."""
    ended = [worker.join(timeout_seconds) for worker in workers]
    return all(ended)


class Handover(Generic[T]):
    """Items from one thread to another, a few at most; closing wakes both."""

    def __init__(self, items_max: int) -> None:
        self._items: deque[T] = deque()
        self._items_max = items_max
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> bool:
        """Wait for room; False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._items_max)
            if not self._closed:
                self._items.append(item)
                self._changed.notify()
            return not self._closed

    def get(self) -> T | None:
        """Wait for an item; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items))
            if self._closed:
                return None
            self._changed.notify()
            return self._items.popleft()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
