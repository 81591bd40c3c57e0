"""The bytes of a journal, and what they say: records behind a magic, each checked by itself.

A record is ``length, type, crc32 of the payload, crc32 of these three, payload``: an entry, a
truncation, the node's term, vote and commit index, or a clear. A write that a power cut tore
ends too early, behind a header that is sound, or holds a stretch that was never written
(zeros): it was never acknowledged, and is cut. Anything else that does not fit was on the disk
once and has changed since: ``DamagedLog``. (etcd's ``wal/decoder.go`` tells them apart by the
zeros as well.)

What cannot be told: a disk that takes away, or fills with zeros, the last records that it had
said were safe. Raft assumes that no disk does (Ongaro's thesis, 3.8); a snapshot or an entry
of a later term shows it at the next start (``snapshot``).
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from butterfly_core.errors import StorageError

MAGIC = b"BFLYJ003"
RECORD_BYTES_MAX = 1 << 24
_SEALED = struct.Struct("<IBI")
_SEAL = struct.Struct("<I")
_HEADER_BYTES = _SEALED.size + _SEAL.size
_TWO_NUMBERS = struct.Struct("<QQ")
_ONE_NUMBER = struct.Struct("<Q")
_ENTRY, _TRUNCATE, _META, _CLEAR = 1, 2, 3, 4
_SECTOR_BYTES = 512
_UNWRITTEN_BYTES_MIN = 32  # no record has so many zeros in a row by itself


class DamagedLog(StorageError):
    """Journal or snapshot are not what was written: a node must not vote with them."""


class Entry(NamedTuple):
    """One place of the log. The first byte of a command says of which kind it is."""

    command: bytes
    log_index: int
    term: int


@dataclass(slots=True)
class JournalContent:
    """What a journal says. ``good_bytes`` is where its valid records end."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 0
    vote: str | None = None
    commit_index: int = 1
    good_bytes: int = len(MAGIC)


def entry_record(entry: Entry) -> bytes:
    """The log goes on with this entry."""
    return _record(_ENTRY, _TWO_NUMBERS.pack(entry.log_index, entry.term) + entry.command)


def truncate_record(first_dropped: int) -> bytes:
    """The log ends before this index."""
    return _record(_TRUNCATE, _ONE_NUMBER.pack(first_dropped))


def meta_record(term: int, commit_index: int, vote: str | None) -> bytes:
    """The node's term, the vote it gave in it, and what it knows to be committed."""
    return _record(_META, _TWO_NUMBERS.pack(term, commit_index) + (vote or "").encode())


def clear_record() -> bytes:
    """The log is empty; term and vote stay."""
    return _record(_CLEAR, b"")


def whole_journal(term: int, commit_index: int, vote: str | None, log: Sequence[Entry]) -> bytes:
    """A file that says this and no more."""
    meta = meta_record(term, commit_index, vote)
    return b"".join([MAGIC, meta, *(entry_record(entry) for entry in log)])


def read_journal(data: bytes) -> JournalContent:
    """Replay a journal. Raises DamagedLog; the caller says of which file."""
    content = JournalContent()
    if data[: len(MAGIC)] != MAGIC:
        raise DamagedLog("it does not begin as a journal of this version")
    position = len(MAGIC)
    while position < len(data):
        found = _read(data, position)
        if found is None:
            _must_be_torn(data, position)
            break
        try:
            _replay(content, *found)
        except (struct.error, UnicodeDecodeError) as error:
            raise DamagedLog(f"the record at byte {position} says nothing: {error}") from error
        position += _HEADER_BYTES + len(found[1])
    indexes = [entry.log_index for entry in content.entries]
    if indexes and indexes != list(range(indexes[0], indexes[0] + len(indexes))):
        raise DamagedLog("its entries do not follow each other")
    content.good_bytes = position
    last = content.entries[-1].log_index if content.entries else 1
    content.commit_index = min(content.commit_index, last)
    return content


def _replay(content: JournalContent, kind: int, payload: bytes) -> None:
    if kind == _ENTRY:
        index, term = _TWO_NUMBERS.unpack_from(payload)
        content.entries.append(Entry(payload[_TWO_NUMBERS.size :], index, term))
    elif kind == _TRUNCATE:
        (first,) = _ONE_NUMBER.unpack(payload)
        content.entries = [entry for entry in content.entries if entry.log_index < first]
    elif kind == _META:
        content.term, content.commit_index = _TWO_NUMBERS.unpack_from(payload)
        content.vote = payload[_TWO_NUMBERS.size :].decode() or None
    else:
        content.entries.clear()


def _record(kind: int, payload: bytes) -> bytes:
    sealed = _SEALED.pack(len(payload), kind, zlib.crc32(payload))
    return sealed + _SEAL.pack(zlib.crc32(sealed)) + payload


def _read_header(data: bytes, position: int) -> tuple[int, int, int] | None:
    """Length, type and checksum of the payload; None when the header is not sound."""
    sealed = data[position : position + _SEALED.size]
    seal = data[position + _SEALED.size : position + _HEADER_BYTES]
    if seal != _SEAL.pack(zlib.crc32(sealed)) or len(sealed) != _SEALED.size:
        return None
    length, kind, checksum = _SEALED.unpack(sealed)
    sound = _ENTRY <= kind <= _CLEAR and length <= RECORD_BYTES_MAX
    return (length, kind, checksum) if sound else None


def _read(data: bytes, position: int) -> tuple[int, bytes] | None:
    header = _read_header(data, position)
    if header is None:
        return None
    length, kind, checksum = header
    start = position + _HEADER_BYTES
    payload = data[start : start + length]
    if len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    return kind, payload


def _must_be_torn(data: bytes, position: int) -> None:
    if any(_read(data, place) is not None for place in range(position + 1, len(data))):
        raise DamagedLog(f"the record at byte {position} is bad, later ones are not")
    rest = data[position:]
    header = _read_header(data, position)
    ends_too_early = len(rest) < _HEADER_BYTES or (
        header is not None and header[0] > len(rest) - _HEADER_BYTES
    )
    if not ends_too_early and any(rest) and not _has_unwritten_sector(rest, position):
        raise DamagedLog(f"the last record, at byte {position}, is whole and bad")


def _has_unwritten_sector(rest: bytes, position: int) -> bool:
    """True when a part of the tail within one sector is nothing but zeros."""
    start = 0
    while start < len(rest):
        stop = start + _SECTOR_BYTES - (position + start) % _SECTOR_BYTES
        part = rest[start:stop]
        if len(part) >= _UNWRITTEN_BYTES_MIN and not any(part):
            return True
        start = stop
    return False
