"""Connections whose sender is not known yet: how many there may be, and who keeps its place.

A burst of honest peers waits in the kernel's queue; a stranger that holds a connection and does
not use it loses it to others.
"""

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass

from butterfly_core.address import Address
from butterfly_wire.limits import WireLimits

_SILENT_SHARE, _SPEAKING_SHARE = 0.2, 0.5
"""Of the handshake's timeout: after it a newcomer may lose its place to another. Honest peers
speak at once, and are through in milliseconds unless this machine has no time for them."""


@dataclass
class Newcomer:
    """An accepted socket whose sender is not known yet."""

    sock: socket.socket
    where: Address
    since: float
    spoke: bool = False
    taken: bool = False

    def close_unless_taken(self) -> None:
        if not self.taken:
            self.sock.close()


class Newcomers:
    """The newcomers of one listener, each with the task that welcomes it."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._welcomed: dict[asyncio.Task[None], Newcomer] = {}
        self._one_left = asyncio.Event()
        self.evicted_count = 0

    def __len__(self) -> int:
        return len(self._welcomed)

    async def room(self) -> None:
        """Wait for a place. Nobody loses one before it had a chance."""
        while len(self._welcomed) >= self._limits.unauthenticated_max:
            slowest = min(self._welcomed, key=self._keeps_place_until)
            left = self._keeps_place_until(slowest) - asyncio.get_running_loop().time()
            if left <= 0:
                self._evict(slowest)
                return
            self._one_left.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._one_left.wait()

    def may_come(self, where: Address) -> bool:
        """No host but this one takes all places; of its own it loses one that had its chance."""
        if where.is_loopback:
            return True
        same = [task for task, each in self._welcomed.items() if each.where.host == where.host]
        if len(same) < self._limits.unauthenticated_per_host_max:
            return True
        slowest = min(same, key=self._keeps_place_until)
        if self._keeps_place_until(slowest) > asyncio.get_running_loop().time():
            return False
        self._evict(slowest)
        return True

    def add(self, task: asyncio.Task[None], newcomer: Newcomer) -> None:
        """It is one until its task ends, or ``settle`` is called."""
        self._welcomed[task] = newcomer
        task.add_done_callback(lambda _: self.settle(task, newcomer))

    def settle(self, task: asyncio.Task[None], newcomer: Newcomer) -> None:
        """It is no newcomer any more."""
        self._welcomed.pop(task, None)
        self._one_left.set()
        newcomer.close_unless_taken()

    def cancel_all(self) -> None:
        for task in self._welcomed:
            task.cancel()

    def _keeps_place_until(self, task: asyncio.Task[None]) -> float:
        newcomer = self._welcomed[task]
        share = _SPEAKING_SHARE if newcomer.spoke else _SILENT_SHARE
        return newcomer.since + share * self._limits.handshake_timeout_seconds

    def _evict(self, task: asyncio.Task[None]) -> None:
        del self._welcomed[task]
        task.cancel()
        self.evicted_count += 1
