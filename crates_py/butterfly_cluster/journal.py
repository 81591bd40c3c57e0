"""The log on disk: what a node may not forget between an acknowledgement and a power cut.

One file (``journal_format``). Records gather in memory and ``sync`` writes all of them with one
``fdatasync``, so nothing that was not synced is ever in the file of a process that was killed.
Whoever sends a vote or an acknowledgement calls ``sync`` first.

A failed write or sync is never tried again as if it had worked: what the kernel could not
write it may have dropped, and a second ``fsync`` would not say so. The journal keeps the
``problem`` until the process ends, goes on in memory alone, and ``sync`` raises for ever. For
the same reason a file that was read at start is written anew before anything is added to it:
an earlier process may have failed to sync it.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from butterfly_cluster.durable_files import (
    FileLock,
    close_quietly,
    name_sync,
    read_if_there,
    write_durably,
)
from butterfly_cluster.journal_format import (
    MAGIC,
    DamagedLog,
    Entry,
    JournalContent,
    clear_record,
    entry_record,
    meta_record,
    read_journal,
    truncate_record,
    whole_journal,
)
from butterfly_core.errors import StorageError

__all__ = ["MAGIC", "Entry", "Journal", "load_journal"]


def load_journal(path: Path) -> JournalContent | None:
    """What the file says, None when there is none. Raises StorageError, DamagedLog."""
    data = read_if_there(path)
    try:
        return None if data is None else read_journal(data)
    except DamagedLog as error:
        raise DamagedLog(f"{path} is damaged: {error}") from error


class Journal:
    """The log of one node, in memory and on disk.

    ``sync_file`` is called with a descriptor to force it to the disk; a simulation passes a
    function that does nothing.
    """

    def __init__(self, path: Path, *, sync_file: Callable[[int], None] = os.fdatasync) -> None:
        """Open or create the file. Raises StorageError (damaged), ConfigError (in use).

        A file that is there and cannot be written leaves a journal with a ``problem``.
        """
        self._path = path
        self._sync_file = sync_file
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._descriptor = -1
        self._closed = False
        self._waiting: list[bytes] = []
        self.problem: StorageError | None = None
        self.entries: list[Entry] = []
        self.term = 0
        self.vote: str | None = None
        self.commit_index = 1
        self._commit_index_written = 1
        self.syncs = 0
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def dirty(self) -> bool:
        """True when something waits for ``sync``."""
        return bool(self._waiting)

    def append(self, entry: Entry) -> None:
        """Add the next entry of the log."""
        self.entries.append(entry)
        self._record(entry_record(entry))

    def truncate_from(self, position: int) -> None:
        """Drop ``entries[position:]``."""
        if position < len(self.entries):
            self._record(truncate_record(self.entries[position].log_index))
            del self.entries[position:]

    def clear(self) -> None:
        """Drop all entries; term and vote stay."""
        self.entries.clear()
        self._record(clear_record())

    def set_term(self, term: int, vote: str | None) -> None:
        """Remember term and vote; on return they are on the disk, unless there is a problem.

        Raises StorageError when this very write fails.
        """
        self.term, self.vote = term, vote
        self._record(self._meta())
        if self.problem is None:
            self.sync()

    def note_commit_index(self) -> None:
        """Write the commit index down with the next sync; it only saves time at a restart."""
        if self.commit_index != self._commit_index_written:
            self._commit_index_written = self.commit_index
            self._record(self._meta())

    def sync(self) -> None:
        """Put everything that waits on the disk. Raises StorageError, then for ever."""
        if self.problem is not None:
            raise self.problem
        if not self._waiting:
            return
        data = memoryview(b"".join(self._waiting))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            self._sync_file(self._descriptor)
        except OSError as error:
            raise self.give_up(_cannot_write(self._path, error)) from error
        self._waiting.clear()
        self.syncs += 1

    def rewrite(self, entries: Sequence[Entry]) -> None:
        """Make these the whole log, in a new file that replaces the old one.

        Raises StorageError when this very write fails; then, too, they are the log in memory.
        """
        self._must_be_open()
        self.entries = list(entries)
        if self.problem is None:
            self._replace_file()

    def give_up(self, problem: StorageError) -> StorageError:
        """Write nothing more; returns the first problem there was."""
        self._waiting.clear()
        self.problem = self.problem or problem
        return self.problem

    def close(self) -> None:
        """Let go of the file; what was not synced is gone, as after a kill."""
        self._close_file()
        self._closed = True
        self.give_up(StorageError(f"{self._path} is closed"))
        self._lock.close()

    def _open(self) -> None:
        content = load_journal(self._path)
        if content is None:
            self._replace_file()
            return
        self.entries, self.term, self.vote = content.entries, content.term, content.vote
        self.commit_index = content.commit_index
        try:
            self._replace_file()
        except StorageError:
            return  # it is the problem already, and what was read is known to be good

    def _replace_file(self) -> None:
        data = whole_journal(self.term, self.commit_index, self.vote, self.entries)
        try:
            write_durably(self._path, data, sync_file=name_sync(self._sync_file))
            fresh = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise self.give_up(_cannot_write(self._path, error)) from error
        except StorageError as error:
            raise self.give_up(error) from error
        self._close_file()
        self._descriptor = fresh
        self._waiting.clear()
        self._commit_index_written = self.commit_index

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_quietly(descriptor)

    def _record(self, record: bytes) -> None:
        self._must_be_open()
        if self.problem is None:
            self._waiting.append(record)

    def _must_be_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self._path} is closed")

    def _meta(self) -> bytes:
        return meta_record(self.term, self.commit_index, self.vote)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; free space or repair the disk, "
        "then start the node again"
    )
