"""A signal that something changed, for any number of waiters on one event loop."""

import asyncio


class Pulse:
    """``notify`` wakes everybody who waits now, in the order in which they came. A waiter looks
    again at what it waits for."""

    def __init__(self) -> None:
        # Not a set: its order would be that of memory addresses, and no run like another.
        self._waiting: dict[asyncio.Future[None], None] = {}

    def notify(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    async def wait(self, timeout_seconds: float) -> None:
        """Until the next ``notify``, or the time is over."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            async with asyncio.timeout(timeout_seconds):
                await future
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(future, None)
