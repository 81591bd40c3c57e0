"""How often a leader says "still here" to those who do not vote.

A voter needs the leader's word many times within an election timeout. A learner only follows,
and its admission lease is many times longer; with hundreds of learners the voters' pace would
be most of what a leader sends and receives. So a learner hears at once whatever is new, entries
and commit index, and otherwise one heartbeat out of ``LEARNER_HEARTBEATS``.
"""

from collections.abc import Callable
from typing import Final

from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_timing import Timing
from butterfly_core.ids import NodeId

LEARNER_HEARTBEATS: Final = 5


class LearnerHeartbeats:
    """Knows what each learner was told last, and when."""

    def __init__(self, timing: Timing, clock: Callable[[], float]) -> None:
        self._period_seconds = LEARNER_HEARTBEATS * timing.append_seconds
        self._clock = clock
        self._told: dict[NodeId, tuple[float, int]] = {}

    def may_wait(self, learner: NodeId, message: Message) -> bool:
        """True for an ``append_entries`` with no news so soon after the last; else it counts."""
        now, commit_index = self._clock(), message["commit_index"]
        told_at, told_index = self._told.get(learner, (float("-inf"), -1))
        no_news = message.get("entries") == [] and commit_index == told_index
        if no_news and now - told_at < self._period_seconds:
            return True
        self._told[learner] = (now, commit_index)
        return False

    def forget(self, peer: NodeId) -> None:
        """Its channel is gone: what it was told may not have arrived."""
        self._told.pop(peer, None)
