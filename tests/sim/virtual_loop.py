"""An asyncio loop on virtual time: when every task waits, the clock jumps to the next timer.

Nothing of the real world is polled, so a run is a function of its inputs. Whose process a
callback belongs to is a context variable; a process that is paused gets its callbacks, late
timers included, when it goes on.
"""

import asyncio
import contextvars
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
OWNER: Final = contextvars.ContextVar("OWNER", default="")
_REAL_WAIT_SECONDS = 5.0


class _Soon(asyncio.Handle):
    owner = ""


class _Later(asyncio.TimerHandle):
    owner = ""


def context_of(owner: str) -> contextvars.Context:
    """Tasks that are made with it belong to this process, and so do the tasks they make."""
    context = contextvars.Context()
    context.run(OWNER.set, owner)
    return context


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its ``time`` is simulated seconds since it was made."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._soon: deque[_Soon | _Later] = deque()
        self._timers: list[tuple[float, int, _Later]] = []
        self._numbers = itertools.count()
        self._held: dict[str, list[_Soon | _Later]] = {}

    def time(self) -> float:
        return self._now

    def pause(self, owner: str) -> None:
        """Hold every callback of this process back."""
        self._held.setdefault(owner, [])

    def resume(self, owner: str) -> None:
        """Let the process go on with everything that it missed, in order."""
        self._soon.extend(self._held.pop(owner, []))

    def call_soon(  # type: ignore[override] # typeshed counts the arguments
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = _Soon(callback, args, self, context)
        handle.owner = OWNER.get() if context is None else context.get(OWNER, "")
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override] # typeshed counts the arguments
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = _Later(when, callback, args, self, context)
        handle.owner = OWNER.get() if context is None else context.get(OWNER, "")
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    # What BaseEventLoop calls.

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def _run_once(self) -> None:
        soon, timers, held = self._soon, self._timers, self._held
        if not soon:
            self._jump()
        while timers and timers[0][0] <= self._now:
            soon.append(heapq.heappop(timers)[2])
        for _ in range(len(soon)):
            handle = soon.popleft()
            if handle._cancelled:
                continue
            if held and handle.owner in held:
                held[handle.owner].append(handle)
            else:
                handle._run()

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if timers:
            self._now = max(self._now, timers[0][0])
            return
        deadline = time.monotonic() + _REAL_WAIT_SECONDS
        while not self._soon:  # a thread may still have something to say
            if time.monotonic() > deadline:
                raise RuntimeError("every task waits and no timer is set")
            time.sleep(0.001)


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def the_loop() -> VirtualLoop:
    """The running loop, which must be a virtual one."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
