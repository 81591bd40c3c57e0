"""The local cache: what it gives is proven, what goes wrong with it stops nothing."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.layers import all_parts
from butterfly_weights import cache_files
from butterfly_weights.cache import TensorCache
from butterfly_weights.cache_files import clear, entries_in
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.merkle import leaf_digest
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import Source, open_source
from tests.support.checkpoints import Shape, write_checkpoint

LAYERS = 4


@pytest.fixture(params=["with manifest", "without"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    write_checkpoint(tmp_path / "model", Shape())
    opened = open_source("filesystem", str(tmp_path / "model"))
    if request.param == "with manifest":
        write_manifest(opened, create_manifest(opened))
    return opened


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def caches() -> Iterator[list[TensorCache]]:
    opened: list[TensorCache] = []
    yield opened
    for cache in opened:
        cache.close()


def start(source: Source, cache: TensorCache) -> LoadResult:
    """What a node does at each start, up to the cache being written."""
    try:
        result = Loader(source, read_checkpoint(source), cache=cache).load(all_parts(LAYERS))
        assert cache.flush(30)
        return result
    finally:
        cache.close()


def contents(result: LoadResult) -> dict[str, bytes]:
    return {name: bytes(tensor.data) for name, tensor in result.tensors.items()}


def test_a_second_start_reads_nothing_from_the_source(source: Source, place: Path) -> None:
    first = start(source, TensorCache(place))
    second = start(source, TensorCache(place))

    assert (first.bytes_from_cache, second.bytes_from_source) == (0, 0)
    assert second.bytes_from_cache == first.bytes_from_source
    assert contents(second) == contents(first)
    assert second.part_digests == first.part_digests


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed", "unreadable"])
def test_a_damaged_entry_is_dropped_and_fetched_again(
    source: Source, place: Path, damage: str
) -> None:
    first = start(source, TensorCache(place))
    victim = max(entries_in(place), key=lambda entry: entry.nbytes).path
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "flipped":
        victim.write_bytes(content)
    elif damage == "removed":
        victim.unlink()
    elif damage == "unreadable":
        victim.unlink()
        victim.symlink_to("/etc/hostname")
    else:
        os.truncate(victim, 10 if damage == "truncated" else 0)

    second = start(source, TensorCache(place))
    third = start(source, TensorCache(place))

    assert contents(second) == contents(first)
    assert second.bytes_from_source > 0
    assert bool(second.events) is (damage == "flipped")
    if damage != "unreadable":
        assert third.bytes_from_source == 0


def test_an_entry_of_another_model_under_this_name_is_not_believed(
    source: Source, place: Path, tmp_path: Path
) -> None:
    first = start(source, TensorCache(place))
    write_checkpoint(tmp_path / "other", Shape(seed=5))
    start(open_source("filesystem", str(tmp_path / "other")), TensorCache(tmp_path / "theirs"))
    ours, theirs = (
        sorted(entries_in(folder), key=lambda entry: (entry.nbytes, entry.path.name))
        for folder in (place, tmp_path / "theirs")
    )
    for own, foreign in zip(ours, theirs, strict=True):
        own.path.write_bytes(foreign.path.read_bytes())

    second = start(source, TensorCache(place))

    assert contents(second) == contents(first)
    assert second.events


def test_a_pin_that_lies_costs_a_fetch_and_no_more(place: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", Shape())
    source = open_source("filesystem", str(tmp_path / "model"))
    first = start(source, TensorCache(place))
    pins = place / "revisions" / read_checkpoint(source).cache_key
    lines = pins.read_text().splitlines()
    digests = [line.split()[0] for line in lines]
    names = [line.split()[1] for line in lines]
    crossed = [f"{d} {n}" for d, n in zip(digests[1:] + digests[:1], names, strict=True)]
    pins.write_text("\n".join([*crossed, "garbage", "\0", "zz model.norm.weight"]))

    second = start(source, TensorCache(place))

    assert contents(second) == contents(first)


def test_a_changed_source_is_not_answered_from_old_pins(place: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", Shape())
    source = open_source("filesystem", str(tmp_path / "model"))
    start(source, TensorCache(place))
    write_checkpoint(tmp_path / "model", Shape(seed=2))

    second = start(source, TensorCache(place))

    assert second.bytes_from_cache == 0


@pytest.mark.parametrize("error", ["ENOSPC", "EROFS", "EIO"])
def test_a_disk_that_fails_stops_caching_and_not_the_load(
    source: Source, place: Path, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(errno, error)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache_files, "_write_all", fail)
    cache = TensorCache(place)

    result = start(source, cache)

    assert len(result.tensors) == 39
    assert any("stopped caching" in note and os.strerror(number) in note for note in cache.notes)
    assert list(entries_in(place)) == []
    assert cache.statistics().skipped == 39


def test_a_folder_that_cannot_be_made_is_only_noted(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TensorCache(tmp_path / "file" / "cache")

    assert len(start(source, cache).tensors) == 39
    assert cache.notes


def test_a_folder_that_goes_in_mid_load_is_only_noted(source: Source, place: Path) -> None:
    first = TensorCache(place)
    place.rename(place.with_name("gone"))
    place.write_text("in the way")

    assert len(start(source, first).tensors) == 39
    assert first.notes


def test_disk_space_is_left_for_others(source: Source, place: Path) -> None:
    cache = TensorCache(place, free_bytes_min=1 << 60)

    start(source, cache)

    assert any("stay free" in note for note in cache.notes)
    assert list(entries_in(place)) == []


def offer(cache: TensorCache, content: bytes) -> bytes:
    digest = leaf_digest(content)
    cache.offer("t", digest, memoryview(content))
    assert cache.flush(10)
    return digest


def test_the_entry_used_longest_ago_makes_room(place: Path, caches: list[TensorCache]) -> None:
    before = TensorCache(place)
    old, used = (offer(before, bytes([n]) * 1000) for n in (1, 2))
    before.close()
    for age, digest in ((50, old), (100, used)):
        path = cache_files.tensor_path(place, digest)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    cache = TensorCache(place, bytes_max=2500)
    caches.append(cache)
    with cache.opened(used):
        pass

    new = offer(cache, b"3" * 1000)

    assert [cache.holds(digest, 1000) for digest in (old, used, new)] == [False, True, True]


def test_a_model_larger_than_the_cache_does_not_push_itself_out(
    place: Path, caches: list[TensorCache]
) -> None:
    cache = TensorCache(place, bytes_max=2500)
    caches.append(cache)

    digests = [offer(cache, bytes([n]) * 1000) for n in range(4)]

    assert [cache.holds(digest, 1000) for digest in digests] == [True, True, False, False]
    assert cache.statistics().skipped == 2


def test_a_second_process_reads_but_does_not_write(place: Path, caches: list[TensorCache]) -> None:
    first, second = TensorCache(place), TensorCache(place)
    caches += [first, second]
    known = offer(first, b"a" * 10)

    other = offer(second, b"b" * 10)

    assert second.holds(known, 10)
    assert not second.holds(other, 10)
    assert "another process" in second.notes[0]


def test_what_a_dead_process_left_half_written_is_removed(
    place: Path, caches: list[TensorCache]
) -> None:
    half = place / "tensors" / "ab" / f"{'ab' * 32}.01234567.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    cache = TensorCache(place)
    caches.append(cache)

    offer(cache, b"whole")

    assert not half.exists()
    half.write_bytes(b"half")
    assert clear(place) == len(b"whole" + b"half")


def test_clearing_frees_everything_also_under_a_process_that_uses_it(
    source: Source, place: Path
) -> None:
    first = start(source, TensorCache(place))
    cache = TensorCache(place)

    freed = clear(place)
    again = start(source, cache)

    assert freed == first.bytes_from_source
    assert again.bytes_from_source == first.bytes_from_source
    assert start(source, TensorCache(place)).bytes_from_source == 0
    assert clear(place.with_name("nothing")) == 0


def test_entries_are_for_their_owner_alone(source: Source, place: Path) -> None:
    start(source, TensorCache(place))

    assert place.stat().st_mode & 0o077 == 0
    for path in place.rglob("*"):
        assert path.is_dir() or path.stat().st_mode & 0o022 == 0


def test_a_cache_that_goes_while_it_is_listed_has_no_more_entries(tmp_path: Path) -> None:
    for digest in ("aa" * 32, "bb" * 32):
        path = tmp_path / "tensors" / digest[:2] / digest
        path.parent.mkdir(parents=True)
        path.write_bytes(b"1234")
    entries = entries_in(tmp_path)

    assert next(entries).nbytes == 4
    shutil.rmtree(tmp_path)

    assert list(entries) == []
