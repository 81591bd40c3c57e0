"""When a peer that does not answer may be dialled again: later and later, and at once on news."""

from collections.abc import Callable
from typing import Final

from butterfly_core.ids import NodeId

_PEERS_MAX: Final = 1024


class DialPauses:
    """Each pause is twice the last one, up to ``longest_seconds``, a half of it by chance."""

    def __init__(
        self,
        first_seconds: float,
        *,
        longest_seconds: Callable[[], float],
        chance: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """``chance`` from 0 to 1. ``longest_seconds`` may change; what it says now counts."""
        self._first, self._longest = first_seconds, longest_seconds
        self._chance, self._clock = chance, clock
        self._tried: dict[NodeId, tuple[float, float, float]] = {}
        """When a peer was dialled last, the pause since, and what share of it is kept."""

    def is_over(self, peer: NodeId) -> bool:
        """True when the peer may be dialled now."""
        if peer not in self._tried:
            return True
        tried_at, pause, share = self._tried[peer]
        return self._clock() - tried_at >= share * min(pause, self._longest())

    def begin(self, peer: NodeId) -> None:
        """The peer is dialled now; if that does not help, it rests for longer than before."""
        _, before, _ = self._tried.pop(peer, (0.0, self._first / 2, 0.0))
        pause = max(self._first, min(2 * before, self._longest()))
        while len(self._tried) >= _PEERS_MAX:
            del self._tried[next(iter(self._tried))]
        self._tried[peer] = (self._clock(), pause, 0.5 + 0.5 * self._chance())

    def forget(self, peer: NodeId) -> None:
        """The peer is there, or may be reached elsewhere: dial it at once when it is wanted."""
        self._tried.pop(peer, None)
