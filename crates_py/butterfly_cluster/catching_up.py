"""Which learners follow the log so closely that they may vote. Pure: time comes in."""

from collections import deque
from collections.abc import Mapping
from typing import Final

from butterfly_core.ids import NodeId

CAUGHT_UP_SECONDS: Final = 2.0
_LOOKS_MAX: Final = 1024
_LOOK_AWAY_SECONDS_MAX: Final = 1.0


class CatchingUp:
    """Looks again and again; a node that was behind at one look begins anew."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._commits: deque[tuple[float, int]] = deque(maxlen=_LOOKS_MAX)
        self._since: dict[NodeId, float] = {}

    def look(
        self, now: float, commit_index: int, matched: Mapping[NodeId, int | None]
    ) -> frozenset[NodeId]:
        """Who was within one heartbeat of the commit index for CAUGHT_UP_SECONDS.

        ``matched``: up to where each node is known to hold the log; None while it is not
        connected. After a look away nothing is known of the time between.
        """
        if self._commits and now - self._commits[-1][0] > _LOOK_AWAY_SECONDS_MAX:
            self._commits.clear()
            self._since.clear()
        self._commits.append((now, commit_index))
        needed = self._committed_before(now - self._heartbeat_seconds)
        self._since = {
            node: self._since.get(node, now)
            for node, index in matched.items()
            if index is not None and index >= needed
        }
        return frozenset(
            node for node, since in self._since.items() if now - since >= CAUGHT_UP_SECONDS
        )

    def _committed_before(self, moment: float) -> int:
        while len(self._commits) > 1 and self._commits[1][0] <= moment:
            self._commits.popleft()
        return self._commits[0][1]
