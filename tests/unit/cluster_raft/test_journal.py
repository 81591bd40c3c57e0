"""What a node wrote before a power cut is there after it, or the node says that it is not."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly_cluster.journal import MAGIC, Entry, Journal
from butterfly_cluster.journal_format import DamagedLog, entry_record
from butterfly_core.errors import ConfigError, StorageError


def entry(index: int, term: int = 1, text: str = "{}") -> Entry:
    return Entry(b"\0" + text.encode(), index, term)


def filled(path: Path, count: int = 6) -> bytes:
    """A small journal with every kind of record; returns its bytes."""
    journal = Journal(path)
    for index in range(1, count + 1):
        journal.append(entry(index, text=f'"{index}"'))
    journal.set_term(2, "a" * 32)
    journal.truncate_from(count - 1)
    journal.append(entry(count, term=2))
    journal.commit_index = 2
    journal.note_commit_index()
    journal.sync()
    journal.close()
    return path.read_bytes()


def quick(path: Path) -> Journal:
    """A journal that does not wait for the disk."""
    return Journal(path, sync_file=lambda _: None)


def state_of(journal: Journal) -> tuple[list[Entry], int, str | None]:
    return list(journal.entries), journal.term, journal.vote


@dataclass(frozen=True)
class Example:
    """A journal's bytes, and what it says after each of its records."""

    data: bytes
    states: list[tuple[list[Entry], int, str | None]]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    path = tmp_path_factory.mktemp("example") / "j"
    data = filled(path)
    states: list[tuple[list[Entry], int, str | None]] = []
    for end in range(len(MAGIC), len(data) + 1):
        path.write_bytes(data[:end])
        journal = quick(path)
        if not states or state_of(journal) != states[-1]:
            states.append(state_of(journal))
        journal.close()
    return Example(data, states)


