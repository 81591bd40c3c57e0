"""Deliberately broken guards and journals: the soak must find out each of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from butterfly_cluster import guard
from butterfly_cluster.guard import Guard
from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_log import Accepted, Mismatch, _append, _truncate_from
from butterfly_core.ids import NodeId

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def without_snap() -> Iterator[None]:
    """A piece of a snapshot moves the commit index, whatever the log here holds."""
    real = Guard._take_snapshot_chunk

    def take(self: Guard, peer: NodeId, message: Message) -> None:
        guard.commit_up_to(self.core, min(message["commit_index"], self.core.last_index))
        real(self, peer, message)

    with mock.patch.object(Guard, "_take_snapshot_chunk", take):
        yield


def without_single() -> contextlib.AbstractContextManager[Any]:
    """A leader begins a change of voters while another one is on its way."""
    return mock.patch.object(Core, "change_began", lambda self: None)


@contextlib.contextmanager
def without_term() -> Iterator[None]:
    """Acknowledgements count in whatever term they were given."""
    real = Guard._on_acknowledgement

    def on_acknowledgement(self: Guard, peer: NodeId, message: Message) -> None:
        real(self, peer, {**message, "sender_term": self.core.term})

    with mock.patch.object(Guard, "_on_acknowledgement", on_acknowledgement):
        yield


@contextlib.contextmanager
def without_trunc() -> Iterator[None]:
    """As upstream: what follows the place is deleted unseen, the leader's word is committed."""

    def accept(
        core: Core, previous_index: int, previous_term: int, entries: Sequence[Entry]
    ) -> Accepted | Mismatch:
        log = core.journal.entries
        first, last = log[0].log_index, log[-1].log_index
        if not first <= previous_index <= last:
            return Mismatch(last + 1)
        if log[previous_index - first].term != previous_term:
            return Mismatch(previous_index)
        if previous_index < last:
            _truncate_from(core, previous_index + 1 - first)
        _append(core, entries)
        return Accepted(previous_index + len(entries))

    with mock.patch.object(guard, "accept_entries", accept):
        yield


@contextlib.contextmanager
def without_comparison() -> Iterator[None]:
    """Entries are compared, but the commit index follows the leader's to the end of the log."""
    real = guard.commit_up_to

    def commit(self: Guard, peer: NodeId, message: Message) -> None:
        on_append(self, peer, message)
        if message["term"] == self.core.term:
            real(self.core, min(message["commit_index"], self.core.last_index))

    on_append = Guard._on_append_entries
    with mock.patch.object(Guard, "_on_append_entries", commit):
        yield


@contextlib.contextmanager
def without_fsync() -> Iterator[None]:
    """The journal writes and does not wait for the disk."""
    real = Journal.sync

    def sync(self: Journal) -> None:
        sync_file, self._sync_file = self._sync_file, lambda _: None
        try:
            real(self)
        finally:
            self._sync_file = sync_file

    with mock.patch.object(Journal, "sync", sync):
        yield


MUTANTS: dict[str, Mutant] = {
    "snap": without_snap,
    "single": without_single,
    "term": without_term,
    "trunc": without_trunc,
    "comparison": without_comparison,
    "fsync": without_fsync,
}
