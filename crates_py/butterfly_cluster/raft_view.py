"""What a ``RaftNode`` tells of itself; nothing here changes anything."""

from collections.abc import Mapping

from butterfly_cluster.guard import Guard
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_insides import LEADER
from butterfly_cluster.raft_proposals import Proposals
from butterfly_cluster.raft_statistics import statistics_of
from butterfly_cluster.raft_transport import RaftTransport
from butterfly_core.ids import ClusterId, NodeId


class RaftView:
    """The readable half of ``raft.RaftNode``, which makes the parts."""

    _core: Core
    _guard: Guard
    _transport: RaftTransport
    _proposals: Proposals
    _slips = 0

    @property
    def leader(self) -> NodeId | None:
        """The leader this node follows or is; never a reason to act, only to tell."""
        return self._core.leader

    @property
    def term(self) -> int:
        """The newest term seen."""
        return self._core.term

    @property
    def commit_index(self) -> int:
        """Up to here the log is agreed."""
        return self._core.commit_index

    @property
    def voters(self) -> frozenset[NodeId]:
        """Who votes, by the newest configuration in this node's log."""
        return self._core.voters

    @property
    def is_voter(self) -> bool:
        """True when this node votes."""
        return self._core.is_voter

    @property
    def is_leader(self) -> bool:
        """True when this node believes so; a cut-off leader does for a moment."""
        return self._core.role == LEADER

    @property
    def seconds_since_leader_heard(self) -> float:
        """How old the last word of a leader is; on the leader, of a majority."""
        return self._guard.seconds_since_leader_heard()

    @property
    def strangers(self) -> Mapping[NodeId, ClusterId]:
        """Whose channel was refused lately, with the cluster that they are of."""
        return self._transport.strangers

    def matched_index(self, peer: NodeId) -> int | None:
        """On the leader: up to where a peer holds the log; None when it is not connected."""
        if self._core.role != LEADER or peer not in self._transport.peers:
            return None
        return self._core.match_index(peer)

    def seconds_since_heard(self, peer: NodeId) -> float:
        """How old the last word on the channel to a peer is; infinite without one."""
        return self._transport.seconds_since_heard(peer)

    @property
    def lost_peers(self) -> frozenset[NodeId]:
        """Who was heard in the last minute, and there is no channel to any more."""
        return self._transport.lost

    @property
    def disk_problem(self) -> str | None:
        """Why this node is mute: it follows in memory, and neither votes nor acknowledges.

        None while its disk works. Only a restart on a disk that works ends it.
        """
        problem = self._core.journal.problem
        return None if problem is None else str(problem)

    def statistics(self) -> Mapping[str, int | float]:
        """Numbers for metrics and the status page."""
        own = {"slips": self._slips, "proposals_waiting": self._proposals.waiting}
        return {**statistics_of(self._core, self._guard, self._transport), **own}
