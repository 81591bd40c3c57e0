"""How a follower takes in what its leader sends (Raft, figure 2 and section 7), by the book.

Nothing that matches is deleted; only what was compared is acknowledged, and only that much is
committed. A log that contradicts what is committed here is refused, whoever sends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from butterfly_cluster.journal import Entry
from butterfly_cluster.membership import fold_voters, parse_voter_change
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_sync import FAILURES
from butterfly_cluster.snapshot import decode_snapshot, entries_with_snapshot
from butterfly_core.errors import InvalidValue, ProtocolViolation


@dataclass(frozen=True, slots=True)
class Accepted:
    """The log here equals the leader's up to ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The leader must begin at ``next_index`` or before."""

    next_index: int


def accept_entries(
    core: Core, previous_index: int, previous_term: int, entries: Sequence[Entry]
) -> Accepted | Mismatch:
    """Compare and take in. Raises ProtocolViolation when committed entries would be lost."""
    log = core.journal.entries
    first, last = log[0].log_index, log[-1].log_index
    if previous_index < first:
        # What lies before our snapshot is committed, so it equals the leader's.
        behind = [entry for entry in entries if entry.log_index > first]
        if not behind:
            return Accepted(min(first, previous_index + len(entries)))
        previous_index, previous_term, entries = first, log[0].term, behind
    if previous_index > last:
        return Mismatch(last + 1)
    if log[previous_index - first].term != previous_term:
        _must_not_be_committed(core, previous_index)
        return Mismatch(core.commit_index + 1)
    same = 0
    for entry in entries:
        if entry.log_index > last or log[entry.log_index - first].term != entry.term:
            break
        same += 1
    fresh = entries[same:]
    if fresh:
        if fresh[0].log_index <= last:
            _must_not_be_committed(core, fresh[0].log_index)
            _truncate_from(core, fresh[0].log_index - first)
        _append(core, fresh)
    return Accepted(previous_index + len(entries))


def commit_up_to(core: Core, index: int) -> None:
    """Raise the commit index; the next tick applies."""
    if index > core.commit_index:
        core.set("raftCommitIndex", index)
        core.journal.commit_index = index


def install_snapshot(core: Core, data: bytes) -> Accepted:
    """Take over the state at a later index. Raises ProtocolViolation, StorageError."""
    try:
        snapshot = decode_snapshot(data)
        if snapshot.last.log_index <= core.applied_index:
            return Accepted(snapshot.last.log_index)
        adopt = core.read_state(snapshot)  # before it is on the disk, where it would stay
    except InvalidValue as error:
        raise ProtocolViolation(f"a snapshot from the leader: {error}") from error
    core.shelf.put(data)
    entries = entries_with_snapshot(core.journal.entries, snapshot)
    core.journal.commit_index = max(core.commit_index, snapshot.last.log_index)
    try:
        core.journal.rewrite(entries)
    finally:  # a disk that fails now does not undo what the log in memory says
        voters = fold_voters(snapshot.voters, (entry.command for entry in entries))
        core.adopt_snapshot(snapshot, adopt, voters)
    waiting = core.get("commandsWaitingCommit")
    for index in sorted(index for index in waiting if index <= snapshot.last.log_index):
        for _, answered in waiting.pop(index):
            answered(None, FAILURES.UNKNOWN_OUTCOME)
    return Accepted(snapshot.last.log_index)


def _must_not_be_committed(core: Core, index: int) -> None:
    if index <= core.commit_index:
        raise ProtocolViolation(
            f"a leader contradicts the entry at {index}, committed here up to "
            f"{core.commit_index}; two clusters were mixed, or a disk lost what it had synced"
        )


def _truncate_from(core: Core, position: int) -> None:
    for entry in reversed(core.journal.entries[position:]):
        change = parse_voter_change(entry.command)
        if change is not None:
            core.change_voters(change, reverse=True)
    core.journal.truncate_from(position)


def _append(core: Core, entries: Sequence[Entry]) -> None:
    for entry in entries:
        core.journal.append(entry)
        change = parse_voter_change(entry.command)
        if change is not None:
            core.change_voters(change)
