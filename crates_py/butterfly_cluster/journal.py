"""The log on disk: what a node may not forget between an acknowledgement and a power cut.

One file of records behind a magic, each ``length, crc32, type, payload``: an entry, a
truncation, the node's term, vote and commit index, or a clear. Records gather in memory and
``sync`` writes all of them with one ``fdatasync``, so nothing that was not synced is ever in
the file of a process that was killed. Whoever sends a vote or an acknowledgement calls
``sync`` first.

A torn tail (nothing valid follows) is cut. A bad record with a valid one behind it means
that the disk lied: StorageError. A failed write or sync is never tried again as if it had
worked: the journal stays failed until the process ends.
"""

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from butterfly_cluster.durable_files import FileLock, read_if_there, write_durably
from butterfly_core.errors import StorageError

MAGIC = b"BFLYJ002"
RECORD_BYTES_MAX = 1 << 24
_HEADER = struct.Struct("<IIB")
_LENGTH_AND_TYPE = struct.Struct("<IB")
_TWO_NUMBERS = struct.Struct("<QQ")
_ONE_NUMBER = struct.Struct("<Q")
_ENTRY, _TRUNCATE, _META, _CLEAR = 1, 2, 3, 4


class Entry(NamedTuple):
    """One place of the log. The first byte of a command says of which kind it is."""

    command: bytes
    log_index: int
    term: int


class Journal:
    """The log of one node, in memory and on disk.

    ``sync_file`` is called with a descriptor to force it to the disk; a simulation passes a
    function that does nothing.
    """

    def __init__(self, path: Path, *, sync_file: Callable[[int], None] = os.fdatasync) -> None:
        """Open or create the file. Raises StorageError (damaged), ConfigError (in use)."""
        self._path = path
        self._sync_file = sync_file
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._descriptor = -1
        self._waiting: list[bytes] = []
        self._failure: StorageError | None = None
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
        self._record(_ENTRY, _TWO_NUMBERS.pack(entry.log_index, entry.term) + entry.command)

    def truncate_from(self, position: int) -> None:
        """Drop ``entries[position:]``."""
        if position < len(self.entries):
            self._record(_TRUNCATE, _ONE_NUMBER.pack(self.entries[position].log_index))
            del self.entries[position:]

    def clear(self) -> None:
        """Drop all entries; term and vote stay."""
        self.entries.clear()
        self._record(_CLEAR, b"")

    def set_term(self, term: int, vote: str | None) -> None:
        """Remember term and vote; on return they are on the disk."""
        self.term, self.vote = term, vote
        self._record(_META, self._meta())
        self.sync()

    def note_commit_index(self) -> None:
        """Write the commit index down with the next sync; it only saves time at a restart."""
        if self.commit_index != self._commit_index_written:
            self._commit_index_written = self.commit_index
            self._record(_META, self._meta())

    def sync(self) -> None:
        """Put everything that waits on the disk. Raises StorageError, then for ever."""
        if self._failure is not None:
            raise self._failure
        if not self._waiting:
            return
        data = memoryview(b"".join(self._waiting))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            self._sync_file(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error
        self._waiting.clear()
        self.syncs += 1

    def rewrite(self, entries: Sequence[Entry]) -> None:
        """Make these the whole log, in a new file that replaces the old one."""
        if self._failure is not None:
            raise self._failure
        self.entries = list(entries)
        records = [_record(_META, self._meta())]
        records += [
            _record(_ENTRY, _TWO_NUMBERS.pack(entry.log_index, entry.term) + entry.command)
            for entry in self.entries
        ]
        try:
            write_durably(self._path, MAGIC + b"".join(records))
            fresh = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            os.lseek(fresh, 0, os.SEEK_END)
        except OSError as error:
            raise self._failed(error) from error
        except StorageError as error:
            self._failure = error
            raise
        os.close(self._descriptor)
        self._descriptor = fresh
        self._waiting.clear()
        self._commit_index_written = self.commit_index

    def close(self) -> None:
        """Let go of the file; what was not synced is gone, as after a kill."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._failure = self._failure or StorageError(f"{self._path} is closed")
        self._lock.close()

    def _open(self) -> None:
        data = read_if_there(self._path)
        if data is None:
            data = MAGIC
            write_durably(self._path, data)
        end = self._load(data)
        self.commit_index = min(
            self.commit_index, self.entries[-1].log_index if self.entries else 1
        )
        self._commit_index_written = self.commit_index
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            if end < len(data):
                os.ftruncate(self._descriptor, end)
                self._sync_file(self._descriptor)
            os.lseek(self._descriptor, end, os.SEEK_SET)
        except OSError as error:
            raise self._failed(error) from error

    def _load(self, data: bytes) -> int:
        """Replay the records; return where the good ones end."""
        if data[: len(MAGIC)] != MAGIC:
            raise self._damaged("it does not begin as a journal of this version")
        position = len(MAGIC)
        while position < len(data):
            found = _read(data, position)
            if found is None:
                if _any_record_after(data, position + 1):
                    raise self._damaged(f"the record at byte {position} is bad, later ones are not")
                break
            self._replay(*found)
            position += _HEADER.size + len(found[1])
        indexes = [entry.log_index for entry in self.entries]
        if indexes and indexes != list(range(indexes[0], indexes[0] + len(indexes))):
            raise self._damaged("its entries do not follow each other")
        return position

    def _replay(self, kind: int, payload: bytes) -> None:
        if kind == _ENTRY:
            index, term = _TWO_NUMBERS.unpack_from(payload)
            self.entries.append(Entry(payload[_TWO_NUMBERS.size :], index, term))
        elif kind == _TRUNCATE:
            (first,) = _ONE_NUMBER.unpack(payload)
            self.entries = [entry for entry in self.entries if entry.log_index < first]
        elif kind == _META:
            self.term, self.commit_index = _TWO_NUMBERS.unpack_from(payload)
            self.vote = payload[_TWO_NUMBERS.size :].decode() or None
        else:
            self.entries.clear()

    def _record(self, kind: int, payload: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiting.append(_record(kind, payload))

    def _meta(self) -> bytes:
        return _TWO_NUMBERS.pack(self.term, self.commit_index) + (self.vote or "").encode()

    def _damaged(self, why: str) -> StorageError:
        return StorageError(
            f"{self._path} is damaged: {why}. This node must not vote with it: "
            "give the node a new identity, so that it joins again as a learner"
        )

    def _failed(self, error: OSError) -> StorageError:
        self._failure = StorageError(
            f"cannot write {self._path}: {error.strerror or error}; this node stops voting "
            "until it is started again on a disk that works"
        )
        return self._failure


def _record(kind: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), _checksum(kind, payload), kind) + payload


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH_AND_TYPE.pack(len(payload), kind)))


def _read(data: bytes, position: int) -> tuple[int, bytes] | None:
    if position + _HEADER.size > len(data):
        return None
    length, checksum, kind = _HEADER.unpack_from(data, position)
    if not _ENTRY <= kind <= _CLEAR or length > RECORD_BYTES_MAX:
        return None
    start = position + _HEADER.size
    payload = data[start : start + length]
    if len(payload) != length or _checksum(kind, payload) != checksum:
        return None
    return kind, payload


def _any_record_after(data: bytes, position: int) -> bool:
    last = len(data) - _HEADER.size
    return any(_read(data, place) is not None for place in range(position, last + 1))
