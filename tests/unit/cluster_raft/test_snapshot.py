"""A snapshot and a journal become one log again, whatever moment the power went."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.journal_format import DamagedLog
from butterfly_cluster.membership import VoterChange, fold_voters
from butterfly_cluster.raft import LAN, ChannelLike, RaftNode
from butterfly_cluster.snapshot import (
    JOURNAL_NAME,
    SNAPSHOT_NAME,
    Snapshot,
    decode_snapshot,
    open_log,
    save_snapshot,
)
from butterfly_cluster.snapshot_shelf import SnapshotShelf
from butterfly_core.errors import InvalidValue, ProtocolViolation, StorageError, Unreachable
from butterfly_core.ids import NodeId

A, B, C = (NodeId(digit * 32) for digit in "abc")


def entry(index: int, term: int = 1) -> Entry:
    return Entry(b"\0{}", index, term)


def snapshot_at(index: int, term: int = 1) -> Snapshot:
    return Snapshot(b"state", entry(index - 1, term), entry(index, term), frozenset({A, B}))


def journal_of(directory: Path, *entries: Entry) -> None:
    journal = Journal(directory / JOURNAL_NAME)
    for one in entries:
        journal.append(one)
    journal.set_term(5, A)
    journal.close()


def indexes_after_opening(directory: Path) -> list[int]:
    journal, _ = open_log(directory, os.fdatasync)
    journal.close()
    assert (journal.term, journal.vote) == (5, A)
    return [one.log_index for one in journal.entries]


def test_a_snapshot_is_read_back() -> None:
    assert decode_snapshot(snapshot_at(7).encode()) == snapshot_at(7)


def test_no_flipped_byte_of_a_snapshot_goes_unseen() -> None:
    data = snapshot_at(7).encode()
    for place in range(len(data)):
        with pytest.raises(InvalidValue):
            decode_snapshot(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InvalidValue):
            decode_snapshot(data[:place])


def test_a_crash_before_the_journal_is_cut_is_made_good(tmp_path: Path) -> None:
    journal_of(tmp_path, *(entry(index) for index in range(1, 10)))
    save_snapshot(tmp_path, snapshot_at(6).encode())

    assert indexes_after_opening(tmp_path) == [5, 6, 7, 8, 9]


def test_what_differs_from_a_snapshot_was_never_committed(tmp_path: Path) -> None:
    journal_of(tmp_path, *(entry(index) for index in range(1, 10)))
    save_snapshot(tmp_path, snapshot_at(6, term=2).encode())

    assert indexes_after_opening(tmp_path) == [5, 6]


def test_a_snapshot_beyond_the_journal_wins(tmp_path: Path) -> None:
    journal_of(tmp_path, entry(1), entry(2))
    save_snapshot(tmp_path, snapshot_at(60).encode())

    assert indexes_after_opening(tmp_path) == [59, 60]


def test_a_hole_between_snapshot_and_journal_is_refused(tmp_path: Path) -> None:
    journal_of(tmp_path, entry(8), entry(9))
    save_snapshot(tmp_path, snapshot_at(6).encode())

    with pytest.raises(DamagedLog, match="ends at 6 and the journal begins at 8"):
        open_log(tmp_path, os.fdatasync)


def test_a_cut_journal_without_its_snapshot_is_refused(tmp_path: Path) -> None:
    journal_of(tmp_path, entry(8), entry(9))

    with pytest.raises(DamagedLog, match="is missing"):
        open_log(tmp_path, os.fdatasync)


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / SNAPSHOT_NAME).write_bytes(snapshot_at(6).encode()[:-1])

    with pytest.raises(DamagedLog, match="its checksum does not match"):
        open_log(tmp_path, os.fdatasync)


def test_a_start_from_a_state_of_another_version_is_refused_and_keeps_it(tmp_path: Path) -> None:
    data = snapshot_at(6).encode()
    save_snapshot(tmp_path, data)
    journal_of(tmp_path, *(entry(index) for index in range(1, 7)))

    async def dial(peer: NodeId) -> ChannelLike:
        raise Unreachable(f"{peer} is away")

    def restore(_: bytes) -> Callable[[], None]:
        raise InvalidValue("butterfly 9 cannot read the state")

    with pytest.raises(StorageError, match="up to entry 6 cannot be used: butterfly 9") as caught:
        RaftNode(
            me=A,
            voters=frozenset({A}),
            data_dir=tmp_path,
            timing=LAN,
            dial=dial,
            apply=lambda *_: None,
            snapshot=bytes,
            restore=restore,
        )
    assert not isinstance(caught.value, DamagedLog)  # it would start over under a new id
    assert (tmp_path / SNAPSHOT_NAME).read_bytes() == data


def shelf_with(state: bytes) -> SnapshotShelf:
    latest = Snapshot(state, entry(4), entry(5), frozenset({A}))
    return SnapshotShelf(latest, lambda *_: latest, lambda _: None)


def test_a_big_snapshot_travels_in_pieces() -> None:
    sender, receiver = shelf_with(os.urandom(3_000_000)), shelf_with(b"")
    whole = None
    while whole is None:
        piece = sender.getTransmissionData("b")
        assert piece is not None
        whole = receiver.take_chunk(piece[0], first=piece[1], last=piece[2])

    assert len(decode_snapshot(whole).state) == 3_000_000


def test_a_receiver_that_comes_back_begins_anew() -> None:
    sender = shelf_with(os.urandom(3_000_000))
    sender.getTransmissionData("b")
    sender.cancelTransmisstion("b")
    piece = sender.getTransmissionData("b")

    assert piece is not None
    assert piece[1]


def test_a_piece_out_of_nowhere_is_ignored_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("butterfly_cluster.snapshot_shelf.SNAPSHOT_BYTES_MAX", 10)
    shelf = shelf_with(b"")

    assert shelf.take_chunk(b"x", first=False, last=True) is None
    with pytest.raises(ProtocolViolation):
        shelf.take_chunk(b"x" * 11, first=True, last=False)


def test_voters_add_up_in_the_order_of_the_log() -> None:
    log = [b"\2" + VoterChange("add", C).encode(), b"\0{}", b"\2" + VoterChange("rem", A).encode()]

    assert fold_voters(frozenset({A, B}), log) == {B, C}
    assert fold_voters(frozenset({A}), [*log, *log]) == {C}
