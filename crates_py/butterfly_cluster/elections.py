"""When this node may stand for election: once a majority said that it would vote for it.

A node that comes back, or that hears nobody, asks around first (pre-vote, Raft thesis 9.6), so
that it never raises the term, and deposes a healthy leader, for nothing.
"""

from collections.abc import Callable

from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_insides import LEADER
from butterfly_core.ids import NodeId

_PRE_VOTE_HOLDS_SECONDS = 0.2
_ROUND_MAX = 1 << 52


class Elections:
    """Holds pysyncobj's election deadline. ``say`` sends a question to a voter."""

    core: Core

    def __init__(
        self,
        *,
        say: Callable[[NodeId, Message], None],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._say, self._clock, self._chance = say, clock, chance
        self.transfer = False
        """The leader asked this node to take over: it stands at once, without asking."""
        self._round: int | None = None
        self._promised: set[NodeId] = set()
        self._may_start_until: float | None = None

    def forget(self) -> None:
        """A leader is there: what was promised before does not count any more."""
        self._round = self._may_start_until = None

    def on_pre_vote_ok(self, peer: NodeId, message: Message) -> None:
        """A voter would vote for this node."""
        if message["round"] != self._round or peer not in self.core.others:
            return
        self._promised.add(peer)
        if 2 * (len(self._promised) + 1) > len(self.core.others) + 1:
            self._round = None
            self._may_start_until = self._clock() + _PRE_VOTE_HOLDS_SECONDS

    def tick(self) -> None:
        """Let the election that pysyncobj begins by itself begin, or not."""
        core, now = self.core, self._clock()
        if core.role == LEADER:
            self.forget()
            return
        if self.transfer:
            return
        if not core.others:
            core.election_deadline = 0.0  # a sole voter has nobody to wait for
            return
        if self._may_start_until is not None:
            if now < self._may_start_until:
                core.election_deadline = 0.0
            self._may_start_until = None
        elif core.election_deadline < now:
            core.election_deadline = now + core.election_timeout()
            if core.connected_to_anyone:
                self._ask_around()

    def _ask_around(self) -> None:
        self._round, self._promised = int(self._chance() * _ROUND_MAX), set()
        question = {
            "type": "pre_vote",
            "term": self.core.term + 1,
            "last_log_index": self.core.last_index,
            "last_log_term": self.core.last_term,
            "round": self._round,
        }
        for peer in sorted(self.core.others):
            self._say(peer, question)
