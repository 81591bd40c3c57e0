"""Whichever system call fails, and whenever the power goes: nothing promised is forgotten.

One life of a data directory is lived again for each of its system calls: promises, a cluster,
terms and votes, appends, a cut, a compaction, a snapshot from the leader. What the node could
have told others by then (``Told``) must be in the files afterwards: as the next process sees
them, after a power cut, and after a power cut that hits the next process. What was begun and
not told may be there or not; nothing else may.
"""

import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from butterfly_cluster.founding_messages import Proposal, cluster_id_of
from butterfly_cluster.identity import DataDir, Identity, load_or_create
from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.snapshot import (
    Snapshot,
    entries_with_snapshot,
    open_log,
    save_snapshot,
)
from butterfly_core.errors import ConfigError, StorageError
from butterfly_core.ids import NodeId
from tests.support.faulty_disk import BROKEN, FULL, OFF, Fault, FaultyDisk, PowerCut

A, B = NodeId("a" * 32), NodeId("b" * 32)
FIRST = Proposal("demo", ("a:1", "b:1"), (A,), A, "17")
SECOND = Proposal("demo", ("a:1", "b:1"), (B,), B, "18")


@dataclass(frozen=True)
class Log:
    """All that a node's log says: also what a snapshot took the place of."""

    term: int = 0
    vote: str | None = None
    entries: tuple[Entry, ...] = ()


@dataclass
class Told:
    """``identities[0]`` and ``logs[0]`` may be known to others; the later ones were begun."""

    identities: list[Identity | None] = field(default_factory=lambda: [None])
    logs: list[Log] = field(default_factory=lambda: [Log()])


class Life:
    """One process on the directory; ``live`` is the whole script."""

    def __init__(self, directory: Path, disk: FaultyDisk) -> None:
        self._directory, self._disk = directory, disk
        self.told = Told()
        self.data_dir: DataDir | None = None
        self.journal: Journal | None = None

    def live(self) -> None:
        """Raises StorageError when the process would end."""
        self.open(number=7)
        for promise in (FIRST, None, SECOND):
            with contextlib.suppress(StorageError):  # who asked for it gets no answer
                self.promise(promise)
        self.belong()
        self.open_log()
        for step in self._script():
            with contextlib.suppress(StorageError):  # the node falls mute and goes on
                step()

    def _script(self) -> list[Callable[[], object]]:
        return [
            lambda: self.set_term(1, A),
            *[lambda i=i: self.append(i, 1) for i in range(1, 6)],
            self.sync,
            lambda: self.set_term(2, None),
            lambda: self.truncate_from(4),
            lambda: self.append(4, 2),
            lambda: self.append(5, 2),
            self.sync,
            lambda: self.set_term(2, B),
            lambda: self.compact(3),
            lambda: self.append(6, 2),
            self.sync,
            lambda: self.set_term(3, None),
            lambda: self.install(9, 3),
            lambda: self.append(10, 3),
            self.note_commit_index,
            self.sync,
        ]

    # The identity.

    def open(self, number: int) -> None:
        self.data_dir = load_or_create(
            self._directory, random_bytes=random.Random(number).randbytes
        )
        self.told.identities = [self.data_dir.identity]

    def promise(self, promise: Proposal | None) -> None:
        assert self.data_dir
        self._begin(replace(self.data_dir.identity, promise=promise))
        self.data_dir.remember_promise(promise)
        self._done()

    def belong(self) -> None:
        assert self.data_dir
        cluster, me = cluster_id_of("demo", (A, B)), self.data_dir.identity.node_id
        self._begin(Identity(me, cluster, "demo", (A, B)))
        self.data_dir.remember_cluster(cluster, "demo", (A, B))
        self._done()

    def _begin(self, identity: Identity) -> None:
        self.told.identities.append(identity)

    def _done(self) -> None:
        del self.told.identities[:-1]

    # The log.

    def open_log(self) -> None:
        self.journal, _ = open_log(self._directory, self._disk.sync)

    def set_term(self, term: int, vote: str | None) -> None:
        self._change(replace(self.log, term=term, vote=vote))
        self.opened.set_term(term, vote)
        self._synced()

    def append(self, index: int, term: int) -> None:
        entry = Entry(b"\0%d of %d" % (index, term), index, term)
        self._change(replace(self.log, entries=(*self.log.entries, entry)))
        self.opened.append(entry)

    def truncate_from(self, index: int) -> None:
        kept = tuple(entry for entry in self.log.entries if entry.log_index < index)
        self._change(replace(self.log, entries=kept))
        self.opened.truncate_from(index - self.opened.entries[0].log_index)

    def sync(self) -> None:
        self.opened.sync()
        del self.told.logs[:-1]

    def note_commit_index(self) -> None:
        self.opened.commit_index = 10
        self.opened.note_commit_index()

    def compact(self, index: int) -> None:
        self._save(self.log.entries[:index])
        self.opened.rewrite([e for e in self.opened.entries if e.log_index >= index - 1])
        self._synced()

    def install(self, index: int, term: int) -> None:
        whole = tuple(Entry(b"\0the leader's %d" % i, i, term) for i in range(1, index + 1))
        self._change(replace(self.log, entries=whole))
        snapshot = self._save(whole)
        self.opened.rewrite(entries_with_snapshot(self.opened.entries, snapshot))
        self._synced()

    @property
    def opened(self) -> Journal:
        assert self.journal is not None
        return self.journal

    @property
    def log(self) -> Log:
        return self.told.logs[-1]

    def _save(self, entries: tuple[Entry, ...]) -> Snapshot:
        state = json.dumps([[e.command.decode(), e.log_index, e.term] for e in entries]).encode()
        snapshot = Snapshot(state, entries[-2], entries[-1], frozenset({A, B}))
        if self.opened.problem is None:  # as ``raft_core`` does
            try:
                save_snapshot(self._directory, snapshot.encode(), self._disk.sync)
            except StorageError as error:
                raise self.opened.give_up(error) from error
        return snapshot

    def _change(self, log: Log) -> None:
        self.told.logs.append(log)

    def _synced(self) -> None:
        if self.opened.problem is None:
            del self.told.logs[:-1]

    def end(self) -> None:
        """As a kill does: nothing is written any more."""
        for held in (self.journal, self.data_dir):
            if held is not None:
                held.close()


