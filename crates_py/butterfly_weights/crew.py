"""Threads that work off a list of tasks; the first failure stops them all."""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T", contravariant=True)


class Worker(Protocol[T]):
    """One thread's hands."""

    def do(self, task: T) -> None: ...

    def interrupt(self) -> None:
        """Called from another thread to wake a blocked ``do``, which then raises."""
        ...

    def close(self) -> None:
        """Called when its thread has ended."""
        ...


class _Crew(Generic[T]):
    """Threads that take tasks from one list."""

    def __init__(self, tasks: Iterable[T], make_worker: Callable[[], Worker[T]]) -> None:
        self._waiting = deque(tasks)
        self._make_worker = make_worker
        self._workers: list[Worker[T]] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._running = 0
        self.failure: BaseException | None = None

    def grow(self, wanted: int) -> None:
        """Have so many threads, unless there are more already or no task waits for them."""
        for _ in range(min(wanted - len(self._threads), len(self._waiting))):
            worker = self._make_worker()
            self._workers.append(worker)
            with self._changed:
                self._running += 1
            self._threads.append(
                threading.Thread(target=self._work, args=(worker,), name="butterfly-weights")
            )
            self._threads[-1].start()

    def has_ended(self, patience_seconds: float) -> bool:
        """True at once when all is done or something failed; else after waiting for it."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._running or self.failure is not None, patience_seconds
            )

    def end(self) -> None:
        """Wake whoever is blocked and wait for all threads."""
        with self._changed:
            self._stopping = True
            is_working = self._running > 0
        if is_working:
            for worker in self._workers:
                worker.interrupt()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()

    def _work(self, worker: Worker[T]) -> None:
        try:
            while not self._stopping:
                try:
                    task = self._waiting.popleft()
                except IndexError:
                    break
                worker.do(task)
        # The caller's thread raises it again, whatever it is.
        except BaseException as failure:  # noqa: BLE001
            with self._changed:
                self.failure = self.failure or failure
                self._stopping = True
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


def work_off(
    tasks: Iterable[T],
    make_worker: Callable[[], Worker[T]],
    *,
    wanted: Callable[[], int],
    poll: Callable[[], None],
    poll_seconds: float,
) -> None:
    """Do all tasks, in about the order given, on as many threads as are ``wanted``: that is
    asked again and again, and a thread that was started stays.

    ``poll`` runs in the calling thread every ``poll_seconds``; what it raises, or the first
    failure of a worker, stops all and is raised when every thread has ended.
    """
    crew = _Crew(tasks, make_worker)
    try:
        crew.grow(wanted())
        while not crew.has_ended(poll_seconds):
            poll()
            crew.grow(wanted())
    finally:
        crew.end()
    if crew.failure:
        forget_locals(crew.failure)
        raise crew.failure


def forget_locals(failure: BaseException | None) -> None:
    """An error may be kept for long; its frames must not keep a model's memory with it."""
    while failure is not None:
        traceback.clear_frames(failure.__traceback__)
        failure = failure.__cause__ or failure.__context__
