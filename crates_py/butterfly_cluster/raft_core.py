"""One Raft node on our journal: pysyncobj's insides, typed, for the files around it."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.membership import (
    REGULAR,
    VoterChange,
    changed,
    fold_voters,
    parse_voter_change,
)
from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_doors import Adopt, Answered, Application, Door, Send
from butterfly_cluster.raft_insides import FOLLOWER, LEADER, Insides
from butterfly_cluster.raft_sync import (
    FAILURES,
    Chance,
    TamedSyncObj,
    configured,
    learner_node,
    lend,
    voter_node,
)
from butterfly_cluster.raft_timing import Timing
from butterfly_cluster.snapshot import Snapshot
from butterfly_cluster.snapshot_shelf import SnapshotShelf
from butterfly_core.errors import InvalidValue, StorageError
from butterfly_core.ids import NodeId

_log = logging.getLogger(__name__)


class Core(Insides):
    """One pysyncobj node on our journal, typed. Not safe to use from two threads."""

    def __init__(
        self,
        *,
        me: NodeId,
        founders: frozenset[NodeId],
        timing: Timing,
        journal: Journal,
        snapshot: Snapshot | None,
        save_snapshot: Callable[[bytes], None],
        application: Application,
        send: Send,
        clock: Callable[[], float],
        chance: Chance,
        compact_after_entries: int,
    ) -> None:
        super().__init__(me, journal)
        self.apply_failures = 0
        self._application, self._clock, self._chance = application, clock, chance
        self._voters_applied = founders if snapshot is None else snapshot.voters
        voters = fold_voters(self._voters_applied, (entry.command for entry in journal.entries))
        door = Door(journal, partial(self._send, send), self._role_of_peer_changed)
        self._enter()
        self._sync = TamedSyncObj(
            self,
            voter_node(me) if me in voters else None,
            [voter_node(voter) for voter in sorted(voters - {me})],
            configured(timing, door, compact_after_entries),
            transport=door,
        )
        self._save_snapshot = save_snapshot
        self.shelf = SnapshotShelf(snapshot, self._make_snapshot, self._save_unless_mute)
        self.set("serializer", self.shelf)
        if snapshot is not None:
            self._begin_at(snapshot)

    # What happens to it.

    def tick(self) -> None:
        self._enter()
        self._sync.doTick(0)

    def deliver(self, peer: NodeId, message: Message) -> None:
        """Let pysyncobj handle a message that the guard let through."""
        self._enter()
        acknowledges = message["type"] == "next_node_idx"
        node = self.node_of(peer) if acknowledges else voter_node(peer)
        self.get("onMessageReceived")(node, message)

    def deliver_to_voter_to_be(self, peer: NodeId, message: Message) -> None:
        """Answer a vote request although our log does not say yet that we vote."""
        self.set("selfNode", voter_node(self.me))
        try:
            self.deliver(peer, message)
        finally:
            self.set("selfNode", None)

    def connected(self, peer: NodeId) -> None:
        self._enter()
        self._peers.add(peer)
        if peer in self.others:
            self.get("onNodeConnected")(voter_node(peer))
        else:
            self.get("onReadonlyNodeConnected")(learner_node(peer))

    def disconnected(self, peer: NodeId) -> None:
        self._enter()
        self._peers.discard(peer)
        self.shelf.cancelTransmisstion(self.node_of(peer))
        if peer in self.others:
            self.get("onNodeDisconnected")(voter_node(peer))
        else:
            self.get("onReadonlyNodeDisconnected")(learner_node(peer))
        if peer == self.leader:
            self.get("onLeaderChanged")()  # answers on the way are lost: tell who waits

    def propose(self, body: bytes, answered: Answered, kind: int = REGULAR) -> None:
        self._enter()
        self._sync._applyCommand(body, answered, kind)

    def _send(self, send: Send, peer: NodeId, message: Message) -> bool:
        """All but a change of voters, which was meant for the term in which this node led."""
        forwarded = message["type"] == "apply_command"
        if forwarded and parse_voter_change(message["command"]) is not None:
            self.fail_request(message.get("request_id", 0), FAILURES.NOT_LEADER)
            return False
        return send(peer, message)

    def fail_request(self, request_id: int, failure: int = FAILURES.MISSING_LEADER) -> None:
        """A forwarded command did not even leave: it may be tried again."""
        answered = self.get("commandsWaitingReply").pop(request_id, None)
        if answered is not None:
            answered(None, failure)

    def adopt_term(self, term: int) -> None:
        """Someone is in a later term: follow nobody until its leader is heard."""
        self._enter()
        self.get("setCurrentTerm")(term, None)
        self.get("setState")(FOLLOWER)
        self.set("raftLeader", None)

    def step_down(self) -> None:
        """Lead and stand no more; who leads is heard from the next leader."""
        self._enter()
        if self.role != FOLLOWER:
            self.get("setState")(FOLLOWER)
            self.set("raftLeader", None)

    def election_timeout(self) -> float:
        """A fresh random one, in seconds."""
        self._enter()
        return float(self.get("generateRaftTimeout")())

    def change_voters(self, change: VoterChange, *, reverse: bool = False) -> None:
        """A change of voters enters the log, or leaves it again uncommitted."""
        request = [change.operation, change.node_id, voter_node(change.node_id)]
        self.get("doChangeCluster")(request, reverse)

    def read_state(self, snapshot: Snapshot) -> Adopt:
        """Read a snapshot's state, changing nothing. Raises InvalidValue."""
        return self._application.restore(snapshot.state)

    def adopt_snapshot(self, snapshot: Snapshot, adopt: Adopt, voters: frozenset[NodeId]) -> None:
        """The journal begins with this snapshot now; ``voters`` are those of the whole log."""
        adopt()
        self._voters_applied = snapshot.voters
        self.set("raftLastApplied", snapshot.last.log_index)
        self.set("raftCommitIndex", self.journal.commit_index)
        for gone in sorted(self.voters - voters):
            self.change_voters(VoterChange("rem", gone))
        for fresh in sorted(voters - self.voters):
            self.change_voters(VoterChange("add", fresh))

    def compact_soon(self) -> None:
        self._sync.forceLogCompaction()

    def transfer_leadership(self, answered: Answered) -> None:
        self._enter()
        self._sync.transferLeadership(None, answered)

    # What it asks of us.

    def apply_command(self, command: bytes) -> int:
        """Apply the next committed entry; never raises, or the log would stop for all."""
        index = self.applied_index + 1
        change = parse_voter_change(command)
        if change is not None:
            self._voters_applied = changed(self._voters_applied, change)
        elif command[0] == REGULAR:
            try:
                self._application.apply(index, command[1:])
            except Exception:  # noqa: BLE001 - one bad command must not stop every node for ever
                self.apply_failures += 1
                _log.exception("the command at index %d could not be applied", index)
        return index

    def change_own_role(self, adding: bool) -> bool:
        """The log makes this node a voter, or a learner."""
        if adding == self.is_voter or (not adding and self.role == LEADER):
            return False
        self.set("selfNode", voter_node(self.me) if adding else None)
        if not adding:
            self.get("setState")(FOLLOWER)
        return True

    def change_began(self) -> None:
        """The leader adds a change to its log: no other until this one is applied."""
        self.set("changeClusterIDx", self.last_index + 1)

    def became_leader(self) -> None:
        """A sole voter counts its first entry in the same tick, so it must be on the disk."""
        self.journal.sync()

    def _begin_at(self, snapshot: Snapshot) -> None:
        """Of a start: the state is that of the snapshot. Raises StorageError."""
        index = snapshot.last.log_index
        try:
            adopt = self.read_state(snapshot)
        except InvalidValue as error:
            raise StorageError(
                f"the snapshot up to entry {index} cannot be used: {error}"
            ) from error
        adopt()
        self.set("raftLastApplied", index)

    def _role_of_peer_changed(self, node: Any, becomes_voter: bool) -> None:
        if NodeId(node.id) not in self._peers:
            return
        learner = learner_node(NodeId(node.id))
        gone, here = ("Readonly", "") if becomes_voter else ("", "Readonly")
        self.get(f"on{gone}NodeDisconnected")(learner if becomes_voter else node)
        self.get(f"on{here}NodeConnected")(node if becomes_voter else learner)

    def _save_unless_mute(self, data: bytes) -> None:
        if self.journal.problem is None:
            self._save_snapshot(data)

    def _make_snapshot(self, previous: Entry, last: Entry) -> Snapshot:
        return Snapshot(self._application.take_snapshot(), previous, last, self._voters_applied)

    def _enter(self) -> None:
        lend(self._clock, self._chance)
