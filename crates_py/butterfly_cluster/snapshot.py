"""The state at one index of the log, on disk and on its way to a node that is far behind."""

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from butterfly_cluster.durable_files import name_sync, read_if_there, write_durably
from butterfly_cluster.journal import Entry, Journal, load_journal
from butterfly_cluster.journal_format import DamagedLog, JournalContent
from butterfly_core.errors import InvalidValue, StorageError
from butterfly_core.ids import NodeId, parse_node_id

MAGIC = b"BFLYS002"
SNAPSHOT_BYTES_MAX = 256 << 20
JOURNAL_NAME = "raft.journal"
SNAPSHOT_NAME = "raft.snapshot"
_HEADER = struct.Struct("<QI")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the log says up to and including ``last``.

    ``state`` is the application's. ``previous`` and ``last`` stay in the log, so that the next
    entry can be checked against them. ``voters`` holds as of ``last``, not of what came later.
    """

    state: bytes
    previous: Entry
    last: Entry
    voters: frozenset[NodeId]

    def encode(self) -> bytes:
        """As a file: magic, length, checksum, msgpack."""
        body: bytes = msgpack.packb(
            {
                "state": self.state,
                "previous": tuple(self.previous),
                "last": tuple(self.last),
                "voters": sorted(self.voters),
            }
        )
        return MAGIC + _HEADER.pack(len(body), zlib.crc32(body)) + body


def decode_snapshot(data: bytes) -> Snapshot:
    """Read what ``encode`` wrote. Raises InvalidValue when a single byte is not right."""
    start = len(MAGIC) + _HEADER.size
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise InvalidValue("it does not begin as a snapshot of this version")
    length, checksum = _HEADER.unpack_from(data, len(MAGIC))
    body = data[start:]
    if len(body) != length or zlib.crc32(body) != checksum:
        raise InvalidValue("its checksum does not match")
    try:
        fields = msgpack.unpackb(body)
        snapshot = Snapshot(
            state=_bytes(fields["state"]),
            previous=_entry(fields["previous"]),
            last=_entry(fields["last"]),
            voters=frozenset(parse_node_id(voter) for voter in fields["voters"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValue(f"its fields are not those of a snapshot: {error}") from error
    if snapshot.last.log_index != snapshot.previous.log_index + 1:
        raise InvalidValue("its two entries do not follow each other")
    return snapshot


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise InvalidValue("a state is bytes")
    return value


def _entry(fields: Any) -> Entry:
    command, index, term = fields
    if not isinstance(command, bytes) or not isinstance(index, int) or not isinstance(term, int):
        raise InvalidValue("an entry is a command, an index and a term")
    return Entry(command, index, term)


def save_snapshot(
    data_dir: Path, data: bytes, sync_file: Callable[[int], None] = os.fdatasync
) -> None:
    """Put an encoded snapshot in the place of the old one. Raises StorageError."""
    write_durably(data_dir / SNAPSHOT_NAME, data, sync_file=name_sync(sync_file))


def read_log(data_dir: Path) -> tuple[JournalContent, Snapshot | None]:
    """Read journal and snapshot without changing them. Raises StorageError, DamagedLog."""
    snapshot = _load(data_dir)
    content = load_journal(data_dir / JOURNAL_NAME) or JournalContent()
    _must_meet(content.entries, content.term, snapshot, data_dir)
    return content, snapshot


def open_log(data_dir: Path, sync_file: Callable[[int], None]) -> tuple[Journal, Snapshot | None]:
    """Open snapshot and journal and make them one log. Raises StorageError, DamagedLog.

    A crash between a new snapshot and the cut of the journal leaves a journal that begins too
    early or that differs from the snapshot. The snapshot holds committed entries only, so what
    differs from it was never committed, and goes.
    """
    snapshot = _load(data_dir)
    journal = Journal(data_dir / JOURNAL_NAME, sync_file=sync_file)
    try:
        _reconcile(journal, snapshot, data_dir, sync_file)
    except BaseException:
        journal.close()
        raise
    return journal, snapshot


def _load(data_dir: Path) -> Snapshot | None:
    path = data_dir / SNAPSHOT_NAME
    data = read_if_there(path)
    if data is None:
        return None
    try:
        return decode_snapshot(data)
    except InvalidValue as error:
        raise DamagedLog(f"{path} is damaged: {error}") from error


def _reconcile(
    journal: Journal,
    snapshot: Snapshot | None,
    data_dir: Path,
    sync_file: Callable[[int], None],
) -> None:
    _must_meet(journal.entries, journal.term, snapshot, data_dir)
    if snapshot is None:
        return
    entries = entries_with_snapshot(journal.entries, snapshot)
    journal.commit_index = max(journal.commit_index, snapshot.last.log_index)
    if entries != journal.entries:
        # the process that saved it may have failed to sync it, and ended before it cut the journal
        try:
            save_snapshot(data_dir, snapshot.encode(), sync_file)
        except StorageError as error:
            journal.give_up(error)
        with contextlib.suppress(StorageError):  # the journal keeps it as its problem
            journal.rewrite(entries)


def _must_meet(
    entries: Sequence[Entry], term: int, snapshot: Snapshot | None, data_dir: Path
) -> None:
    newest = max((snapshot.last.term if snapshot else 0), *(e.term for e in entries), 0)
    if newest > term:
        raise DamagedLog(
            f"{data_dir / JOURNAL_NAME} knows terms up to {term} only, and the log holds an entry "
            f"of term {newest}: the journal lost its end, or is missing"
        )
    first = entries[0].log_index if entries else 1
    if snapshot is None and first > 1:
        raise DamagedLog(
            f"{data_dir / SNAPSHOT_NAME} is missing, and the journal begins at {first}"
        )
    if snapshot is not None and first > snapshot.last.log_index and entries:
        raise DamagedLog(
            f"{data_dir}: the snapshot ends at {snapshot.last.log_index} and the journal begins at "
            f"{first}"
        )


def entries_with_snapshot(entries: list[Entry], snapshot: Snapshot) -> list[Entry]:
    """The log that begins at the snapshot and keeps what agrees with it."""
    kept: list[Entry] = []
    if entries:
        position = snapshot.last.log_index - entries[0].log_index
        if 0 <= position < len(entries) and entries[position].term == snapshot.last.term:
            kept = entries[position + 1 :]
    return [snapshot.previous, snapshot.last, *kept]
