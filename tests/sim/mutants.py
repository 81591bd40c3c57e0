"""Deliberately broken guards and journals: the soak must find out each of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from butterfly_cluster.guard import Guard
from butterfly_cluster.journal import Journal
from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_log import (
    commit_up_to,
)
from butterfly_core.ids import NodeId

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def without_snap() -> Iterator[None]:
    """A piece of a snapshot moves the commit index, whatever the log here holds."""
    real = Guard._take_snapshot_chunk

    def take(self: Guard, peer: NodeId, message: Message) -> None:
        commit_up_to(self.core, min(message["commit_index"], self.core.last_index))
        real(self, peer, message)

    with mock.patch.object(Guard, "_take_snapshot_chunk", take):
        yield


def without_single() -> contextlib.AbstractContextManager[Any]:
    """A leader begins a change of voters while another one is on its way."""
    return mock.patch.object(Core, "change_began")


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
    """As upstream: what was not compared is committed too, up to the end of the log here."""

    def commit(self: Guard, peer: NodeId, message: Message) -> None:
        on_append(self, peer, message)
        if message["term"] == self.core.term:
            commit_up_to(self.core, min(message["commit_index"], self.core.last_index))

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
    "fsync": without_fsync,
}
