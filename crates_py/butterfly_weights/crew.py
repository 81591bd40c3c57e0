"""Threads that work off a list of tasks; the first failure stops them all."""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

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


class _Shared:
    def __init__(self, running: int) -> None:
        self.changed = threading.Condition()
        self.stopping = False
        self.running = running
        self.failure: BaseException | None = None

    @property
    def done(self) -> bool:
        return not self.running

    @property
    def ended(self) -> bool:
        return self.done or self.failure is not None


def work_off(
    tasks: Iterable[T],
    make_worker: Callable[[], Worker[T]],
    *,
    workers_max: int,
    poll: Callable[[], None],
    poll_seconds: float,
) -> None:
    """Do all tasks on up to ``workers_max`` threads, in about the order given.

    ``poll`` runs in the calling thread every ``poll_seconds``; what it raises, or the first
    failure of a worker, stops all and is raised when every thread has ended.
    """
    waiting = deque(tasks)
    workers = [make_worker() for _ in range(min(workers_max, len(waiting)))]
    shared = _Shared(len(workers))
    threads = [
        threading.Thread(target=_work, args=(worker, waiting, shared), name="butterfly-weights")
        for worker in workers
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            with shared.changed:
                if shared.changed.wait_for(lambda: shared.ended, timeout=poll_seconds):
                    break
            poll()
    finally:
        if not shared.done:
            shared.stopping = True
            for worker in workers:
                worker.interrupt()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()
    if shared.failure:
        forget_locals(shared.failure)
        raise shared.failure


def forget_locals(failure: BaseException | None) -> None:
    """An error may be kept for long; its frames must not keep a model's memory with it."""
    while failure is not None:
        traceback.clear_frames(failure.__traceback__)
        failure = failure.__cause__ or failure.__context__


def _work(worker: Worker[T], waiting: deque[T], shared: _Shared) -> None:
    try:
        while not shared.stopping:
            try:
                task = waiting.popleft()
            except IndexError:
                break
            worker.do(task)
    # The caller's thread raises it again, whatever it is.
    except BaseException as failure:  # noqa: BLE001
        with shared.changed:
            shared.failure = shared.failure or failure
            shared.stopping = True
    with shared.changed:
        shared.running -= 1
        shared.changed.notify_all()