def read_back(directory: Path, disk: FaultyDisk) -> tuple[Identity, Log, Life]:
    """What the next process finds. Raises whatever it raises."""
    life = Life(directory, disk)
    life.open(number=8)
    assert life.data_dir
    assert life.data_dir.replaced is None
    if life.data_dir.identity.cluster_id is None:
        return life.data_dir.identity, Log(), life
    journal, snapshot = open_log(directory, disk.sync)
    life.journal = journal
    before: list[Entry] = []
    if snapshot is not None:
        lines = json.loads(snapshot.state)
        before = [Entry(command.encode(), index, term) for command, index, term in lines]
    rest = [entry for entry in journal.entries if entry.log_index > len(before)]
    return (
        life.data_dir.identity,
        Log(journal.term, journal.vote, (*before, *rest)),
        life,
    )


def must_hold(told: Told, directory: Path) -> None:
    """What was told is in the files, or what was begun after it."""
    disk = FaultyDisk(directory)
    with disk.inserted():
        identity, log, life = read_back(directory, disk)
        life.end()
    disk.release()
    assert identity in told.identities or told.identities == [None]
    assert log in told.logs


def live_with(fault: Fault | None, place: Path) -> list[str]:
    """One life with one fault, and every way to go on after it; returns the life's calls."""
    directory = place / "node"
    directory.mkdir(parents=True)
    disk = FaultyDisk(directory)
    life = Life(directory, disk)
    disk.fault = fault
    off = False
    with disk.inserted():
        try:
            life.live()
            life.end()
        except (StorageError, ConfigError):
            pass
        except PowerCut:
            off = True
        calls, failed, disk.fault = list(disk.calls), disk.failed, None
        life.end()
    must_hold(life.told, disk.after_power_cut(place / "dark"))
    for seed in range(2):
        dice = random.Random(seed * 1000 + (fault.at if fault else 0))
        must_hold(life.told, disk.after_power_cut(place / f"dark {seed}", dice))
    if not off:
        must_hold(life.told, disk.after_kill(place / "killed"))
        must_hold(the_next_process(disk), disk.after_power_cut(place / "next in the dark"))
    disk.release()
    assert failed or fault is None or fault.short
    return calls


def the_next_process(disk: FaultyDisk) -> Told:
    """It tells others what it read, and a little more."""
    with disk.inserted():
        identity, log, life = read_back(disk.path, disk)
        life.told = Told([identity], [log])
        if life.journal is not None:
            life.set_term(log.term + 1, B)
            life.append(len(log.entries) + 1, log.term + 1)
            life.sync()
        life.end()
    return life.told


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The system calls of a life without a fault."""
    return live_with(None, tmp_path_factory.mktemp("clean") / "life")


@pytest.fixture
def places(tmp_path: Path) -> Callable[[int], Path]:
    return lambda number: tmp_path / str(number)


def test_a_life_has_every_kind_of_call(calls: list[str]) -> None:
    assert {"open", "write", "sync", "rename", "close"} == set(calls)
    assert len(calls) > 80


@pytest.mark.parametrize("code", [BROKEN, FULL], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
def test_nothing_told_is_lost_when_any_call_fails(
    code: int, lasting: bool, calls: list[str], places: Callable[[int], Path]
) -> None:
    for at in range(len(calls)):
        live_with(Fault(at, code, lasting=lasting), places(at))


def test_nothing_told_is_lost_when_any_write_is_cut_short(
    calls: list[str], places: Callable[[int], Path]
) -> None:
    for at in (at for at, call in enumerate(calls) if call == "write"):
        live_with(Fault(at, FULL, short=True), places(at))
        live_with(Fault(at, FULL, short=True, lasting=True), places(1000 + at))


def test_nothing_told_is_lost_when_the_power_goes_at_any_call(
    calls: list[str], places: Callable[[int], Path]
) -> None:
    for at in range(len(calls)):
        live_with(Fault(at, OFF), places(at))


def test_a_sync_that_failed_is_never_done_again(
    calls: list[str], places: Callable[[int], Path]
) -> None:
    """Once the disk failed, the process makes no further sync, whatever it is asked to do."""
    for at in (at for at, call in enumerate(calls) if call == "sync"):
        later = live_with(Fault(at, BROKEN), places(at))[at + 1 :]
        assert set(later) <= {"close"}
