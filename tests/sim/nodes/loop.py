"""A virtual-time loop on which one machine can be paused, as by SIGSTOP or a stuck hypervisor.

Every task of a machine runs in a context that names it. While a machine is paused, what is due
in its context waits; when it goes on, all of it happens at once and late.
"""

import asyncio
import contextvars
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from tests.sim.virtual_loop import VirtualLoop

T = TypeVar("T")

MACHINE: contextvars.ContextVar[str] = contextvars.ContextVar("machine", default="")


def context_of(machine: str) -> contextvars.Context:
    """A context for the tasks of one machine."""
    context = contextvars.copy_context()
    context.run(MACHINE.set, machine)
    return context


class PausingLoop(VirtualLoop):
    """``pause`` and ``go_on`` a machine by its name."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, list[asyncio.Handle]] = {}

    def pause(self, machine: str) -> None:
        self._held.setdefault(machine, [])

    def go_on(self, machine: str) -> None:
        """Nothing happens when the machine is not paused."""
        for handle in self._held.pop(machine, []):
            if isinstance(handle, asyncio.TimerHandle) and handle.when() > self.time():
                if not handle.cancelled():
                    handle._scheduled = True  # type: ignore[attr-defined] # as call_at does it
                    heapq.heappush(self._inner._scheduled, handle)
            else:
                self._inner._ready.append(handle)

    def is_paused(self, machine: str) -> bool:
        return machine in self._held

    @property
    def _inner(self) -> Any:  # the base class is typed without its queues
        return cast(Any, self)

    def _run_once(self) -> None:
        if self._held:
            self._hold_back()
        cast(Any, super())._run_once()

    def _hold_back(self) -> None:
        """Take out what would run on a paused machine."""
        ready, scheduled = self._inner._ready, self._inner._scheduled
        for handle in [handle for handle in ready if self._is_held(handle)]:
            ready.remove(handle)
            self._held[_machine_of(handle)].append(handle)
        timers = [timer for timer in scheduled if self._is_held(timer)]
        if timers:
            scheduled[:] = [timer for timer in scheduled if not self._is_held(timer)]
            heapq.heapify(scheduled)
            for timer in timers:
                timer._scheduled = False
                self._held[_machine_of(timer)].append(timer)

    def _is_held(self, handle: asyncio.Handle) -> bool:
        return _machine_of(handle) in self._held


def _machine_of(handle: Any) -> str:
    found: str = handle._context.get(MACHINE, "")
    return found


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own."""
    with asyncio.Runner(loop_factory=PausingLoop) as runner:
        return runner.run(main)
