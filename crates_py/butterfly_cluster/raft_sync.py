# ruff: noqa: N802 - the overridden names are pysyncobj's, not ours
"""pysyncobj 0.3.17, tamed; no other file imports it.

What is used of it: elections, the leader's replication and commit rule, the queue of
commands and their forwarding to the leader. What is not: its sockets, threads, poller, pickle,
passwords, journal and dump file, nor the way a follower takes entries in (``raft_log.py``).

A test holds every private attribute that is used against the pinned version, so that an
upgrade fails loudly, in one place.
"""

from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

import pysyncobj.pickle
import pysyncobj.syncobj as upstream
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.version import VERSION

from butterfly_cluster.membership import parse_voter_change
from butterfly_cluster.raft_codec import BATCH_BYTES_MAX
from butterfly_cluster.raft_doors import LEARNER_PREFIX, Door
from butterfly_cluster.raft_timing import Timing
from butterfly_core.errors import ProtocolViolation
from butterfly_core.ids import NodeId

PINNED_VERSION: Final = "0.3.17"
INSTALLED_VERSION: Final[str] = VERSION
FAILURES: Final = FAIL_REASON
COMMANDS_WAITING_MAX: Final = 4096
PRIVATE_ATTRIBUTES: Final = frozenset(
    [
        "raftLog",
        "raftCurrentTerm",
        "raftCommitIndex",
        "raftLastApplied",
        "raftState",
        "raftLeader",
        "raftNextIndex",
        "raftMatchIndex",
        "raftElectionDeadline",
        "lastResponseTime",
        "otherNodes",
        "selfNode",
        "changeClusterIDx",
        "commandsWaitingReply",
        "commandsWaitingCommit",
        "serializer",
        "onMessageReceived",
        "onNodeConnected",
        "onNodeDisconnected",
        "onReadonlyNodeConnected",
        "onReadonlyNodeDisconnected",
        "setCurrentTerm",
        "setState",
        "onLeaderChanged",
        "generateRaftTimeout",
        "onBecomeLeader",
        "changeCluster",
        "doChangeCluster",
        "parseChangeClusterRequest",
        "doApplyCommand",
        "loadDumpFile",
    ]
)


class Chance(Protocol):
    """Where a node's random numbers come from (``random.Random``)."""

    def random(self) -> float: ...


class Owner(Protocol):
    """What the tamed SyncObj asks of the core that owns it."""

    me: NodeId

    def apply_command(self, command: bytes) -> int: ...
    def change_own_role(self, adding: bool) -> bool: ...
    def change_began(self) -> None: ...
    def became_leader(self) -> None: ...


class _NoPoller:
    def subscribe(self, *_: Any) -> None: ...
    def unsubscribe(self, *_: Any) -> None: ...
    def poll(self, _: float) -> None: ...


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ProtocolViolation("pickle and passwords of pysyncobj are not used here")


def _take_the_world_away() -> None:
    upstream.PIPE_NOTIFIER_ENABLED = False
    upstream.createPoller = lambda _: _NoPoller()
    upstream.createJournal = lambda door: door
    upstream.getEncryptor = _refuse
    for name in ("load", "loads", "dump", "dumps"):
        setattr(pysyncobj.pickle, name, _refuse)


_take_the_world_away()


class TamedSyncObj(SyncObj):  # type: ignore[misc] # pysyncobj ships no types
    """SyncObj with the steps replaced that must not be its own."""

    def __init__(self, owner: Owner, *args: Any, **kwargs: Any) -> None:
        self._owner = owner
        super().__init__(*args, **kwargs)

    def _SyncObj__doApplyCommand(self, command: bytes) -> int:
        return self._owner.apply_command(command)

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> list[Any] | None:
        change = parse_voter_change(command)
        if change is None:
            return None
        return [change.operation, change.node_id, Node(change.node_id)]

    def _SyncObj__doChangeCluster(self, request: list[Any], reverse: bool = False) -> bool:
        adding = (request[0] == "add") != reverse
        if request[1] == self._owner.me:
            return self._owner.change_own_role(adding)
        done: bool = super()._SyncObj__doChangeCluster(request, reverse)
        return done

    def _SyncObj__changeCluster(self, request: list[Any]) -> bool:
        # Upstream never sets this mark, so its own "one change at a time" never held.
        done: bool = super()._SyncObj__changeCluster(request)
        if done:
            self._owner.change_began()
        return done

    def _SyncObj__onBecomeLeader(self) -> None:
        super()._SyncObj__onBecomeLeader()
        self._owner.became_leader()

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: N803 - upstream's name
        raise ProtocolViolation("snapshots are installed by Core.install")


def voter_node(node_id: NodeId) -> Any:
    """The object that stands for a voter in pysyncobj's sets."""
    return Node(node_id)


def learner_node(node_id: NodeId) -> Any:
    """The object that stands for a connected peer without a vote."""
    return Node(LEARNER_PREFIX + node_id)


def lend(clock: Callable[[], float], chance: Chance) -> None:
    """Make this node's clock and dice pysyncobj's; another node may have run before."""
    upstream.monotonicTime = clock
    upstream.random = chance


def configured(timing: Timing, door: Door, compact_after_entries: int) -> Any:
    """The one configuration that is used; batches so big that no entry is sent in parts."""
    return SyncObjConf(
        autoTick=False,
        useFork=False,
        appendEntriesUseBatch=False,
        commandsWaitLeader=False,
        dynamicMembershipChange=True,
        appendEntriesPeriod=timing.append_seconds,
        raftMinTimeout=timing.election_min_seconds,
        raftMaxTimeout=timing.election_max_seconds,
        leaderFallbackTimeout=timing.fallback_seconds,
        connectionTimeout=timing.silent_seconds,
        appendEntriesBatchSizeBytes=BATCH_BYTES_MAX,
        commandsQueueSize=COMMANDS_WAITING_MAX,
        logCompactionMinEntries=compact_after_entries,
        journalFile=door,
    )
