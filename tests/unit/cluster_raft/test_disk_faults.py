"""Each system call of a node's life on disk fails in turn; what it had promised is still there.

Three ways to fail: the call raises (full disk, I/O error), a write is cut short first, or the
machine stops. After each the files are opened again, once as they are, and once with only what
was synced (what the page cache held and the disk did not is lost).
"""

import errno
import os
import shutil
from pathlib import Path

import pytest

from butterfly_cluster import durable_files, journal
from butterfly_cluster.journal import Entry
from butterfly_cluster.snapshot import Snapshot, open_log, save_snapshot
from butterfly_core.errors import StorageError
from butterfly_core.ids import NodeId

A, B = NodeId("a" * 32), NodeId("b" * 32)


class PowerCut(BaseException):
    """The machine stops between two system calls."""


class Disk:
    """Plays ``os``: counts the calls that change the disk, and keeps what was synced."""

    def __init__(self, durable: Path, at: int, kind: str) -> None:
        self._durable, self._left, self._kind = durable, at, kind
        self._synced: dict[int, bytes] = {}
        durable.mkdir()

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            if self._kind == "power cut":
                raise PowerCut
            code = errno.EIO if self._kind == "I/O error" else errno.ENOSPC
            raise OSError(code, os.strerror(code))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._step()
        return os.open(path, flags, mode)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._left == 1 and self._kind == "short write":
            os.write(descriptor, data[: len(data) // 2])
        self._step()
        return os.write(descriptor, data)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        os.rename(source, target)

    def fsync(self, descriptor: int) -> None:
        """A file's content, or a directory's names, are on the disk from now on."""
        self._step()
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_dir():
            self._synced[os.fstat(descriptor).st_ino] = path.read_bytes()
            if (self._durable / path.name).exists() and not path.name.endswith(".new"):
                (self._durable / path.name).write_bytes(path.read_bytes())
            return
        for file in path.iterdir():
            if file.suffix not in (".new", ".lock"):
                content = self._synced.get(file.stat().st_ino, b"")
                (self._durable / file.name).write_bytes(content)


class Promises:
    """What the node told others: its vote, and up to where it holds which entries."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.begun = False
        self.vote: tuple[int, str | None] = (0, None)
        self.voting: tuple[int, str | None] = (0, None)


def entry(index: int, term: int) -> Entry:
    return Entry(b'\0"%d"' % index, index, term)


def live(path: Path, disk: Disk, promises: Promises) -> None:
    """Votes, entries, a snapshot, the cut of the journal, more entries."""
    log, _ = open_log(path, disk.fsync)
    if log.problem is not None:
        raise log.problem
    promises.begun = True
    try:
        for term, last in ((1, 3), (2, 6)):
            promises.voting = (term, A if term == 1 else B)
            log.set_term(*promises.voting)
            promises.vote = promises.voting
            for index in range(last - 2, last + 1):
                log.append(entry(index, term))
            log.sync()
            promises.entries = list(log.entries)
        snapshot = Snapshot(b"state", entry(3, 1), entry(4, 2), frozenset({A, B}))
        save_snapshot(path, snapshot.encode(), disk.fsync)
        log.rewrite(log.entries[2:])
        log.append(entry(7, 2))
        log.sync()
        promises.entries.append(entry(7, 2))
    finally:
        log.close()


def must_be_kept(path: Path, promises: Promises) -> None:
    log, snapshot = open_log(path, lambda _: None)
    try:
        assert (log.term, log.vote) in (promises.vote, promises.voting)
        first = 1 if snapshot is None else snapshot.previous.log_index
        promised = [one for one in promises.entries if one.log_index >= first]
        assert log.entries[: len(promised)] == promised
        assert [e.log_index for e in log.entries] == list(range(first, first + len(log.entries)))
    finally:
        log.close()


@pytest.mark.parametrize("kind", ["full disk", "I/O error", "short write", "power cut"])
def test_no_failed_call_loses_a_vote_or_an_acknowledged_entry(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(1, 200):
        path, durable = tmp_path / str(at), tmp_path / f"{at}-durable"
        path.mkdir()
        disk, promises, ended = Disk(durable, at, kind), Promises(), True
        with monkeypatch.context() as patched:
            patched.setattr(durable_files, "os", disk)
            patched.setattr(journal, "os", disk)
            try:
                live(path, disk, promises)
            except (PowerCut, StorageError):
                ended = False
        must_be_kept(path, promises)
        must_be_kept(durable, promises)
        shutil.rmtree(path)
        if ended:
            assert at > 20
            return
    pytest.fail("the life of a journal never came to its end")
