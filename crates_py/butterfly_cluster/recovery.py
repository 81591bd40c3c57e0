"""A new cluster of one from what one survivor holds, when the majority is lost for good.

Offline: the node does not run. All entries in its log are kept, also those it does not know to
be committed, as etcd's ``--force-new-cluster`` does: an acknowledged entry is in the log of some
majority, and may be in this one. What only the lost nodes held is gone. The other members leave
the state; the epoch stays. The cluster gets another id, so that nodes of the old one that come
back cannot be mistaken for members.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from butterfly_cluster.apply import apply
from butterfly_cluster.commands import RemoveMember, decode_command
from butterfly_cluster.durable_files import read_if_there
from butterfly_cluster.founding_messages import cluster_id_of
from butterfly_cluster.identity import IDENTITY_NAME, Identity, decode_identity, encode_identity
from butterfly_cluster.journal_format import Entry, whole_journal
from butterfly_cluster.membership import NO_OP, REGULAR, fold_voters
from butterfly_cluster.snapshot import (
    JOURNAL_NAME,
    SNAPSHOT_NAME,
    Snapshot,
    entries_with_snapshot,
    read_log,
)
from butterfly_cluster.state import ClusterState, decode_state, encode_state
from butterfly_cluster.together import replace_together
from butterfly_core.errors import ConfigError, InvalidValue, ProtocolViolation, StorageError
from butterfly_core.ids import ClusterId, NodeId, short


@dataclass(frozen=True, slots=True)
class Recovery:
    """What would be written, and what a person should know before."""

    before: Identity
    after: Identity
    snapshot: Snapshot
    voters: frozenset[NodeId]
    removed: tuple[NodeId, ...]
    commit_index: int

    @property
    def old_cluster(self) -> ClusterId | None:
        return self.before.cluster_id

    @property
    def new_cluster(self) -> ClusterId | None:
        return self.after.cluster_id

    @property
    def last_index(self) -> int:
        """The newest entry that is kept."""
        return self.snapshot.previous.log_index - 1


def plan_recovery(data_dir: Path) -> Recovery:
    """Read a stopped node's files; changes nothing. Raises ConfigError, StorageError."""
    path = data_dir / IDENTITY_NAME
    data = read_if_there(path)
    if data is None:
        raise ConfigError(f"no node has lived in {data_dir}: there is no {IDENTITY_NAME}")
    before = decode_identity(data, path)
    if before.cluster_id is None or before.cluster_name is None:
        raise ConfigError(f"the node in {data_dir} belongs to no cluster; there is none to recover")
    content, saved = read_log(data_dir)
    log = list(content.entries)
    if saved is not None:
        log = entries_with_snapshot(log, saved)
    first_voters = frozenset(before.founders) if saved is None else saved.voters
    after_snapshot = log[2:] if saved is not None else log
    voters = fold_voters(first_voters, (entry.command for entry in after_snapshot))
    newest = log[-1] if log else Entry(bytes([NO_OP]), 1, 0)
    # Both entries that stay beside the state are fresh: a change of voters among them would be
    # counted once more at each start, on top of the one voter.
    term = max(content.term, newest.term) + 1
    previous = Entry(bytes([NO_OP]), newest.log_index + 1, term)
    end = Entry(bytes([NO_OP]), newest.log_index + 2, term)
    full = _replayed(saved, after_snapshot)
    others = tuple(sorted(full.members.keys() - {before.node_id}))
    state = _alone(full, others, end.log_index)
    me, generation = before.node_id, before.generation + 1
    after = Identity(
        me,
        cluster_id_of(before.cluster_name, (me,), generation),
        before.cluster_name,
        (me,),
        generation=generation,
    )
    snapshot = Snapshot(encode_state(state), previous, end, frozenset({me}))
    return Recovery(before, after, snapshot, voters, others, content.commit_index)


def carry_out(data_dir: Path, recovery: Recovery) -> None:
    """Write it, all or nothing; the old files stay beside. Raises StorageError.

    The caller holds the directory's lock.
    """
    end = recovery.snapshot.last
    _keep_old_files(data_dir, short(str(recovery.old_cluster)))
    replace_together(
        data_dir,
        {
            SNAPSHOT_NAME: recovery.snapshot.encode(),
            JOURNAL_NAME: whole_journal(
                end.term, end.log_index, None, [recovery.snapshot.previous, end]
            ),
            IDENTITY_NAME: encode_identity(recovery.after),
        },
    )


def _replayed(saved: Snapshot | None, entries: Iterable[Entry]) -> ClusterState:
    """Raises StorageError when another version saved the snapshot."""
    try:
        state = ClusterState() if saved is None else decode_state(saved.state)
    except InvalidValue as error:
        raise StorageError(f"the snapshot cannot be used: {error}") from error
    for entry in entries:
        if entry.command[0] != REGULAR:
            continue
        try:
            command = decode_command(entry.command[1:])
        except ProtocolViolation:
            continue  # every node ignores it, so does the next one
        state = apply(state, entry.log_index, command)
    return state


def _alone(state: ClusterState, others: Iterable[NodeId], index: int) -> ClusterState:
    for node in others:
        state = apply(state, index, RemoveMember(node, "lost with the majority"))
    return replace(state, departed=())


def _keep_old_files(data_dir: Path, old_cluster: str) -> None:
    for name in (JOURNAL_NAME, SNAPSHOT_NAME, IDENTITY_NAME):
        kept = data_dir / f"{name}.before-recovery-{old_cluster}"
        try:
            if (data_dir / name).exists() and not kept.exists():
                os.link(data_dir / name, kept)
        except OSError as error:
            raise StorageError(f"cannot keep {kept}: {error.strerror or error}") from error
