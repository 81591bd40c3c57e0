"""Ranges of real files, in and out of the page cache: never a wrong byte, whatever the file
system can do."""

import errno
import fcntl
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import SourceError
from butterfly_weights.direct import ALIGNMENT_BYTES, DIRECT_BYTES_MIN, Bounce
from butterfly_weights.filesystem import FilesystemSource
from butterfly_weights.source import ObjectInfo

NAME = "data.bin"
SIZE = 5 * Bounce.SIZE_BYTES // 2 + 1234  # ends inside of a block
EDGES = (0, 1, ALIGNMENT_BYTES, DIRECT_BYTES_MIN, Bounce.SIZE_BYTES, SIZE)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    return written(tmp_path_factory.mktemp("disk"))


def written(folder: Path) -> tuple[Path, bytes]:
    content = random.Random(7).randbytes(SIZE)
    with (folder / NAME).open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return folder, content


def forget(folder: Path, start: int = 0, count: int = 0) -> None:
    """Drop (a part of) the file from the page cache."""
    with (folder / NAME).open("rb") as file:
        os.posix_fadvise(file.fileno(), start, count, os.POSIX_FADV_DONTNEED)


def is_cached(folder: Path, offset: int) -> bool:
    with (folder / NAME).open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def read(folder: Path, offset: int, sizes: Sequence[int]) -> bytes:
    """Read consecutive views; each is a byte off from being aligned, within guards."""
    source = FilesystemSource(folder)
    memory = bytearray(b"\xee" * (sum(sizes) + 2 * len(sizes) + 1))
    views, position = [], 1
    for size in sizes:
        views.append(memoryview(memory)[position : position + size])
        position += size + 2
    told: list[int] = []
    source.reader().read_into(source.stat(NAME), offset, views, told.append)
    assert sum(told) == sum(sizes)
    found = b"".join(bytes(view) for view in views)
    for view in views:
        view[:] = b"\xee" * view.nbytes
    assert set(memory) == {0xEE}, "bytes beside the views were touched"
    return found


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, list[int]]:
    """An offset and sizes, many of them at or beside what reads are aligned to."""
    near = st.builds(
        lambda edge, off: min(max(0, edge + off), SIZE), st.sampled_from(EDGES), st.integers(-2, 2)
    )
    cuts = draw(st.lists(st.one_of(st.integers(0, SIZE), near), min_size=2, max_size=5))
    cuts.sort()
    return cuts[0], [stop - start for start, stop in pairwise(cuts)]


@settings(max_examples=60, deadline=None)
@given(wanted=ranges(), cold=st.sampled_from(["all", "none", "half"]))
def test_every_range_of_a_disk_is_read_right_cold_and_warm(
    disk: tuple[Path, bytes], wanted: tuple[int, list[int]], cold: str
) -> None:
    folder, content = disk
    (folder / NAME).read_bytes()
    if cold != "none":
        forget(folder, 0, 0 if cold == "all" else SIZE // 2)
    offset, sizes = wanted

    assert read(folder, offset, sizes) == content[offset : offset + sum(sizes)]


def test_a_cold_file_is_read_past_the_page_cache(disk: tuple[Path, bytes]) -> None:
    folder, content = disk
    middle = Bounce.SIZE_BYTES // 2

    def stays_out() -> bool:
        forget(folder)  # what another reader's pages are still coming for stays, so several tries
        assert read(folder, 5, [SIZE - 5]) == content[5:]
        return not is_cached(folder, middle)

    assert any(stays_out() for _ in range(20)), "this test's file system must allow O_DIRECT"


@pytest.mark.parametrize("where", ["fcntl", "preadv"])
@pytest.mark.parametrize("cold", [True, False])
def test_a_file_system_without_direct_reads_is_read_through_the_cache(
    disk: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch, where: str, cold: bool
) -> None:
    folder, content = disk
    real_fcntl, real_preadv = fcntl.fcntl, os.preadv
    flags = 0

    def refusing_fcntl(descriptor: int, command: int, value: int = 0) -> int:
        nonlocal flags
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            if where == "fcntl":
                raise OSError(errno.EINVAL, "no direct reads here")
            flags = value
            return 0
        flags = 0 if command == fcntl.F_SETFL else flags
        return int(real_fcntl(descriptor, command, value))

    def refusing_preadv(descriptor: int, views: Any, offset: int, how: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reads here")
        if how & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, "it cannot tell what is cached")
        return real_preadv(descriptor, views, offset)

    if cold:
        forget(folder)
    monkeypatch.setattr(fcntl, "fcntl", refusing_fcntl)
    monkeypatch.setattr(os, "preadv", refusing_preadv)

    assert read(folder, 3, [1, SIZE - 10]) == content[3 : SIZE - 6]


def test_memory_backed_file_systems_are_read_too() -> None:
    folder = Path("/dev/shm") / f"butterfly-{os.getpid()}"  # a tmpfs on every Linux
    folder.mkdir()
    try:
        _, content = written(folder)
        assert read(folder, 1, [SIZE - 2]) == content[1:-1]
    finally:
        (folder / NAME).unlink(missing_ok=True)
        folder.rmdir()


def test_a_disk_that_fails_is_named_with_the_byte(
    disk: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(SourceError, match=rf"{NAME}, byte 7: .*Input/output error"):
        read(disk[0], 7, [SIZE - 7])


def test_more_readers_than_a_disk_likes_wait_for_each_other_and_all_read(
    disk: tuple[Path, bytes],
) -> None:
    folder, content = disk
    forget(folder)
    source = FilesystemSource(folder)
    info: ObjectInfo = source.stat(NAME)
    step = SIZE // 24

    def one(number: int) -> bytes:
        memory = bytearray(step)
        source.reader().read_into(info, number * step, [memoryview(memory)], lambda _: None)
        return bytes(memory)

    with ThreadPoolExecutor(24) as pool:
        assert b"".join(pool.map(one, range(24))) == content[: 24 * step]
