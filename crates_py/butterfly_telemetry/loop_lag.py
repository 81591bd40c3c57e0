"""How late the event loop wakes up: elections and leases depend on it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

LATE_SECONDS = 0.1
"""From here on a lag is an event in the log: a leader may already have been given up."""


class LoopLagSampler:
    """Sleeps in short steps and measures by how much each was too long."""

    def __init__(
        self,
        on_lag: Callable[[float], None],
        *,
        interval_seconds: float = 0.25,
        late_seconds: float = LATE_SECONDS,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._on_lag = on_lag
        self._interval_seconds = interval_seconds
        self._late_seconds = late_seconds
        self._clock = clock
        self._sleep = sleep
        self.lag_max_seconds = 0.0
        """The longest lag since the start."""

    async def run(self) -> None:
        """Sample until cancelled."""
        clock = self._clock or asyncio.get_running_loop().time
        while True:
            due = clock() + self._interval_seconds
            await self._sleep(self._interval_seconds)
            self._note(max(0.0, clock() - due))

    def _note(self, lag_seconds: float) -> None:
        self.lag_max_seconds = max(self.lag_max_seconds, lag_seconds)
        self._on_lag(lag_seconds)
        if lag_seconds >= self._late_seconds:
            logger.warning("the event loop was %.0f ms late", lag_seconds * 1000)
