"""How old a word may be that is read now: as old as this node's last pause, right after one.

A process that was stopped (SIGSTOP, a suspended machine, a machine without a free core) finds in
its sockets what was said long ago. Taken for fresh, an acknowledgement would keep a leader
leading that lost its majority meanwhile, and a heartbeat would let a follower admit requests for
another lease. A pause that the clock does not count, as when a hypervisor stops a virtual machine
and its clocks with it, goes unseen: the lease lasts that much longer there.
"""

from collections.abc import Callable

from butterfly_cluster.raft_timing import Timing

_GAP_PERIODS = 2.0


class Timeliness:
    """``note_tick`` whenever this node takes its turn; ``said_since`` is what may be believed."""

    def __init__(self, timing: Timing, clock: Callable[[], float]) -> None:
        """``clock`` in seconds. A pause is what is longer than two append periods."""
        self._gap_seconds = _GAP_PERIODS * timing.append_seconds
        self._clock = clock
        self._ticked_at = clock()
        self._awake_at = self._ticked_at
        self._doubtful_until = self._ticked_at

    def note_tick(self) -> None:
        """This node runs. After a pause it needs a moment to read what waited for it."""
        now = self._clock()
        if now - self._ticked_at > self._gap_seconds:
            self._awake_at = self._ticked_at
            self._doubtful_until = now + self._gap_seconds
        self._ticked_at = now

    @property
    def said_since(self) -> float:
        """What is read now was said after this moment: now, or when the last pause began."""
        now = self._clock()
        if now - self._ticked_at > self._gap_seconds:
            return self._ticked_at
        return self._awake_at if now < self._doubtful_until else now
