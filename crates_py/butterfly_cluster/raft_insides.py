"""What can be read off one pysyncobj node, typed: its term, role, voters and log."""

from typing import Any

from butterfly_cluster.journal import Journal
from butterfly_cluster.raft_sync import TamedSyncObj, learner_node, voter_node
from butterfly_core.ids import NodeId

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2


class Insides:
    """The readable half of ``raft_core.Core``, which makes ``_sync``."""

    _sync: TamedSyncObj

    def __init__(self, me: NodeId, journal: Journal) -> None:
        self.me, self.journal = me, journal
        self._peers: set[NodeId] = set()

    def get(self, name: str) -> Any:
        """A private attribute of SyncObj."""
        return getattr(self._sync, f"_SyncObj__{name}")

    def set(self, name: str, value: Any) -> None:
        """Set a private attribute of SyncObj."""
        setattr(self._sync, f"_SyncObj__{name}", value)

    @property
    def term(self) -> int:
        return int(self.get("raftCurrentTerm"))

    @property
    def role(self) -> int:
        """FOLLOWER, CANDIDATE or LEADER; a learner is a follower for ever."""
        return int(self.get("raftState"))

    @property
    def leader(self) -> NodeId | None:
        node = self.get("raftLeader")
        return None if node is None else NodeId(node.id)

    @property
    def others(self) -> frozenset[NodeId]:
        """The other voters, by the newest configuration in the log."""
        return frozenset(NodeId(node.id) for node in self.get("otherNodes"))

    @property
    def is_voter(self) -> bool:
        return self.get("selfNode") is not None

    @property
    def voters(self) -> frozenset[NodeId]:
        return self.others | {self.me} if self.is_voter else self.others

    @property
    def commit_index(self) -> int:
        return int(self.get("raftCommitIndex"))

    @property
    def applied_index(self) -> int:
        return int(self.get("raftLastApplied"))

    @property
    def last_index(self) -> int:
        return self.journal.entries[-1].log_index

    @property
    def last_term(self) -> int:
        return self.journal.entries[-1].term

    @property
    def connected_to_anyone(self) -> bool:
        return bool(self._peers) or not self.others

    def match_index(self, peer: NodeId) -> int:
        """Up to which entry a peer is known to hold the leader's log."""
        return int(self.get("raftMatchIndex").get(self.node_of(peer), 0))

    def next_index(self, peer: NodeId) -> int:
        """Which entry the leader sends a peer next."""
        return int(self.get("raftNextIndex").get(self.node_of(peer), 0))

    def expect_next(self, peer: NodeId, index: int) -> None:
        """Let the leader go on at this entry."""
        if self.follows(peer):
            self.get("raftNextIndex")[self.node_of(peer)] = index

    def follows(self, peer: NodeId) -> bool:
        """True when the leader keeps count of what the peer holds."""
        return self.node_of(peer) in self.get("raftMatchIndex")

    @property
    def election_deadline(self) -> float:
        return float(self.get("raftElectionDeadline"))

    @election_deadline.setter
    def election_deadline(self, deadline: float) -> None:
        self.set("raftElectionDeadline", deadline)

    def answered_at(self, peer: NodeId) -> float:
        """When the leader last heard an acknowledgement of the peer, by its own clock."""
        return float(self.get("lastResponseTime").get(self.node_of(peer), float("-inf")))

    def note_answered(self, peer: NodeId, at: float) -> None:
        """An acknowledgement was said at that time, or later."""
        self.get("lastResponseTime")[self.node_of(peer)] = at

    def node_of(self, peer: NodeId) -> Any:
        """The object that stands for a peer now: a voter's or a learner's."""
        return voter_node(peer) if peer in self.others else learner_node(peer)