def test_what_was_synced_comes_back(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = Journal(tmp_path / "j")

    assert [e.log_index for e in journal.entries] == [1, 2, 3, 4, 5, 6]
    assert journal.entries[-1] == entry(6, term=2)
    assert (journal.term, journal.vote, journal.commit_index) == (2, "a" * 32, 2)


def test_what_was_not_synced_is_gone_after_a_kill(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(entry(1))
    journal.sync()
    journal.append(entry(2))
    journal.close()

    assert Journal(tmp_path / "j").entries == [entry(1)]


def test_one_sync_serves_all_that_waits(tmp_path: Path) -> None:
    synced: list[int] = []
    journal = Journal(tmp_path / "j", sync_file=synced.append)
    synced.clear()
    for index in range(1, 100):
        journal.append(entry(index))
    journal.sync()
    journal.sync()

    assert len(synced) == 1


def test_term_and_vote_are_on_the_disk_when_the_call_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.set_term(7, "b" * 32)
    journal.close()

    again = Journal(tmp_path / "j")
    assert (again.term, again.vote) == (7, "b" * 32)


def test_a_tail_cut_at_any_byte_leaves_a_state_that_was(example: Example) -> None:
    lengths = [len(entries) for entries, _, _ in example.states]

    assert example.states[-1][0][-1] == entry(6, term=2)
    assert lengths == [0, 1, 2, 3, 4, 5, 6, 6, 5, 6]  # term and vote, the cut, the new sixth


def test_after_a_torn_tail_new_records_follow_the_good_ones(tmp_path: Path) -> None:
    data = filled(tmp_path / "j")
    (tmp_path / "j").write_bytes(data + b"\x10\0\0\0torn")
    journal = Journal(tmp_path / "j")
    journal.append(entry(7, term=2))
    journal.sync()
    journal.close()

    assert Journal(tmp_path / "j").entries[-1] == entry(7, term=2)


@pytest.mark.parametrize("flip", [0x01, 0x41, 0xFF])
def test_any_flipped_byte_is_refused_the_last_record_s_too(
    flip: int, example: Example, tmp_path: Path
) -> None:
    """What was synced may be acknowledged, so it is never taken for a torn tail."""
    data = example.data
    for place in range(len(data)):
        (tmp_path / "j").write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        with pytest.raises(DamagedLog):
            quick(tmp_path / "j")


@pytest.mark.parametrize("unwritten", [600, 1100, 5000])
def test_a_tail_that_was_never_written_is_cut(
    unwritten: int, example: Example, tmp_path: Path
) -> None:
    torn = entry_record(Entry(b"\0" + b"x" * 9000, 7, 2))[:-unwritten] + bytes(unwritten)
    (tmp_path / "j").write_bytes(example.data + torn)

    assert state_of(quick(tmp_path / "j")) == example.states[-1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(garbage=st.binary(max_size=64), place=st.integers(0, 400))
def test_garbage_never_becomes_another_state(
    garbage: bytes, place: int, example: Example, tmp_path: Path
) -> None:
    data, place = example.data, min(place, len(example.data))
    (tmp_path / "j").write_bytes(data[:place] + garbage + data[place + len(garbage) :])
    try:
        journal = quick(tmp_path / "j")
    except StorageError:
        return
    assert state_of(journal) in example.states
    journal.close()


def test_a_damaged_journal_says_where(example: Example, tmp_path: Path) -> None:
    damaged = bytearray(example.data)
    damaged[len(MAGIC) + 20] ^= 1
    (tmp_path / "j").write_bytes(damaged)

    with pytest.raises(DamagedLog, match=r"j is damaged: the record at byte 8 is bad"):
        Journal(tmp_path / "j")


def test_a_rewrite_keeps_term_and_vote_and_replaces_the_log(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    journal.rewrite(journal.entries[3:])
    journal.append(entry(7, term=2))
    journal.sync()
    journal.close()

    again = Journal(tmp_path / "j")
    assert [e.log_index for e in again.entries] == [4, 5, 6, 7]
    assert (again.term, again.vote) == (2, "a" * 32)


def test_a_commit_index_beyond_the_log_is_brought_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(entry(1))
    journal.commit_index = 9
    journal.note_commit_index()
    journal.sync()
    journal.close()

    assert Journal(tmp_path / "j").commit_index == 1


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")

    with pytest.raises(ConfigError, match="in use by another process"):
        Journal(tmp_path / "j")
    first.close()
    Journal(tmp_path / "j").close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_sync_is_never_forgotten(code: int, tmp_path: Path) -> None:
    failures = [OSError(code, os.strerror(code))]

    def sync_file(_: int) -> None:
        if failures:
            raise failures.pop()

    journal = quick(tmp_path / "j")
    journal._sync_file = sync_file
    journal.append(entry(1))
    with pytest.raises(StorageError, match="start the node again"):
        journal.sync()
    with pytest.raises(StorageError):
        journal.sync()
    assert not failures
    assert journal.problem is not None


def test_after_a_failure_the_log_goes_on_in_memory_only(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = quick(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    journal.give_up(StorageError("worn out"))
    journal.append(entry(7, term=2))
    journal.set_term(9, "c" * 32)
    journal.rewrite(journal.entries[2:])

    assert [e.log_index for e in journal.entries] == [3, 4, 5, 6, 7]
    assert (journal.term, journal.vote, journal.dirty) == (9, "c" * 32, False)
    assert (tmp_path / "j").read_bytes() == before
    with pytest.raises(StorageError, match="worn out"):
        journal.sync()


def test_a_journal_that_cannot_be_written_at_start_is_read_and_has_a_problem(
    tmp_path: Path,
) -> None:
    filled(tmp_path / "j")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path / "j", sync_file=full)
    assert journal.problem is not None
    assert (journal.entries[-1], journal.term) == (entry(6, term=2), 2)


def test_a_new_journal_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device; free space"):
        Journal(tmp_path / "j", sync_file=full)


def test_what_was_read_is_written_anew_before_anything_is_added(tmp_path: Path) -> None:
    """The process before may have failed to sync it, and only the page cache holds it now."""
    filled(tmp_path / "j")
    synced: list[int] = []
    before = (tmp_path / "j").stat().st_ino
    Journal(tmp_path / "j", sync_file=synced.append)

    assert (tmp_path / "j").stat().st_ino != before
    assert len(synced) == 2  # the new file and its name


def test_nothing_is_added_to_a_closed_journal(tmp_path: Path) -> None:
    journal = quick(tmp_path / "j")
    journal.close()

    with pytest.raises(StorageError, match="is closed"):
        journal.append(entry(1))
    with pytest.raises(StorageError, match="is closed"):
        journal.rewrite([])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"something else altogether")

    with pytest.raises(StorageError, match="does not begin as a journal"):
        Journal(tmp_path / "j")
