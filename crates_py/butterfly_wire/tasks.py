"""Tasks with an owner: kept while they run, cancelled and awaited when the owner closes."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one object. One that fails is logged: nobody else waits for it."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it until it ends or ``close`` cancels it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self, timeout_seconds: float) -> None:
        """Cancel all and wait, but not longer than the timeout."""
        me = asyncio.current_task()
        running = {task for task in self._running if task is not me}
        for task in running:
            task.cancel()
        if running:
            _, stuck = await asyncio.wait(running, timeout=timeout_seconds)
            for task in stuck:
                _log.error("%s: a task does not end when cancelled: %r", self._owner, task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s: a task failed", self._owner, exc_info=error)
